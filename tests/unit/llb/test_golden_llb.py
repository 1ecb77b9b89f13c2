"""Graphs that the Go client made: built by ours, they have the same bytes."""

from __future__ import annotations

import hashlib

import pytest

from buildkit_py.errors import InvalidOption
from buildkit_py.llb import Definition, load, marshal
from tests.support.llb_cases import GOLDEN, build_definition, load_cases

pytestmark = pytest.mark.golden

CASES = load_cases("llb")
ERRORS = load_cases("llb", "errors.json")
DOCKERFILES = {name: case for name, case in load_cases("dockerfile2llb").items() if "definition" in case}


@pytest.mark.parametrize("name", CASES)
def test_a_graph_has_the_golden_bytes(name: str) -> None:
    """Digests first, since they say which vertex differs; then all the bytes."""
    case = CASES[name]
    expected = (GOLDEN / "llb" / case["definition"]["file"]).read_bytes()
    definition = build_definition(case)
    assert [vertex.digest for vertex in definition.vertexes] == [
        vertex["digest"] for vertex in case["definition"].get("vertices", [])
    ]
    assert definition.to_bytes() == expected


@pytest.mark.parametrize("name", CASES)
def test_a_golden_definition_reads_as_the_data_says(name: str) -> None:
    """Parsing gives head, vertexes, inputs, platforms, names and capabilities of the other implementation."""
    expected = CASES[name]["definition"]
    data = (GOLDEN / "llb" / expected["file"]).read_bytes()
    definition = Definition.parse(data)
    assert definition.to_bytes() == data
    assert hashlib.sha256(data).hexdigest() == expected["file_sha256"].removeprefix("sha256:")
    head = definition.head
    assert (None if head is None else {"digest": head.digest, "index": head.index}) == expected["head"]
    assert definition.terminal == (expected["terminal"] or {}).get("digest", "")
    for vertex, golden in zip(definition.vertexes, expected.get("vertices", []), strict=True):
        assert vertex.digest == golden["digest"]
        assert vertex.kind == golden["kind"]
        assert len(vertex.data) == golden["size"]
        assert [[given.digest, given.index] for given in vertex.inputs] == golden["inputs"]
        assert list(vertex.caps) == golden["caps"]
        assert vertex.description == golden.get("description", {})
        assert vertex.ignore_cache == golden.get("ignore_cache", False)
        platform = golden.get("platform")
        assert (vertex.platform and vertex.platform.architecture) == (platform and platform["Architecture"])


@pytest.mark.parametrize("name", ERRORS)
def test_a_graph_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption):
        build_definition(ERRORS[name])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_definition_of_a_dockerfile_survives_reading(name: str) -> None:
    """Reading and writing is the identity; the state that was read has the same vertexes and the same result."""
    expected = DOCKERFILES[name]["definition"]
    data = (GOLDEN / "dockerfile2llb" / expected["file"]).read_bytes()
    definition = Definition.parse(data)
    assert definition.to_bytes() == data
    assert [vertex.digest for vertex in definition.vertexes] == [
        vertex["digest"] for vertex in expected.get("vertices", [])
    ]
    again = marshal(load(definition))
    assert again.head == definition.head
    assert again.terminal == definition.terminal
    # A file vertex names its inputs in another order than the one in which they were written.
    assert sorted(map(repr, again.vertexes)) == sorted(map(repr, definition.vertexes))


def test_the_number_of_golden_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """How many there are is said, so that an empty folder cannot pass for success."""
    counts = (len(CASES), len(ERRORS), len(DOCKERFILES))
    with capsys.disabled():
        print(f"\nllb golden cases: {counts[0]} graphs, {counts[1]} errors, {counts[2]} Dockerfiles")
    assert all(counts)
