"""Where an image is: a reference of a registry, or an entry of an OCI layout on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, InvalidOption
from buildkit_py.reference import Reference

_PREFIXES = ("layout:", "oci-layout://")
_TAGGED = re.compile(r"(?P<path>.+):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})", re.DOTALL)
_EXPECTED = "expected layout:DIR[:TAG|@DIGEST]"


@dataclass(frozen=True, slots=True)
class LayoutLocation:
    """An image in an OCI layout: a directory, or a tar archive of one."""

    path: Path
    tag: str | None = None
    digest: Digest | None = None

    @property
    def entry(self) -> str | None:
        """What its ``index.json`` is asked for; None is the only image there."""
        return self.tag if self.digest is None else str(self.digest)

    def __str__(self) -> str:
        if self.digest is not None:
            return f"layout:{self.path}@{self.digest}"
        return f"layout:{self.path}:{self.tag}" if self.tag else f"layout:{self.path}"


Location: TypeAlias = Reference | LayoutLocation


def parse_location(text: str | Location) -> Location:
    """Read ``layout:DIR[:TAG|@DIGEST]`` (or buildx's ``oci-layout://DIR...``), or else a reference.

    What follows the last colon of a layout is its tag, if it could be one. Raises InvalidOption and InvalidReference.
    """
    if not isinstance(text, str):
        return text
    for prefix in _PREFIXES:
        if text.startswith(prefix):
            return _layout(text, text.removeprefix(prefix))
    return Reference.parse_normalized(text)


def _layout(text: str, rest: str) -> LayoutLocation:
    tag: str | None = None
    digest: Digest | None = None
    path, at, written = rest.rpartition("@")
    if at and ":" in written:
        try:
            digest = Digest.parse(written)
        except InvalidDigest as error:
            raise InvalidOption(f"{text!r}: {error}; {_EXPECTED}") from error
    else:
        path = rest
    if tagged := _TAGGED.fullmatch(path):
        path, tag = tagged["path"], tagged["tag"]
    if not path or "\0" in path:
        raise InvalidOption(f"{text!r}: names no directory; {_EXPECTED}")
    # A tag beside a digest is for people.
    return LayoutLocation(Path(path), None if digest else tag, digest)


__all__ = ["LayoutLocation", "Location", "parse_location"]
