"""Progress as JSON lines, byte for byte as buildctl --progress=rawjson would write the same messages.

Source: moby/buildkit client/graph.go (keys and their order), Go encoding/json (escapes, times, base64).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TypeAlias, cast

from google.protobuf.message import Message

from buildkit_py.errors import without_credentials
from buildkit_py.progress.model import (
    NANOSECONDS,
    Position,
    SourceInfo,
    StatusUpdate,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
)
from buildkit_py.progress.output import Output
from buildkit_py.progress.state import label_name

Json: TypeAlias = "str | int | bool | list[Json] | dict[str, Json]"

# Go escapes these for the sake of HTML and JavaScript; Python does not.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class RawJSONRenderer:
    """Writes one line for each update at once: nothing is held back, grouped, shared or thrown away.

    Names get the label of their solve; digests stay as they are. A vertex that several solves share is
    written for each of them, and so are the exports of several solves, whose digests are equal when the
    solves share a session. Times are the daemon's. URLs lose their passwords, which buildctl would tell.
    """

    def __init__(self, output: Output) -> None:
        self._output = output

    def update(self, label: str, update: StatusUpdate) -> None:
        self._output.write(to_json(update, label) + "\n")

    def tick(self) -> None:
        """Nothing is ever due."""

    def finish(self, *, failed: bool) -> None:
        """Nothing to add; errors are the caller's to print."""


def to_json(update: StatusUpdate, label: str = "") -> str:
    """One update as one line, without its newline."""
    value: dict[str, Json] = {}
    if update.vertexes:
        value["vertexes"] = [_vertex(vertex, label) for vertex in update.vertexes]
    if statuses := [_status(status) for status in update.statuses if not status.text]:
        value["statuses"] = statuses
    if update.logs:
        value["logs"] = [_log(log) for log in update.logs]
    if update.warnings:
        value["warnings"] = [_warning(warning) for warning in update.warnings]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def format_time(time_ns: int) -> str:
    """RFC 3339 in UTC, with as many digits of the fraction as are not zero at its end."""
    seconds, nanos = divmod(time_ns, NANOSECONDS)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{_format_second(seconds)}{fraction}Z"


@lru_cache(maxsize=64)
def _format_second(seconds: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _vertex(vertex: Vertex, label: str) -> Json:
    value: dict[str, Json] = {}
    if vertex.digest:
        value["digest"] = vertex.digest
    if vertex.inputs:
        value["inputs"] = list(vertex.inputs)
    if name := label_name(label, vertex.name):
        value["name"] = without_credentials(name)
    if vertex.started_ns is not None:
        value["started"] = format_time(vertex.started_ns)
    if vertex.completed_ns is not None:
        value["completed"] = format_time(vertex.completed_ns)
    if vertex.cached:
        value["cached"] = True
    if vertex.error:
        value["error"] = without_credentials(vertex.error)
    if vertex.group is not None:
        group: dict[str, Json] = {}
        if vertex.group.id:
            group["id"] = vertex.group.id
        if vertex.group.name:
            group["name"] = without_credentials(vertex.group.name)
        if vertex.group.weak:
            group["weak"] = True
        value["progressGroup"] = group
    return value


def _status(status: VertexStatus) -> Json:
    value: dict[str, Json] = {"id": without_credentials(status.id)}
    if status.vertex:
        value["vertex"] = status.vertex
    if status.name:
        value["name"] = without_credentials(status.name)
    if status.total:
        value["total"] = status.total
    value["current"] = status.current
    value["timestamp"] = format_time(status.timestamp_ns)
    if status.started_ns is not None:
        value["started"] = format_time(status.started_ns)
    if status.completed_ns is not None:
        value["completed"] = format_time(status.completed_ns)
    return value


def _log(log: VertexLog) -> Json:
    value: dict[str, Json] = {}
    if log.vertex:
        value["vertex"] = log.vertex
    if log.stream:
        value["stream"] = log.stream
    value["data"] = _base64(log.data)
    value["timestamp"] = format_time(log.timestamp_ns)
    return value


def warning_fields(warning: VertexWarning) -> Json:
    """A warning by itself, without the definition of its source, as docker buildx's metadata has it."""
    source = None if warning.source is None else replace(warning.source, definition=None)
    return _warning(replace(warning, source=source))


def _warning(warning: VertexWarning) -> Json:
    value: dict[str, Json] = {}
    if warning.vertex:
        value["vertex"] = warning.vertex
    if warning.level:
        value["level"] = warning.level
    if warning.short:
        value["short"] = _base64(warning.short)
    if warning.detail:
        value["detail"] = [_base64(detail) for detail in warning.detail]
    if warning.url:
        value["url"] = warning.url
    if warning.source is not None:
        value["sourceInfo"] = _source(warning.source)
    if warning.ranges:
        ranges: list[Json] = []
        for part in warning.ranges:
            ends = {"start": part.start, "end": part.end}
            ranges.append({key: _position(end) for key, end in ends.items() if end is not None})
        value["range"] = ranges
    return value


def _position(position: Position) -> Json:
    value: dict[str, Json] = {}
    if position.line:
        value["line"] = position.line
    if position.character:
        value["character"] = position.character
    return value


def _source(source: SourceInfo) -> Json:
    value: dict[str, Json] = {}
    if source.filename:
        value["filename"] = source.filename
    if source.data:
        value["data"] = _base64(source.data)
    if source.definition is not None:
        from buildkit_py.pb import ops_pb2  # only a warning with a definition needs it

        value["definition"] = _message(ops_pb2.Definition.FromString(source.definition))
    if source.language:
        value["language"] = source.language
    return value


def _message(message: Message) -> dict[str, Json]:
    """A protobuf message as Go's encoding/json writes its struct: fields as declared, zeros left out."""
    value: dict[str, Json] = {}
    for descriptor in message.DESCRIPTOR.fields:
        name = descriptor.name
        field: object = getattr(message, name)
        if not (message.HasField(name) if descriptor.has_presence else field):
            continue
        match field:
            case bytes() | str():
                value[name] = _scalar(field)
            case Mapping():
                entries = cast("Mapping[str, object]", field)
                value[name] = {key: _scalar(entries[key]) for key in sorted(entries)}
            case Sequence():
                items = cast("Sequence[object]", field)
                value[name] = [_scalar(item) for item in items]
            case _:
                value[name] = _scalar(field)
    return value


def _scalar(value: object) -> Json:
    match value:
        case bytes():
            return _base64(value)
        case bool() | int() | str():
            return value
        case Message():
            return _message(value)
        case _:
            raise AssertionError(f"pb.Definition has no field of type {type(value).__name__}")
