"""Progress as lines of text that are only ever added: for logs, pipes and CI.

Source: moby/buildkit util/progress/progressui, what its plain mode prints and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from buildkit_py.progress.model import NANOSECONDS, StatusUpdate, VertexLog, VertexStatus
from buildkit_py.progress.output import Output
from buildkit_py.progress.state import BuildProgress, Changes, Outcome, Step
from buildkit_py.progress.text import (
    LogCleaner,
    clean_name,
    end_colors,
    format_log_time,
    format_size,
)

_TURN_SECONDS = 5.0
"""How long one step of several keeps the screen; longer if most of what happens is its own."""
_PATIENCE_SECONDS = 10.0
"""A step that has something to say gets the screen at the latest after this."""
_STATUS_SECONDS = 5.0
_STATUS_SHARE = 0.05
"""A status is repeated when this share of its total was done, or that many seconds passed."""
_SHARE_SECONDS = 0.3
"""How long the first line of a step waits for other solves to report the step too, which decides its name."""
_MAX_BACKLOG_BYTES = 1 << 20
"""A step with more log than this to print gets the screen at the next refresh."""
_MAX_ALL_BACKLOG_BYTES = 8 << 20
"""With more than this in all the refresh is now, and every step that has something gets the screen, which bounds the
memory; what is not shown loses its log."""
_NAME_BYTES = 72
FAILED_LOG_LINES = 10


@dataclass(slots=True, eq=False)
class _Printed:
    """What was printed of a step, and what is to be."""

    step: Step
    cleaners: dict[int, LogCleaner] = field(default_factory=dict[int, LogCleaner])
    """By stream."""
    number: int = 0
    """0 before the first line."""
    name: str = ""
    first_seen: float = 0.0
    logs: list[VertexLog] = field(default_factory=list[VertexLog])
    log_bytes: int = 0
    waiting_since: float | None = None
    """When the oldest news came that is not printed; None if all is."""
    events: int = 0
    """News since the screen last changed hands."""
    statuses: dict[str, tuple[VertexStatus, float]] = field(default_factory=dict[str, tuple[VertexStatus, float]])
    """Last printed, and when."""
    warnings: int = 0
    ended: tuple[Outcome, int | None, str] | None = None
    """The end that was printed last."""


class PlainRenderer:
    """Prints the steps one at a time, each under a number of its own."""

    def __init__(
        self,
        output: Output,
        *,
        clock: Callable[[], float],
        refresh_seconds: float,
        keep_colors: bool,
        truncate_names: bool = False,
    ) -> None:
        self._output = output
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._keep_colors = keep_colors
        self._truncate_names = truncate_names
        self._progress = BuildProgress()
        self._printed: dict[Step, _Printed] = {}
        self._news: dict[_Printed, None] = {}
        self._current: _Printed | None = None
        self._turn_started = 0.0
        self._numbers = 0
        self._last_refresh: float | None = None
        self._pieces: list[str] = []
        self._open_line = False
        self._opened = False
        self._backlog_bytes = 0

    def update(self, label: str, update: StatusUpdate) -> None:
        now = self._clock()
        changes = self._progress.update(label, update)
        self._note(changes, now)
        self._refresh_if_due(now)

    def tick(self) -> None:
        self._refresh_if_due(self._clock())

    def finish(self, *, failed: bool) -> None:
        """Print all that is left; then, of a build that failed, each failed step with the end of its log."""
        now = self._clock()
        waiting = sorted(self._news, key=lambda printed: printed.step.completed_ns or 0)
        self._refresh(now, final=True)
        for printed in waiting:
            if printed in self._news and printed.step.started and printed.step.visible:
                self._print(printed, now)
        self._end_line()
        if failed:
            # The daemon closes all that still runs when it ends the stream; this one was cut off.
            for step in self._progress.started_steps:
                if not step.completed:
                    self._switch(self._printed_of(step, now), now)
                    self._line("CANCELED")
                    self._current = None
            self._pieces.extend(failed_steps(self._progress, FAILED_LOG_LINES, keep_colors=self._keep_colors))
        self._flush()

    def _printed_of(self, step: Step, now: float) -> _Printed:
        printed = self._printed.get(step)
        if printed is None:
            printed = self._printed[step] = _Printed(step, first_seen=now)
        return printed

    def _note(self, changes: Changes, now: float) -> None:
        for step in changes.steps:
            if step.started:
                self._note_one(self._printed_of(step, now), now)
        previous: Step | None = None
        printed: _Printed | None = None
        for step, log in changes.logs:
            if printed is None or step is not previous:
                previous = step
                printed = self._printed_of(step, now)
                self._note_one(printed, now)
            printed.logs.append(log)
            printed.log_bytes += len(log.data)
            self._backlog_bytes += len(log.data)
            printed.events += 1

    def _note_one(self, printed: _Printed, now: float) -> None:
        self._news.setdefault(printed)
        printed.events += 1
        if printed.waiting_since is None:
            printed.waiting_since = now

    def _refresh_if_due(self, now: float) -> None:
        overflowing = self._backlog_bytes > _MAX_ALL_BACKLOG_BYTES
        waited = self._last_refresh is None or not 0 <= now - self._last_refresh < self._refresh_seconds
        if not waited and not overflowing:
            return
        self._last_refresh = now
        if self._news:
            self._refresh(now)
            if overflowing:
                self._clear_backlog(now)
            self._flush()

    def _clear_backlog(self, now: float) -> None:
        """Print all that has logs, in turn."""
        for printed in [printed for printed in self._news if printed.logs]:
            if printed.step.started and printed.step.visible:
                self._print(printed, now)
            else:
                self._drop_logs(printed)

    def _drop_logs(self, printed: _Printed) -> None:
        self._backlog_bytes -= printed.log_bytes
        printed.logs = []
        printed.log_bytes = 0

    def _refresh(self, now: float, *, final: bool = False) -> None:
        ready = [printed for printed in self._news if printed.step.started and printed.step.visible]
        if not final:
            ready = self._without_held_back(ready, now)
        current = self._current
        completed = [printed for printed in ready if printed.step.completed]
        completed.sort(key=lambda printed: (printed is not current, printed.step.completed_ns or 0))
        for printed in completed:
            self._print(printed, now)
        active = [printed for printed in ready if not printed.step.completed]
        if self._current is None:
            if active:
                self._print(max(active, key=lambda printed: printed.events), now)
            elif completed and not final:
                self._show_running(now)
            return
        if self._current in active:
            self._print(self._current, now)
        others = [printed for printed in active if printed is not self._current]
        if others and (successor := self._successor(others, now)) is not None:
            self._print(successor, now)

    def _without_held_back(self, ready: list[_Printed], now: float) -> list[_Printed]:
        """Leave out steps that wait for their name, and new ones that started later, to keep the order."""
        held = [printed for printed in ready if self._held_back(printed, now)]
        if not held:
            return ready
        first_ns = min(printed.step.intervals[0][0] for printed in held)
        return [printed for printed in ready if printed.number or printed.step.intervals[0][0] < first_ns]

    def _held_back(self, printed: _Printed, now: float) -> bool:
        return (
            printed.number == 0
            and printed.step.may_be_shared
            and 0 <= now - printed.first_seen < _SHARE_SECONDS
            and printed.log_bytes <= _MAX_BACKLOG_BYTES
        )

    def _show_running(self, now: float) -> None:
        """Nothing new, but the screen is free: say what is still going on."""
        for step in self._progress.started_steps:
            if not step.completed and (printed := self._printed.get(step)) is not None:
                if printed.number:
                    self._print(printed, now)
                return

    def _successor(self, others: list[_Printed], now: float) -> _Printed | None:
        """Which of the others gets the screen now, if any."""
        longest = max(others, key=lambda printed: now - (printed.waiting_since or now))
        if longest.waiting_since is not None and now - longest.waiting_since > _PATIENCE_SECONDS:
            return longest
        biggest = max(others, key=lambda printed: printed.log_bytes)
        if biggest.log_bytes > _MAX_BACKLOG_BYTES:
            return biggest
        assert self._current is not None
        busy = sum(printed.events for printed in others)
        total = busy + self._current.events
        if total and (now - self._turn_started) * busy / total > _TURN_SECONDS:
            return max(others, key=lambda printed: printed.events)
        return None

    def _print(self, printed: _Printed, now: float) -> None:
        """Print all that is new of one step, under its header unless it has the screen already."""
        self._news.pop(printed, None)
        printed.waiting_since = None
        step = printed.step
        outcome = step.outcome
        ended = None if outcome is None else (outcome, step.completed_ns, step.error)
        statuses = [status for status in step.statuses() if _is_due(printed.statuses.get(status.id), status, now)]
        if ended is not None and ended == printed.ended and not statuses and not printed.logs:
            return
        self._switch(printed, now)
        for status in statuses:
            printed.statuses[status.id] = (status, now)
            self._line(_status_text(status))
        for position, warning in enumerate(step.warnings()):
            if position >= printed.warnings:
                self._line(f"WARN: {clean_name(warning.short.decode(errors='replace'))}")
                printed.warnings = position + 1
        if printed.logs:
            self._print_logs(printed)
        if outcome is not None and ended != printed.ended:
            printed.ended = ended
            self._line(_outcome_text(step, outcome))
        if outcome is not None:
            self._end_line()
            self._current = None

    def _switch(self, printed: _Printed, now: float) -> None:
        if self._current is printed:
            return
        if self._current is not None:
            self._line("...")
        self._end_line()
        if self._opened:
            self._pieces.append("\n")
        self._opened = True
        if printed.number == 0:
            self._numbers += 1
            printed.number = self._numbers
            printed.name = _cut(printed.step.display_name) if self._truncate_names else printed.step.display_name
        for other in (*self._news, printed, *([self._current] if self._current else [])):
            other.events = 0
        self._current = printed
        self._turn_started = now
        self._line(printed.name)

    def _print_logs(self, printed: _Printed) -> None:
        prefix = f"#{printed.number} "
        start_ns = printed.step.started_ns or 0
        pieces = self._pieces
        for log in printed.logs:
            cleaner = printed.cleaners.get(log.stream)
            if cleaner is None:
                cleaner = printed.cleaners[log.stream] = LogCleaner(keep_colors=self._keep_colors)
            text = cleaner.feed(log.data)
            if not text:
                continue
            if not self._open_line:
                time = format_log_time((log.timestamp_ns - start_ns) / NANOSECONDS)
                pieces.append(f"{prefix}{time} ")
            self._open_line = not text.endswith("\n")
            if "\n" in text[:-1]:
                time = format_log_time((log.timestamp_ns - start_ns) / NANOSECONDS)
                body = text if self._open_line else text[:-1]
                text = body.replace("\n", f"\n{prefix}{time} ") + ("" if self._open_line else "\n")
            pieces.append(end_colors(text))
        self._drop_logs(printed)

    def _line(self, text: str) -> None:
        """A line of the current step."""
        self._end_line()
        assert self._current is not None
        self._pieces.append(f"#{self._current.number} {text}\n")

    def _end_line(self) -> None:
        if self._open_line:
            self._open_line = False
            self._pieces.append("\n")

    def _flush(self) -> None:
        if self._pieces:
            text = "".join(self._pieces)
            self._pieces = []
            self._output.write(text)


def failed_steps(progress: BuildProgress, count: int | None, *, keep_colors: bool) -> Iterable[str]:
    """For each step that failed, in start order, a block with its name and the last lines of its log."""
    for step in progress.started_steps:
        if step.outcome is not Outcome.FAILED:
            continue
        yield f"------\n > {step.display_name}:\n"
        start_ns = step.started_ns or 0
        for line in step.log_lines(count, keep_colors=keep_colors):
            yield f"{format_log_time((line.timestamp_ns - start_ns) / NANOSECONDS)} {line.text}\n"
        yield "------\n"


def status_amount(status: VertexStatus) -> str:
    """``2.81MB / 5.61MB``, or what is known of it."""
    if status.total:
        return f"{format_size(status.current)} / {format_size(status.total)}"
    return format_size(status.current) if status.current else ""


def _status_text(status: VertexStatus) -> str:
    if status.text:
        return clean_name(status.text)
    parts = [clean_name(status.id)]
    if amount := status_amount(status):
        parts.append(amount)
    if status.started_ns is not None:
        end_ns = status.timestamp_ns if status.completed_ns is None else status.completed_ns
        seconds = (end_ns - status.started_ns) / NANOSECONDS
        if seconds > 0.01:
            parts.append(f"{seconds:.1f}s")
    if status.completed_ns is not None:
        parts.append("done")
    return " ".join(parts)


def _is_due(printed: tuple[VertexStatus, float] | None, status: VertexStatus, now: float) -> bool:
    if printed is None:
        return True
    last, at = printed
    if status is last:
        return False
    if status.completed_ns is not None:
        return last.completed_ns is None or last.started_ns != status.started_ns
    if status.total and (status.current - last.current) / status.total >= _STATUS_SHARE:
        return True
    return now - at >= _STATUS_SECONDS


def _outcome_text(step: Step, outcome: Outcome) -> str:
    match outcome:
        case Outcome.CACHED:
            return "CACHED"
        case Outcome.CANCELED:
            return "CANCELED"
        case Outcome.FAILED:
            return f"ERROR: {clean_name(step.error)}"
        case Outcome.DONE:
            return f"DONE {step.seconds(step.completed_ns or 0):.1f}s"


def _cut(name: str) -> str:
    data = name.encode()
    return name if len(data) <= _NAME_BYTES else data[:_NAME_BYTES].decode(errors="ignore") + "..."
