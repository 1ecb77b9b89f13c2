"""Whom a URL leads to."""

from __future__ import annotations

import functools
from typing import NamedTuple
from urllib.parse import urlsplit

from buildkit_py.errors import RegistryError

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """What credentials are bound to: they never leave it."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Origin of an absolute http(s) URL; RegistryError for anything else."""
        return _origin_of(url)

    @classmethod
    def read(cls, url: str) -> Origin:
        """The same, of a URL that was not read lately."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise RegistryError(f"{redact(url)}: expected an http or https URL")
        if parts.username is not None or parts.password is not None:
            raise RegistryError(f"{parts.scheme}://{parts.hostname}: a URL must not carry credentials")
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme])

    def __str__(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"


@functools.lru_cache(256)
def _origin_of(url: str) -> Origin:
    """Each request asks for that of its URL several times."""
    return Origin.read(url)


def redact(url: str) -> str:
    """A URL without user, query and fragment: those may be signed or secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(malformed URL)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


__all__ = ["Origin", "redact"]
