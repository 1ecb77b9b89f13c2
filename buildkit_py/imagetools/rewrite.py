"""Changes to manifests and indexes of others: what is not concerned stays, keys that nobody knows included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from buildkit_py.errors import ImageError
from buildkit_py.oci import MAX_MANIFEST_BYTES, Descriptor, JSONObject, encode_json, parse_json

Fields = dict[str, object]


def with_annotations(raw: bytes, what: str, added: Mapping[str, str], removed: frozenset[str] = frozenset()) -> bytes:
    """The document with annotations added and removed; the same bytes where that changes nothing."""
    fields = dict(parse_json(raw, what))
    return _changed(raw, {**fields, **_annotated(fields, added, removed)}, what)


def with_entries(
    raw: bytes, what: str, change: Callable[[Descriptor, Fields], Fields | None], **replaced: object
) -> bytes:
    """An index whose entries went through change, which returns None for one to be left out.

    replaced are other keys of the index. The same bytes where nothing changes.
    """
    fields = dict(parse_json(raw, what))
    entries = cast("list[Fields]", fields.get("manifests") or [])
    changed = [change(Descriptor.from_json(entry, what), dict(entry)) for entry in entries]
    return _changed(raw, {**fields, **replaced, "manifests": [entry for entry in changed if entry is not None]}, what)


def annotate_entry(entry: Fields, added: Mapping[str, str], removed: frozenset[str] = frozenset()) -> Fields:
    """An entry of an index with annotations added and removed."""
    merged = _annotated(entry, added, removed)["annotations"]
    result: Fields = {}
    for key, value in entry.items():
        if key == "annotations":
            continue
        if key in ("data", "platform", "artifactType") and "annotations" not in result:
            result["annotations"] = merged  # where Go's encoder has it
        result[key] = value
    result.setdefault("annotations", merged)
    return _without_empty(result)


def _annotated(fields: JSONObject, added: Mapping[str, str], removed: frozenset[str]) -> Fields:
    present = cast("Mapping[str, str]", fields.get("annotations") or {})
    merged = {key: value for key, value in {**present, **added}.items() if key not in removed}
    return {"annotations": dict(sorted(merged.items()))}


def _without_empty(fields: Fields) -> Fields:
    return {key: value for key, value in fields.items() if key != "annotations" or value}


def _changed(raw: bytes, fields: Fields, what: str) -> bytes:
    fields = _without_empty(fields)
    if fields == _without_empty(dict(parse_json(raw, what))):
        return raw
    # Laid out as it was: BuildKit and docker indent by two spaces, most others do not.
    changed = encode_json(fields, indent=2 if b"\n" in raw.strip() else None)
    if len(changed) > MAX_MANIFEST_BYTES:
        raise ImageError(f"{what} would be {len(changed)} bytes; registries take {MAX_MANIFEST_BYTES}")
    return changed


__all__ = ["annotate_entry", "with_annotations", "with_entries"]
