"""Bytes of rawjson."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.progress import (
    Position,
    ProgressGroup,
    SourceInfo,
    SourceRange,
    StatusUpdate,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
    open_renderer,
)
from buildkit_py.progress.rawjson import format_time, to_json
from tests.unit.progress.golden import DATA, assert_golden
from tests.unit.progress.scenarios import two_platforms
from tests.unit.progress.streams import Clock, play, read_rawjson, update, vertex


@pytest.mark.golden
@pytest.mark.parametrize("name", ["live.rawjson", "failed.rawjson"])
def test_what_buildctl_wrote_is_written_again(name: str) -> None:
    """Key order, escapes, times, base64, and the definition behind a warning."""
    recorded = (DATA / name).read_text()
    assert "".join(to_json(message) + "\n" for message in read_rawjson(recorded)) == recorded


def test_two_platforms() -> None:
    """A line for each update, with the label in the names."""
    stream = StringIO()
    clock = Clock()
    play(open_renderer("rawjson", stream, {}, clock), clock, two_platforms(), failed=False)
    assert len(stream.getvalue().splitlines()) == len(two_platforms())
    assert_golden("two-platforms.rawjson", stream.getvalue())


def test_every_field() -> None:
    message = StatusUpdate(
        vertexes=(Vertex("sha256:a", ("sha256:b",), "n", 1, 2_500_000_000, True, "e", ProgressGroup("g", "x", True)),),
        statuses=(VertexStatus("id", "sha256:a", "n", 1, 2, 3_000_000_000, 4, 5),),
        logs=(VertexLog("sha256:a", 1, b"\x00\xff", 0),),
        warnings=(
            VertexWarning(
                "sha256:a",
                2,
                b"s",
                (b"d", b""),
                "http://u",
                SourceInfo("f", b"x", b"", "Dockerfile"),
                (SourceRange(Position(1, 2), Position()), SourceRange()),
            ),
        ),
    )
    assert to_json(message, "p") == (
        '{"vertexes":[{"digest":"sha256:a","inputs":["sha256:b"],"name":"[p] n",'
        '"started":"1970-01-01T00:00:00.000000001Z","completed":"1970-01-01T00:00:02.5Z","cached":true,'
        '"error":"e","progressGroup":{"id":"g","name":"x","weak":true}}],'
        '"statuses":[{"id":"id","vertex":"sha256:a","name":"n","total":2,"current":1,'
        '"timestamp":"1970-01-01T00:00:03Z","started":"1970-01-01T00:00:00.000000004Z",'
        '"completed":"1970-01-01T00:00:00.000000005Z"}],'
        '"logs":[{"vertex":"sha256:a","stream":1,"data":"AP8=","timestamp":"1970-01-01T00:00:00Z"}],'
        '"warnings":[{"vertex":"sha256:a","level":2,"short":"cw==","detail":["ZA==",""],"url":"http://u",'
        '"sourceInfo":{"filename":"f","data":"eA==","definition":{},"language":"Dockerfile"},'
        '"range":[{"start":{"line":1,"character":2},"end":{}},{}]}]}'
    )


def test_what_is_always_there_and_what_is_left_out() -> None:
    assert to_json(StatusUpdate()) == "{}"
    message = StatusUpdate(statuses=(VertexStatus("", ""),), logs=(VertexLog("", 0, b""),))
    assert to_json(message) == (
        '{"statuses":[{"id":"","current":0,"timestamp":"1970-01-01T00:00:00Z"}],'
        '"logs":[{"data":"","timestamp":"1970-01-01T00:00:00Z"}]}'
    )


def test_escapes_are_those_of_go() -> None:
    name = '<a> & "b" \\ \b\f\n\r\t\x01\x7f\u2028\u2029é\U0001f600'
    assert to_json(update(vertex(name, key="k"))).endswith(
        '"name":"\\u003ca\\u003e \\u0026 \\"b\\" \\\\ \\b\\f\\n\\r\\t\\u0001\x7f\\u2028\\u2029é\U0001f600"}]}'
    )


@given(st.integers(-62_135_596_800 * 10**9, 253_402_300_800 * 10**9 - 1))
def test_times_keep_every_nanosecond(time_ns: int) -> None:
    """Read back, the text is the number."""
    from datetime import datetime

    text = format_time(time_ns)
    whole, _, fraction = text.removesuffix("Z").partition(".")
    assert not fraction.endswith("0")
    delta = datetime.fromisoformat(whole) - datetime(1970, 1, 1)
    assert (delta.days * 86_400 + delta.seconds) * 10**9 + int(fraction.ljust(9, "0")) == time_ns


@given(st.binary(max_size=50), st.text(max_size=50))
def test_any_log_and_name_make_one_line_of_json(data: bytes, name: str) -> None:
    text = to_json(StatusUpdate(vertexes=(Vertex("d", name=name),), logs=(VertexLog("d", 1, data),)))
    assert "\n" not in text
    assert json.loads(text)["vertexes"][0].get("name", "") == name
