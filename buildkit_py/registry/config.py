"""How to reach each registry: scheme, trust, mirrors, credentials, timeouts and retries, as values."""

from __future__ import annotations

import functools
import ipaddress
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from buildkit_py.errors import InvalidOption
from buildkit_py.registry.credentials import HUB_NAMES, Credentials, CredentialStore, StaticCredentials

HUB_API_HOST = "registry-1.docker.io"
CERTS_D = "BUILDKIT_PY_CERTS_D"
"""Environment variable that names directories to look into before the usual ones."""
_EVERY_PATH = "/v2"


def api_host(host: str) -> str:
    """The host that serves a registry's API: itself, but for the names of Docker Hub."""
    return HUB_API_HOST if host in HUB_NAMES else host


def split_host(host: str) -> tuple[str, int | None]:
    """Name and port of ``name[:port]`` or ``[v6][:port]``; InvalidOption for anything else."""
    name, port = host, ""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidOption(f"registry host {host!r}: expected host[:port]")
        port = rest[1:]
    elif ":" in host:
        name, _, port = host.partition(":")
    if not name or any(c in name for c in "/@?# ") or (port and not (port.isascii() and port.isdigit())):
        raise InvalidOption(f"registry host {host!r}: expected host[:port]")
    if port and not 0 < int(port) < 65536:
        raise InvalidOption(f"registry host {host!r}: no such port")
    return name.lower(), int(port) if port else None


@functools.lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether host[:port] is ``localhost``, in 127.0.0.0/8, or ``::1``.

    Source: containerd, core/remotes/docker (what speaks plain HTTP without being told to).
    """
    name, _ = split_host(host)
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _filed(host: str) -> str:
    """What settings are filed under: lower case, the API's host, and no port where it is that of https."""
    return api_host(host.lower().removesuffix(":443"))


@dataclass(frozen=True, slots=True)
class Mirror:
    """A host that serves the repositories of another one."""

    host: str
    """``host[:port]``; what is said of it as a host of its own holds here, too."""
    path: str = _EVERY_PATH
    """What stands before a repository's name in its URLs."""

    @classmethod
    def parse(cls, text: str) -> Mirror:
        """Read ``host[:port][/prefix]``, as buildkitd.toml has it; raises InvalidOption."""
        host, slash, prefix = text.partition("/")
        split_host(host)
        prefix = prefix.strip("/")
        if slash and not prefix:
            raise InvalidOption(f"registry mirror {text!r}: expected host[:port][/prefix]")
        return cls(_filed(host), f"{_EVERY_PATH}/{prefix}" if prefix else _EVERY_PATH)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """Settings of one registry host."""

    plain_http: bool | None = None
    """HTTP without TLS; None asks the name: loopback addresses and ``localhost`` are plain."""
    skip_verify: bool = False
    """Accept any certificate."""
    ca: Path | bytes | None = None
    """Certificates (PEM) to trust beside those of the system; a file or the bytes."""
    cert: Path | None = None
    """Our own certificate (PEM), for registries that ask for one."""
    key: Path | None = None
    """Its private key, where it is not in the same file."""
    credentials: Credentials | None = None
    """Used instead of what the credential store would say."""
    mirrors: Sequence[Mirror | str] = ()
    """Where manifests and blobs are read, in this order."""
    fallback: bool = True
    """Whether the host itself is asked after its mirrors, or only if it is one of them."""
    push_to: Mirror | str | None = None
    """Where pushes go, if not to the host itself."""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False, hash=False)
    """Sent along with every request to this host, and to no other."""
    connect_timeout: float | None = None
    """Seconds for a connection to this host, where they differ from those of all."""

    def __post_init__(self) -> None:
        if self.plain_http and self.tls:
            raise InvalidOption("registry: plain_http does not go together with ca, cert or skip_verify")
        if self.key is not None and self.cert is None:
            raise InvalidOption("registry: a key without its certificate")
        if self.connect_timeout is not None and not 0 < self.connect_timeout < math.inf:
            raise InvalidOption(f"registry: {self.connect_timeout} seconds to connect, expected more than none")
        for mirror in self.mirrors:
            _mirror(mirror)
        if self.push_to is not None:
            _mirror(self.push_to)

    @property
    def tls(self) -> bool:
        """Whether anything is said about TLS, which a host without TLS would have no use for."""
        return self.skip_verify or self.ca is not None or self.cert is not None


def system_directories(environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Where docker, podman and containerd keep settings of registries: those of the user before the system's."""
    environ = os.environ if environ is None else environ
    named = [Path(text) for text in environ.get(CERTS_D, "").split(os.pathsep) if text]
    home = Path(environ.get("HOME") or "~").expanduser()
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return (
        *named,
        config / "containers" / "certs.d",
        config / "docker" / "certs.d",
        Path("/etc/containerd/certs.d"),
        Path("/etc/containers/certs.d"),
        Path("/etc/docker/certs.d"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """Settings by ``host[:port]``; hosts that are not listed get what the directories say, or the default."""

    hosts: Mapping[str, HostConfig] = field(default_factory=lambda: MappingProxyType({}))
    default: HostConfig = field(default_factory=HostConfig)
    directories: Sequence[Path] = ()
    """Directories like ``/etc/docker/certs.d`` and ``/etc/containerd/certs.d``: read once for each host, when it is
    asked about first."""
    _read: dict[str, HostConfig | None] = field(
        default_factory=dict[str, HostConfig | None], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for host in self.hosts:
            split_host(host)
        # One spelling inside: a setting for docker.io is one for the host that serves its API.
        known = {_filed(host): settings for host, settings in self.hosts.items()}
        object.__setattr__(self, "hosts", MappingProxyType(known))
        if self.default.credentials is not None:
            raise InvalidOption("registry: credentials belong to one host, not to the default of all")

    @classmethod
    def of_system(
        cls, hosts: Mapping[str, HostConfig] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> RegistryConfig:
        """Settings given for some hosts, and what this machine's directories say of all others."""
        return cls(hosts=hosts or {}, directories=system_directories(environ))

    def host(self, host: str) -> HostConfig:
        """Settings of one host. InvalidOption where its directory holds what cannot be used."""
        filed = _filed(host)
        given = self.hosts.get(filed)
        return given if given is not None else self._from_directories(filed) or self.default

    def _from_directories(self, host: str) -> HostConfig | None:
        # Threads may both read it: they find the same.
        if host not in self._read:
            self._read[host] = self._found(host)
        return self._read[host]

    def _found(self, host: str) -> HostConfig | None:
        if not any(directory.is_dir() for directory in self.directories):
            return None
        from buildkit_py.registry.hosts import read_directories

        found = read_directories(self.directories, host)
        if found is None:
            return None
        for mirror, settings in found.mirrors.items():
            if self._read.get(mirror) is None:
                self._read[mirror] = settings
        return found.host

    def home(self, host: str) -> Mirror:
        """The host itself, as a place to read from."""
        return Mirror(_filed(host))

    def reading(self, host: str) -> tuple[Mirror, ...]:
        """Where the content of a registry is read, in order; at least one."""
        settings, home = self.host(host), self.home(host)
        listed = [_mirror(item) for item in settings.mirrors]
        if settings.fallback or not listed:
            listed.append(home)
        return tuple(dict.fromkeys(listed))

    def writing(self, host: str) -> Mirror:
        """Where the content of a registry is written."""
        other = self.host(host).push_to
        return self.home(host) if other is None else _mirror(other)

    def credential_store(self, fallback: CredentialStore) -> CredentialStore:
        """A store that knows the credentials given here, and asks the fallback for others."""
        given = {host: item.credentials for host, item in self.hosts.items() if item.credentials}
        return StaticCredentials(given, fallback) if given else fallback

    def scheme(self, host: str) -> str:
        """``http`` or ``https``."""
        settings = self.host(host)
        plain = settings.plain_http
        if plain is None:
            plain = is_loopback(host) and not settings.tls
        return "http" if plain else "https"


def _mirror(given: Mirror | str) -> Mirror:
    return Mirror.parse(given) if isinstance(given, str) else given


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. A wait for one piece of I/O has the first two, a whole operation the others."""

    connect: float = 10.0
    read: float = 60.0
    """Longest silence of a registry, within headers or body."""
    total: float = 120.0
    """A whole operation on a manifest, a config or tags, with its retries."""
    blob: float = 3600.0
    """A whole transfer of one blob, with its retries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a request that may succeed later is sent again."""

    attempts: int = 5
    base: float = 0.25
    """The first wait is random between 0 and this, each later one twice as long; chance spreads clients
    that failed together."""
    cap: float = 4.0
    retry_after_cap: float = 60.0
    """A registry that asks for a longer wait than this gets this one."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidOption(f"registry: {self.attempts} attempts, expected at least 1")
