"""Where a daemon listens, as text and as a value."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from buildkit_py.errors import InvalidAddress, without_credentials

Scheme: TypeAlias = Literal["unix", "tcp", "docker"]

DOCKER_SOCKET = "/var/run/docker.sock"
ROOTFUL_SOCKET = "/run/buildkit/buildkitd.sock"

_EXPECTED = (
    "expected unix:///path/to/buildkitd.sock, tcp://host:port, docker://, docker:///path/to/docker.sock or "
    "docker://host:port, or the absolute path of a socket"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
_MAX_SOCKET_PATH = 107  # sizeof(sockaddr_un.sun_path) - 1 on Linux


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens. ``str()`` gives the text that ``parse()`` reads."""

    scheme: Scheme
    path: str = ""
    """Of the socket, for unix, and for docker on this machine."""
    host: str = ""
    """Name or IP address (without brackets), for tcp, and for docker across a network."""
    port: int = 0

    @classmethod
    def parse(cls, text: str, *, env: Mapping[str, str] | None = None) -> Address:
        """Read ``unix://``, ``tcp://``, ``docker://`` or a socket's path; raise InvalidAddress for others.

        A plain path has to be absolute. One whose name ends in ``docker.sock`` is docker's, any other is
        BuildKit's own. ``docker://`` alone means what ``DOCKER_HOST`` in env names, else the usual socket.
        """
        if text.startswith("/"):
            name = text.rstrip("/").rpartition("/")[2]
            return cls("docker" if name.endswith("docker.sock") else "unix", path=_socket_path(text, text))
        match = _SCHEME.fullmatch(text)
        if match is None:
            raise InvalidAddress(f"invalid daemon address {text!r}: {_EXPECTED}")
        scheme, rest = match[1].lower(), match[2]
        match scheme:
            case "unix":
                return cls("unix", path=_socket_path(rest, text))
            case "docker":
                return _docker(rest, text) if rest else _docker_host(env or {})
            case "tcp":
                host, port = _host_port(rest, text)
                return cls("tcp", host=host, port=port)
            case _:
                shown = without_credentials(text)
                raise InvalidAddress(f"unknown scheme {scheme!r} in daemon address {shown!r}: {_EXPECTED}")

    def __str__(self) -> str:
        if self.host:
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"{self.scheme}://{host}:{self.port}"
        return f"{self.scheme}://{self.path}"

    @property
    def is_loopback(self) -> bool:
        """True unless bytes sent there can leave this machine."""
        if not self.host or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def default_addresses(env: Mapping[str, str], uid: int) -> list[Address]:
    """Where to look for a daemon when none is named, in order.

    ``BUILDKIT_HOST`` alone when it is set; else BuildKit's rootful and rootless sockets, then docker's.
    Raises InvalidAddress when ``BUILDKIT_HOST`` is not an address.
    """
    if named := env.get("BUILDKIT_HOST"):
        try:
            return [Address.parse(named, env=env)]
        except InvalidAddress as error:
            raise InvalidAddress(f"BUILDKIT_HOST: {error}") from None
    # The variable may hold a list, of which daemons use the first entry.
    runtime = env.get("XDG_RUNTIME_DIR", "").split(":")[0] or (f"/run/user/{uid}" if uid else "")
    places = [Address("unix", path=ROOTFUL_SOCKET)]
    if runtime:
        places.append(Address("unix", path=f"{runtime}/buildkit/buildkitd.sock"))
    places.append(_docker_host(env))
    places.append(Address("docker", path=DOCKER_SOCKET))
    if runtime:
        places.append(Address("docker", path=f"{runtime}/docker.sock"))
    return list(dict.fromkeys(places))


def _docker(rest: str, text: str) -> Address:
    if rest.startswith("/"):
        return Address("docker", path=_socket_path(rest, text))
    host, port = _host_port(rest.rstrip("/"), text)
    return Address("docker", host=host, port=port)


def _docker_host(env: Mapping[str, str]) -> Address:
    """Docker's engine; a DOCKER_HOST that is neither a unix socket nor tcp is not for us."""
    named = env.get("DOCKER_HOST", "")
    if named.startswith("tcp://"):
        try:
            return _docker(named.removeprefix("tcp://"), named)
        except InvalidAddress as error:
            raise InvalidAddress(f"DOCKER_HOST: {error}") from None
    path = named.removeprefix("unix://")
    return Address("docker", path=_socket_path(path, named) if path.startswith("/") else DOCKER_SOCKET)


def _socket_path(path: str, text: str) -> str:
    if not path.strip("/"):
        raise InvalidAddress(f"invalid daemon address {text!r}: it names no socket; {_EXPECTED}")
    if "\0" in path:
        raise InvalidAddress(f"invalid daemon address {text!r}: a path cannot hold a NUL character")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidAddress(f"invalid daemon address {text!r}: a socket's path has at most {_MAX_SOCKET_PATH} bytes")
    return path


def _host_port(rest: str, text: str) -> tuple[str, int]:
    def wrong(why: str) -> InvalidAddress:
        return InvalidAddress(f"invalid daemon address {without_credentials(text)!r}: {why}; expected host:port")

    if rest.startswith("["):
        host, closed, tail = rest[1:].partition("]")
        if not closed or not _is_ip(host, 6):
            raise wrong("what stands in brackets is no IPv6 address")
    else:
        host, colon, tail = rest.rpartition(":")
        if not colon:
            raise wrong("it has no port")
        if ":" in host:
            raise wrong("an IPv6 address stands in brackets")
        tail = colon + tail
        if not (_HOST.fullmatch(host) and len(host) <= 253):
            raise wrong("it has no host" if not host else f"{host!r} is no host name")
    port = tail.removeprefix(":")
    if not tail.startswith(":") or not port:
        raise wrong("it has no port")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise wrong(f"{port!r} is no port")
    return host.lower(), int(port)


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
