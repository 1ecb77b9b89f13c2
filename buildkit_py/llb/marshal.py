"""From a state to the definition of all that it needs."""

from __future__ import annotations

import secrets
from collections.abc import Container
from hashlib import sha256
from typing import TYPE_CHECKING, Unpack

from buildkit_py.errors import InvalidOption
from buildkit_py.llb import check, wire
from buildkit_py.llb.base import is_state
from buildkit_py.llb.capture import Caller, source_text
from buildkit_py.llb.definition import Definition, Digests
from buildkit_py.llb.ops import Call, LoadedOp, Op, Output
from buildkit_py.llb.vertex import (
    NO_METADATA,
    CallOptions,
    Entry,
    Location,
    Range,
    Settings,
    SourceFile,
    around_digest,
    entry,
    settings,
)
from buildkit_py.platforms import Platform

if TYPE_CHECKING:
    from buildkit_py.llb.state import State

_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_SIZE = 25


def marshal(
    state: State,
    *,
    unique_id: str | None = None,
    daemon_caps: Container[str] | None = None,
    source_map: bool = True,
    **options: Unpack[CallOptions],
) -> Definition:
    """Write down the graph that makes state, each vertex once, what it needs before it.

    platform is what vertexes are for that do not say it themselves; InvalidOption is raised where it is missed.
    Other options count for all vertexes, before their own. unique_id marks the local directories of one build
    and is random if it is not given: with the same one, and a given graph, the bytes are the same each time.
    daemon_caps are the capabilities of the daemon it is for, if they are known. Without source_map the lines
    of the program that made the graph are left out.
    """
    is_state("state", state)
    given = settings(options)
    defaults = state.marshal_defaults
    if unique_id is not None:
        check.filled("unique_id", unique_id)
    if daemon_caps is not None and (isinstance(daemon_caps, str) or not hasattr(daemon_caps, "__contains__")):
        raise check.fail("daemon_caps", daemon_caps, "a set of capabilities")
    effective = given if defaults is None else defaults.merged(given)
    if state.output is None:
        return Definition.empty()
    call = Call(effective.platform, unique_id or random_id(), daemon_caps)
    return _Writer(call, effective, given, check.boolean("source_map", source_map)).write(state.output)


class _Writer:
    """One marshal call."""

    def __init__(self, call: Call, effective: Settings, given: Settings, source_map: bool) -> None:
        self._call = call
        self._effective = effective
        self._given = given
        """What the call said, without the defaults of the state: files that vertexes point at have their own."""
        self._source_map = source_map
        self._constraints = _encode_constraints(effective.require)
        self._platforms: dict[int, bytes] = {}
        self._references: dict[Op, bytes] = {}
        """Each op as an input, by its output 0; empty while what it depends on is being added."""
        # A vertex has one number in all of these. Lists and not records, as every object that is kept costs more
        # than what is done with it, in memory that the processor has to wait for.
        self._numbers: dict[bytes, int] = {}
        self._digits: list[bytes] = []
        """The 64 hex digits of digests."""
        self._blobs: list[bytes] = []
        self._entries: list[Entry | None] = []
        self._places: list[bytes | None] = []
        self._of_callers: dict[Caller, bytes] = {}
        self._files = _Files()

    def write(self, output: Output) -> Definition:
        self._add_all(output.op)
        return self._finish(_reference(self._references[output.op], output.index))

    def _add_all(self, root: Op) -> None:
        """Add root after all that it depends on; deep graphs need no deep stack."""
        references, stack = self._references, [root]
        while stack:
            op = stack[-1]
            known = references.get(op)
            if known:
                stack.pop()
            elif known is None and op.dependencies:
                references[op] = b""
                stack += op.dependencies
            else:
                stack.pop()
                self._add(op)

    def _add(self, op: Op) -> None:
        """Add one op, whose inputs are there. This is the innermost loop, so it asks before it calls."""
        said: Entry | None
        if isinstance(op, LoadedOp):
            data, said = op.data, op.entry if op.has_metadata else None
        else:
            data = self._encode(op)
            said = op.entry if self._call.daemon_caps is None else op.entry_for(self._call)
            if self._effective.metadata is not NO_METADATA:
                said = Entry(self._effective.metadata.merged(said.metadata), said.caps)
        caller = op.caller
        if op.locations:
            places = b"".join([self._files.encode(location) for location in op.locations])
        elif caller is None or not self._source_map:
            places = b""
        else:
            known_places = self._of_callers.get(caller)
            if known_places is None:
                known_places = self._of_callers[caller] = self._files.encode_caller(caller)
            places = known_places
        digits = sha256(data).hexdigest().encode()
        self._references[op] = _INPUT + digits
        number = self._numbers.setdefault(digits, len(self._digits))
        if number < len(self._digits):
            self._add_again(number, said, places)
            return
        self._digits.append(digits)
        self._blobs.append(data)
        self._entries.append(said)
        self._places.append(places)

    def _add_again(self, number: int, said: Entry | None, places: bytes) -> None:
        """What is said of a vertex by another op that turned out to be the same one."""
        known = self._entries[number]
        self._entries[number] = said if known is None or said is None else known.merged(said)
        self._places[number] = (self._places[number] or b"") + places

    def _encode(self, op: Op) -> bytes:
        """Bytes of the vertex: Op with the member of its oneof behind all other fields."""
        inputs, references = op.inputs, self._references
        mapping: list[int] | None = None
        if not inputs:
            head = b""
        elif len(inputs) == 1:
            output = inputs[0]
            head = _reference(references[output.op], output.index) if output.index else references[output.op]
        else:
            written = [
                _reference(references[output.op], output.index) if output.index else references[output.op]
                for output in inputs
            ]
            if op.shares_inputs and len(distinct := dict.fromkeys(written)) < len(written):
                # States that were made apart turned out to be the same.
                positions = {reference: position for position, reference in enumerate(distinct)}
                mapping = [positions[reference] for reference in written]
                written = list(distinct)
            head = b"".join(written)
        platform = b""
        if op.writes_platform:
            # By identity, since ops keep their platforms alive and hashing one costs more than a vertex.
            platform = self._platforms.get(id(op.platform)) or self._platform(op.platform)
        require = op.require
        constraints = _encode_constraints(self._effective.require + require) if require else self._constraints
        if (body := op.fixed_body) is not None and mapping is None and self._call.daemon_caps is None:
            return head + platform + constraints + body
        return head + platform + constraints + op.body(self._call, mapping)

    def _platform(self, platform: Platform | None) -> bytes:
        effective = platform or self._call.platform
        if effective is None:
            raise InvalidOption("platform: not given, and the graph has vertexes that do not say what they are for")
        encoded = self._platforms[id(platform)] = encode_platform(effective)
        return encoded

    def _finish(self, terminal: bytes) -> Definition:
        """Put the message together; its last op only names the result."""
        digits, blobs = self._digits, [*self._blobs, terminal]
        digits.append(sha256(terminal).hexdigest().encode())
        self._entries.append(entry(NO_METADATA, self._terminal_caps()))
        self._places.append(None)
        parts: list[bytes] = []
        heads: dict[int, bytes] = {}
        for blob in blobs:
            size = len(blob)
            head = heads.get(size)
            if head is None:
                head = heads[size] = b"\x0a" + wire.varint(size)
            parts += (head, blob)
        locations, size = self._encode_maps(parts)
        files = b"".join([wire.blob(b"\x12", self._encode_file(file)) for file in self._files.files])
        parts += (b"\x1a", wire.varint(size + len(files)))
        parts += locations
        parts.append(files)
        return Definition(b"".join(parts), blobs, Digests(digits))

    def _encode_maps(self, metadata: list[bytes]) -> tuple[list[bytes], int]:
        """Append Definition.metadata in pieces, and give Source.locations and its size, both sorted by digest."""
        locations: list[bytes] = []
        size = 0
        # Neighbours mostly have the same to say, and come from few places.
        last_said, around_said = None, (b"", b"")
        around_places: dict[bytes, tuple[bytes, bytes, int]] = {}
        entries, places, digits = self._entries, self._places, self._digits
        for number in sorted(range(len(digits)), key=digits.__getitem__):
            said, place, key = entries[number], places[number], digits[number]
            if said is not None:
                if said is not last_said:
                    last_said, around_said = said, said.around
                metadata += (around_said[0], key, around_said[1])
            if place is not None:
                around = around_places.get(place)
                if around is None:
                    before, after = around_digest(b"\x0a", place)
                    around = around_places[place] = (before, after, len(before) + len(key) + len(after))
                locations += (around[0], key, around[1])
                size += around[2]
        return locations, size

    def _terminal_caps(self) -> list[str]:
        """What the definition as a whole needs of the daemon."""
        caps = ["constraints", "platform"]
        used = {said.metadata for said in set(self._entries) if said is not None}
        if any(metadata.description for metadata in used):
            caps.append("meta.description")
        if any(metadata.export_cache is not None for metadata in used):
            caps.append("meta.exportcache")
        if any(metadata.ignore_cache for metadata in used):
            caps.append("meta.ignorecache")
        return caps

    def _encode_file(self, file: SourceFile) -> bytes:
        """The SourceInfo message."""
        parts = [wire.text(b"\x0a", file.filename), wire.blob(b"\x12", file.data) if file.data else b""]
        if file.state is not None:
            nested = Definition.empty()
            if file.state.output is not None:
                defaults = file.state.marshal_defaults
                effective = self._given if defaults is None else defaults.merged(self._given)
                call = Call(effective.platform, self._call.unique_id, self._call.daemon_caps)
                nested = _Writer(call, effective, self._given, self._source_map).write(file.state.output)
            parts.append(wire.blob(b"\x1a", nested.to_bytes()))
        parts.append(wire.text(b"\x22", file.language))
        return b"".join(parts)


class _Files:
    """Files that locations point into, those with the same content once, in the order of their first mention."""

    def __init__(self) -> None:
        self.files: list[SourceFile] = []
        self._index: dict[SourceFile, int] = {}
        self._by_content: dict[tuple[str, str, bytes], int] = {}
        self._programs: dict[str, SourceFile | None] = {}

    def encode(self, place: Location) -> bytes:
        """A location as a field of Locations."""
        return self._encode(place.source, place.ranges)

    def encode_caller(self, caller: Caller) -> bytes:
        """The same for a line of a program; nothing if the line cannot be shown."""
        filename, line = caller
        if filename not in self._programs:
            data = source_text(filename)
            self._programs[filename] = SourceFile(filename, data, "Python") if data else None
        file = self._programs[filename]
        return b"" if file is None else self._encode(file, (Range(start_line=line, end_line=line),))

    def _encode(self, file: SourceFile, ranges: tuple[Range, ...]) -> bytes:
        if (index := self._index.get(file)) is None:
            content = (file.filename, file.language, file.data)
            index = self._index[file] = self._by_content.setdefault(content, len(self.files))
            if index == len(self.files):
                self.files.append(file)
        parts = [wire.number(b"\x08", index)]
        for part in ranges:
            start = wire.number(b"\x08", part.start_line) + wire.number(b"\x10", part.start_character)
            end = wire.number(b"\x08", part.end_line) + wire.number(b"\x10", part.end_character)
            parts.append(wire.blob(b"\x12", wire.blob(b"\x0a", start) + wire.blob(b"\x12", end)))
        return wire.blob(b"\x0a", b"".join(parts))


_INPUT = b"\x0a\x49\x0a\x47sha256:"
"""An Input message as a field of Op, but for the hex digits that end it."""


def _reference(first: bytes, index: int) -> bytes:
    """The Input of an output, made from that of output 0."""
    return wire.blob(b"\x0a", first[2:] + b"\x10" + wire.varint(index)) if index else first


def _encode_constraints(filters: tuple[str, ...]) -> bytes:
    return wire.blob(b"\x5a", wire.texts(b"\x0a", filters))


def encode_platform(platform: Platform) -> bytes:
    """The Platform message as a field of Op."""
    return wire.blob(
        b"\x52",
        wire.text(b"\x0a", platform.architecture)
        + wire.text(b"\x12", platform.os)
        + wire.text(b"\x1a", platform.variant)
        + wire.text(b"\x22", platform.os_version)
        + wire.texts(b"\x2a", platform.os_features),
    )


def random_id() -> str:
    """What tells the local directories of one build from those of others."""
    return "".join([secrets.choice(_ID_ALPHABET) for _ in range(_ID_SIZE)])
