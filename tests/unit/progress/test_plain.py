"""What plain mode prints, and when."""

from __future__ import annotations

import re
import tracemalloc
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.progress import ProgressGroup, Renderer, StatusUpdate, VertexWarning, open_renderer
from tests.unit.progress.golden import DATA, assert_golden
from tests.unit.progress.scenarios import failing, two_platforms
from tests.unit.progress.streams import EPOCH, Clock, digest, log, play, read_rawjson, status, update, vertex


class Plain:
    """A plain display with a clock of its own."""

    def __init__(self, **env: str) -> None:
        self.clock = Clock()
        self.stream = StringIO()
        self.renderer: Renderer = open_renderer("plain", self.stream, env, self.clock)

    def give(self, seconds: float, message: StatusUpdate, label: str = "") -> None:
        self.clock.now = EPOCH + seconds
        self.renderer.update(label, message)

    def tick(self, seconds: float) -> None:
        self.clock.now = EPOCH + seconds
        self.renderer.tick()

    def finish(self, *, failed: bool = False) -> str:
        self.renderer.finish(failed=failed)
        return self.stream.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.mark.golden
def test_a_recorded_build_is_printed_as_buildctl_prints_it() -> None:
    """Statuses, warnings, logs with colours, a failed step with the end of its log."""
    plain = Plain()
    for message in read_rawjson((DATA / "failed.rawjson").read_text()):
        plain.give(0, message)
    assert plain.finish(failed=True) == (DATA / "failed.plain").read_text()


def test_two_platforms() -> None:
    """Shared steps once and without a label, own steps with it, and the screen goes from one to the other."""
    plain = Plain()
    play(plain.renderer, plain.clock, two_platforms(), failed=False)
    assert_golden("two-platforms.plain", plain.stream.getvalue())


def test_a_failed_build() -> None:
    """ERROR, CANCELED, safe text, the last ten lines of each step that failed."""
    plain = Plain()
    play(plain.renderer, plain.clock, failing(), failed=True)
    assert_golden("failing.plain", plain.stream.getvalue())


def test_a_vertex_error_in_a_build_that_succeeds_adds_no_block() -> None:
    plain = Plain()
    plain.give(0, update(vertex("importing cache manifest from x", 0, 1, error="not found")))
    assert plain.finish(failed=False) == "#1 importing cache manifest from x\n#1 ERROR: not found\n"


def test_a_status_is_repeated_after_five_percent_or_five_seconds() -> None:
    plain = Plain()
    plain.give(0, update(vertex("a", 0), status("a", "layer", 0, current=0, total=1000)))
    for seconds, current in ((1, 49), (2, 50), (3, 60), (6.9, 70), (7.1, 71), (8, 121)):
        plain.give(seconds, update(status("a", "layer", seconds, current=current, total=1000)))
    plain.give(9, update(status("a", "layer", 9, current=122, total=1000, started=0, completed=9)))
    plain.give(10, update(status("a", "layer", 10, current=122, total=1000, started=0, completed=9)))
    assert plain.lines == [
        "#1 a",
        "#1 layer 0B / 1.00kB",
        "#1 layer 50B / 1.00kB",
        "#1 layer 71B / 1.00kB",
        "#1 layer 121B / 1.00kB",
        "#1 layer 122B / 1.00kB 9.0s done",
    ]


def test_nothing_is_printed_more_often_than_every_100_ms() -> None:
    plain = Plain()
    plain.give(0, update(vertex("a", 0)))
    plain.give(0.05, update(log("a", 0.05, "early\n")))
    assert plain.lines == ["#1 a"]
    plain.tick(0.11)
    assert plain.lines == ["#1 a", "#1 0.050 early"]


def test_a_partial_line_goes_on_without_prefix_until_the_screen_changes() -> None:
    plain = Plain()
    plain.give(0, update(vertex("a", 0)))
    plain.give(1, update(log("a", 1, "one, ")))
    plain.give(2, update(log("a", 2, "two\nthree ")))
    plain.give(3, update(vertex("b", 3, 3)))
    plain.give(4, update(log("a", 4, "four")))
    assert plain.finish(failed=True) == (
        "#1 a\n#1 1.000 one, two\n#1 2.000 three \n#1 ...\n\n#2 b\n#2 DONE 0.0s\n\n#1 a\n#1 4.000 four\n#1 CANCELED\n"
    )


def test_the_time_of_a_line_counts_from_the_latest_start() -> None:
    plain = Plain()
    plain.give(0, update(vertex("a", 0, 1)))
    plain.give(100, update(vertex("a", 100)))
    plain.give(101, update(log("a", 101.5, "x\n"), log("a", 112.345, "y\n"), log("a", 212.345, "z\n")))
    plain.give(213, update(vertex("a", 100, 213)))
    assert plain.lines[-4:] == ["#1 1.500 x", "#1 12.35 y", "#1 112.3 z", "#1 DONE 114.0s"]


def test_a_silent_step_gets_the_screen_after_ten_seconds() -> None:
    """Though the other one is far busier."""
    plain = Plain()
    plain.give(0, update(vertex("busy", 0), vertex("quiet", 0)))
    plain.give(0.2, update(log("quiet", 0.2, "hello\n")))
    for tenth in range(4, 100):
        plain.give(tenth / 10, update(*(log("busy", tenth / 10, f"{n}\n") for n in range(50))))
    assert "#2 quiet" not in plain.lines
    plain.give(10.1, update(log("busy", 10.1, "more\n")))
    assert plain.lines[-5:] == ["#1 10.10 more", "#1 ...", "", "#2 quiet", "#2 0.200 hello"]


def test_equally_busy_steps_take_turns_of_about_ten_seconds() -> None:
    """Five seconds divided by the share of the others."""
    plain = Plain()
    plain.give(0, update(vertex("a", 0), vertex("b", 0)))
    switched: list[float] = []
    for tenth in range(2, 300):
        before = len(plain.stream.getvalue().split("\n\n"))
        now = tenth / 10
        plain.give(now, update(log("a", now, "a\n"), log("b", now, "b\n")))
        if len(plain.stream.getvalue().split("\n\n")) > before:
            switched.append(now)
    assert switched[0] == pytest.approx(10, abs=0.5)
    assert len(switched) == 2


def test_a_big_backlog_takes_the_screen_at_once() -> None:
    """So that what is not printed yet stays small in memory."""
    plain = Plain()
    plain.give(0, update(vertex("a", 0), vertex("b", 0)))
    plain.give(0.2, update(log("a", 0.2, "x\n")))
    plain.give(0.4, update(log("b", 0.4, b"y" * (1 << 20) + b"\n")))
    assert plain.lines[:4] == ["#1 a", "#1 0.200 x", "#1 ...", ""]
    assert plain.lines[4:] == ["#2 b", "#2 0.400 " + "y" * (1 << 20)]


def test_log_of_a_step_that_never_had_the_screen_is_printed_in_full() -> None:
    plain = Plain()
    plain.give(0, update(vertex("a", 0), vertex("b", 0)))
    for tenth in range(20):
        plain.give(tenth / 10, update(log("a", tenth / 10, f"a{tenth}\n"), log("b", tenth / 10, f"b{tenth}\n")))
    plain.give(2.01, update(vertex("a", 0, 2.01), vertex("b", 0, 2)))
    printed = [line.split()[-1] for line in plain.finish().splitlines() if line]
    assert [text for text in printed if text.startswith("a")][1:] == [f"a{n}" for n in range(20)]
    assert [text for text in printed if text[0] == "b"][1:] == [f"b{n}" for n in range(20)]


def test_a_step_waits_a_moment_for_other_platforms() -> None:
    plain = Plain()
    plain.give(0, update(vertex("[base 1/2] FROM x", 0), vertex("[2/2] RUN y", 0.1, key="arm")), "linux/arm64")
    plain.give(0.2, update(vertex("[base 1/2] FROM x", 0)), "linux/amd64")
    assert plain.lines == ["#1 [base 1/2] FROM x"]
    plain.give(0.4, update(vertex("[2/2] RUN y", 0.1, 0.4, key="arm")), "linux/arm64")
    assert plain.lines == [
        "#1 [base 1/2] FROM x",
        "#1 ...",
        "",
        "#2 [linux/arm64 2/2] RUN y",
        "#2 DONE 0.3s",
        "",
        "#1 [base 1/2] FROM x",
    ]


def test_steps_that_wait_for_their_name_keep_their_order() -> None:
    """An export, which never waits, does not overtake the cached steps before it."""
    plain = Plain()
    plain.give(0, update(vertex("[1/2] RUN x", 0, 0, cached=True), vertex("exporting to image", 0.01)), "linux/arm64")
    assert plain.lines == []
    plain.tick(0.31)
    assert plain.lines == [
        "#1 [linux/arm64 1/2] RUN x",
        "#1 CACHED",
        "",
        "#2 [linux/arm64] exporting to image",
    ]


def test_a_name_that_was_printed_stays() -> None:
    plain = Plain()
    plain.give(0, update(vertex("[1/2] FROM x", 0)), "linux/arm64")
    plain.tick(1)
    plain.give(2, update(vertex("[1/2] FROM x", 0, 1.5)), "linux/amd64")
    assert plain.finish() == "#1 [linux/arm64 1/2] FROM x\n#1 DONE 1.5s\n"


def test_a_group_is_one_step() -> None:
    """Hidden while only weak members have started."""
    weak, strong = ProgressGroup("g", "many files", weak=True), ProgressGroup("g", "many files")
    plain = Plain()
    plain.give(0, update(vertex("one", 0, 1, group=weak)))
    assert plain.lines == []
    plain.give(2, update(vertex("two", 2, 4, group=strong), log("two", 3, "inside\n")))
    assert plain.finish() == "#1 many files\n#1 1.000 inside\n#1 DONE 3.0s\n"


def test_a_warning_waits_for_the_next_print_of_its_vertex() -> None:
    plain = Plain()
    plain.give(0, update(vertex("a", 0)))
    plain.give(1, update(VertexWarning(digest("a"), short=b"careful\x1b[2J\n now")))
    assert plain.lines == ["#1 a"]
    plain.give(2, update(vertex("a", 0, 2)))
    assert plain.lines == ["#1 a", "#1 WARN: careful  now", "#1 DONE 2.0s"]


def test_names_are_cut_only_if_asked() -> None:
    name = "n" * 70 + "é" * 10
    for env, shown in (({}, name), ({"PROGRESS_NO_TRUNC": "0"}, "n" * 70 + "é...")):
        plain = Plain(**env)
        plain.give(0, update(vertex(name, 0)))
        assert plain.lines == [f"#1 {shown}"]


def test_a_line_does_not_leave_its_colours_to_the_next() -> None:
    for env, shown in (({}, "\x1b[31mred\x1b[0m"), ({"NO_COLOR": "1"}, "red")):
        plain = Plain(**env)
        plain.give(0, update(vertex("a", 0), log("a", 0, "\x1b[31mred\n\x1b[1mbold\x1b[m\n")))
        assert plain.lines[1] == f"#1 0.000 {shown}"
        assert plain.lines[2] == ("#1 0.000 bold" if env else "#1 0.000 \x1b[1mbold\x1b[m")


def test_an_unchanged_end_is_printed_once() -> None:
    """Each solve that shares a vertex reports its end."""
    plain = Plain()
    for second, label in enumerate(("linux/arm64", "linux/amd64", "linux/arm/v7")):
        plain.give(second, update(vertex("[internal] load build context", 0, 0.5)), label)
    plain.give(5, update(vertex("[internal] load build context", 4, 5)), "linux/amd64")
    assert plain.finish() == (
        "#1 [internal] load build context\n#1 DONE 0.5s\n\n#1 [internal] load build context\n#1 DONE 1.5s\n"
    )


def test_characters_that_the_stream_lacks_do_not_stop_it() -> None:
    data = BytesIO()
    stream = TextIOWrapper(data, encoding="ascii")
    renderer = open_renderer("plain", stream, {}, Clock())
    renderer.update("", update(vertex("café", 0, 1)))
    renderer.finish(failed=False)
    assert data.getvalue() == b"#1 caf?\n#1 DONE 1.0s\n"


@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans())
def test_no_log_can_do_more_than_print_and_colour(chunks: list[bytes], failed: bool) -> None:
    """Whatever bytes it has, each line of the output is one of the display's own."""
    plain = Plain()
    plain.give(0, update(vertex("a", 0)))
    for second, chunk in enumerate(chunks, 1):
        plain.give(second, update(log("a", second, chunk)))
    plain.give(100, update(vertex("a", 0, 100, error="failed")))
    text = plain.finish(failed=failed)
    without_colors = re.sub(r"\x1b\[[0-9;:]*m", "", text)
    for line in without_colors.removesuffix("\n").split("\n"):
        assert not any(ord(char) < 32 and char != "\t" for char in line)
        assert line.startswith(("#1 ", "------", " > a:")) or (failed and line[0].isdigit())


class Nowhere(StringIO):
    def write(self, text: str) -> int:
        return len(text)


@pytest.mark.parametrize("started", [0.0, None])
def test_many_chatty_steps_do_not_fill_the_memory(started: float | None) -> None:
    """All at once, between two refreshes; those that have not begun, as far as is known, print nothing."""
    plain = Plain()
    plain.renderer = open_renderer("plain", Nowhere(), {}, plain.clock)
    names = [f"[{number}/100] RUN x" for number in range(100)]
    plain.give(0, update(*(vertex(name, started) for name in names)))
    tracemalloc.start()
    try:
        for round_ in range(10):
            for name in names:
                plain.give(0, update(log(name, round_, b"\n".join([b"y" * 9999] * 6))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    plain.finish()
    assert peak < 40 << 20  # of 57 MiB
