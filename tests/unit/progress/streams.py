"""Status streams for tests: constructed ones, and recorded ones read back from rawjson."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from typing import Any

from google.protobuf import json_format

from buildkit_py.pb import ops_pb2
from buildkit_py.progress import (
    Position,
    ProgressGroup,
    Renderer,
    SourceInfo,
    SourceRange,
    StatusUpdate,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
)

SECOND = 1_000_000_000
EPOCH = 1_700_000_000
"""When all constructed streams begin, by the daemon's clock."""


def at(seconds: float) -> int:
    """Nanoseconds of a moment of a constructed stream."""
    return EPOCH * SECOND + round(seconds * SECOND)


def digest(name: str) -> str:
    """Something that looks like a digest and says whose it is."""
    return "sha256:" + name.encode().hex().ljust(64, "0")[:64]


def vertex(
    name: str,
    started: float | None = None,
    completed: float | None = None,
    *,
    key: str = "",
    cached: bool = False,
    error: str = "",
    group: ProgressGroup | None = None,
    inputs: tuple[str, ...] = (),
) -> Vertex:
    """A vertex of which key, or else the name, makes the digest."""
    return Vertex(
        digest=digest(key or name),
        inputs=inputs,
        name=name,
        started_ns=None if started is None else at(started),
        completed_ns=None if completed is None else at(completed),
        cached=cached,
        error=error,
        group=group,
    )


def log(key: str, time: float, data: str | bytes, stream: int = 1) -> VertexLog:
    return VertexLog(digest(key), stream, data.encode() if isinstance(data, str) else data, at(time))


def status(
    key: str,
    name: str,
    time: float,
    *,
    current: int = 0,
    total: int = 0,
    started: float | None = None,
    completed: float | None = None,
) -> VertexStatus:
    return VertexStatus(
        id=name,
        vertex=digest(key),
        current=current,
        total=total,
        timestamp_ns=at(time),
        started_ns=None if started is None else at(started),
        completed_ns=None if completed is None else at(completed),
    )


def update(*items: Vertex | VertexStatus | VertexLog | VertexWarning) -> StatusUpdate:
    """One message with these, each kind in the order given."""
    return StatusUpdate(
        vertexes=tuple(item for item in items if isinstance(item, Vertex)),
        statuses=tuple(item for item in items if isinstance(item, VertexStatus)),
        logs=tuple(item for item in items if isinstance(item, VertexLog)),
        warnings=tuple(item for item in items if isinstance(item, VertexWarning)),
    )


@dataclass(slots=True)
class Clock:
    """Seconds since the epoch, moved by hand."""

    now: float = float(EPOCH)

    def __call__(self) -> float:
        return self.now


class Terminal(StringIO):
    """A stream that is a terminal, with the part of one that the live display uses.

    Source: ECMA-48: CUU, EL 0, ED 0; DEC private modes 7 and 25 are checked but do nothing.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        self.lines = [""]
        self.row = self.column = 0
        self.top = 0
        self.modes = {"7": True, "25": True}

    def isatty(self) -> bool:
        return True

    def size(self) -> tuple[int, int]:
        return self.columns, self.rows

    def write(self, text: str) -> int:
        super().write(text)
        position = 0
        while position < len(text):
            char = text[position]
            position += 1
            if char == "\x1b":
                assert text[position] == "[", repr(text[position : position + 10])
                end = position + 1
                while text[end] not in "ABCDEFGHJKmhl":
                    end += 1
                self._control(text[position + 1 : end], text[end])
                position = end + 1
            elif char == "\r":
                self.column = 0
            elif char == "\n":
                self.row, self.column = self.row + 1, 0
                while len(self.lines) <= self.row:
                    self.lines.append("")
                self.top = max(self.top, self.row - self.rows + 1)
            else:
                assert unicodedata.category(char) != "Cc", repr(char)
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
                self.column += 1
        return len(text)

    def _control(self, params: str, final: str) -> None:
        match final:
            case "A":
                self.row -= int(params)
                assert self.row >= self.top, "the cursor went up beyond the screen"
            case "K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            case "J":
                del self.lines[self.row + 1 :]
                self.lines[self.row] = self.lines[self.row][: self.column]
            case "h" | "l":
                self.modes[params.removeprefix("?")] = final == "h"
            case "m":
                pass
            case _:
                raise AssertionError(f"unexpected sequence {params}{final}")

    def screen(self) -> str:
        """What is on the screen, and above it."""
        return "".join(f"{line}\n" for line in self.lines[: self.row])


def play(renderer: Renderer, clock: Clock, stream: list[tuple[float, str, StatusUpdate]], *, failed: bool) -> None:
    """Give updates at their times, with a tick every 150 ms, and finish."""
    for time, label, message in stream:
        while clock.now + 0.15 < EPOCH + time:
            clock.now += 0.15
            renderer.tick()
        clock.now = max(clock.now, EPOCH + time)
        renderer.update(label, message)
    renderer.finish(failed=failed)


def read_rawjson(text: str) -> Iterator[StatusUpdate]:
    """Updates from lines as buildctl writes them."""
    for line in text.splitlines():
        value = json.loads(line)
        yield StatusUpdate(
            vertexes=tuple(map(_read_vertex, value.pop("vertexes", ()))),
            statuses=tuple(map(_read_status, value.pop("statuses", ()))),
            logs=tuple(map(_read_log, value.pop("logs", ()))),
            warnings=tuple(map(_read_warning, value.pop("warnings", ()))),
        )
        assert not value


def _read_time(text: str | None) -> int | None:
    if text is None:
        return None
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC).timestamp()
    return int(whole) * SECOND + int(fraction.ljust(9, "0"))


def _read_vertex(value: dict[str, Any]) -> Vertex:
    group = value.get("progressGroup")
    return Vertex(
        digest=value["digest"],
        inputs=tuple(value.get("inputs", ())),
        name=value.get("name", ""),
        started_ns=_read_time(value.get("started")),
        completed_ns=_read_time(value.get("completed")),
        cached=value.get("cached", False),
        error=value.get("error", ""),
        group=None if group is None else ProgressGroup(**group),
    )


def _read_status(value: dict[str, Any]) -> VertexStatus:
    return VertexStatus(
        id=value["id"],
        vertex=value.get("vertex", ""),
        name=value.get("name", ""),
        current=value["current"],
        total=value.get("total", 0),
        timestamp_ns=_read_time(value["timestamp"]) or 0,
        started_ns=_read_time(value.get("started")),
        completed_ns=_read_time(value.get("completed")),
    )


def _read_log(value: dict[str, Any]) -> VertexLog:
    data = base64.b64decode(value["data"])
    return VertexLog(value["vertex"], value.get("stream", 0), data, _read_time(value["timestamp"]) or 0)


def _read_warning(value: dict[str, Any]) -> VertexWarning:
    info = value.get("sourceInfo")
    return VertexWarning(
        vertex=value.get("vertex", ""),
        level=value.get("level", 0),
        short=base64.b64decode(value.get("short", "")),
        detail=tuple(map(base64.b64decode, value.get("detail", ()))),
        url=value.get("url", ""),
        source=None if info is None else _read_source(info),
        ranges=tuple(
            SourceRange(*(Position(**part[end]) if end in part else None for end in ("start", "end")))
            for part in value.get("range", ())
        ),
    )


def _read_source(value: dict[str, Any]) -> SourceInfo:
    definition = None
    if "definition" in value:
        message = json_format.ParseDict(value["definition"], ops_pb2.Definition())
        definition = message.SerializeToString(deterministic=True)
    return SourceInfo(
        value.get("filename", ""),
        base64.b64decode(value.get("data", "")),
        definition,
        value.get("language", ""),
    )
