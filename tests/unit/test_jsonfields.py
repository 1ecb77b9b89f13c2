"""What others wrote as JSON is read without trust in its shape."""

from __future__ import annotations

from buildkit_py.jsonfields import object_at, objects_at

FIELDS: dict[str, object] = {"object": {"a": 1}, "array": [{"b": 2}, None, "text", [{}], {}], "text": "x", "null": None}


def test_what_is_of_the_kind() -> None:
    assert object_at(FIELDS, "object") == {"a": 1}
    assert objects_at(FIELDS, "array") == [{"b": 2}, {}]


def test_what_is_not_counts_as_absent() -> None:
    assert [object_at(FIELDS, key) for key in ("array", "text", "null", "none")] == [{}, {}, {}, {}]
    assert [objects_at(FIELDS, key) for key in ("object", "text", "null", "none")] == [[], [], [], []]
