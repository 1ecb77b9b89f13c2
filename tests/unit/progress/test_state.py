"""The fold of status updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.progress import (
    BuildProgress,
    Outcome,
    ProgressGroup,
    StatusUpdate,
    Vertex,
    VertexCounts,
    VertexLog,
    VertexStatus,
    VertexWarning,
    label_name,
    merge_intervals,
)
from buildkit_py.progress.state import LOG_TAIL_BYTES, Interval, LogTail
from tests.unit.progress.scenarios import two_platforms
from tests.unit.progress.streams import at, digest, log, status, update, vertex

ARM64, AMD64 = "linux/arm64", "linux/amd64"


@pytest.mark.parametrize(
    ("intervals", "merged"),
    [
        ([], ()),
        ([(1, 2)], ((1, 2),)),
        ([(5, 6), (1, 2)], ((1, 2), (5, 6))),
        ([(1, 3), (2, 5)], ((1, 5),)),
        ([(1, 3), (3, 5)], ((1, 5),)),
        ([(1, 9), (2, 3)], ((1, 9),)),
        ([(1, None), (2, 3), (7, 8)], ((1, None),)),
        ([(1, 2), (4, None), (5, 6)], ((1, 2), (4, None))),
        ([(1, 5), (3, None)], ((1, None),)),
        ([(5, 1)], ((5, 5),)),
    ],
)
def test_merging_intervals(intervals: list[Interval], merged: tuple[Interval, ...]) -> None:
    assert merge_intervals(intervals) == merged


@given(st.lists(st.tuples(st.integers(0, 60), st.none() | st.integers(0, 60))), st.randoms())
def test_merged_intervals_cover_the_same_moments(intervals: list[Interval], random: object) -> None:
    """In any order, and apart from each other."""

    def covered(parts: Sequence[Interval]) -> set[int]:
        return {t for start, end in parts for t in range(start * 2, (200 if end is None else max(end, start) * 2) + 1)}

    merged = merge_intervals(intervals)
    assert covered(merged) == covered(intervals)
    assert merge_intervals(reversed(intervals)) == merged
    assert all(first[1] is not None and first[1] < second[0] for first, second in zip(merged, merged[1:]))  # noqa: B905, RUF007


@pytest.mark.parametrize(
    ("label", "name", "shown"),
    [
        ("", "[build 2/3] RUN x", "[build 2/3] RUN x"),
        (ARM64, "[build 2/3] RUN x", "[linux/arm64 build 2/3] RUN x"),
        (ARM64, "exporting to image", "[linux/arm64] exporting to image"),
        (ARM64, "[internal] load metadata for x", "[linux/arm64 internal] load metadata for x"),
        (ARM64, "[internal] load build definition from D", "[internal] load build definition from D"),
        (ARM64, "[internal] load .dockerignore", "[internal] load .dockerignore"),
        (ARM64, "[internal] load build context", "[internal] load build context"),
        (ARM64, "[context x] load from client", "[context x] load from client"),
        (ARM64, "[linux/arm64 build 2/3] RUN x", "[linux/arm64 build 2/3] RUN x"),
        (ARM64, "[linux/arm64] x", "[linux/arm64] x"),
    ],
)
def test_label_in_a_name(label: str, name: str, shown: str) -> None:
    assert label_name(label, name) == shown


def test_a_snapshot_replaces_the_one_before() -> None:
    progress = BuildProgress()
    progress.update("", update(vertex("a", 1, cached=True, inputs=("x",))))
    progress.update("", update(vertex("a", 1, 2)))
    assert progress.vertex("", digest("a")) == vertex("a", 1, 2)
    assert progress.steps[0].outcome is Outcome.DONE


def test_an_unstarted_snapshot_does_not_reset_a_started_one() -> None:
    progress = BuildProgress()
    progress.update("", update(vertex("a", 1, 2, cached=True)))
    changes = progress.update("", update(vertex("a")))
    assert not changes.steps
    assert progress.steps[0].outcome is Outcome.CACHED


def test_a_vertex_that_starts_again() -> None:
    progress = BuildProgress()
    progress.update("", update(vertex("a", 1, 2)))
    progress.update("", update(vertex("a", 5)))
    step = progress.steps[0]
    assert step.outcome is None
    assert step.seconds(at(8)) == 4
    progress.update("", update(vertex("a", 5, 7)))
    assert step.outcome is Outcome.DONE
    assert (step.started_ns, step.completed_ns, step.seconds(at(99))) == (at(5), at(7), 3)


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (vertex("a"), None),
        (vertex("a", 1), None),
        (vertex("a", 1, 2), Outcome.DONE),
        (vertex("a", 1, 1, cached=True), Outcome.CACHED),
        (vertex("a", 1, 2, error="boom"), Outcome.FAILED),
        (vertex("a", 1, 2, error="failed: context canceled"), Outcome.CANCELED),
    ],
)
def test_outcomes(last: Vertex, outcome: Outcome | None) -> None:
    progress = BuildProgress()
    progress.update("", update(last))
    assert progress.steps[0].outcome is outcome


def test_what_belongs_to_unknown_vertexes_is_ignored() -> None:
    """Also if another solve knows the vertex."""
    progress = BuildProgress()
    progress.update(ARM64, update(vertex("a", 1)))
    changes = progress.update(AMD64, update(log("a", 1, "x"), status("a", "s", 1)))
    assert not changes.logs
    assert not changes.steps
    assert progress.log_tail(AMD64, digest("a")) == ()
    assert progress.log_tail("other", digest("a")) == ()


def test_a_shared_vertex_is_one_step() -> None:
    progress = BuildProgress()
    for label in (ARM64, AMD64):
        progress.update(label, update(vertex("[1/2] FROM x", 1)))
    (step,) = progress.steps
    assert step.labels == (ARM64, AMD64)
    assert step.display_name == "[1/2] FROM x"
    progress.update(ARM64, update(vertex("[1/2] FROM x", 1, 3)))
    assert step.outcome is Outcome.DONE  # though the other solve has yet to say so
    progress.update(AMD64, update(vertex("[1/2] FROM x", 4, 4, cached=True)))
    assert step.outcome is Outcome.DONE
    assert step.seconds(0) == 2


def test_exports_are_never_shared() -> None:
    """Solves that share a session give them one digest."""
    progress = BuildProgress()
    for label in (ARM64, AMD64):
        progress.update(label, update(vertex("exporting to image", 1), log("exporting to image", 1, label)))
    assert [step.display_name for step in progress.steps] == [
        "[linux/arm64] exporting to image",
        "[linux/amd64] exporting to image",
    ]
    assert progress.log_tail(AMD64, digest("exporting to image")) == (AMD64,)


def test_a_shared_vertex_that_one_solve_gave_up_goes_on() -> None:
    progress = BuildProgress()
    for label in (ARM64, AMD64):
        progress.update(label, update(vertex("a", 1)))
    progress.update(ARM64, update(vertex("a", 1, 2, error="context canceled")))
    (step,) = progress.steps
    assert not step.completed
    progress.update(AMD64, update(vertex("a", 1, 5)))
    assert (step.outcome, step.seconds(0)) == (Outcome.DONE, 4)


def test_a_shared_vertex_that_all_gave_up_was_cancelled() -> None:
    progress = BuildProgress()
    for label in (ARM64, AMD64):
        progress.update(label, update(vertex("a", 1, 2, error="context canceled")))
    outcomes = [progress.steps[0].outcome]
    progress.update(AMD64, update(vertex("a", 1, 2, error="boom")))
    outcomes.append(progress.steps[0].outcome)
    assert outcomes == [Outcome.CANCELED, Outcome.FAILED]


def test_the_log_of_a_shared_vertex_is_taken_once() -> None:
    """Each solve delivers it from its beginning, at its own pace; one may stop half way."""
    progress = BuildProgress()
    taken: list[bytes] = []
    for label, times in ((ARM64, (1, 2)), (AMD64, (1, 2, 3)), (ARM64, (3, 4)), (AMD64, (4, 5))):
        message = update(vertex("a", 0), *(log("a", time, f"{time}\n") for time in times))
        taken += [chunk.data for _, chunk in progress.update(label, message).logs]
    assert taken == [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n"]
    assert progress.log_tail(ARM64, digest("a"), 3) == progress.log_tail(AMD64, digest("a"), 3) == ("3", "4", "5")


def test_chunks_of_one_solve_may_have_one_time() -> None:
    progress = BuildProgress()
    changes = progress.update("", update(vertex("a", 0), log("a", 1, "x"), log("a", 1, "y"), log("a", 0.5, "z")))
    assert [chunk.data for _, chunk in changes.logs] == [b"x", b"y", b"z"]


def test_a_status_does_not_go_back() -> None:
    progress = BuildProgress()
    progress.update(ARM64, update(vertex("a", 0), status("a", "s", 2, current=20)))
    progress.update(AMD64, update(vertex("a", 0), status("a", "s", 1, current=10), status("a", "t", 1)))
    assert [(part.id, part.current) for part in progress.steps[0].statuses()] == [("s", 20), ("t", 0)]


def test_a_group() -> None:
    weak = ProgressGroup("g", "group", weak=True)
    progress = BuildProgress()
    progress.update(
        "", update(vertex("a", 0, 1, cached=True, group=weak), vertex("b", group=replace(weak, weak=False)))
    )
    (step,) = progress.steps
    assert (step.name, step.visible, step.cached) == ("group", False, False)
    progress.update("", update(vertex("b", 2, 2, cached=True, group=replace(weak, weak=False))))
    assert (step.visible, step.outcome, step.seconds(0)) == (True, Outcome.CACHED, 1)
    progress.update("", update(vertex("b", 3, 4, group=weak, error="boom"), log("b", 4, "text")))
    assert (step.outcome, step.error, [line.text for line in step.log_lines()]) == (Outcome.FAILED, "boom", ["text"])
    assert progress.counts("") == VertexCounts(total=2, completed=2, cached=1)


def test_an_error_shows_a_group_of_weak_members() -> None:
    progress = BuildProgress()
    progress.update("", update(vertex("a", 0, 1, error="boom", group=ProgressGroup("g", "group", weak=True))))
    assert progress.steps[0].visible


def test_warnings_are_taken_once() -> None:
    """They come again with each part of a batch, and from each solve."""
    warning, other = VertexWarning(digest("a"), short=b"x"), VertexWarning("unknown", short=b"x")
    progress = BuildProgress()
    progress.update(ARM64, update(vertex("a", 0), warning, other))
    changes = progress.update(AMD64, update(vertex("a", 0), warning, other))
    assert not changes.warnings
    assert progress.warnings == (warning, other)
    assert list(progress.steps[0].warnings()) == [warning]


def test_counts_are_for_each_solve() -> None:
    progress = BuildProgress()
    progress.update(ARM64, update(vertex("a", 0, 0, cached=True), vertex("b", 0, 1), vertex("c", 1), vertex("d")))
    progress.update(AMD64, update(vertex("a", 0, 1)))
    assert progress.counts(ARM64) == VertexCounts(total=4, completed=2, cached=1)
    assert progress.counts(AMD64) == VertexCounts(total=1, completed=1, cached=0)
    assert progress.counts("other") == VertexCounts()
    assert progress.labels == (ARM64, AMD64)


def test_failures() -> None:
    progress = BuildProgress()
    progress.update(
        ARM64,
        update(
            vertex("later", 2, 3, error="boom"),
            vertex("first", 1, 3, error="bang"),
            vertex("other", 1, 3, error="context canceled"),
            log("first", 2, "one\ntwo\nthr"),
            log("first", 2, b"ee\x1b[2J\n"),
        ),
    )
    failures = progress.failures(ARM64, lines=2)
    assert [(failure.vertex.name, failure.log_tail) for failure in failures] == [
        ("first", ("two", "three")),
        ("later", ()),
    ]
    assert progress.failures(AMD64) == ()


def test_a_tail_is_bounded() -> None:
    """However the log comes; the newest lines stay, a line that has lost its beginning does not."""
    for size in (1, 7, 1000, 10_000_000):
        data = b"".join(b"line %d\n" % n for n in range(20_000))
        tail = LogTail()
        for start in range(0, len(data), size):
            tail.append(start, data[start : start + size])
            assert tail.size <= LOG_TAIL_BYTES
        lines = [line.text for line in tail.lines()]
        assert lines == [f"line {n}" for n in range(20_000 - len(lines), 20_000)]
        assert len(lines) > 1000
        assert [line.text for line in tail.lines(2)] == ["line 19998", "line 19999"]


def test_a_tail_of_one_endless_line() -> None:
    tail = LogTail()
    for _ in range(100):
        tail.append(0, b"x" * 1000)
    assert tail.size <= LOG_TAIL_BYTES
    (line,) = tail.lines(10)
    assert set(line.text) == {"x"}


def test_all_tails_together_are_bounded() -> None:
    """The vertexes that began to print first lose theirs."""
    progress = BuildProgress()
    names = [f"v{n}" for n in range(1200)]
    for name in names:
        progress.update("", update(vertex(name, 0), log(name, 1, b"x" * LOG_TAIL_BYTES)))
    kept = [name for name in names if progress.log_tail("", digest(name))]
    assert kept == names[-1024:]


@given(st.lists(st.binary(max_size=12), max_size=30), st.integers(0, 40))
def test_lines_of_a_tail(chunks: list[bytes], count: int) -> None:
    """As of the whole log, split at its newlines."""
    tail = LogTail()
    for time, chunk in enumerate(chunks):
        tail.append(time, chunk.translate(None, b"\r\x1b\x80\x9b"))
    whole = b"".join(chunks).translate(None, b"\r\x1b\x80\x9b").split(b"\n")
    expected = LogTail()
    expected.append(0, b"\n".join(whole))
    assert [line.text for line in tail.lines()] == [line.text for line in expected.lines()]
    assert len(tail.lines()) == len(whole) - (not whole[-1])
    assert tail.lines(count) == tail.lines()[-count:] if count else tail.lines(0) == []


def _summary(progress: BuildProgress) -> object:
    steps = {
        (
            step.name,
            frozenset(step.labels),
            step.intervals,
            step.outcome,
            step.visible,
            tuple(step.statuses()),
            tuple(line.text for line in step.log_lines()),
            frozenset(step.warnings()),
        )
        for step in progress.steps
    }
    return steps, {label: (progress.counts(label), progress.vertexes(label)) for label in (ARM64, AMD64)}


_Item = Vertex | VertexStatus | VertexLog | VertexWarning


def _items(label: str) -> list[_Item]:
    items: list[_Item] = []
    for _, of, message in two_platforms():
        if of == label:
            items += [*message.vertexes, *message.statuses, *message.logs, *message.warnings]
    return items


@given(st.data())
def test_neither_the_cuts_nor_the_interleaving_of_streams_matter(data: st.DataObject) -> None:
    """Each solve's messages stay in order; how they are batched, and whose come first, changes nothing."""
    expected = BuildProgress()
    for _, label, message in two_platforms():
        expected.update(label, message)
    rest = {ARM64: _items(ARM64), AMD64: _items(AMD64)}
    progress = BuildProgress()
    while any(rest.values()):
        label = data.draw(st.sampled_from([label for label, items in rest.items() if items]))
        count = data.draw(st.integers(1, 12))
        progress.update(label, update(*rest[label][:count]))
        del rest[label][:count]
    assert _summary(progress) == _summary(expected)


@given(st.lists(st.builds(StatusUpdate, vertexes=st.lists(st.builds(Vertex, st.sampled_from("abc"))).map(tuple))))
def test_any_vertexes_can_be_folded(updates: list[StatusUpdate]) -> None:
    """Times in any order, groups that come and go."""
    progress = BuildProgress()
    for position, message in enumerate(updates):
        progress.update(str(position % 2), message)
    for step in progress.steps:
        assert step.seconds(0) >= 0
        assert (step.outcome is None) == (not step.completed)


def test_what_one_daemon_says_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vertexes of a solve, statuses of a vertex, and runs of one that begins again and again: the first or last few."""
    for name in ("_MAX_VERTEXES", "_MAX_STATUSES", "_MAX_INTERVALS", "_MAX_WARNINGS"):
        monkeypatch.setattr(f"buildkit_py.progress.state.{name}", 3)
    progress = BuildProgress()
    for number in range(5):
        progress.update("", update(vertex(f"v{number}", 0)))
        progress.update("", update(status("v0", f"s{number}", 1), VertexWarning(digest("v0"), short=b"%d" % number)))
        progress.update("", update(vertex("v1", 10 * number + 1, 10 * number + 2)))
    assert [step.name for step in progress.steps] == ["v0", "v1", "v2"]
    assert [part.id for part in progress.steps[0].statuses()] == ["s0", "s1", "s2"]
    assert [warning.short for warning in progress.warnings] == [b"0", b"1", b"2"]
    assert progress.steps[1].seconds(at(99)) == 3, "of five runs of a second each"
    # Those that are known go on.
    progress.update("", update(vertex("v2", 0, 1), status("v0", "s1", 2, current=7)))
    assert progress.steps[2].outcome is Outcome.DONE
    assert [part.current for part in progress.steps[0].statuses()] == [0, 7, 0]
