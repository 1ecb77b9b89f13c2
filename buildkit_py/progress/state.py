"""Folds the status updates of one or several solves into the steps that a display shows. No clock, no output.

**One step for each vertex, whoever asked for it.** The solves of several platforms on one daemon have
vertexes in common (the build context, stages that are FROM --platform=$BUILDPLATFORM). The daemon reports
such a vertex to each of them under one digest, with the same times and the same log. It is one :class:`Step`,
whose intervals, statuses, logs and warnings are merged. Exports are not shared though their digests are
equal: those derive from the session, and each solve exports its own result.

**Names.** A step of one solve carries that solve's label, a step of several carries none, and neither do the
reads of local files, which serve every platform by nature: see :attr:`Step.display_name`. A name can
therefore lose its label while a build runs. A display that cannot take back what it wrote keeps the first
name, and may want to wait a moment for the other solves before it writes one: see :attr:`Step.may_be_shared`.

Memory is bounded: of a log only the end is kept, and what a daemon sends beyond generous counts is ignored.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from buildkit_py.progress.model import (
    NANOSECONDS,
    StatusUpdate,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
    is_canceled,
)
from buildkit_py.progress.text import clean_line, clean_name

Interval: TypeAlias = tuple[int, int | None]
"""Start and end in nanoseconds; no end while it lasts."""

LOG_TAIL_BYTES = 32 * 1024
"""What is kept of the log of one vertex."""
_ALL_TAILS_BYTES = 32 * 1024 * 1024
"""What is kept of all logs together; beyond it the vertexes that have printed for longest lose theirs."""
_CHUNK_BYTES = 4096
"""Pieces of a line are joined up to this size, so that a log of single bytes stays cheap to keep."""

# Far beyond any real build; a daemon that sends more is broken or hostile.
_MAX_VERTEXES = 100_000
_MAX_STATUSES = 10_000
_MAX_INTERVALS = 1_000
_MAX_WARNINGS = 1_000

# Work that serves all platforms of a build. Source: moby/buildkit, names that the Dockerfile frontend gives.
_NEUTRAL = re.compile(
    r"\[internal\] load (?:build definition from |\.dockerignore|(?:remote )?build context|git source )"
    r"|\[context [^\]]*\] load (?:from client|\.dockerignore)"
)
# Digests of these are made of the session and an index, and solves that share a session collide.
# Source: moby/buildkit solver/llbsolver, "<session>-export-<index>" and "<session>-cache-<index>".
_PER_SOLVE = "exporting "


def label_name(label: str, name: str) -> str:
    """The name of a vertex with the label of its solve.

    ``[build 2/3] RUN x`` becomes ``[linux/arm64 build 2/3] RUN x``. A name without brackets gets a
    pair of them. Names of work that serves all solves, and names that have the label, stay as they are.
    """
    if not label or _NEUTRAL.match(name) or name.startswith((f"[{label} ", f"[{label}]")):
        return name
    return f"[{label} {name[1:]}" if name.startswith("[") else f"[{label}] {name}"


def merge_intervals(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Sorted, those that overlap or touch joined; one without an end swallows all that start after it."""
    merged: list[Interval] = []
    for start, end in sorted(intervals, key=lambda interval: interval[0]):
        if end is not None and end < start:
            end = start
        if not merged:
            merged.append((start, end))
            continue
        last_start, last_end = merged[-1]
        if last_end is None:
            break
        if start > last_end:
            merged.append((start, end))
        else:
            merged[-1] = (last_start, None if end is None else max(end, last_end))
    return tuple(merged)


class Outcome(enum.Enum):
    """How a step ended."""

    DONE = "done"
    CACHED = "cached"
    CANCELED = "canceled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class VertexCounts:
    """How many vertexes a solve has; each digest counts once."""

    total: int = 0
    """All that were reported, those that never started included."""
    completed: int = 0
    """Cached ones included."""
    cached: int = 0


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a vertex printed, clean."""

    timestamp_ns: int
    text: str


class LogTail:
    """The end of a log; chunks go in, lines come out."""

    __slots__ = ("_chunks", "_cut", "size")

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._cut = False
        self.size = 0
        """Bytes kept."""

    def append(self, timestamp_ns: int, data: bytes) -> None:
        chunks = self._chunks
        if not data:
            return
        if len(data) > LOG_TAIL_BYTES:
            data = data[-LOG_TAIL_BYTES:]
            chunks.clear()
            self.size = 0
            self._cut = True
        self.size += len(data)
        if chunks and not (last := chunks[-1])[1].endswith(b"\n") and len(last[1]) < _CHUNK_BYTES:
            end = data.find(b"\n") + 1 or len(data)  # what follows the line has a time of its own
            chunks[-1] = (last[0], last[1] + data[:end])
            data = data[end:]
        if data:
            chunks.append((timestamp_ns, data))
        while self.size > LOG_TAIL_BYTES and len(chunks) > 1:
            self.size -= len(chunks.popleft()[1])
            self._cut = True

    def clear(self) -> None:
        self._chunks.clear()
        self.size = 0
        self._cut = True

    def lines(self, count: int | None = None, *, keep_colors: bool = False) -> list[LogLine]:
        """The last lines, oldest first; the last may still lack its end. A line cut in front is left out."""
        picked: list[tuple[int, bytes]] = []
        newlines, cut = 0, self._cut
        for chunk in reversed(self._chunks):
            picked.append(chunk)
            newlines += chunk[1].count(b"\n")
            if count is not None and newlines > count:
                cut = True  # or may be; there are enough lines without the first
                break
        lines: list[tuple[int, bytes]] = []
        partial, partial_ns = b"", 0
        for timestamp_ns, data in reversed(picked):
            *whole, last = data.split(b"\n")
            for piece in whole:
                lines.append((partial_ns if partial else timestamp_ns, partial + piece))
                partial = b""
            if last:
                partial_ns = partial_ns if partial else timestamp_ns
                partial += last
        if partial:
            lines.append((partial_ns, partial))
        if cut and len(lines) > 1:
            del lines[0]
        if count is not None:
            lines = lines[max(len(lines) - count, 0) :]
        return [LogLine(timestamp_ns, clean_line(line, keep_colors=keep_colors)) for timestamp_ns, line in lines]


@dataclass(slots=True, eq=False)
class _Record:
    """A vertex, as reported by each of the solves that have it."""

    digest: str
    name: str
    snapshots: dict[str, Vertex] = field(default_factory=dict[str, Vertex])
    """By label."""
    intervals: dict[str, dict[int, tuple[int | None, bool]]] = field(
        default_factory=dict[str, dict[int, tuple[int | None, bool]]]
    )
    """By label and start: the end, and whether the vertex was cancelled then."""
    statuses: dict[str, VertexStatus] = field(default_factory=dict[str, VertexStatus])
    warnings: dict[VertexWarning, None] = field(default_factory=dict[VertexWarning, None])
    tail: LogTail = field(default_factory=LogTail)
    log_label: str | None = None
    """The solve whose copy of the log is being followed."""
    log_ns: int = 0
    """Time of the newest chunk that was taken."""

    def replace(self, label: str, vertex: Vertex) -> bool:
        """Take a snapshot; False if it changes nothing."""
        before = self.snapshots.get(label)
        if before is not None and (before == vertex or (vertex.started_ns is None and before.started_ns is not None)):
            return False
        self.snapshots[label] = vertex
        if vertex.started_ns is not None:
            intervals = self.intervals.setdefault(label, {})
            intervals[vertex.started_ns] = (vertex.completed_ns, vertex.canceled)
            if len(intervals) > _MAX_INTERVALS:
                del intervals[min(intervals)]
        return True

    def all_intervals(self) -> Iterator[Interval]:
        """What the solves agree on.

        Where one of them saw a run end, it ended for the others too. Only "canceled" is an end that a solve
        may see alone, since the vertex goes on for the sake of the others.
        """
        by_start: dict[int, list[tuple[int | None, bool]]] = {}
        for intervals in self.intervals.values():
            for start, end in intervals.items():
                by_start.setdefault(start, []).append(end)
        for start, ends in by_start.items():
            real = [end for end, canceled in ends if end is not None and not canceled]
            closed = [end for end, _ in ends if end is not None]
            yield start, max(real) if real else max(closed) if len(closed) == len(ends) else None

    @property
    def started(self) -> bool:
        return bool(self.intervals)

    @property
    def cached(self) -> bool:
        vertexes = self.snapshots.values()
        done = [vertex for vertex in vertexes if vertex.completed_ns is not None and not vertex.error]
        return bool(done) and all(vertex.cached for vertex in done)

    @property
    def error(self) -> str:
        errors = [vertex.error for vertex in self.snapshots.values() if vertex.error]
        real = [error for error in errors if not is_canceled(error)]
        if real:
            return real[0]
        started = sum(vertex.started_ns is not None for vertex in self.snapshots.values())
        return errors[0] if errors and len(errors) >= started else ""

    @property
    def shows_group(self) -> bool:
        return any(
            vertex.error or (vertex.started_ns is not None and not (vertex.group and vertex.group.weak))
            for vertex in self.snapshots.values()
        )

    def takes_log(self, label: str, log: VertexLog) -> bool:
        """False for a chunk that another solve has delivered already."""
        if self.log_label != label:
            if self.log_label is not None and log.timestamp_ns <= self.log_ns:
                return False
            self.log_label = label
        self.log_ns = max(self.log_ns, log.timestamp_ns)
        return True

    def takes_status(self, status: VertexStatus) -> bool:
        """False for one that is older than what is known: each solve that has the vertex reports it."""
        known = self.statuses.get(status.id)
        if known is None and len(self.statuses) >= _MAX_STATUSES:
            return False
        if known is not None and (known == status or status.timestamp_ns < known.timestamp_ns):
            return False
        self.statuses[status.id] = status
        return True


class Step:
    """What a display shows as one: a vertex, or the vertexes of one progress group."""

    __slots__ = (
        "_group_name",
        "_labels",
        "_name",
        "_records",
        "cached",
        "error",
        "intervals",
        "visible",
    )

    def __init__(self, name: str, *, group: bool) -> None:
        self._name = name
        self._group_name = group
        self._records: list[_Record] = []
        self._labels: dict[str, None] = {}
        self.intervals: tuple[Interval, ...] = ()
        """Merged; empty until the step starts."""
        self.cached = False
        self.error = ""
        self.visible = not group
        """False for a group that has no reason to be shown yet."""

    @property
    def name(self) -> str:
        """As the daemon gave it."""
        return self._name

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the solves that have the step, in the order in which they reported it."""
        return tuple(self._labels)

    @property
    def display_name(self) -> str:
        """Clean, with the label of the solve if only one has the step; loses it when a second one does."""
        label = next(iter(self._labels)) if len(self._labels) == 1 else ""
        return clean_name(label_name(label, self._name))

    @property
    def may_be_shared(self) -> bool:
        """True while the display name has a label that the report of another solve would take away."""
        if len(self._labels) != 1 or self._name.startswith(_PER_SOLVE):
            return False
        label = next(iter(self._labels))
        return label_name(label, self._name) != self._name

    @property
    def started(self) -> bool:
        """Whether it has begun."""
        return bool(self.intervals)

    @property
    def completed(self) -> bool:
        """Whether it has ended, the last time that it ran."""
        return bool(self.intervals) and self.intervals[-1][1] is not None

    @property
    def started_ns(self) -> int | None:
        """Start of the most recent interval."""
        return self.intervals[-1][0] if self.intervals else None

    @property
    def completed_ns(self) -> int | None:
        """When it last ended, in ns since the epoch; None while it runs, and before that."""
        return self.intervals[-1][1] if self.intervals else None

    @property
    def outcome(self) -> Outcome | None:
        """None while the step has not ended."""
        if not self.completed:
            return None
        if self.error:
            return Outcome.CANCELED if is_canceled(self.error) else Outcome.FAILED
        return Outcome.CACHED if self.cached else Outcome.DONE

    def seconds(self, now_ns: int) -> float:
        """Sum of the intervals, one that lasts counted up to now_ns by the daemon's clock."""
        total = sum(max((now_ns if end is None else end) - start, 0) for start, end in self.intervals)
        return total / NANOSECONDS

    def statuses(self) -> Iterator[VertexStatus]:
        """In the order in which they were first reported, for each vertex."""
        for record in self._records:
            yield from record.statuses.values()

    def warnings(self) -> Iterator[VertexWarning]:
        """What the daemon warned of at this vertex."""
        for record in self._records:
            yield from record.warnings

    def log_lines(self, count: int | None = None, *, keep_colors: bool = False) -> list[LogLine]:
        """The last lines that are kept, oldest first; of a group, those of the vertex that printed last."""
        if not self._records:
            return []
        return max(self._records, key=lambda record: record.log_ns).tail.lines(count, keep_colors=keep_colors)

    def add(self, record: _Record) -> None:
        """Fold in what is said of the vertex."""
        self._records.append(record)

    def add_label(self, label: str) -> None:
        """Note that this platform has the vertex, too."""
        self._labels.setdefault(label)

    def refresh(self) -> None:
        """Work out anew what depends on snapshots."""
        records = self._records
        self.intervals = merge_intervals(interval for record in records for interval in record.all_intervals())
        self.cached = all(record.cached for record in records)
        errors = [error for record in records if (error := record.error)]
        self.error = next((error for error in errors if not is_canceled(error)), errors[0] if errors else "")
        self.visible = not self._group_name or any(record.shows_group for record in records)


@dataclass(slots=True)
class Changes:
    """What an update changed."""

    steps: dict[Step, None] = field(default_factory=dict[Step, None])
    """Steps with a changed vertex or status, in order of mention."""
    logs: list[tuple[Step, VertexLog]] = field(default_factory=list[tuple[Step, VertexLog]])
    """Log chunks that are new, in order."""
    warnings: list[tuple[Step, VertexWarning]] = field(default_factory=list[tuple[Step, VertexWarning]])


@dataclass(frozen=True, slots=True)
class VertexFailure:
    """A vertex that failed of itself, not because the build was cancelled."""

    label: str
    vertex: Vertex
    log_tail: tuple[str, ...]


_Key: TypeAlias = tuple[str, ...]


class BuildProgress:
    """The state of all solves of one build.

    A label names each: "linux/arm64", say, or "" where there is only one.
    """

    def __init__(self) -> None:
        self._records: dict[_Key, _Record] = {}
        self._step_of: dict[_Record, Step] = {}
        self._groups: dict[str, Step] = {}
        self._solves: dict[str, dict[str, _Record]] = {}
        self._steps: list[Step] = []
        self._started: dict[Step, None] = {}
        self._warnings: dict[VertexWarning, None] = {}
        self._tails: dict[_Record, None] = {}
        self._tail_bytes = 0

    @property
    def steps(self) -> Sequence[Step]:
        """All steps, those that are not visible or not started included, as first reported."""
        return self._steps

    @property
    def started_steps(self) -> Sequence[Step]:
        """In start order, those that are visible."""
        started = [step for step in self._started if step.visible]
        return sorted(started, key=lambda step: step.intervals[0][0])

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the solves that have reported anything."""
        return tuple(self._solves)

    @property
    def warnings(self) -> tuple[VertexWarning, ...]:
        """Each one once, those included whose vertex was never reported."""
        return tuple(self._warnings)

    def update(self, label: str, update: StatusUpdate) -> Changes:
        """Fold one update of the solve that label names. What belongs to unknown vertexes is ignored."""
        solve = self._solves.setdefault(label, {})
        changes = Changes()
        for vertex in update.vertexes:
            self._take_vertex(label, solve, vertex, changes)
        for step in changes.steps:
            step.refresh()
            if step.started:
                self._started.setdefault(step)
        for status in update.statuses:
            record = solve.get(status.vertex)
            if record is not None and record.takes_status(status):
                changes.steps.setdefault(self._step_of[record])
        for log in update.logs:
            record = solve.get(log.vertex)
            if record is not None and record.takes_log(label, log):
                self._keep_log(record, log)
                changes.logs.append((self._step_of[record], log))
        for warning in update.warnings:
            self._take_warning(solve, warning, changes)
        return changes

    def counts(self, label: str) -> VertexCounts:
        """Of the solve that label names; all zero for one that has not reported."""
        vertexes = self.vertexes(label)
        return VertexCounts(
            total=len(vertexes),
            completed=sum(vertex.completed_ns is not None for vertex in vertexes),
            cached=sum(vertex.cached for vertex in vertexes),
        )

    def vertexes(self, label: str) -> tuple[Vertex, ...]:
        """Last snapshots of the vertexes of one solve, as first reported."""
        return tuple(record.snapshots[label] for record in self._solves.get(label, {}).values())

    def vertex(self, label: str, digest: str) -> Vertex | None:
        """Last snapshot of one vertex of one solve."""
        record = self._solves.get(label, {}).get(digest)
        return None if record is None else record.snapshots[label]

    def log_tail(self, label: str, digest: str, lines: int = 10) -> tuple[str, ...]:
        """The last lines that a vertex printed, clean; empty if it is unknown or silent."""
        record = self._solves.get(label, {}).get(digest)
        return () if record is None else tuple(line.text for line in record.tail.lines(lines))

    def failures(self, label: str, lines: int = 10) -> tuple[VertexFailure, ...]:
        """Vertexes of one solve that failed, in start order. They say why a solve failed only if it did:
        a build goes on after the error of, for instance, a cache import.
        """
        failed = [vertex for vertex in self.vertexes(label) if vertex.error and not vertex.canceled]
        failed.sort(key=lambda vertex: vertex.started_ns or 0)
        return tuple(VertexFailure(label, vertex, self.log_tail(label, vertex.digest, lines)) for vertex in failed)

    def _take_vertex(self, label: str, solve: dict[str, _Record], vertex: Vertex, changes: Changes) -> None:
        record = solve.get(vertex.digest)
        if record is None:
            if len(solve) >= _MAX_VERTEXES:
                return
            record = solve[vertex.digest] = self._record(label, vertex)
        if not record.replace(label, vertex):
            return
        step = self._step_of[record]
        step.add_label(label)
        changes.steps.setdefault(step)

    def _record(self, label: str, vertex: Vertex) -> _Record:
        key = (vertex.digest, label) if vertex.name.startswith(_PER_SOLVE) else (vertex.digest,)
        record = self._records.get(key)
        if record is not None:
            return record
        record = self._records[key] = _Record(vertex.digest, vertex.name)
        group = vertex.group
        step = self._groups.get(group.id) if group is not None else None
        if step is None:
            step = Step(vertex.name if group is None else group.name, group=group is not None)
            self._steps.append(step)
            if group is not None:
                self._groups[group.id] = step
        step.add(record)
        self._step_of[record] = step
        return record

    def _keep_log(self, record: _Record, log: VertexLog) -> None:
        self._tails.setdefault(record)
        before = record.tail.size
        record.tail.append(log.timestamp_ns, log.data)
        self._tail_bytes += record.tail.size - before
        while self._tail_bytes > _ALL_TAILS_BYTES:
            oldest = next(iter(self._tails))
            del self._tails[oldest]
            self._tail_bytes -= oldest.tail.size
            oldest.tail.clear()

    def _take_warning(self, solve: dict[str, _Record], warning: VertexWarning, changes: Changes) -> None:
        if warning in self._warnings or len(self._warnings) >= _MAX_WARNINGS:
            return
        self._warnings[warning] = None
        record = solve.get(warning.vertex)
        if record is not None:
            record.warnings[warning] = None
            changes.warnings.append((self._step_of[record], warning))
