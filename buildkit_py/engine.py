"""A docker engine's images, through its API: what it can hold, and how to put something into it.

Source: docker engine API v1.51, "Images".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from buildkit_py.errors import BuildKitError, ConnectFailed, InvalidOption, ProtocolError

_T = TypeVar("_T")
_USUAL = "unix:///var/run/docker.sock"
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 600.0  # an engine unpacks what it loads before it answers
_MAX_ANSWER_BYTES = 64 << 20
_MAX_IMAGES = 500  # looked at for layers; more would take longer than sending some
_CONTAINERD = "io.containerd.snapshotter.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself."""

    containerd_store: bool
    """True where images of several platforms, with their attestations, have a place."""
    os: str
    architecture: str
    """As uname has it."""


class Engine:
    """One engine. Calls connect anew; all of them raise ConnectFailed or BuildKitError."""

    def __init__(self, address: str, *, env: Mapping[str, str] | None = None) -> None:
        """address is ``unix:///path`` or ``tcp://host:port``; raises InvalidOption for any other.

        Across a network ``DOCKER_TLS_VERIFY`` of env means TLS with the certificates of ``DOCKER_CERT_PATH``.
        """
        self.address = address
        parts = urllib.parse.urlsplit(address)
        if parts.scheme == "unix" and parts.path:
            self.socket: str | None = parts.path
            """Where it listens; None for one across a network."""
        elif parts.scheme == "tcp" and parts.hostname:
            self.socket = None
        else:
            raise InvalidOption(f"docker engine {address!r}: expected unix:///path or tcp://host:port")
        env = os.environ if env is None else env
        self._certificates = None if self.socket or not env.get("DOCKER_TLS_VERIFY") else _certificates(env)
        default = 2375 if self._certificates is None else 2376
        self._host, self._port = parts.hostname or "docker", parts.port or default

    async def info(self) -> EngineInfo:
        """Ask what it can hold."""
        fields = cast("dict[str, object]", json.loads(await self._call("GET", "/info")))
        status = fields.get("DriverStatus")
        pairs = cast("list[list[str]]", status) if isinstance(status, list) else []
        return EngineInfo(
            containerd_store=["driver-type", _CONTAINERD] in pairs,
            os=str(fields.get("OSType", "linux")),
            architecture=str(fields.get("Architecture", "")),
        )

    async def image_digest(self, name: str) -> str:
        """Digest of the image of this name: of its index or manifest, in a classic store of its config."""
        raw = await self._call("GET", f"/images/{urllib.parse.quote(name)}/json")
        found = cast("dict[str, object]", json.loads(raw)).get("Id")
        if not isinstance(found, str):
            raise ProtocolError(f"docker engine: the image {name} has no Id")
        return found

    async def layer_chains(self) -> frozenset[tuple[str, ...]]:
        """Diff ids of layers, from the lowest up, that images of a classic store have."""
        listed = cast("list[dict[str, object]]", json.loads(await self._call("GET", "/images/json")))
        chains: set[tuple[str, ...]] = set()
        for entry in listed[:_MAX_IMAGES]:
            raw = await self._call("GET", f"/images/{urllib.parse.quote(str(entry.get('Id')))}/json")
            rootfs = cast("dict[str, dict[str, list[str] | None]]", json.loads(raw)).get("RootFS", {})
            layers = rootfs.get("Layers") or []
            chains |= {tuple(layers[:depth]) for depth in range(1, len(layers) + 1)}
        return frozenset(chains)

    async def remove_name(self, name: str) -> None:
        """Take a name away, and what had no other."""
        await self._call("DELETE", f"/images/{urllib.parse.quote(name)}")

    async def load(self, archive: Iterable[bytes]) -> None:
        """Load an archive as ``docker load`` does; it is read in a thread. Raises BuildKitError with its reason."""
        body = await self._call("POST", "/images/load?quiet=1", archive)
        for line in body.splitlines():
            try:
                message: object = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict) and (said := cast("dict[str, object]", message).get("error")):
                raise BuildKitError(f"docker engine: the image was not loaded: {said}")

    async def _call(self, method: str, path: str, body: Iterable[bytes] | None = None) -> bytes:
        connection = _Connection(self.socket, self._host, self._port, self._certificates)

        def run() -> bytes:
            try:
                return _exchange(connection, method, path, body)
            except ConnectionRefusedError as error:
                raise ConnectFailed(f"docker engine {self.address}: nothing listens there") from error
            except (OSError, http.client.HTTPException) as error:
                raise ConnectFailed(f"docker engine {self.address}: {error}") from error

        return await _in_thread(run, connection.abort)


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket, or over TCP."""

    def __init__(self, path: str | None, host: str, port: int, certificates: Path | None) -> None:
        super().__init__(host, port, timeout=_CONNECT_SECONDS)
        self._path = path
        self._certificates = certificates

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            if self._certificates is not None:
                self.sock = _context(self._certificates).wrap_socket(self.sock, server_hostname=self.host)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(_CONNECT_SECONDS)
            self.sock.connect(self._path)
        self.sock.settimeout(_ANSWER_SECONDS)

    def abort(self) -> None:
        """Make whoever waits for it give up; safe to call from any thread."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _certificates(env: Mapping[str, str]) -> Path:
    """The folder with docker's certificates, as its CLI finds it."""
    folder = Path(env.get("DOCKER_CERT_PATH") or env.get("DOCKER_CONFIG") or "~/.docker").expanduser()
    if not (folder / "ca.pem").is_file():
        raise InvalidOption(f"DOCKER_TLS_VERIFY is set, and {folder} (DOCKER_CERT_PATH) has no ca.pem")
    return folder


def _context(folder: Path) -> ssl.SSLContext:
    """Blocks."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if (folder / "cert.pem").is_file():
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def _exchange(connection: _Connection, method: str, path: str, body: Iterable[bytes] | None) -> bytes:
    with contextlib.closing(connection):
        headers = {} if body is None else {"Content-Type": "application/x-tar"}
        try:
            connection.request(method, path, body, headers, encode_chunked=body is not None)
        except (BrokenPipeError, ConnectionResetError):
            if body is None:
                raise
            # It has read enough to refuse the rest, and says why.
        answer = connection.getresponse()
        content = answer.read(_MAX_ANSWER_BYTES)
        if answer.status >= 400:
            raise BuildKitError(f"docker engine: {method} {path.partition('?')[0]}: {_reason(answer.status, content)}")
        return content


def _reason(status: int, content: bytes) -> str:
    with contextlib.suppress(ValueError):
        message: object = json.loads(content)
        if isinstance(message, dict) and isinstance(text := cast("dict[str, object]", message).get("message"), str):
            return text
    return f"HTTP {status}"


async def _in_thread(run: Callable[[], _T], abort: Callable[[], None]) -> _T:
    """Run in a thread; cancelling calls abort and waits for the thread."""
    task = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        abort()
        # What it fails with now is of no interest, and has to be looked at all the same.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait((task,), timeout=_CONNECT_SECONDS)
        raise


def find_engine(context: str = "", *, env: Mapping[str, str] | None = None) -> Engine:
    """The engine of a docker context, or the one that the docker CLI would use. Blocks for small files.

    Raises InvalidOption for a context that does not exist.
    """
    env = os.environ if env is None else env
    folder = Path(env.get("DOCKER_CONFIG") or "~/.docker").expanduser()
    if not context:
        if host := env.get("DOCKER_HOST"):
            return Engine(host, env=env)
        context = env.get("DOCKER_CONTEXT") or _current_context(folder)
    return Engine(_USUAL if context in {"", "default"} else _endpoint(folder, context))


def _current_context(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        fields: object = json.loads((folder / "config.json").read_bytes())
        if isinstance(fields, dict):
            return str(cast("dict[str, object]", fields).get("currentContext") or "")
    return ""


def _endpoint(folder: Path, context: str) -> str:
    """Source: docker cli, cli/context/store."""
    name = hashlib.sha256(context.encode()).hexdigest()
    try:
        fields = json.loads((folder / "contexts" / "meta" / name / "meta.json").read_bytes())
        return str(fields["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidOption(f"docker context {context!r}: there is no such context in {folder}") from error


__all__ = ["Engine", "EngineInfo", "find_engine"]
