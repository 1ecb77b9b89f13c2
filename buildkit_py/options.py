"""Options of a build as values, and the ``type=...,key=value`` strings they are written as."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from buildkit_py.errors import InvalidOption

_EXPORTERS = frozenset({"image", "oci", "docker", "local", "tar", "registry", "cacheonly"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_CACHES = frozenset({"registry", "local", "inline", "gha", "s3", "azblob"})


def parse_fields(text: str, *, option: str, private: bool = False) -> list[tuple[str, str | None]]:
    """Split ``a=b,"c=d,e",f`` as one CSV record; a field without ``=`` has the value None.

    Keys come back in lower case. Errors repeat the text, unless it is private and may hold credentials.
    Source: docker buildx, option syntax of --output and --cache-to.
    """
    shown = option if private else f"{option} {text!r}"
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise InvalidOption(f"{shown}: {error}") from error
    if len(rows) != 1:
        raise InvalidOption(f"{shown}: expected one line of key=value fields")
    fields: list[tuple[str, str | None]] = []
    for item in rows[0]:
        key, equals, value = item.partition("=")
        fields.append((key.strip().lower() if equals else key.strip(), value if equals else None))
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSpec:
    """What becomes of a result: ``image``, ``oci``, ``docker``, ``local`` or ``tar``; nothing with ``cacheonly``."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Attributes as the daemon gets them; ``dest`` is not among them."""
    dest: str | None = None
    """File or directory on this machine; ``-`` is standard output; None where the daemon keeps the result."""

    @classmethod
    def parse(cls, text: str) -> ExporterSpec:
        """Read ``type=oci,dest=FILE`` or a bare destination; raise InvalidOption for anything else.

        A bare path means ``type=local``, and ``-`` means ``type=tar,dest=-``. An archive without ``dest`` goes to
        standard output, unless an engine takes it. Source: docker buildx build -o.
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
        if dest is None and (kind == "tar" or (kind == "oci" and attrs.get("tar") not in _FALSE)):
            dest = "-"
        if kind == "registry":
            kind, attrs = "image", {"push": "true", **attrs}
        spec = cls(type=kind, attrs=MappingProxyType(attrs), dest=dest)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise InvalidOption when type and destination do not go together."""
        if self.type in {"local", "tar", "oci"} and self.dest is None:
            raise InvalidOption(f"output type={self.type}: dest is missing")
        if self.type in {"image", "cacheonly"} and self.dest is not None:
            raise InvalidOption(f"output type={self.type}: dest is not used by this type; name=... and push=true are")
        if self.type == "local" and self.dest == "-":
            raise InvalidOption("output type=local: dest must be a directory")


_CREDENTIALS = frozenset({"token", "ghtoken", "access_key_id", "secret_access_key", "session_token"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CacheSpec:
    """One cache to import from or export to: ``registry``, ``local``, ``inline``, ``gha``, ``s3`` or ``azblob``."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Attributes as the daemon gets them, except for what says where a local cache is on this machine."""

    def __repr__(self) -> str:
        shown = {key: "..." if key in _CREDENTIALS else value for key, value in self.attrs.items()}
        return f"CacheSpec(type={self.type!r}, attrs={shown!r})"

    @classmethod
    def parse(cls, text: str) -> CacheSpec:
        """Read ``type=registry,ref=...`` or a bare image reference; raise InvalidOption for anything else."""
        fields = parse_fields(text, option="cache", private=True)
        if len(fields) == 1 and fields[0][1] is None and fields[0][0]:
            return cls(type="registry", attrs=MappingProxyType({"ref": fields[0][0]}))
        attrs: dict[str, str] = {}
        for position, (key, value) in enumerate(fields, 1):
            # The text is not repeated: it may hold credentials, and this may be the end of one with a comma in it.
            if value is None:
                raise InvalidOption(f"cache: field {position} is not key=value")
            if key in attrs:
                raise InvalidOption(f"cache: {key} is given twice")
            attrs[key] = value
        kind = attrs.pop("type", "")
        if not kind:
            raise InvalidOption("cache: type=... is missing")
        spec = cls(type=kind, attrs=MappingProxyType(attrs))
        spec.check("cache")
        return spec

    @classmethod
    def parse_all(cls, texts: Sequence[str]) -> list[CacheSpec]:
        """Read several; one without ``=`` may be a comma-separated list of references, as docker buildx has it."""
        found: list[CacheSpec] = []
        for text in texts:
            bare = [key for key, value in parse_fields(text, option="cache", private=True) if value is None]
            found += [cls.parse(name) for name in bare] if "=" not in text else [cls.parse(text)]
        return found

    def check(self, option: str) -> None:
        """Raise InvalidOption, naming the option, for an unknown type or mode, or a registry cache without ref."""
        if self.type not in _CACHES:
            raise InvalidOption(f"{option}: unknown type {self.type!r}; expected one of {', '.join(sorted(_CACHES))}")
        if self.type == "registry" and not self.attrs.get("ref"):
            raise InvalidOption(f"{option} type=registry: ref=... is missing")
        if self.attrs.get("mode", "min") not in {"min", "max"}:
            # Daemons take anything else for min, which then looks like a cache that does not work.
            raise InvalidOption(f"{option} type={self.type}: mode={self.attrs['mode']}: expected min or max")


SecretCallback: TypeAlias = "Callable[[], bytes | Awaitable[bytes]]"
"""Gives the value of a secret. A function that is not a coroutine runs in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSpec:
    """A secret that steps of the build may mount. Its value goes to the daemon and nowhere else.

    At most one of file, env and value. Without any, the environment variable named like the id is taken
    where there is one, else the file at that path.
    """

    id: str
    file: str | os.PathLike[str] | None = None
    """Read when the daemon asks, not before."""
    env: str | None = None
    """Environment variable; one that is not set is an empty secret, as with docker buildx."""
    value: bytes | SecretCallback | None = field(default=None, repr=False)
    """The value itself, or what gives it; that is called each time that the daemon asks, which may be for
    several steps at once."""

    @classmethod
    def parse(cls, text: str) -> SecretSpec:
        """Read ``id=ID,src=FILE`` or ``id=ID,env=NAME``; raise InvalidOption for anything else.

        With ``type=env`` also ``src`` names a variable. Source: docker buildx build --secret.
        """
        found: dict[str, str] = {}
        for position, (key, value) in enumerate(parse_fields(text, option="secret", private=True), 1):
            name = {"source": "src"}.get(key, key)
            if value is None or name not in {"id", "src", "env", "type"}:
                # Not repeated: somebody may have put the secret itself here.
                expected = "expected id=..., src=..., env=... and type=file|env"
                raise InvalidOption(f"secret: field {position}: {expected}")
            if name in found:
                raise InvalidOption(f"secret: {name} is given twice")
            found[name] = value
        kind = found.get("type", "")
        if kind not in {"", "file", "env"}:
            raise InvalidOption(f"secret type={kind}: expected file or env")
        file, env = found.get("src") or None, found.get("env") or None
        if kind == "env" and env is None:
            file, env = None, file
        spec = cls(id=found.get("id", ""), file=file, env=env)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise InvalidOption for an id that is missing, or more than one place to take the value from."""
        if not self.id:
            raise InvalidOption("secret: id=... is missing")
        if sum(place is not None for place in (self.file, self.env, self.value)) > 1:
            raise InvalidOption(f"secret {self.id}: expected one place to take it from, found more")


@dataclass(frozen=True, slots=True, kw_only=True)
class SSHSpec:
    """An ssh agent, or keys, that steps of the build may sign with. No key leaves this machine."""

    id: str = "default"
    paths: Sequence[str | os.PathLike[str]] = ()
    """The socket of an agent, or private keys; none means the agent of ``$SSH_AUTH_SOCK``."""
    raw: bool = False
    """True passes all bytes to the socket, which need not be an agent's, and back: steps may do with it
    whatever it allows. Otherwise they may list keys and sign."""

    @classmethod
    def parse(cls, text: str) -> SSHSpec:
        """Read ``default``, ``ID=PATH,...`` or ``ID=SOCKET,raw=true``; raise InvalidOption for anything else.

        Source: docker buildx build --ssh.
        """
        name, equals, rest = text.partition("=")
        paths: list[str] = []
        raw = False
        for item in rest.split(",") if equals else ():
            key, _, value = item.partition("=")
            if key == "raw" and "=" in item:
                if value not in {"true", "false", "1", "0"}:
                    raise InvalidOption(f"ssh {text!r}: raw={value}: expected true or false")
                raw = value in {"true", "1"}
            elif not item:
                raise InvalidOption(f"ssh {text!r}: a path is empty")
            else:
                paths.append(item)
        spec = cls(id=name, paths=tuple(paths), raw=raw)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise InvalidOption when id and paths do not go together."""
        if not self.id:
            raise InvalidOption("ssh: the id is missing; expected default or ID=PATH,...")
        if self.raw and len(self.paths) != 1:
            raise InvalidOption(f"ssh {self.id}: raw=true needs exactly one socket")
