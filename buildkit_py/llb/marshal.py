"""From a state to the definition of all that it needs."""

from __future__ import annotations

import secrets
from collections.abc import Container, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Unpack

from buildkit_py.errors import InvalidOption
from buildkit_py.llb import check, wire
from buildkit_py.llb.base import is_state
from buildkit_py.llb.capture import Caller, source_text
from buildkit_py.llb.definition import Definition
from buildkit_py.llb.ops import Call, LoadedOp, Op, Output
from buildkit_py.llb.vertex import NO_METADATA, CallOptions, Location, Metadata, Range, Settings, SourceFile, settings
from buildkit_py.platforms import Platform

if TYPE_CHECKING:
    from buildkit_py.llb.state import State

_DIGEST_SIZE = 71  # "sha256:" and 64 hex digits
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
    effective = given if defaults is None else defaults.merged(given)
    if state.output is None:
        return Definition.empty()
    call = Call(effective.platform, unique_id or _random_id(), daemon_caps)
    return _Writer(call, effective, given, check.boolean("source_map", source_map)).write(state.output)


class _Writer:
    """One marshal call."""

    def __init__(self, call: Call, effective: Settings, given: Settings, source_map: bool) -> None:
        self._call = call
        self._effective = effective
        self._given = given
        """What the call said, without the defaults of the state: files that vertexes point at have their own."""
        self._source_map = source_map
        self._filters = effective.require
        self._constraints = _encode_constraints(self._filters)
        self._call_platform = None if call.platform is None else encode_platform(call.platform)
        self._platforms: dict[int, bytes] = {}
        self._digests: dict[Op, bytes] = {}
        self._blobs: dict[bytes, bytes] = {}
        self._metadata: dict[bytes, tuple[Metadata, tuple[str, ...]]] = {}
        self._files = _Files()
        self._places: dict[bytes, bytes] = {}

    def write(self, output: Output) -> Definition:
        self._add_all(output.op)
        return self._finish(_reference(self._digests[output.op], output.index))

    def _add_all(self, root: Op) -> None:
        """Add root after all that it depends on; deep graphs need no deep stack."""
        digests, stack = self._digests, [root]
        while stack:
            op = stack[-1]
            if op in digests:
                stack.pop()
                continue
            waiting = len(stack)
            stack += [dependency for dependency in op.dependencies if dependency not in digests]
            if len(stack) == waiting:
                stack.pop()
                digests[op] = self._add(op)

    def _add(self, op: Op) -> bytes:
        data = op.data if isinstance(op, LoadedOp) else self._encode(op)
        digest = b"sha256:" + sha256(data).hexdigest().encode()
        is_new = digest not in self._blobs
        if is_new:
            self._blobs[digest] = data
        self._add_metadata(digest, op)
        places = op.locations or ((op.caller,) if self._source_map and op.caller is not None else ())
        if places:
            self._places[digest] = self._places.get(digest, b"") + b"".join(map(self._files.encode, places))
        return digest

    def _encode(self, op: Op) -> bytes:
        """Bytes of the vertex: Op with the member of its oneof behind all other fields."""
        digests, inputs = self._digests, op.inputs
        mapping: list[int] | None = None
        if len(inputs) == 1:
            head = _reference(digests[inputs[0].op], inputs[0].index)
        else:
            references = [_reference(digests[output.op], output.index) for output in inputs]
            if op.shares_inputs and len(distinct := dict.fromkeys(references)) < len(references):
                # States that were made apart turned out to be the same.
                positions = {reference: position for position, reference in enumerate(distinct)}
                mapping = [positions[reference] for reference in references]
                references = list(distinct)
            head = b"".join(references)
        if op.writes_platform:
            head += self._platform(op)
        require = op.settings.require
        head += _encode_constraints(self._filters + require) if require else self._constraints
        return head + op.body(self._call, mapping)

    def _platform(self, op: Op) -> bytes:
        platform = op.platform
        if platform is None:
            if self._call_platform is None:
                raise InvalidOption("platform: not given, and the graph has vertexes that do not say what they are for")
            return self._call_platform
        # By identity, which the op keeps alive; hashing a platform costs more than writing a vertex.
        if (known := self._platforms.get(id(platform))) is None:
            known = self._platforms[id(platform)] = encode_platform(platform)
        return known

    def _add_metadata(self, digest: bytes, op: Op) -> None:
        if isinstance(op, LoadedOp):
            if not op.has_metadata:
                return
            pair = op.metadata_and_caps
        else:
            pair = op.metadata_and_caps if self._call.daemon_caps is None else op.caps(self._call)
            if self._effective.metadata is not NO_METADATA:
                pair = (self._effective.metadata.merged(pair[0]), pair[1])
        known = self._metadata.get(digest)
        if known is not None and known is not pair:
            pair = (known[0].merged(pair[0]), tuple(sorted({*known[1], *pair[1]})))
        self._metadata[digest] = pair

    def _finish(self, terminal: bytes) -> Definition:
        """Put the message together; its last op only names the result."""
        blobs = [*self._blobs.values(), terminal]
        digests = [*self._blobs, b"sha256:" + sha256(terminal).hexdigest().encode()]
        self._metadata[digests[-1]] = (NO_METADATA, self._terminal_caps())
        parts: list[bytes] = []
        for blob in blobs:
            parts += (b"\x0a", wire.varint(len(blob)), blob)
        ends: dict[tuple[Metadata, tuple[str, ...]], tuple[bytes, bytes]] = {}
        for digest, pair in sorted(self._metadata.items()):
            if (around := ends.get(pair)) is None:
                around = ends[pair] = _around_digest(b"\x12", pair[0].encode(pair[1]))
            parts += (around[0], digest, around[1])
        parts.append(wire.blob(b"\x1a", self._encode_source()))
        return Definition.made(b"".join(parts), blobs, digests)

    def _terminal_caps(self) -> tuple[str, ...]:
        """What the definition as a whole needs of the daemon."""
        used = {metadata for metadata, _ in self._metadata.values()}
        wanted: Mapping[str, bool] = {
            "constraints": True,
            "meta.description": any(metadata.description for metadata in used),
            "meta.exportcache": any(metadata.export_cache is not None for metadata in used),
            "meta.ignorecache": any(metadata.ignore_cache for metadata in used),
            "platform": True,
        }
        return tuple([cap for cap, is_wanted in wanted.items() if is_wanted])

    def _encode_source(self) -> bytes:
        """The Source message: for each vertex where it comes from, then the files that this points into."""
        around: dict[bytes, tuple[bytes, bytes]] = {}
        parts: list[bytes] = []
        for digest in sorted(self._blobs):
            places = self._places.get(digest, b"")
            if (ends := around.get(places)) is None:
                ends = around[places] = _around_digest(b"\x0a", places)
            parts += (ends[0], digest, ends[1])
        parts += [wire.blob(b"\x12", self._encode_file(file)) for file in self._files.files]
        return b"".join(parts)

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
        self._of_callers: dict[str, SourceFile | None] = {}
        self._encoded: dict[Caller, bytes] = {}

    def encode(self, place: Location | Caller) -> bytes:
        """A location as a field of Locations; nothing for a line that cannot be shown."""
        if isinstance(place, Location):
            return self._encode(place.source, place.ranges)
        if (known := self._encoded.get(place)) is not None:
            return known
        filename, line = place
        if filename not in self._of_callers:
            data = source_text(filename)
            self._of_callers[filename] = SourceFile(filename, data, "Python") if data else None
        file = self._of_callers[filename]
        encoded = b"" if file is None else self._encode(file, (Range(start_line=line, end_line=line),))
        self._encoded[place] = encoded
        return encoded

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


def _reference(digest: bytes, index: int) -> bytes:
    """An Input message as a field of Op."""
    if not index:
        return b"\x0a\x49\x0a\x47" + digest
    return wire.blob(b"\x0a", b"\x0a\x47" + digest + b"\x10" + wire.varint(index))


def _around_digest(tag: bytes, value: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the key of a map entry whose key is a digest."""
    after = wire.blob(b"\x12", value)
    return tag + wire.varint(2 + _DIGEST_SIZE + len(after)) + b"\x0a\x47", after


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


def _random_id() -> str:
    return "".join([secrets.choice(_ID_ALPHABET) for _ in range(_ID_SIZE)])
