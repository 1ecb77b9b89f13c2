"""Graphs that the Go client made: built by ours, they have the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from buildkit_py.errors import InvalidOption
from buildkit_py.llb import Definition, load, marshal
from tests.support.golden import GOLDEN
from tests.support.llb_cases import RANDOM, Data, build_definition, load_cases

pytestmark = pytest.mark.golden

CASES = load_cases(GOLDEN / "llb")
ERRORS = load_cases(GOLDEN / "llb", "errors.json")
DOCKERFILES = {name: case for name, case in load_cases(GOLDEN / "dockerfile2llb").items() if "definition" in case}
RANDOM_CASES = load_cases(RANDOM)


@pytest.mark.parametrize("name", CASES)
def test_a_graph_has_the_golden_bytes(name: str) -> None:
    _has_the_bytes(CASES[name], GOLDEN / "llb")


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_a_random_graph_has_the_bytes_of_the_go_client(name: str) -> None:
    """Between them they have every option that the Go client has, in all its forms."""
    _has_the_bytes(RANDOM_CASES[name], RANDOM)


def _has_the_bytes(case: Data, folder: Path) -> None:
    """Digests first, since they say which vertex differs; then all the bytes."""
    expected = (folder / case["definition"]["file"]).read_bytes()
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
    counts = (len(CASES), len(ERRORS), len(DOCKERFILES), len(RANDOM_CASES))
    with capsys.disabled():
        print("\nllb golden cases: {} graphs, {} errors, {} Dockerfiles; {} random graphs".format(*counts))
    assert all(counts)
