"""What the live display shows at a given time and size."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.progress import Renderer, StatusUpdate, VertexWarning, open_renderer
from buildkit_py.progress.text import text_width
from buildkit_py.progress.tty import TTYRenderer
from tests.unit.progress.golden import assert_golden
from tests.unit.progress.scenarios import failing, two_platforms
from tests.unit.progress.streams import EPOCH, Clock, Terminal, at, digest, log, play, status, update, vertex


class Screen:
    """A live display on a terminal, with a clock of its own."""

    def __init__(self, columns: int = 80, rows: int = 24, clock: float = float(EPOCH), **env: str) -> None:
        self.clock = Clock(clock)
        self.start = clock
        self.terminal = Terminal(columns, rows)
        self.renderer: Renderer = open_renderer("tty", self.terminal, env, self.clock, terminal_size=self.terminal.size)

    def give(self, seconds: float, message: StatusUpdate, label: str = "") -> None:
        self.clock.now = self.start + seconds
        self.renderer.update(label, message)

    def tick(self, seconds: float) -> None:
        self.clock.now = self.start + seconds
        self.renderer.tick()

    @property
    def lines(self) -> list[str]:
        return self.terminal.screen().splitlines()


def test_two_platforms() -> None:
    """The screen at several moments, and at the end."""
    screen = Screen(72, 16)
    stream = two_platforms()
    shots: list[str] = []
    for moment in (0.2, 0.5, 1.2, 5.1, 12.0, 20.9):
        while stream and stream[0][0] <= moment:
            screen.give(*(stream[0][0], stream[0][2], stream[0][1]))
            stream.pop(0)
        screen.tick(moment)
        shots.append(f"--- {moment}s\n{screen.terminal.screen()}")
    for entry in stream:
        screen.give(entry[0], entry[2], entry[1])
    screen.renderer.finish(failed=False)
    shots.append(f"--- end\n{screen.terminal.screen()}")
    assert_golden("two-platforms.tty", "".join(shots))
    assert screen.terminal.modes == {"7": True, "25": True}


def test_a_failed_build() -> None:
    """Bytes as they go to the terminal, colours and cursor movements included."""
    screen = Screen(60, 24)
    play(screen.renderer, screen.clock, failing(), failed=True)
    assert_golden("failing.tty", screen.terminal.screen())
    raw = screen.terminal.getvalue()
    assert_golden("failing.tty.escapes", raw[raw.rindex("\x1b[?25l") :].replace("\x1b", "<ESC>"))


def test_no_color_means_none() -> None:
    screen = Screen(NO_COLOR="1", BUILDKIT_COLORS="run=green")
    play(screen.renderer, screen.clock, failing(), failed=True)
    assert not re.search(r"\x1b\[[0-9;]*m", screen.terminal.getvalue())


def test_chosen_colours() -> None:
    screen = Screen(BUILDKIT_COLORS="run=1,2,3")
    screen.give(0, update(vertex("a", 0, 1)))
    assert "\x1b[38;2;1;2;3m => a" in screen.terminal.getvalue()


def test_finished_only_if_every_step_ended() -> None:
    for stream, header in (
        ([vertex("a", 0, 1)], "[+] Building 2.0s (1/1) FINISHED"),
        ([vertex("a", 0, 1), vertex("never")], "[+] Building 2.0s (1/2)"),
    ):
        screen = Screen()
        screen.give(0, update(*stream))
        screen.clock.now += 2
        screen.renderer.finish(failed=False)
        assert screen.lines[0] == header


def test_nothing_is_drawn_before_anything_starts() -> None:
    screen = Screen()
    screen.give(0, update(vertex("a")))
    screen.tick(1)
    screen.renderer.finish(failed=True)
    assert screen.terminal.getvalue() == ""


def test_it_draws_at_most_every_100_ms_and_only_what_changed() -> None:
    screen = Screen()
    screen.give(0, update(vertex("a", 0)))
    drawn = len(screen.terminal.getvalue())
    screen.give(0.05, update(vertex("b", 0.05)))
    screen.tick(0.09)
    assert len(screen.terminal.getvalue()) == drawn
    screen.tick(0.11)
    drawn = len(screen.terminal.getvalue())
    assert screen.lines[-1].startswith(" => b")
    screen.tick(0.215)
    assert len(screen.terminal.getvalue()) > drawn
    drawn = len(screen.terminal.getvalue())
    screen.clock.now -= 0.0001
    screen.renderer.tick()
    assert len(screen.terminal.getvalue()) == drawn


def test_the_rate_can_be_set() -> None:
    screen = Screen(TTY_DISPLAY_RATE="1000")
    screen.give(0, update(vertex("a", 0)))
    drawn = screen.terminal.getvalue()
    screen.tick(0.9)
    assert screen.terminal.getvalue() == drawn
    screen.tick(1.0)
    assert screen.terminal.getvalue() != drawn


def test_times_are_right_though_the_clocks_differ() -> None:
    """A daemon an hour ahead or behind; a message may be late."""
    for difference in (3600.0, -3600.0):
        screen = Screen(clock=EPOCH + difference)
        screen.give(0.3, update(vertex("a", 0)))  # 300 ms late
        screen.give(1, update(log("a", 1, "x\n")))
        screen.tick(3)
        assert screen.lines[1].split() == ["=>", "a", "3.0s"]


def test_a_step_that_another_build_has_started() -> None:
    """Its time counts from its start, that of the build does not."""
    screen = Screen()
    screen.give(0, update(vertex("old", -60), vertex("new", 0)))
    screen.tick(1)
    assert screen.lines[0] == "[+] Building 1.0s (0/2)"
    assert [line.split()[1:] for line in screen.lines[1:]] == [["old", "61.0s"], ["new", "1.0s"]]


def test_log_window() -> None:
    """Six lines of each running step, or as many as are asked for; none once it has ended."""
    for asked, count in (("", 6), ("2", 2), ("0", 0)):
        screen = Screen(BUILDKIT_TTY_LOG_LINES=asked)
        screen.give(0, update(vertex("a", 0), *(log("a", 0, f"line {n}\n") for n in range(9))))
        assert screen.lines[2:] == [f" => => # line {n}" for n in range(9 - count, 9)]
        screen.give(1, update(vertex("a", 0, 1)))
        assert len(screen.lines) == 2


def test_a_screen_that_is_too_small() -> None:
    """Completed steps go first, oldest first, then logs, then details, and of running ones the oldest."""
    screen = Screen(40, 8)
    items = [vertex(f"old{n}", 0, 1) for n in range(20)]
    screen.give(1, update(*items, vertex("run1", 0.5)))
    assert [line.split()[1] for line in screen.lines[1:]] == [
        "old15",
        "old16",
        "old17",
        "old18",
        "old19",
        "run1",
    ]
    screen.give(2, update(*(log("run1", 2, f"{n}\n") for n in range(9))))
    assert [line.split()[-1] for line in screen.lines[2:]] == ["4", "5", "6", "7", "8"]
    screen.give(3, update(vertex("run2", 3), status("run2", "part", 3, current=5)))
    assert [line.split()[1] for line in screen.lines[1:]] == ["run1", "=>", "=>", "=>", "run2", "=>"]
    screen.give(4, update(*(vertex(f"more{n}", 4) for n in range(9))))
    assert [line.split()[1] for line in screen.lines[1:]] == [f"more{n}" for n in range(3, 9)]
    screen.renderer.finish(failed=False)
    assert len(screen.lines) == 1 + 20 + 2 + 1 + 9


def test_a_terminal_that_becomes_narrower() -> None:
    """Its lines wrap, so the cursor goes further up."""
    screen = Screen(80, 24)
    screen.give(0, update(vertex("a", 0), vertex("b", 0)))
    screen.terminal.columns = 40
    screen.terminal.lines[:] = ["", *screen.terminal.lines, ""]
    screen.terminal.row += 2
    screen.tick(1)
    assert screen.terminal.getvalue().count("\x1b[5A") == 1  # 1 + 2 lines of two rows


def test_wide_characters_keep_the_column() -> None:
    screen = Screen(40, 24)
    screen.give(0, update(vertex("日本語" * 10, 0), vertex("e\u0301" * 5, 0), vertex("👍", 0)))
    assert [text_width(line) for line in screen.lines[1:]] == [40, 40, 40]
    assert all(line.endswith(" 0.0s") for line in screen.lines[1:])


def test_a_label_goes_when_a_second_platform_has_the_step() -> None:
    screen = Screen()
    screen.give(0, update(vertex("[1/2] FROM x", 0)), "linux/arm64")
    assert screen.lines[1].startswith(" => [linux/arm64 1/2] FROM x ")
    screen.give(1, update(vertex("[1/2] FROM x", 0)), "linux/amd64")
    assert screen.lines[1].startswith(" => [1/2] FROM x ")
    assert len(screen.lines) == 2


def test_warnings() -> None:
    screen = Screen(60)
    screen.give(0, update(vertex("a", 0), VertexWarning(digest("a"), short=b"careful \x1b[2J" + b"x" * 80)))
    assert screen.lines[2] == " => WARN: careful " + "x" * 39 + "..."


def test_what_still_runs_when_a_failed_build_ends_was_cancelled() -> None:
    screen = Screen()
    screen.give(0, update(vertex("a", 0)))
    screen.renderer.finish(failed=True)
    assert screen.lines[1].startswith(" => CANCELED a ")


def test_a_stream_that_lost_its_terminal_has_a_default_size() -> None:
    class Lost(StringIO):
        def isatty(self) -> bool:
            return True

    stream = Lost()
    renderer = open_renderer("tty", stream, {"NO_COLOR": "1"}, Clock())
    renderer.update("", update(vertex("a", 0)))
    assert f" => a{' ' * 70} 0.0s" in stream.getvalue()


@given(
    st.lists(st.tuples(st.text(max_size=60), st.binary(max_size=60), st.booleans()), max_size=12),
    st.integers(0, 60),
    st.integers(0, 12),
)
def test_no_name_or_log_breaks_the_display(steps: list[tuple[str, bytes, bool]], columns: int, rows: int) -> None:
    """The terminal refuses unknown sequences and controls; no line is too wide, none is drawn above it."""
    screen = Screen(columns, rows)
    screen.terminal.rows = max(rows, 4) if rows else 24
    width = max(columns, 20) if columns else 80
    screen.renderer = open_renderer("tty", screen.terminal, {}, screen.clock, terminal_size=lambda: (columns, rows))
    for second, (name, data, done) in enumerate(steps):
        key = f"k{second}"
        end = second + 0.5 if done else None
        screen.give(
            second,
            update(
                vertex(name, second, end, key=key),
                status(key, name, second, current=second),
                log(key, second, data),
            ),
        )
        assert len(screen.lines) <= screen.terminal.rows - 1
        assert all(text_width(line) <= width for line in screen.lines)
    assert at(0) == EPOCH * 10**9


@pytest.mark.parametrize("columns", [1, 2, 5, 10, 19, 20])
def test_no_line_is_wider_than_a_narrow_terminal(columns: int) -> None:
    """Not all terminals can be told not to wrap; one that wraps would make the display climb."""
    screen = Screen(columns, 6)
    play(screen.renderer, screen.clock, two_platforms(), failed=False)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.terminal.getvalue()).replace("\r", "")
    assert max(map(text_width, text.split("\n"))) == columns


def test_drawing_many_running_steps_costs_what_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 platforms may run a step each, or many; the screen shows a few."""
    composed = 0
    original = TTYRenderer._step_lines

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal composed
        composed += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(TTYRenderer, "_step_lines", counted)
    screen = Screen(80, 24)
    screen.give(0, update(*(vertex(f"[{number}/5000] RUN x", number / 1000) for number in range(5000))))
    assert composed <= 24
    assert [line.split()[1] for line in screen.lines[1:]] == [f"[{number}/5000]" for number in range(4978, 5000)]
