"""Connections to registries: with which trust, through which proxy, and which are kept for the next request."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import unquote, urlsplit

from buildkit_py.errors import InvalidOption
from buildkit_py.registry import _wire
from buildkit_py.registry._operation import Operation
from buildkit_py.registry._origin import Origin
from buildkit_py.registry._wire import Answer, Broken, Connection
from buildkit_py.registry.config import RegistryConfig, is_loopback

_HOSTS_KEPT = 16
"""Redirects may lead to any number of hosts."""


class ProxyFailed(Broken):
    """The proxy that the environment names did not connect us: for the reason in its text, or else for its cause."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused
        """Whether that is what the proxy said."""


class _Place(NamedTuple):
    """What a connection leads to, and by which proxy; for plain HTTP that is the proxy alone."""

    origin: Origin
    proxy: str


class Pool:
    """Keeps idle connections, so many to each host. Thread-safe."""

    def __init__(self, config: RegistryConfig, *, size: int) -> None:
        self._config = config
        self._size = size
        self._idle: dict[_Place, list[Connection]] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._contexts_lock = threading.Lock()

    def ask(
        self,
        method: str,
        origin: Origin,
        target: str,
        fields: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        *,
        timeouts: tuple[float, float],
        operation: Operation,
    ) -> Answer:
        """One request on a connection that was kept, or on a new one; timeouts are to connect, and for each wait.

        OSError and Unsendable are those of Connection.ask; InvalidOption for trust that cannot be had. The operation
        has the socket until it is told otherwise.
        """
        place = _Place(origin, proxy_for(origin))
        connection = self._take(place, operation) or self._connect(place, timeouts[0], operation)
        if place.proxy and origin.scheme == "http":
            target = f"http://{origin}{target}"
            fields = {**fields, **_proxy_authorization(place.proxy)}
        try:
            return connection.ask(
                method, target, fields, body, timeout=timeouts[1], done=lambda free: self._keep(place, free)
            )
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close what is idle; what is in use closes when it is done."""
        with self._lock:
            self._closed = True
            idle = [connection for some in self._idle.values() for connection in some]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _take(self, place: _Place, operation: Operation) -> Connection | None:
        while True:
            with self._lock:
                idle = self._idle.get(place)
                connection = idle.pop() if idle else None
            if connection is None:
                return None
            if connection.alive:
                operation.attach(connection.socket)
                return connection
            connection.close()

    def _keep(self, place: _Place, connection: Connection) -> None:
        dropped: list[Connection] = []
        with self._lock:
            if place not in self._idle and len(self._idle) >= _HOSTS_KEPT:
                dropped = self._idle.pop(next(iter(self._idle)))
            idle = self._idle.setdefault(place, [])
            if self._closed or len(idle) >= self._size:
                dropped = [*dropped, connection]
            else:
                idle.append(connection)
        for other in dropped:
            other.close()

    def _connect(self, place: _Place, timeout: float, operation: Operation) -> Connection:
        origin = place.origin
        if place.proxy:
            try:
                sock = self._through(place.proxy, origin, timeout, operation)
            except ProxyFailed:
                raise
            except OSError as error:
                raise ProxyFailed("") from error
        else:
            sock = _wire.connected(origin.host, origin.port, timeout)
        operation.attach(sock)
        if origin.scheme == "http":
            return Connection(sock)
        if isinstance(sock, ssl.SSLSocket):
            return self._nested(sock, origin)
        return Connection(self._secured(sock, str(origin), origin.host, operation))

    def _secured(self, sock: socket.socket, trusted: str, name: str, operation: Operation) -> ssl.SSLSocket:
        """TLS over a connection, which is closed where that fails."""
        try:
            context = self._context(trusted)
            secured = context.wrap_socket(sock, server_hostname=name.rstrip("."), do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        operation.attach(secured)
        try:
            secured.do_handshake()
        except BaseException as error:
            secured.close()
            if isinstance(error, TimeoutError):
                raise Broken(_wire.NOT_CONNECTED) from error
            raise
        return secured

    def _nested(self, sock: ssl.SSLSocket, origin: Origin) -> Connection:
        """TLS within the TLS of a proxy."""
        from urllib3.util.ssltransport import SSLTransport

        try:
            inner = SSLTransport(sock, self._context(str(origin)), origin.host.rstrip("."))
        except BaseException:
            sock.close()
            raise
        return Connection(cast("_wire.Socket", inner), sock)

    def _through(self, proxy: str, origin: Origin, timeout: float, operation: Operation) -> socket.socket:
        """A connection to a proxy, and for TLS on through it."""
        parts = urlsplit(proxy)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ProxyFailed("is none that speaks HTTP")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        sock = _wire.connected(parts.hostname, port, timeout)
        operation.attach(sock)
        if parts.scheme == "https":
            sock = self._secured(sock, f"{parts.hostname}:{port}", parts.hostname, operation)
        if origin.scheme == "http":
            return sock
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        there = f"{host}:{origin.port}"
        try:
            fields = {"Host": there, **_proxy_authorization(proxy)}
            answer = Connection(sock).ask("CONNECT", there, fields, None, timeout=timeout)
            if answer.status_code != 200:
                raise ProxyFailed(f"refuses to connect (HTTP {answer.status_code})", refused=True)
        except BaseException:
            sock.close()
            raise
        return sock

    def _context(self, host: str) -> ssl.SSLContext:
        with self._contexts_lock:
            context = self._contexts.get(host)
            if context is None:
                context = self._contexts[host] = tls_context(self._config, host)
            return context


def tls_context(config: RegistryConfig, host: str) -> ssl.SSLContext:
    """Trust for one host; InvalidOption where what it names cannot be read."""
    settings = config.host(host)
    context = ssl.create_default_context()
    if not _system_has_certificates():
        # python.org's macOS builds, slim images: then those that requests brings.
        from requests.utils import DEFAULT_CA_BUNDLE_PATH

        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        if isinstance(settings.ca, Path):
            context.load_verify_locations(cafile=settings.ca)
        elif settings.ca is not None:
            context.load_verify_locations(cadata=settings.ca.decode("ascii"))
        if settings.cert is not None:
            context.load_cert_chain(settings.cert, settings.key)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a PEM certificate"
        raise InvalidOption(f"registry {host}: the certificates given cannot be used: {reason}") from error
    if settings.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _system_has_certificates() -> bool:
    paths = ssl.get_default_verify_paths()
    # The stub says str, the documentation None for what does not exist.
    file, folder = cast("tuple[str | None, str | None]", (paths.cafile, paths.capath))
    return bool(file) or (bool(folder) and any(Path(str(folder)).iterdir()))


def proxy_for(origin: Origin) -> str:
    """URL of the proxy that the environment wants for a host, by the rules of requests; none for this machine."""
    if is_loopback(str(origin)) or not _names_proxies(os.environ):
        return ""
    from requests.utils import get_environ_proxies, select_proxy

    url = f"{origin.scheme}://{origin}/"
    found = select_proxy(url, get_environ_proxies(url)) or ""
    return found if "://" in found or not found else f"http://{found}"


def _names_proxies(environ: Mapping[str, str]) -> bool:
    """Whether there may be any: the rules take a tenth of a second to load."""
    if sys.platform in {"darwin", "win32"}:
        return True  # these have settings of the system
    return any(name.lower().endswith("_proxy") and value for name, value in environ.items())


def _proxy_authorization(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    known = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"}


__all__ = ["Pool", "ProxyFailed", "proxy_for", "tls_context"]
