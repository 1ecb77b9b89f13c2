"""SSH: agents that steps of a build may sign with.

What is forwarded is an agent's socket, or keys that this process holds; either way steps may list keys and sign,
and nothing else, unless an agent is forwarded raw. Source: moby/buildkit v0.32, session/sshforward; the
messages of agents: draft-ietf-sshm-ssh-agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import struct
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from buildkit_py.errors import InvalidOption
from buildkit_py.options import SSHSpec
from buildkit_py.session.attachable import Call, CallError, Code, Handler, metadata_values, only_message

_SERVICE = "/moby.sshforward.v1.SSH/"
CHECK_AGENT = f"{_SERVICE}CheckAgent"
FORWARD_AGENT = f"{_SERVICE}ForwardAgent"

DEFAULT_ID = "default"
MAX_MESSAGE_BYTES = 256 << 10
"""Of an agent message, as OpenSSH has it."""
CONNECT_SECONDS = 2.0

_ID_HEADER = "buildkit.ssh.id"
_CHUNK_BYTES = 32 << 10

REQUEST_IDENTITIES, SIGN_REQUEST = 11, 13
FAILURE = b"\x00\x00\x00\x01\x05"
"""The answer to what is not allowed, length and all."""
_length = struct.Struct(">L")


class Agent(Protocol):
    """Answers messages of the agent protocol."""

    async def ask(self, message: bytes) -> bytes:
        """The answer to a message, both without their length."""
        ...


class AgentSource(Protocol):
    """Gives every connection of a step an agent of its own."""

    def connect(self) -> contextlib.AbstractAsyncContextManager[Agent]:
        """Raises CallError when there is none."""
        ...


class SSHForward:
    """Serves agents by id."""

    def __init__(self, specs: Iterable[SSHSpec], *, environ: Mapping[str, str] | None = None) -> None:
        """Look for every socket and load every key; InvalidOption for what is missing or unusable.

        Also for an id that is given twice, and for keys that need a passphrase: those belong into an agent.
        Blocks shortly on files.
        """
        environ = os.environ if environ is None else environ
        self._sources: dict[str, AgentSource | Path] = {}
        for spec in specs:
            spec.check()
            if spec.id in self._sources:
                raise InvalidOption(f"ssh {spec.id}: given twice")
            self._sources[spec.id] = _source(spec, environ)

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        return {CHECK_AGENT: self._check, FORWARD_AGENT: self._forward}

    async def _check(self, call: Call) -> None:
        from buildkit_py.pb import ssh_pb2  # most builds use no ssh

        request = ssh_pb2.CheckAgentRequest.FromString(await only_message(call))
        self._find(request.ID)
        await call.send(b"")

    async def _forward(self, call: Call) -> None:
        source = self._find(next(iter(metadata_values(call.metadata, _ID_HEADER)), ""))
        if isinstance(source, Path):
            await _pipe(call, source)
        else:
            async with source.connect() as agent:
                await _filter(call, agent)

    def _find(self, name: str) -> AgentSource | Path:
        source = self._sources.get(name or DEFAULT_ID)
        if source is None:
            raise CallError(Code.UNKNOWN, f"no ssh agent or key was given for id {(name or DEFAULT_ID)[:200]} (--ssh)")
        return source


def _source(spec: SSHSpec, environ: Mapping[str, str]) -> AgentSource | Path:
    if spec.paths:
        paths = [Path(path) for path in spec.paths]
    elif environ.get("SSH_AUTH_SOCK"):
        paths = [Path(environ["SSH_AUTH_SOCK"])]
    else:
        raise InvalidOption(
            f"ssh {spec.id}: no path is given and $SSH_AUTH_SOCK is not set: start an agent or name keys"
        )
    sockets = [path for path in paths if _is_socket(spec.id, path)]
    if not sockets:
        if spec.raw:
            raise InvalidOption(f"ssh {spec.id}: raw=true needs a socket, {paths[0]} is none")
        from buildkit_py.session.sshkeys import KeyAgent, load_key

        return KeyAgent([load_key(path, what=f"ssh {spec.id}") for path in paths])
    if len(paths) > 1:
        raise InvalidOption(f"ssh {spec.id}: expected one socket, or keys alone")
    return sockets[0] if spec.raw else _AgentSocket(sockets[0])


def _is_socket(name: str, path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError as error:
        raise InvalidOption(f"ssh {name}: {path}: {error.strerror}") from error


class _AgentSocket:
    """An agent of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncGenerator[Agent]:
        """See AgentSource."""
        async with _connected(self._path) as (reader, writer):
            yield _Connection(reader, writer)


class _Connection:
    """Agent at the other end of a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, message: bytes) -> bytes:
        """See Agent. Waits as long as the agent does, which may ask its user."""
        try:
            self._writer.write(_length.pack(len(message)) + message)
            await self._writer.drain()
            (size,) = _length.unpack(await self._reader.readexactly(_length.size))
            if not 0 < size <= MAX_MESSAGE_BYTES:
                raise CallError(Code.UNKNOWN, "the ssh agent sent a message of no sensible size")
            return await self._reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise CallError(Code.UNAVAILABLE, "the ssh agent closed the connection") from error


@contextlib.asynccontextmanager
async def _connected(path: Path) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
    except (OSError, TimeoutError) as error:
        why = getattr(error, "strerror", None) or "no answer"
        raise CallError(Code.UNAVAILABLE, f"cannot connect to the ssh agent {path}: {why}") from error
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _filter(call: Call, agent: Agent) -> None:
    """Pass on questions for keys and signatures, one at a time; refuse the others."""
    buffer = bytearray()
    while (message := await call.receive()) is not None:
        buffer += _data_of(message)
        while len(buffer) >= _length.size:
            (size,) = _length.unpack_from(buffer)
            if not 0 < size <= MAX_MESSAGE_BYTES:
                raise CallError(Code.INVALID_ARGUMENT, "the step sent an ssh agent message of no sensible size")
            if len(buffer) < _length.size + size:
                break
            question = bytes(buffer[_length.size : _length.size + size])
            del buffer[: _length.size + size]
            if question[0] not in (REQUEST_IDENTITIES, SIGN_REQUEST):
                await call.send(_bytes_message(FAILURE))
                continue
            answer = await agent.ask(question)
            await _send(call, _length.pack(len(answer)) + answer)


async def _pipe(call: Call, path: Path) -> None:
    """Bytes both ways until both sides have ended."""
    async with _connected(path) as (reader, writer):

        async def to_socket() -> None:
            while (message := await call.receive()) is not None:
                writer.write(_data_of(message))
                await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(to_socket())
            try:
                while data := await reader.read(_CHUNK_BYTES):
                    await call.send(_bytes_message(data))
            except OSError as error:
                raise CallError(Code.UNAVAILABLE, f"{path}: {error.strerror}") from error
            writing.cancel()


async def _send(call: Call, data: bytes) -> None:
    for start in range(0, len(data), _CHUNK_BYTES):
        await call.send(_bytes_message(data[start : start + _CHUNK_BYTES]))


def _data_of(message: bytes) -> bytes:
    from buildkit_py.pb import ssh_pb2

    return ssh_pb2.BytesMessage.FromString(message).data


def _bytes_message(data: bytes) -> bytes:
    from buildkit_py.pb import ssh_pb2

    return ssh_pb2.BytesMessage(data=data).SerializeToString()


__all__ = ["SSHForward"]
