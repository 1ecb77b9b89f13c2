"""Status messages of a solve as values.

Times are integers: nanoseconds since the epoch by the daemon's clock, since a datetime holds microseconds and
would lose what ``rawjson`` prints. Each has a property with the aware datetime.

Source: moby/buildkit api/services/control/control.proto, StatusResponse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from buildkit_py.pb import control_pb2, ops_pb2

NANOSECONDS = 1_000_000_000
"""Nanoseconds in a second."""

# The range of google.protobuf.Timestamp, which is also that of datetime: years 1 to 9999. A daemon may send
# anything, and a time outside of it would make every later conversion fail.
_MIN_SECONDS = -62_135_596_800
_MAX_SECONDS = 253_402_300_799

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CANCELED = "context canceled"


def to_datetime(time_ns: int) -> datetime:
    """Aware datetime of nanoseconds since the epoch, rounded down to microseconds."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def is_canceled(error: str) -> bool:
    """True for the error text of a vertex that was cancelled, be it because a sibling failed."""
    return error.endswith(_CANCELED)


@dataclass(frozen=True, slots=True)
class ProgressGroup:
    """Vertexes with one group id are shown as one."""

    id: str
    name: str = ""
    weak: bool = False
    """True if the vertex alone is no reason to show the group."""


@dataclass(frozen=True, slots=True)
class Vertex:
    """Full snapshot of one vertex; the last one counts, except an unstarted one that trails a started one."""

    digest: str
    inputs: tuple[str, ...] = ()
    name: str = ""
    started_ns: int | None = None
    completed_ns: int | None = None
    cached: bool = False
    error: str = ""
    """Why the vertex failed; an error of, say, a cache import does not fail the build."""
    group: ProgressGroup | None = None

    @property
    def started(self) -> datetime | None:
        """When it began; None before that."""
        return None if self.started_ns is None else to_datetime(self.started_ns)

    @property
    def completed(self) -> datetime | None:
        """When it ended; None while it runs."""
        return None if self.completed_ns is None else to_datetime(self.completed_ns)

    @property
    def canceled(self) -> bool:
        """True if the vertex ended because the build did, or because another vertex failed."""
        return is_canceled(self.error)


@dataclass(frozen=True, slots=True)
class VertexStatus:
    """Progress of a part of a vertex, such as one layer; id is unique within the vertex."""

    id: str
    """What displays show."""
    vertex: str
    """Digest of the vertex."""
    name: str = ""
    """Name of the action, often empty."""
    current: int = 0
    """Bytes."""
    total: int = 0
    """Bytes; 0 where they are not known."""
    timestamp_ns: int = 0
    started_ns: int | None = None
    completed_ns: int | None = None
    text: str = ""
    """What displays show in place of all else; of what this side counts, never of what a daemon says."""

    @property
    def timestamp(self) -> datetime:
        """When this was so."""
        return to_datetime(self.timestamp_ns)

    @property
    def started(self) -> datetime | None:
        """When it began; None before that."""
        return None if self.started_ns is None else to_datetime(self.started_ns)

    @property
    def completed(self) -> datetime | None:
        """When it ended; None while it runs."""
        return None if self.completed_ns is None else to_datetime(self.completed_ns)


@dataclass(frozen=True, slots=True)
class VertexLog:
    """A chunk of what a vertex printed: any bytes, cut anywhere."""

    vertex: str
    """Digest of the vertex."""
    stream: int
    """1 is standard output, 2 is standard error."""
    data: bytes
    timestamp_ns: int = 0

    @property
    def timestamp(self) -> datetime:
        """When it was written."""
        return to_datetime(self.timestamp_ns)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a source file."""

    line: int = 0
    """From 1."""
    character: int = 0


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A part of a source file."""

    start: Position | None = None
    end: Position | None = None


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """The source file that a warning points at."""

    filename: str = ""
    data: bytes = b""
    """The whole file."""
    definition: bytes | None = None
    """The pb.Definition that the file comes from, serialised."""
    language: str = ""


@dataclass(frozen=True, slots=True)
class VertexWarning:
    """A warning of the frontend or of the daemon. The same one may be sent several times."""

    vertex: str
    """Digest of the vertex; may be one that was never reported."""
    level: int = 0
    short: bytes = b""
    detail: tuple[bytes, ...] = ()
    url: str = ""
    source: SourceInfo | None = None
    ranges: tuple[SourceRange, ...] = ()

    @property
    def anywhere(self) -> VertexWarning:
        """Equal for a warning that came again, of another vertex such as that of another platform."""
        source = None if self.source is None else replace(self.source, definition=None)
        return replace(self, vertex="", source=source)


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """One message of the status stream of one solve."""

    vertexes: tuple[Vertex, ...] = ()
    statuses: tuple[VertexStatus, ...] = ()
    logs: tuple[VertexLog, ...] = ()
    warnings: tuple[VertexWarning, ...] = ()

    @classmethod
    def from_pb(cls, message: control_pb2.StatusResponse) -> StatusUpdate:
        """Never fails: what the daemon sends out of range is clamped."""
        return cls(
            vertexes=tuple([_vertex(vertex) for vertex in message.vertexes]),
            statuses=tuple([_status(status) for status in message.statuses]),
            logs=tuple([VertexLog(log.vertex, log.stream, log.msg, _time_ns(log.timestamp)) for log in message.logs]),
            warnings=tuple([_warning(warning) for warning in message.warnings]),
        )


def _vertex(vertex: control_pb2.Vertex) -> Vertex:
    group = vertex.progressGroup if vertex.HasField("progressGroup") else None
    return Vertex(
        digest=vertex.digest,
        inputs=tuple(vertex.inputs),
        name=vertex.name,
        started_ns=_time_ns(vertex.started) if vertex.HasField("started") else None,
        completed_ns=_time_ns(vertex.completed) if vertex.HasField("completed") else None,
        cached=vertex.cached,
        error=vertex.error,
        group=None if group is None else ProgressGroup(group.id, group.name, group.weak),
    )


def _status(status: control_pb2.VertexStatus) -> VertexStatus:
    return VertexStatus(
        id=status.ID,
        vertex=status.vertex,
        name=status.name,
        current=status.current,
        total=status.total,
        timestamp_ns=_time_ns(status.timestamp),
        started_ns=_time_ns(status.started) if status.HasField("started") else None,
        completed_ns=_time_ns(status.completed) if status.HasField("completed") else None,
    )


def _warning(warning: control_pb2.VertexWarning) -> VertexWarning:
    return VertexWarning(
        vertex=warning.vertex,
        level=warning.level,
        short=warning.short,
        detail=tuple(warning.detail),
        url=warning.url,
        source=_source(warning.info) if warning.HasField("info") else None,
        ranges=tuple(
            SourceRange(
                start=_position(part.start) if part.HasField("start") else None,
                end=_position(part.end) if part.HasField("end") else None,
            )
            for part in warning.ranges
        ),
    )


def _source(info: ops_pb2.SourceInfo) -> SourceInfo:
    definition: bytes | None = None
    if info.HasField("definition"):
        definition = info.definition.SerializeToString(deterministic=True)
    return SourceInfo(info.filename, info.data, definition, info.language)


def _position(position: ops_pb2.Position) -> Position:
    return Position(position.line, position.character)


def _time_ns(time: Timestamp) -> int:
    seconds, nanos = time.seconds, time.nanos
    if _MIN_SECONDS <= seconds <= _MAX_SECONDS and 0 <= nanos < NANOSECONDS:
        return seconds * NANOSECONDS + nanos
    seconds = min(max(seconds, _MIN_SECONDS), _MAX_SECONDS)
    return seconds * NANOSECONDS + min(max(nanos, 0), NANOSECONDS - 1)
