"""Definitions: a graph as the daemon takes it, and what can be read from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TypeVar, overload

from google.protobuf.message import DecodeError, Message

from buildkit_py.errors import InvalidDefinition
from buildkit_py.llb import check
from buildkit_py.llb.names import kind_of, vertex_name
from buildkit_py.llb.vertex import (
    CUSTOM_NAME,
    NO_METADATA,
    Entry,
    LinuxResources,
    Location,
    Metadata,
    ProgressGroup,
    Range,
    SourceFile,
    entry,
)
from buildkit_py.pb import ops_pb2
from buildkit_py.platforms import Platform

_M = TypeVar("_M", bound=Message)
_LOCAL = "local://"


@dataclass(frozen=True, slots=True)
class Input:
    """A result of another vertex."""

    digest: str
    index: int = 0
    """Which of its outputs."""

    def __str__(self) -> str:
        return f"{self.digest}:{self.index}" if self.index else self.digest


@dataclass(frozen=True, slots=True)
class Vertex:
    """A vertex of a definition."""

    digest: str
    kind: str
    """What it does: exec, source, file, build, merge, diff or passthrough; "unknown" for what came later."""
    inputs: tuple[Input, ...]
    platform: Platform | None
    name: str
    """Its name for people, or the one that the daemon makes of what it does."""
    description: Mapping[str, str]
    caps: tuple[str, ...]
    """Capabilities that the daemon must have, sorted."""
    require: tuple[str, ...]
    """Filters that choose its worker."""
    ignore_cache: bool
    export_cache: bool | None
    progress_group: ProgressGroup | None
    resources: LinuxResources | None
    locations: tuple[Location, ...]
    """Where in the source it comes from."""
    data: bytes
    """The bytes that digest is of."""


class Digests(Sequence[str]):
    """Digests whose hex digits are there as bytes; most uses of a definition never ask for them."""

    def __init__(self, digits: Sequence[bytes]) -> None:
        self._digits = digits

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return Digests(self._digits[index])
        return "sha256:" + self._digits[index].decode()

    def __len__(self) -> int:
        return len(self._digits)


class Definition:
    """A graph in its serialised form. Never changes; equal when the bytes are."""

    def __init__(self, data: bytes, blobs: Sequence[bytes], digests: Sequence[str]) -> None:
        """Use parse() or marshal(), which know that these belong together."""
        self._data = data
        self._blobs = blobs
        self._digests = digests

    @classmethod
    def empty(cls) -> Definition:
        """The definition of scratch."""
        return cls(b"", (), ())

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Definition:
        """Read a definition; to_bytes() then gives back these very bytes, with all they may have beyond our schema.

        Raise InvalidDefinition unless it is a graph: each op readable, each input there, and a last op that
        names the result. Whether an op makes sense is for the daemon to say. An input is named by the digest
        of its bytes, so there are no cycles.
        """
        data = bytes(check.instance("data", data, (bytes, bytearray, memoryview), "bytes"))
        message = _read(ops_pb2.Definition, data, "definition")
        blobs: Sequence[bytes] = getattr(message, "def")
        if not blobs:
            if len(message.metadata):
                raise InvalidDefinition("definition: has metadata, but no ops")
            definition = cls(data, (), ())
            definition.__dict__["_message"] = message
            return definition
        digests = ["sha256:" + sha256(blob).hexdigest() for blob in blobs]
        known = set(digests[:-1])
        position, op, read = 0, ops_pb2.Op(), ops_pb2.Op.FromString
        try:
            for position, blob in enumerate(blobs):
                op = read(blob)
                for given in op.inputs:
                    if (digest := given.digest) not in known:
                        raise InvalidDefinition(f"definition: op {position} needs {digest[:80]!r}, which is not in it")
                    if given.index < 0:
                        raise InvalidDefinition(f"definition: op {position} has an input with index {given.index}")
        except DecodeError as error:
            raise InvalidDefinition(f"definition: op {position} is not an Op message") from error
        files = len(message.Source.infos)
        for digest, places in message.Source.locations.items():
            for place in places.locations:
                if not 0 <= place.sourceIndex < files:
                    raise InvalidDefinition(f"definition: {digest[:80]!r} has a location in a file that is not in it")
        if not op.inputs:
            raise InvalidDefinition("definition: the last op has no input, so it names no result")
        definition = cls(data, tuple(blobs), digests)
        definition.__dict__["_message"] = message
        return definition

    def to_bytes(self) -> bytes:
        """The serialised form."""
        return self._data

    def to_pb(self) -> ops_pb2.Definition:
        """The message of it, for requests."""
        return ops_pb2.Definition.FromString(self._data)

    @property
    def is_scratch(self) -> bool:
        """Whether the result is the empty filesystem, for which nothing has to be done."""
        return not self._blobs

    @cached_property
    def head(self) -> Input | None:
        """The result: which output of which vertex; None for scratch."""
        if not self._blobs:
            return None
        given = _read_op(self._blobs[-1], len(self._blobs) - 1).inputs[0]
        return Input(given.digest, given.index)

    @cached_property
    def vertexes(self) -> tuple[Vertex, ...]:
        """All vertexes in their order, each once; the last op, which only names the result, is not one."""
        return tuple([self.vertex(digest) for digest in dict.fromkeys(self._digests[:-1])])

    @property
    def terminal(self) -> str:
        """Digest of the last op, under which the metadata of the whole stands; "" for scratch."""
        return self._digests[-1] if self._digests else ""

    @property
    def source_files(self) -> tuple[SourceFile, ...]:
        """Files that locations of vertexes point into."""
        return self._files

    @cached_property
    def source_definitions(self) -> tuple[Definition | None, ...]:
        """For each of source_files the graph that it was made by; None where that is not said."""
        return tuple(
            [
                Definition.parse(info.definition.SerializeToString()) if info.HasField("definition") else None
                for info in self._message.Source.infos
            ]
        )

    def data(self, digest: str) -> bytes:
        """The bytes of a vertex; raise KeyError if it is not in here."""
        return self._blobs[self._positions[digest]]

    def op(self, digest: str) -> ops_pb2.Op:
        """The message of a vertex; raise KeyError if it is not in here."""
        return self._ops[self._positions[digest]]

    def entry(self, digest: str) -> Entry | None:
        """What is said of a vertex, and the capabilities it needs; None when nothing is."""
        entries = self._message.metadata
        return _entry(entries[digest]) if digest in entries else None

    def walk(self) -> Iterator[str]:
        """Digests of all vertexes that the result needs, each after its inputs."""
        if (head := self.head) is None:
            return
        done: set[str] = set()
        stack = [head.digest]
        while stack:
            digest = stack[-1]
            if digest not in done:
                waiting = [given.digest for given in reversed(self.op(digest).inputs) if given.digest not in done]
                if waiting:
                    stack += waiting
                    continue
                done.add(digest)
                yield digest
            stack.pop()

    @cached_property
    def platform(self) -> Platform | None:
        """What the result is for, as its vertex says, or the nearest one that it is a change of; None if none does."""
        head = self.head
        while head is not None:
            op = self.op(head.digest)
            if op.HasField("platform"):
                return Platform.from_pb(op.platform).normalized()
            position = _base_input(op)
            given = op.inputs[position] if 0 <= position < len(op.inputs) else None
            head = None if given is None else Input(given.digest, given.index)
        return None

    @cached_property
    def local_names(self) -> tuple[str, ...]:
        """Names of the client's directories that the result needs, in the order of their vertexes.

        Those that a vertex wants from one session, which it names, are left out.
        """
        ops = [self.op(digest) for digest in self.walk()]
        sources = [op.source for op in ops if op.source.identifier.startswith(_LOCAL)]
        return tuple(dict.fromkeys([s.identifier[len(_LOCAL) :] for s in sources if "local.session" not in s.attrs]))

    def without_cache(self) -> Definition:
        """The same graph, of which every vertex is run even where its result is in the cache."""
        return self._ignoring_cache(True)

    def with_cache(self) -> Definition:
        """The same graph, of which no vertex is run whose result is in the cache, whatever it said itself."""
        return self._ignoring_cache(False)

    def _ignoring_cache(self, ignore: bool) -> Definition:
        if not self._blobs:
            return self
        message = self.to_pb()
        for digest in self._digests[:-1]:
            if message.metadata[digest].ignore_cache != ignore:
                message.metadata[digest].ignore_cache = ignore
        if ignore:
            message.metadata[self.terminal].caps["meta.ignorecache"] = True
        return Definition.parse(message.SerializeToString(deterministic=True))

    def __eq__(self, other: object) -> bool:
        return self._data == other._data if isinstance(other, Definition) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._data)

    def __repr__(self) -> str:
        return f"<Definition {self.head or 'scratch'}, {len(set(self._digests[:-1]))} vertexes>"

    def vertex(self, digest: str) -> Vertex:
        """One vertex; raise KeyError if it is not in here."""
        op = self.op(digest)
        said = self.entry(digest) or entry(NO_METADATA, ())
        metadata = said.metadata
        description = dict(metadata.description)
        return Vertex(
            digest=digest,
            kind=kind_of(op),
            inputs=tuple([Input(given.digest, given.index) for given in op.inputs]),
            platform=Platform.from_pb(op.platform) if op.HasField("platform") else None,
            name=description.get(CUSTOM_NAME) or vertex_name(op, self.op),
            description=description,
            caps=said.caps,
            require=tuple(op.constraints.filter),
            ignore_cache=metadata.ignore_cache,
            export_cache=metadata.export_cache,
            progress_group=metadata.progress_group,
            resources=metadata.resources,
            locations=self.locations(digest, self._files),
            data=self.data(digest),
        )

    def locations(self, digest: str, files: Sequence[SourceFile]) -> tuple[Location, ...]:
        """Where a vertex comes from; files are those of source_files, or what stands for them."""
        places = self._message.Source.locations
        if digest not in places:
            return ()
        return tuple(
            [
                Location(files[place.sourceIndex], tuple([_range(part) for part in place.ranges]))
                for place in places[digest].locations
            ]
        )

    @cached_property
    def _message(self) -> ops_pb2.Definition:
        return _read(ops_pb2.Definition, self._data, "definition")

    @cached_property
    def _ops(self) -> list[ops_pb2.Op]:
        return [_read_op(blob, position) for position, blob in enumerate(self._blobs)]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {digest: position for position, digest in enumerate(self._digests)}

    @cached_property
    def _files(self) -> tuple[SourceFile, ...]:
        return tuple([SourceFile(info.filename, info.data, info.language) for info in self._message.Source.infos])


def _read(kind: type[_M], data: bytes, what: str) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidDefinition(f"{what}: {len(data)} bytes that are not a {kind.DESCRIPTOR.name} message") from error


def _read_op(blob: bytes, position: int) -> ops_pb2.Op:
    try:
        return ops_pb2.Op.FromString(blob)
    except DecodeError as error:
        raise InvalidDefinition(f"definition: op {position} is not an Op message") from error


def _entry(said: ops_pb2.OpMetadata) -> Entry:
    group, limits = said.progress_group, said.linux_resources
    metadata = Metadata(
        ignore_cache=said.ignore_cache,
        description=tuple(sorted(said.description.items())),
        export_cache=said.export_cache.Value if said.HasField("export_cache") else None,
        progress_group=(
            ProgressGroup(id=group.id, name=group.name, weak=group.weak) if said.HasField("progress_group") else None
        ),
        resources=(
            LinuxResources(
                memory=limits.memory,
                memory_swap=limits.memorySwap,
                cpu_shares=limits.cpuShares,
                cpu_period=limits.cpuPeriod,
                cpu_quota=limits.cpuQuota,
                cpuset_cpus=limits.cpusetCpus,
                cpuset_mems=limits.cpusetMems,
            )
            if said.HasField("linux_resources")
            else None
        ),
    )
    return entry(metadata if said.ByteSize() else NO_METADATA, said.caps)


def _base_input(op: ops_pb2.Op) -> int:
    """Which input the result of an op is a change of; -1 for none."""
    match kind_of(op):
        case "file":
            return op.file.actions[0].input if op.file.actions else -1
        case "merge":
            return op.merge.inputs[0].input if op.merge.inputs else -1
        case "diff":
            return op.diff.lower.input
        case "passthrough":
            return op.passthrough.outputs[0] if op.passthrough.outputs else -1
        case _:
            return -1


def _range(part: ops_pb2.Range) -> Range:
    """Numbers that nothing can stand at are taken as zero."""
    return Range(
        start_line=max(part.start.line, 0),
        end_line=max(part.end.line, 0),
        start_character=max(part.start.character, 0),
        end_character=max(part.end.character, 0),
    )
