"""What every vertex may be given besides its op: constraints, names, hints and source locations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, TypedDict

from buildkit_py.llb import check, wire
from buildkit_py.llb.base import is_state
from buildkit_py.platforms import Platform

if TYPE_CHECKING:
    from buildkit_py.llb.state import State

CUSTOM_NAME = "llb.customname"
"""Key of the description under which a vertex's name for people stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressGroup:
    """Vertexes with the same id are shown together."""

    id: str
    name: str = ""
    weak: bool = False

    def __post_init__(self) -> None:
        check.text("ProgressGroup(id)", self.id)
        check.text("ProgressGroup(name)", self.name)
        check.boolean("ProgressGroup(weak)", self.weak)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxResources:
    """Limits of the processes of an exec vertex; zero and "" mean none. They do not change its digest."""

    memory: int = 0
    """Bytes."""
    memory_swap: int = 0
    """Bytes of memory and swap together; -1 for no limit."""
    cpu_shares: int = 0
    cpu_period: int = 0
    """Microseconds."""
    cpu_quota: int = 0
    """Microseconds of each period."""
    cpuset_cpus: str = ""
    """CPUs, such as "0,2-3"."""
    cpuset_mems: str = ""

    def __post_init__(self) -> None:
        for name in ("memory", "memory_swap", "cpu_quota"):
            check.integer(f"LinuxResources({name})", getattr(self, name))
        for name in ("cpu_shares", "cpu_period"):
            check.integer(f"LinuxResources({name})", getattr(self, name), check.UINT64)
        for name in ("cpuset_cpus", "cpuset_mems"):
            check.text(f"LinuxResources({name})", getattr(self, name))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a graph was made from, so that failures can show its lines."""

    filename: str
    data: bytes = field(repr=False)
    """The whole file."""
    language: str = ""
    """As GitHub's linguist calls it, such as "Dockerfile"."""
    state: State | None = field(default=None, repr=False)
    """Where the file came from, if a build can fetch it again."""

    def __post_init__(self) -> None:
        check.text("SourceFile(filename)", self.filename)
        check.text("SourceFile(language)", self.language)
        if self.state is not None:
            is_state("SourceFile(state)", self.state)
        check.instance("SourceFile(data)", self.data, bytes, "bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A part of a text. Lines count from 1, characters from 0; the end is included."""

    start_line: int
    end_line: int
    start_character: int = 0
    end_character: int = 0

    def __post_init__(self) -> None:
        for name in ("start_line", "end_line", "start_character", "end_character"):
            check.integer(f"Range({name})", getattr(self, name), (0, check.INT32[1]))


@dataclass(frozen=True, slots=True)
class Location:
    """Where in a source file a vertex comes from."""

    source: SourceFile
    ranges: tuple[Range, ...]

    def __post_init__(self) -> None:
        check.instance("Location(source)", self.source, SourceFile, "a SourceFile")
        object.__setattr__(self, "ranges", check.of_type("Location(ranges)", self.ranges, Range, "a Range"))


class CallOptions(TypedDict, total=False):
    """Options of a vertex that a marshal call can give to all of them. Only platform and require are digested."""

    platform: Platform | str
    """What to run on or to fetch for, instead of what the state or the marshal call says. Text is normalised,
    a Platform is used as it is."""
    require: Iterable[str]
    """Filters that choose a worker by its labels, in containerd's syntax."""
    custom_name: str
    """Name for people, shown while it builds."""
    description: Mapping[str, str]
    ignore_cache: bool
    """Run it even when its result is in the cache."""
    export_cache: bool
    """Whether its result goes into an exported cache; absent leaves that to the exporter."""
    progress_group: ProgressGroup
    resources: LinuxResources


class VertexOptions(CallOptions, total=False):
    """Options of every call that makes a vertex."""

    locations: Iterable[Location]
    """Where it comes from, instead of the line that makes the call."""


@dataclass(frozen=True, slots=True, eq=False)
class Metadata:
    """What a definition says of a vertex beside its op."""

    ignore_cache: bool = False
    description: tuple[tuple[str, str], ...] = ()
    export_cache: bool | None = None
    progress_group: ProgressGroup | None = None
    resources: LinuxResources | None = None

    def merged(self, other: Metadata) -> Metadata:
        """Both; where they contradict each other, the other one counts."""
        if other is NO_METADATA:
            return self
        if self is NO_METADATA:
            return other
        return Metadata(
            ignore_cache=self.ignore_cache or other.ignore_cache,
            description=tuple({**dict(self.description), **dict(other.description)}.items()),
            export_cache=self.export_cache if other.export_cache is None else other.export_cache,
            progress_group=other.progress_group or self.progress_group,
            resources=other.resources or self.resources,
        )

    def encode(self, caps: Iterable[str]) -> bytes:
        """The OpMetadata message, with the capabilities that the vertex needs."""
        parts = [
            wire.flag(b"\x08", self.ignore_cache),
            wire.text_map(b"\x12", self.description),
            b"" if self.export_cache is None else wire.blob(b"\x22", wire.flag(b"\x08", self.export_cache)),
            wire.true_map(b"\x2a", caps),
        ]
        if (group := self.progress_group) is not None:
            parts.append(
                wire.blob(
                    b"\x32",
                    wire.text(b"\x0a", group.id) + wire.text(b"\x12", group.name) + wire.flag(b"\x18", group.weak),
                )
            )
        if (limits := self.resources) is not None:
            parts.append(
                wire.blob(
                    b"\x3a",
                    wire.number(b"\x08", limits.memory)
                    + wire.number(b"\x10", limits.memory_swap)
                    + wire.number(b"\x18", limits.cpu_shares)
                    + wire.number(b"\x20", limits.cpu_period)
                    + wire.number(b"\x28", limits.cpu_quota)
                    + wire.text(b"\x32", limits.cpuset_cpus)
                    + wire.text(b"\x3a", limits.cpuset_mems),
                )
            )
        return b"".join(parts)


NO_METADATA = Metadata()


class Entry:
    """Metadata of a vertex with the capabilities that it needs; written at most once, however often it is used."""

    __slots__ = ("_around", "caps", "metadata")

    def __init__(self, metadata: Metadata, caps: tuple[str, ...]) -> None:
        self.metadata = metadata
        self.caps = caps
        self._around: tuple[bytes, bytes] | None = None

    def merged(self, other: Entry) -> Entry:
        """Both, the other one on top."""
        if other is self:
            return self
        return entry(self.metadata.merged(other.metadata), {*self.caps, *other.caps})

    @property
    def around(self) -> tuple[bytes, bytes]:
        """What stands before and after the hex digits of the digest in Definition.metadata."""
        if self._around is None:
            self._around = around_digest(b"\x12", self.metadata.encode(self.caps))
        return self._around


def entry(metadata: Metadata, caps: Iterable[str]) -> Entry:
    """Metadata and capabilities; vertexes without metadata share theirs."""
    ordered = tuple(sorted(set(caps)))
    return _plain_entry(ordered) if metadata is NO_METADATA else Entry(metadata, ordered)


@lru_cache(maxsize=1024)
def _plain_entry(caps: tuple[str, ...]) -> Entry:
    return Entry(NO_METADATA, caps)


def around_digest(tag: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A map entry whose key is a digest, without the 64 hex digits."""
    after = wire.blob(b"\x12", value)
    return tag + wire.varint(len(_DIGEST_KEY) + 64 + len(after)) + _DIGEST_KEY, after


_DIGEST_KEY = b"\x0a\x47sha256:"


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """Vertex options after their checks."""

    platform: Platform | None = None
    require: tuple[str, ...] = ()
    metadata: Metadata = NO_METADATA
    locations: tuple[Location, ...] = ()

    def merged(self, other: Settings) -> Settings:
        """These settings, then the other ones on top."""
        return Settings(
            other.platform or self.platform,
            self.require + other.require,
            self.metadata.merged(other.metadata),
            self.locations + other.locations,
        )


NO_SETTINGS = Settings()


def settings(options: CallOptions) -> Settings:
    """Check vertex options; raise InvalidOption for what cannot be meant."""
    if not options:
        return NO_SETTINGS
    known = VertexOptions.__optional_keys__
    for name in options:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}; options of a vertex are {', '.join(sorted(known))}")
    return Settings(
        platform=check.platform("platform", options["platform"]) if "platform" in options else None,
        require=tuple([check.filled("require", item) for item in check.several("require", options.get("require", ()))]),
        metadata=_metadata(options),
        # Of a marshal call, for which they are not a key, there are none.
        locations=check.of_type("locations", options.get("locations", ()), Location, "a Location"),
    )


def _metadata(options: CallOptions) -> Metadata:
    description = dict(check.pairs("description", options.get("description", ())))
    if "custom_name" in options:
        description[CUSTOM_NAME] = check.text("custom_name", options["custom_name"])
    group, resources = options.get("progress_group"), options.get("resources")
    if group is not None:
        check.instance("progress_group", group, ProgressGroup, "a ProgressGroup")
        check.filled("progress_group.id", group.id)
    if resources is not None:
        check.instance("resources", resources, LinuxResources, "LinuxResources")
    metadata = Metadata(
        ignore_cache=check.boolean("ignore_cache", options.get("ignore_cache", False)),
        description=tuple(description.items()),
        export_cache=check.boolean("export_cache", options["export_cache"]) if "export_cache" in options else None,
        progress_group=group,
        resources=resources,
    )
    plain = (False, (), None, None, None)
    is_plain = plain == (
        metadata.ignore_cache,
        metadata.description,
        metadata.export_cache,
        metadata.progress_group,
        metadata.resources,
    )
    return NO_METADATA if is_plain else metadata
