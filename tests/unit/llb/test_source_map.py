"""Vertexes remember the line of Python that made them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_py import llb


@pytest.fixture(autouse=True)
def _capturing() -> Iterator[None]:
    """Whatever a test switches, it is on again afterwards."""
    yield
    llb.capture_source(True)


def line() -> int:
    """Line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def lines_of(definition: llb.Definition) -> list[list[int]]:
    return [[part.start_line for place in v.locations for part in place.ranges] for v in definition.vertexes]


def test_each_vertex_points_at_the_line_that_made_it() -> None:
    """Also where a convenience of the library made it, and where arguments stand on several lines."""
    base, first = llb.image("alpine"), line()
    built, second = base.run("make"), line()
    copied, third = llb.scratch().copy(built, "/a", "/b"), line()
    definition = llb.marshal(copied, platform="linux/amd64")
    assert lines_of(definition) == [[first], [second], [third]]
    (file,) = definition.source_files
    assert file.filename == __file__
    assert file.language == "Python"
    assert file.data == Path(__file__).read_bytes()


def test_equal_vertexes_point_at_both_lines() -> None:
    one, first = llb.image("alpine"), line()
    two, second = llb.image("alpine"), line()
    definition = llb.marshal(llb.merge(one, two), platform="linux/amd64")
    assert lines_of(definition)[0] == [first, second]


def test_locations_that_are_given_count_instead() -> None:
    file = llb.SourceFile("build.yaml", b"steps:\n- make\n", "YAML")
    place = llb.Location(file, (llb.Range(start_line=2, end_line=2),))
    definition = llb.marshal(llb.image("alpine", locations=[place]), platform="linux/amd64")
    assert lines_of(definition) == [[2]]
    assert [found.filename for found in definition.source_files] == ["build.yaml"]


def test_digests_are_the_same_with_and_without() -> None:
    def build() -> llb.State:
        return llb.image("alpine").run("make").mkdir("/x")

    with_map = llb.marshal(build(), platform="linux/amd64")
    without = llb.marshal(build(), platform="linux/amd64", source_map=False)
    assert llb.capture_source(False) is True
    never = llb.marshal(build(), platform="linux/amd64")
    assert llb.capture_source(True) is False
    assert with_map.to_bytes() != without.to_bytes()
    assert without == never
    for other in (without, never):
        assert [v.digest for v in other.vertexes] == [v.digest for v in with_map.vertexes]
        assert other.terminal == with_map.terminal
    assert without.source_files == ()


def test_a_program_without_a_file_has_no_locations() -> None:
    """As for code that was made at run time: there is no line that could be shown."""
    names: dict[str, object] = {"llb": llb}
    exec(compile("state = llb.image('alpine')", "<made up>", "exec"), names)
    state = names["state"]
    assert isinstance(state, llb.State)
    assert lines_of(llb.marshal(state, platform="linux/amd64")) == [[]]
