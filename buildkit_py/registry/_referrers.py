"""Referrers: manifests that name a subject, and the index that lists them where the registry does not.

Source: OCI distribution-spec v1.1, "Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import cast

from buildkit_py.digest import Digest
from buildkit_py.errors import ProtocolError
from buildkit_py.oci import (
    INDEX_TYPES,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    Descriptor,
    Index,
    encode_json,
    parse_json,
    parse_manifest_or_index,
)

_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9._-]")
_FALLBACK = re.compile(r"(?:sha256-[0-9a-f]{64}|sha(?:384|512)-[0-9a-f]{64})")


def fallback_tag(subject: Digest) -> str:
    """The tag whose index lists the referrers of subject where the registry has no API for that."""
    return _NOT_IN_TAGS.sub("-", f"{subject.algorithm[:32]}-{subject.hex[:64]}")


def is_fallback_tag(tag: str) -> bool:
    """Whether a tag looks like one of the tag schema, which people did not choose."""
    return _FALLBACK.fullmatch(tag) is not None


def subject_of(raw: bytes) -> Digest | None:
    """Digest of the subject that a manifest names; None where there is none, or none that can be read."""
    try:
        value = parse_json(raw, "manifest").get("subject")
        return None if value is None else Descriptor.from_json(value, "subject").digest
    except ProtocolError:
        return None


def entry_for(raw: bytes, media_type: str) -> Descriptor:
    """How a list of referrers describes this manifest; ProtocolError when it cannot be read.

    Its artifact type is that of its config where it has none of its own.
    """
    content = parse_manifest_or_index(raw, media_type)
    kind = content.artifact_type
    if not kind and not isinstance(content, Index):
        kind = content.config.media_type
    return replace(Descriptor.of(raw, content.media_type), artifact_type=kind, annotations=content.annotations)


def listed(raw: bytes, media_type: str) -> tuple[Descriptor, ...]:
    """Entries of a list of referrers; ProtocolError when it is none."""
    if media_type not in INDEX_TYPES:
        raise ProtocolError(f"a list of referrers is an index, not {media_type[:100]!r}")
    return Index.parse(raw, media_type).manifests


def edited(raw: bytes | None, added: Iterable[Descriptor], removed: Collection[Digest]) -> bytes:
    """The list with other entries; those that stay keep fields that are unknown here."""
    fields = _fields(raw)
    without = {str(digest) for digest in removed}
    kept = [entry for entry in _entries(fields) if entry.get("digest") not in without]
    return _encode({**fields, "manifests": [*kept, *(entry.to_json() for entry in added)]})


def _fields(raw: bytes | None) -> Mapping[str, object]:
    if raw is None:
        return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    return parse_json(raw, "list of referrers")


def _entries(fields: Mapping[str, object]) -> list[Mapping[str, object]]:
    # listed() has seen that they are objects.
    return list(cast("list[Mapping[str, object]]", fields.get("manifests") or []))


def _encode(fields: Mapping[str, object]) -> bytes:
    raw = encode_json(fields)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ProtocolError(f"the list of referrers would be {len(raw)} bytes; registries take {MAX_MANIFEST_BYTES}")
    return raw


__all__ = ["edited", "entry_for", "fallback_tag", "is_fallback_tag", "listed", "subject_of"]
