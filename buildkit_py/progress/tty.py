"""Progress as a live display: the screen shows what runs, and is drawn anew several times a second.

Source: moby/buildkit util/progress/progressui, what its tty mode shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from buildkit_py.progress.model import NANOSECONDS, StatusUpdate
from buildkit_py.progress.output import Output
from buildkit_py.progress.plain import failed_steps, status_amount
from buildkit_py.progress.state import BuildProgress, Outcome, Step
from buildkit_py.progress.text import RESET, clean_name, fit, text_width

_UP = "\x1b[{}A"
_ERASE_LINE_END = "\x1b[K"
_ERASE_BELOW = "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# A line that is wider than we measured must not become two: the cursor would go up too little.
_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"
_FAINT = "\x1b[2m"

LOG_WINDOW_LINES = 6


@dataclass(frozen=True, slots=True)
class Colors:
    """Escape sequences by what they mark; an empty one leaves the text as it is."""

    run: str = "\x1b[34m"
    cancel: str = "\x1b[33m"
    warning: str = "\x1b[33m"
    error: str = "\x1b[31m"
    faint: str = _FAINT


NO_COLORS = Colors("", "", "", "", "")


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    color: str = ""
    right: str = ""


class TTYRenderer:
    """Draws at the bottom of the terminal, over what it drew before.

    From update to update the cursor stands below the display, visible, at the start of a line, so that
    nothing has to be put right if the process ends.
    """

    def __init__(
        self,
        output: Output,
        *,
        clock: Callable[[], float],
        terminal_size: Callable[[], tuple[int, int]],
        refresh_seconds: float,
        colors: Colors,
        log_lines: int = LOG_WINDOW_LINES,
    ) -> None:
        self._output = output
        self._clock = clock
        self._terminal_size = terminal_size
        self._refresh_seconds = refresh_seconds
        self._colors = colors
        self._log_lines = log_lines
        self._progress = BuildProgress()
        self._began: float | None = None
        self._clock_offset_ns: int | None = None
        self._last_draw: float | None = None
        self._drawn: list[str] = []
        self._drawn_columns = 0

    def update(self, label: str, update: StatusUpdate) -> None:
        now = self._clock()
        self._progress.update(label, update)
        self._compare_clocks(update, now)
        self._draw_if_due(now)

    def tick(self) -> None:
        self._draw_if_due(self._clock())

    def finish(self, *, failed: bool) -> None:
        """Draw all steps, more than the screen holds if need be; of a build that failed also the logs."""
        now = self._clock()
        columns, _ = self._size()
        if self._began is not None:
            self._draw(now, columns, None, ended=True, failed=failed)
        if failed:
            self._output.write("".join(failed_steps(self._progress, None, keep_colors=self._colors != NO_COLORS)))

    def _size(self) -> tuple[int, int]:
        columns, rows = self._terminal_size()
        return max(columns, 0) or 80, max(rows or 24, 4)

    def _compare_clocks(self, update: StatusUpdate, now: float) -> None:
        """Learn how far the daemon's clock is behind ours.

        News are a little late at most, so the smallest difference between their times and ours comes closest.
        """
        newest = max(
            chain(
                (time for vertex in update.vertexes for time in (vertex.started_ns, vertex.completed_ns) if time),
                (status.timestamp_ns for status in update.statuses),
                (log.timestamp_ns for log in update.logs[-1:]),
            ),
            default=0,
        )
        if newest > 0:
            offset = int(now * NANOSECONDS) - newest
            if self._clock_offset_ns is None or offset < self._clock_offset_ns:
                self._clock_offset_ns = offset
        if self._began is None and any(vertex.started_ns is not None for vertex in update.vertexes):
            self._began = now

    def _draw_if_due(self, now: float) -> None:
        if self._began is None:
            return
        if self._last_draw is not None and 0 <= now - self._last_draw < self._refresh_seconds:
            return
        self._last_draw = now
        columns, rows = self._size()
        # The cursor stands on a row of its own below the display.
        self._draw(now, columns, rows - 1, ended=False, failed=False)

    def _draw(self, now: float, columns: int, rows: int | None, *, ended: bool, failed: bool) -> None:
        now_ns = int(now * NANOSECONDS) - (self._clock_offset_ns or 0)
        lines = [self._header(now, ended=ended)]
        lines += self._body(now_ns, None if rows is None else rows - 1, ended=ended, failed=failed)
        drawn = [_compose(line, columns) for line in lines]
        if drawn == self._drawn and columns == self._drawn_columns:
            return
        up = self._rows_drawn(columns)
        pieces = [_HIDE_CURSOR, _WRAP_OFF, _UP.format(up) if up else "", "\r"]
        for line, text in zip(lines, drawn, strict=True):
            pieces.append(f"{line.color}{text}{RESET}" if line.color else text)
            pieces.append(f"{_ERASE_LINE_END}\n")
        pieces += [_ERASE_BELOW, _WRAP_ON, _SHOW_CURSOR]
        self._output.write("".join(pieces))
        self._drawn, self._drawn_columns = drawn, columns

    def _rows_drawn(self, columns: int) -> int:
        """Rows that the last drawing takes: a terminal that has become narrower has wrapped its lines."""
        if columns >= self._drawn_columns:
            return len(self._drawn)
        return sum(max(-(-text_width(text) // columns), 1) for text in self._drawn)

    def _header(self, now: float, *, ended: bool) -> _Line:
        visible = [step for step in self._progress.steps if step.visible]
        completed = sum(step.completed for step in visible)
        seconds = max(now - (self._began or now), 0.0)
        finished = " FINISHED" if ended and completed == len(visible) else ""
        return _Line(f"[+] Building {seconds:.1f}s ({completed}/{len(visible)}){finished}")

    def _body(self, now_ns: int, rows: int | None, *, ended: bool, failed: bool) -> list[_Line]:
        steps = self._progress.started_steps
        if rows is None:
            return [line for step in steps for line in self._step_lines(step, now_ns, 0, ended=failed)]
        running = [step for step in steps if not step.completed]
        if len(running) > rows:  # no room for anything but their names, and of those the newest
            return [line for step in running[-rows:] for line in self._step_lines(step, now_ns, 0, ended=False)[:1]]
        blocks = {step: self._step_lines(step, now_ns, self._log_lines, ended=False) for step in running}
        needed = sum(map(len, blocks.values()))
        for limit in range(self._log_lines - 1, -1, -1):
            if needed <= rows:
                break
            blocks = {step: self._step_lines(step, now_ns, limit, ended=False) for step in running}
            needed = sum(map(len, blocks.values()))
        if needed > rows:  # no room for details either
            blocks = {step: block[:1] for step, block in blocks.items()}
            needed = len(blocks)
        for step in reversed(steps):
            if step.completed:
                block = self._step_lines(step, now_ns, 0, ended=False)
                if needed + len(block) > rows:
                    break
                blocks[step] = block
                needed += len(block)
        return [line for step in steps for line in blocks.get(step, ())]

    def _step_lines(self, step: Step, now_ns: int, log_lines: int, *, ended: bool) -> list[_Line]:
        outcome = step.outcome
        if outcome is None and ended:
            outcome = Outcome.CANCELED  # the stream was cut off; the daemon would have said so
        prefix, color = self._look(outcome)
        lines = [_Line(f" => {prefix}{step.display_name}", color, f" {step.seconds(now_ns):.1f}s")]
        for status in step.statuses():
            amount = "" if status.text else status_amount(status)
            text = f" => => {clean_name(status.text or status.id)}" + (f" {amount}" if amount else "")
            right = ""
            if status.started_ns is not None:
                end_ns = status.completed_ns
                if end_ns is None:
                    end_ns = now_ns if outcome is None else status.timestamp_ns
                right = f" {max(end_ns - status.started_ns, 0) / NANOSECONDS:.1f}s"
            done = status.completed_ns is not None or outcome is not None
            lines.append(_Line(text, color if outcome else self._colors.run if done else "", right))
        lines += [
            _Line(f" => WARN: {clean_name(warning.short.decode(errors='replace'))}", self._colors.warning)
            for warning in step.warnings()
        ]
        if outcome is None and log_lines:
            lines += [_Line(f" => => # {line.text}", self._colors.faint) for line in step.log_lines(log_lines)]
        return lines

    def _look(self, outcome: Outcome | None) -> tuple[str, str]:
        match outcome:
            case None:
                return "", ""
            case Outcome.DONE:
                return "", self._colors.run
            case Outcome.CACHED:
                return "CACHED ", self._colors.run
            case Outcome.CANCELED:
                return "CANCELED ", self._colors.cancel
            case Outcome.FAILED:
                return "ERROR ", self._colors.error


def _compose(line: _Line, columns: int) -> str:
    """Text of the line at its left, right at its right, in at most the columns there are."""
    if not line.right or len(line.right) >= columns:
        return fit(line.text, columns)
    left = fit(line.text, columns - len(line.right))
    return left + " " * (columns - len(line.right) - text_width(left)) + line.right
