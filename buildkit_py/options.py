"""Options of a build as values, and the ``type=...,key=value`` strings they are written as."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from buildkit_py.errors import InvalidOption

_EXPORTERS = frozenset({"image", "oci", "docker", "local", "tar", "registry"})
_CACHES = frozenset({"registry", "local", "inline", "gha", "s3", "azblob"})


def parse_fields(text: str, *, option: str) -> list[tuple[str, str | None]]:
    """Split ``a=b,"c=d,e",f`` as one CSV record; a field without ``=`` has the value None.

    Keys come back in lower case. Source: docker buildx, option syntax of --output and --cache-to.
    """
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise InvalidOption(f"{option} {text!r}: {error}") from error
    if len(rows) != 1:
        raise InvalidOption(f"{option} {text!r}: expected one line of key=value fields")
    fields: list[tuple[str, str | None]] = []
    for item in rows[0]:
        key, equals, value = item.partition("=")
        fields.append((key.strip().lower() if equals else key.strip(), value if equals else None))
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSpec:
    """What becomes of a result: ``image``, ``oci``, ``docker``, ``local`` or ``tar``."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Attributes as the daemon gets them; ``dest`` is not among them."""
    dest: str | None = None
    """File or directory on this machine; ``-`` is standard output; None where the daemon keeps the result."""

    @classmethod
    def parse(cls, text: str) -> ExporterSpec:
        """Read ``type=oci,dest=FILE`` or a bare destination; raise InvalidOption for anything else.

        A bare path means ``type=local``, and ``-`` means ``type=tar,dest=-``. Source: docker buildx build -o.
        """
        fields = parse_fields(text, option="output")
        if len(fields) == 1 and fields[0][1] is None:
            bare = fields[0][0]
            if not bare:
                raise InvalidOption("output '': expected a path or type=...,key=value")
            return cls(type="tar", dest="-") if bare == "-" else cls(type="local", dest=bare)
        attrs: dict[str, str] = {}
        for key, value in fields:
            if value is None:
                raise InvalidOption(f"output {text!r}: {key!r} is not key=value")
            if key in attrs:
                raise InvalidOption(f"output {text!r}: {key!r} is given twice")
            attrs[key] = value
        kind = attrs.pop("type", "")
        if kind not in _EXPORTERS:
            known = ", ".join(sorted(_EXPORTERS))
            raise InvalidOption(f"output {text!r}: unknown type {kind!r}; expected one of {known}")
        dest = attrs.pop("dest", None)
        if dest == "":
            raise InvalidOption(f"output {text!r}: dest is empty")
        if kind == "registry":
            kind, attrs = "image", {"push": "true", **attrs}
        spec = cls(type=kind, attrs=MappingProxyType(attrs), dest=dest)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise InvalidOption when type and destination do not go together."""
        if self.type in {"local", "tar", "oci"} and self.dest is None:
            raise InvalidOption(f"output type={self.type}: dest is missing")
        if self.type == "image" and self.dest is not None:
            raise InvalidOption("output type=image: dest is not used by this type; name=... and push=true are")
        if self.type == "local" and self.dest == "-":
            raise InvalidOption("output type=local: dest must be a directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """One cache to import from or export to."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, text: str) -> CacheSpec:
        """Read ``type=registry,ref=...`` or a bare image reference; raise InvalidOption for anything else."""
        fields = parse_fields(text, option="cache")
        if len(fields) == 1 and fields[0][1] is None and fields[0][0]:
            return cls(type="registry", attrs=MappingProxyType({"ref": fields[0][0]}))
        attrs: dict[str, str] = {}
        for key, value in fields:
            if value is None:
                raise InvalidOption(f"cache {text!r}: {key!r} is not key=value")
            attrs[key] = value
        kind = attrs.pop("type", "")
        if kind not in _CACHES:
            known = ", ".join(sorted(_CACHES))
            raise InvalidOption(f"cache {text!r}: unknown type {kind!r}; expected one of {known}")
        return cls(type=kind, attrs=MappingProxyType(attrs))
