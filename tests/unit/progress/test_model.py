"""Status messages as values."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.pb import control_pb2
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
)
from buildkit_py.progress.rawjson import to_json


def test_every_field_is_read() -> None:
    message = control_pb2.StatusResponse()
    vertex = message.vertexes.add(digest="sha256:a", inputs=["sha256:b"], name="n", cached=True, error="e")
    vertex.started.seconds, vertex.started.nanos = 5, 123_456_789
    vertex.completed.seconds = 6
    vertex.progressGroup.id, vertex.progressGroup.name, vertex.progressGroup.weak = "g", "group", True
    status = message.statuses.add(ID="layer", vertex="sha256:a", name="pulling", current=1, total=2)
    status.timestamp.seconds, status.started.seconds, status.completed.seconds = 7, 8, 9
    log = message.logs.add(vertex="sha256:a", stream=2, msg=b"\xff")
    log.timestamp.nanos = 1
    warning = message.warnings.add(vertex="sha256:a", level=1, short=b"s", detail=[b"d"], url="u")
    warning.info.filename, warning.info.data, warning.info.language = "Dockerfile", b"FROM", "Dockerfile"
    warning.info.definition.MergeFromString(b"\n\x02op")
    part = warning.ranges.add()
    part.start.line, part.start.character = 3, 4
    warning.ranges.add().end.line = 5

    update = StatusUpdate.from_pb(message)
    assert update == StatusUpdate(
        vertexes=(
            Vertex(
                "sha256:a",
                ("sha256:b",),
                "n",
                5_123_456_789,
                6_000_000_000,
                True,
                "e",
                ProgressGroup("g", "group", True),
            ),
        ),
        statuses=(VertexStatus("layer", "sha256:a", "pulling", 1, 2, 7_000_000_000, 8_000_000_000, 9_000_000_000),),
        logs=(VertexLog("sha256:a", 2, b"\xff", 1),),
        warnings=(
            VertexWarning(
                "sha256:a",
                1,
                b"s",
                (b"d",),
                "u",
                SourceInfo("Dockerfile", b"FROM", b"\n\x02op", "Dockerfile"),
                (SourceRange(Position(3, 4)), SourceRange(None, Position(5))),
            ),
        ),
    )
    assert update.vertexes[0].started == datetime(1970, 1, 1, 0, 0, 5, 123_456, tzinfo=UTC)
    assert update.vertexes[0].completed == datetime(1970, 1, 1, 0, 0, 6, tzinfo=UTC)
    assert update.statuses[0].timestamp == datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC)
    assert update.logs[0].timestamp == datetime(1970, 1, 1, tzinfo=UTC)


def test_what_is_absent_is_none() -> None:
    message = control_pb2.StatusResponse()
    message.vertexes.add(digest="d")
    message.statuses.add(ID="i", vertex="d")
    message.warnings.add()
    assert StatusUpdate.from_pb(message) == StatusUpdate(
        (Vertex("d"),), (VertexStatus("i", "d"),), (), (VertexWarning(""),)
    )


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_no_time_is_out_of_range(seconds: int, nanos: int) -> None:
    """A daemon can send any; all that is done with a time works."""
    message = control_pb2.StatusResponse()
    vertex = message.vertexes.add(digest="d")
    vertex.started.seconds, vertex.started.nanos = seconds, nanos
    update = StatusUpdate.from_pb(message)
    started = update.vertexes[0].started
    assert started is not None
    assert 1 <= started.year <= 9999
    assert '"started":"' in to_json(update)


@given(st.binary(max_size=200))
def test_any_message_that_parses_is_read(data: bytes) -> None:
    try:
        message = control_pb2.StatusResponse.FromString(data)
    except DecodeError:
        return
    assert len(StatusUpdate.from_pb(message).vertexes) == len(message.vertexes)


def test_cancelled() -> None:
    assert Vertex("d", error="failed to solve: context canceled").canceled
    assert not Vertex("d", error="context canceled: really").canceled
    assert not Vertex("d").canceled
