"""``buildkit-py build --call``: what a frontend answers, for people and as JSON.

Source: docker buildx, commands/build.go; buildkit, frontend/subrequests.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

from buildkit_py.cli.flags import boolean
from buildkit_py.errors import InvalidOption, SourceSnippet
from buildkit_py.jsonfields import object_at, objects_at
from buildkit_py.options import parse_fields

if TYPE_CHECKING:
    from buildkit_py.builder.call import CallResult


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpec:
    """What to ask, and how to show the answer."""

    method: str
    json: bool = False
    ignore_status: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``check``, ``outline,format=json`` and the like; None is ``build``. Raises InvalidOption."""
        method, json, ignore = "", False, False
        for key, value in parse_fields(text, option="--call"):
            match key, value:
                case _, None if not method:
                    method = key
                case "format", "json" | "text" | "":
                    json = value == "json"
                case "ignorestatus", str():
                    ignore = boolean(value, "--call ignorestatus")
                case _:
                    raise InvalidOption(f"--call {text!r}: expected METHOD[,format=json][,ignorestatus=true]")
        if not method:
            raise InvalidOption(f"--call {text!r}: expected build, check, outline, targets or subrequests.describe")
        if method == "build":
            return None
        return cls(method="lint" if method == "check" else method, json=json, ignore_status=ignore)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """An answer as it is shown."""

    text: str
    """For standard output."""
    error: str = ""
    """For standard error: what keeps the Dockerfile from being built."""
    status: int
    """The exit code."""


def render(spec: CallSpec, result: CallResult, filename: str) -> Rendered:
    """In docker buildx's words. filename is what the Dockerfile is called where it has no better name."""
    status = 0 if spec.ignore_status else result.status
    if spec.json:
        return Rendered(text=result.raw_json.rstrip("\n") + "\n", status=status)
    answer = result.json()
    fields = cast("dict[str, object]", answer) if isinstance(answer, dict) else {}
    match spec.method:
        case "lint":
            error = _build_error(fields, filename)
            return Rendered(text=_lint(fields, filename), error=error, status=1 if error else status)
        case "outline":
            return Rendered(text=_outline(fields), status=status)
        case "targets":
            return Rendered(text=_targets(fields), status=status)
        case _:
            return Rendered(text=result.text or result.raw_json.rstrip("\n") + "\n", status=status)


def _lint(fields: Mapping[str, object], filename: str) -> str:
    """All warnings, each with the lines that it is about."""
    warnings, sources = objects_at(fields, "warnings"), objects_at(fields, "sources")
    if not warnings:
        return "" if object_at(fields, "buildError") else "Check complete, no warnings found.\n"
    found = "1 warning has" if len(warnings) == 1 else f"{len(warnings)} warnings have"
    parts = [f"Check complete, {found} been found!\n"]
    # In the order of the file, those without a place first.
    for warning in sorted(warnings, key=_first_line):
        url = _text(warning, "url")
        lines = [f"WARNING: {_text(warning, 'ruleName')}{f' - {url}' if url else ''}", _text(warning, "detail")]
        excerpt = _excerpt(object_at(warning, "location"), sources, filename)
        parts.append("\n".join([*lines, *([excerpt] if excerpt else [])]) + "\n")
    return "\n".join(parts) + ("\n" if object_at(fields, "buildError") else "")


def _build_error(fields: Mapping[str, object], filename: str) -> str:
    error = object_at(fields, "buildError")
    if not error:
        return ""
    excerpt = _excerpt(object_at(error, "location"), objects_at(fields, "sources"), filename)
    return f"ERROR: {_text(error, 'message')}\n" + (f"{excerpt}\n" if excerpt else "")


def _first_line(warning: Mapping[str, object]) -> int:
    ranges = objects_at(object_at(warning, "location"), "ranges")
    return _number(object_at(ranges[0], "start"), "line") if ranges else 0


def _excerpt(location: Mapping[str, object], sources: Sequence[Mapping[str, object]], filename: str) -> str:
    index = _number(location, "sourceIndex")
    if not location or not 0 <= index < len(sources):
        return ""
    source = sources[index]
    try:
        data = base64.b64decode(_text(source, "data"))
    except (binascii.Error, ValueError):
        return ""
    ranges = tuple(
        (_number(object_at(entry, "start"), "line"), _number(object_at(entry, "end"), "line"))
        for entry in objects_at(location, "ranges")
    )
    return SourceSnippet(filename or _text(source, "filename"), "", data, ranges).excerpt()


def _outline(fields: Mapping[str, object]) -> str:
    """The target, then a table for each kind of thing that it takes; caches are for programs alone."""
    parts: list[str] = []
    name, description = _text(fields, "name"), _text(fields, "description")
    if name or description:
        about = [("DESCRIPTION:", description)] if description else []
        parts.append(_table([("TARGET:", name or "(default)"), *about], gap=1))
    if arguments := objects_at(fields, "args"):
        rows = [(_text(item, "name"), _text(item, "value"), _text(item, "description")) for item in arguments]
        parts.append(_table([("BUILD ARG", "VALUE", "DESCRIPTION"), *rows], gap=3))
    for key, heading in (("secrets", "SECRET"), ("ssh", "SSH")):
        if entries := objects_at(fields, key):
            required = [(_text(item, "name"), "true" if item.get("required") else "") for item in entries]
            parts.append(_table([(heading, "REQUIRED"), *required], gap=3))
    return "".join(f"{part}\n" for part in parts)


def _targets(fields: Mapping[str, object]) -> str:
    rows: list[tuple[str, ...]] = []
    for target in objects_at(fields, "targets"):
        name = _text(target, "name")
        if target.get("default"):
            name = f"{name} (default)".strip()
        rows.append((name, _text(target, "description")))
    return _table([("TARGET", "DESCRIPTION"), *rows], gap=1)


def _table(rows: Sequence[tuple[str, ...]], *, gap: int) -> str:
    widths = [max(len(row[column]) for row in rows) + gap for column in range(len(rows[0]))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _text(fields: Mapping[str, object], key: str) -> str:
    """Printable, on one line: a Dockerfile may be somebody else's."""
    value = fields.get(key)
    if not isinstance(value, str):
        return ""
    if key == "data":
        return value
    return "".join(char if char.isprintable() else " " for char in value)


def _number(fields: Mapping[str, object], key: str) -> int:
    value = fields.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
