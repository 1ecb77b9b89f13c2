"""Fields of JSON that a daemon or a frontend made: what is not of the kind that is asked for counts as absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast


def object_at(fields: Mapping[str, object], key: str) -> dict[str, object]:
    """The object under a key, else an empty one."""
    value = fields.get(key)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def objects_at(fields: Mapping[str, object], key: str) -> list[dict[str, object]]:
    """The objects in the array under a key."""
    value = fields.get(key)
    entries = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("dict[str, object]", entry) for entry in entries if isinstance(entry, dict)]


__all__ = ["object_at", "objects_at"]
