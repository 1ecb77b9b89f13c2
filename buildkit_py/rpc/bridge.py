"""A private socket in front of a stream that gRPC cannot open by itself.

gRPC dials unix and TCP sockets and nothing else. For all other ways to a daemon, a bridge listens on a unix
socket that only this process gets anything from, and joins each connection made to it to a stream that an
:data:`Opener` opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
import ssl
import struct
import sys
import tempfile
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from buildkit_py.errors import ConnectFailed, leaves
from buildkit_py.rpc.address import Address

logger = logging.getLogger(__name__)

BUFFER_BYTES = 256 << 10
"""One buffer for each direction of each connection; no byte waits anywhere else in this process."""
OPEN_SECONDS = 10.0
LINGER_SECONDS = 5.0
"""How long one direction may go on after the other has ended."""
_UPGRADE = b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
_MAX_HEAD_BYTES = 16 << 10
_MAX_REASON_BYTES = 4 << 10
_credentials = struct.Struct("3i")  # of the process at the other end: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Stream:
    """A byte stream to a daemon; to a child process, it is one end of a socket pair."""

    sock: socket.socket
    """Connected and non-blocking."""
    leftover: bytes = b""
    """What the daemon sent already."""


Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[Stream]]
"""Opens one stream, closes it at the end, and raises ConnectFailed when it cannot."""


@contextlib.asynccontextmanager
async def open_bridge(opener: Opener) -> AsyncGenerator[str, None]:
    """Listen on a unix socket, and yield what gRPC is to dial; all is gone at the end, however the process ends.

    The first stream is opened at once, so that ConnectFailed says why there is none. When a later one cannot
    be opened, its connection is closed, and whoever made it can try again. What else an opener raises is raised here
    too, at the end if not at once.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.setblocking(False)
        target = _bind(listener, stack)
        listener.listen(8)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # No task group around the yield: it would wrap errors of the caller's body in ExceptionGroups.
        serving = asyncio.create_task(_serve(listener, opener, opened))
        try:
            await asyncio.wait((serving, opened), return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                opened.result()
                yield target
        finally:
            serving.cancel()
            opened.cancel()
            await asyncio.wait([serving], timeout=LINGER_SECONDS)
        if serving.done() and not serving.cancelled():  # it never returns
            with _only_error():
                serving.result()


def _bind(listener: socket.socket, stack: contextlib.ExitStack) -> str:
    """Give the socket a name, and return it as gRPC has it."""
    if sys.platform == "linux":
        # A name that is no file: nothing stays behind a process that is killed, and nothing has to be writable.
        name = f"buildkit-py-{secrets.token_hex(16)}"
        with contextlib.suppress(OSError):  # a sandbox may not have such names
            listener.bind(f"\0{name}")
            return f"unix-abstract:{name}"
    # mkdtemp makes it 0700; the default folder may be too long a path for a socket.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bk-", dir=_short_tmp()))
    listener.bind(f"{folder}/s")
    return f"unix:{urllib.parse.quote(folder)}/s"


@contextlib.contextmanager
def _only_error() -> Generator[None, None, None]:
    """Raise the first error of a group as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = leaves(group)[0]
        raise error from error.__cause__


def _is_ours(connection: socket.socket) -> bool:
    """Whether this process made the connection. Others may find a name that is no file."""
    if sys.platform != "linux":
        return True
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _credentials.size)
    return bool(_credentials.unpack(peer)[0] == os.getpid())


async def _serve(listener: socket.socket, opener: Opener, opened: asyncio.Future[None]) -> None:
    """Join each connection to a stream, the first one to that whose outcome opened tells. Never returns."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[socket.socket] = loop.create_future()
    async with asyncio.TaskGroup() as streams:
        streams.create_task(_serve_first(waiting, opener, opened))
        while True:
            try:
                local = await _accept(listener)
            except OSError as error:  # too many open files, for one
                logger.warning("bridge: cannot accept a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            if not _is_ours(local):
                logger.warning("bridge: refused a connection of another process")
                local.close()
                continue
            local.setblocking(False)
            if waiting.done():
                streams.create_task(_serve_one(local, opener))
            else:
                waiting.set_result(local)


async def _accept(listener: socket.socket) -> socket.socket:
    """The next connection. Unlike the loop's own sock_accept(), this loses none to a cancellation."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(listener, _settle, readable)
            try:
                await readable
            finally:
                loop.remove_reader(listener)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _serve_first(waiting: asyncio.Future[socket.socket], opener: Opener, opened: asyncio.Future[None]) -> None:
    # A stream is opened, used and closed in one task, so that an opener may hold a task group of its own.
    try:
        async with opener() as stream:
            if not opened.done():  # else whoever waited was cancelled meanwhile
                opened.set_result(None)
            with await waiting as local:
                await join(local, stream)
    except (ConnectFailed, OSError) as error:
        if opened.done():
            logger.debug("bridge: stream ended: %s", error)
        else:
            opened.set_exception(error)


async def _serve_one(local: socket.socket, opener: Opener) -> None:
    with local:
        try:
            async with opener() as stream:
                await join(local, stream)
        except (ConnectFailed, OSError) as error:
            logger.debug("bridge: stream ended: %s", error)


async def join(local: socket.socket, stream: Stream) -> None:
    """Copy bytes both ways until both directions have ended, or one has and the other takes too long to.

    The end of one direction is passed on as such. Raises OSError when either side breaks.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:

            async def copy(source: socket.socket, target: socket.socket, before: bytes = b"") -> None:
                await _pump(source, target, before)
                if limit.when() is None:
                    limit.reschedule(loop.time() + LINGER_SECONDS)

            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(copy(local, stream.sock))
                pumps.create_task(copy(stream.sock, local, stream.leftover))
    except* OSError as group:
        error = group.exceptions[0]
    else:
        return
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    raise error


async def _pump(source: socket.socket, target: socket.socket, before: bytes) -> None:
    """Copy until source ends. Nothing is read before target has taken what was read before."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(target, before)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while size := await loop.sock_recv_into(source, cast(bytearray, buffer)):
        await loop.sock_sendall(target, cast(bytes, buffer[:size]))
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def docker_opener(path: str) -> Opener:
    """Streams to the BuildKit inside dockerd, by way of an HTTP upgrade on docker's socket."""

    @contextlib.asynccontextmanager
    async def opener() -> AsyncGenerator[Stream, None]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    await loop.sock_connect(sock, path)
                    leftover = await _upgrade(sock)
            except TimeoutError:
                raise ConnectFailed(f"no answer of docker within {OPEN_SECONDS:g} s") from None
            except OSError as error:
                raise ConnectFailed(socket_reason(path, error)) from error
            yield Stream(sock, leftover)

    return opener


def remote_docker_opener(address: Address, context: ssl.SSLContext | None, server_name: str | None) -> Opener:
    """The same across a network, with TLS where there is a context."""

    @contextlib.asynccontextmanager
    async def opener() -> AsyncGenerator[Stream, None]:
        name = (server_name or address.host) if context is not None else None
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.setblocking(False)
            pumps: list[asyncio.Task[None]] = []
            writer: asyncio.StreamWriter | None = None
            try:
                try:
                    async with asyncio.timeout(OPEN_SECONDS):
                        reader, writer = await asyncio.open_connection(
                            address.host, address.port, ssl=context, server_hostname=name
                        )
                        pumps += [
                            asyncio.create_task(_read_into(far, reader)),
                            asyncio.create_task(_write(far, writer)),
                        ]
                        leftover = await _upgrade(near)
                except TimeoutError:
                    raise ConnectFailed(f"no answer of docker within {OPEN_SECONDS:g} s") from None
                except (OSError, ConnectFailed) as error:
                    raise ConnectFailed(await _network_reason(error, pumps)) from error
                yield Stream(near, leftover)
            finally:
                if writer is not None:
                    writer.transport.abort()
                for pump in pumps:
                    pump.cancel()
                if pumps:
                    await asyncio.wait(pumps, timeout=LINGER_SECONDS)

    return opener


async def _read_into(sock: socket.socket, reader: asyncio.StreamReader) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await reader.read(BUFFER_BYTES):
            await loop.sock_sendall(sock, data)
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)


async def _write(sock: socket.socket, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, BUFFER_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()  # TLS ends both ways at once


async def _network_reason(error: Exception, pumps: Sequence[asyncio.Task[None]]) -> str:
    """Why there is no stream: what broke below it tells more than that it ended."""
    if pumps and isinstance(error, ConnectFailed):
        await asyncio.wait(pumps[:1], timeout=0.1)
        below = pumps[0].exception() if pumps[0].done() and not pumps[0].cancelled() else None
        if isinstance(below, OSError):
            error = below
    match error:
        case ssl.SSLCertVerificationError():
            return f"TLS: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)


async def _upgrade(sock: socket.socket) -> bytes:
    """Ask docker to speak HTTP/2 from here on, and return what it has said so far. Raises ConnectFailed."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, _UPGRADE)
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > _MAX_HEAD_BYTES:
            raise ConnectFailed("what answers is not docker: the header of its answer does not end")
        chunk = await loop.sock_recv(sock, _MAX_HEAD_BYTES)
        if not chunk:
            raise ConnectFailed("what answers is not docker: it closed the connection")
        data += chunk
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise ConnectFailed("what answers is not docker: it does not speak HTTP")
    head, _, rest = data.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(None, 2)
    status = words[1].decode("ascii", "replace") if len(words) > 1 else "?"
    if status == "101":
        return rest
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(0.5):
            while len(rest) < _MAX_REASON_BYTES and (chunk := await loop.sock_recv(sock, _MAX_REASON_BYTES)):
                rest += chunk
                if _message(rest):
                    break
    said = f": {text}" if (text := _message(rest)) else ""
    if status == "400" and b"HTTPS" in rest:
        said += ": it expects TLS (DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH)"
    if status == "404":
        said += " (dockerd before 19.03, or built without BuildKit)"
    raise ConnectFailed(f"docker refused the upgrade to gRPC with HTTP {status}{said}")


def _message(body: bytes) -> str:
    """The text of an Engine API error, "" while there is none; printable, on one line."""
    text = body[body.find(b"{") : body.rfind(b"}") + 1]
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    message = cast("dict[str, object]", document).get("message") if isinstance(document, dict) else None
    if not isinstance(message, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in message)[:300].strip()


def socket_reason(path: str, error: OSError) -> str:
    """Why a connection to a unix socket failed, in words that help."""
    match error:
        case FileNotFoundError():
            return "there is no such socket"
        case ConnectionRefusedError():
            return "connection refused: the socket is there, but nothing listens on it"
        case PermissionError():
            return f"permission denied{_belongs_to(path)}"
        case _:
            return error.strerror or str(error)


def _belongs_to(path: str) -> str:
    try:
        file = Path(path)
        return f": the socket belongs to {file.owner()}:{file.group()}, mode {file.stat().st_mode & 0o777:o}"
    except (OSError, KeyError):
        return ""


def _short_tmp() -> str | None:
    """The usual folder for temporary files, unless a socket's path in it would be too long."""
    usual = tempfile.gettempdir()
    return usual if len(usual) < 80 else "/tmp"  # noqa: S108  # the folder made in it is 0700
