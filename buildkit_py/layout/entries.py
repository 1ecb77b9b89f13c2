"""What ``index.json`` and the names of the files of a layout say; values alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from buildkit_py.digest import Digest
from buildkit_py.errors import ProtocolError
from buildkit_py.oci import OCI_INDEX, Descriptor, Index, encode_json, parse_json
from buildkit_py.reference import DEFAULT_TAG, Reference

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
DOCKER_FILE = "manifest.json"
LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
MAX_ENTRIES = 100_000  # of one archive; images have some hundreds


def layout_files(root: Descriptor, raw: bytes, names: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    """Name and content of every file of a layout that holds its root alone, for who has the rest already.

    The root has image names, which may be by digest; a tag alone is no name.
    """
    entries = [root.with_annotations({**root.annotations, IMAGE_NAME: name}).to_json() for name in names]
    index = encode_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    return (
        (LAYOUT_FILE, LAYOUT_CONTENT),
        (INDEX_FILE, index),
        (blob_name(root.digest), raw),
    )


def index_of(root: Descriptor, names: Sequence[Reference]) -> bytes:
    """``index.json`` with an entry for every name; without names one that is tagged latest."""
    entries = [entry.to_json() for entry in _named(root, names)]
    return encode_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _named(root: Descriptor, names: Sequence[Reference]) -> list[Descriptor]:
    """Entries of index.json for a root. Source: buildkit, client/ociindex."""
    if not names:
        return [root.with_annotations({**root.annotations, REF_NAME: DEFAULT_TAG})]
    return [
        root.with_annotations(
            {
                **root.annotations,
                IMAGE_NAME: str(name.with_default_tag()),
                REF_NAME: name.tag_or_latest,
            }
        )
        for name in names
    ]


def without_names(entry: Descriptor) -> dict[str, str]:
    """Its annotations but for those that name it in one layout."""
    return {key: value for key, value in entry.annotations.items() if key not in (IMAGE_NAME, REF_NAME)}


def names_of(entry: Descriptor) -> set[str]:
    """What it may be asked for by: image name, tag, digest."""
    names = {entry.annotations.get(IMAGE_NAME, ""), entry.annotations.get(REF_NAME, ""), str(entry.digest)}
    return names - {""}


def merged_index(existing: Mapping[str, object], mine: Mapping[str, object]) -> bytes:
    """index.json with my entries added and those of the same names replaced; the rest stays as it is."""
    theirs, ours = _entries(existing), _entries(mine)
    taken = {_key(entry) for entry in ours}
    kept = [entry for entry in theirs if _key(entry) not in taken]
    return encode_json({**existing, "manifests": [*kept, *ours]})


def _entries(fields: Mapping[str, object]) -> list[dict[str, object]]:
    """Entries as they stand there; ProtocolError unless all of it is an index."""
    Index.parse(encode_json(fields))
    return cast("list[dict[str, object]]", fields.get("manifests") or [])


def _key(entry: Mapping[str, object]) -> tuple[str, str]:
    """Entries with equal keys replace each other: by image name, else by bare tag, else by digest."""
    descriptor = Descriptor.from_json(entry)
    for annotation in (IMAGE_NAME, REF_NAME):
        if name := descriptor.annotations.get(annotation):
            return annotation, name
    return "digest", str(descriptor.digest)


def check_version(raw: bytes) -> None:
    """Raise ProtocolError unless this ``oci-layout`` is of a version that we know."""
    version = parse_json(raw, LAYOUT_FILE).get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise ProtocolError(f"{LAYOUT_FILE}: layout version {show(str(version))} is not supported")


def blob_name(digest: Digest) -> str:
    """Where a blob stands in a layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def show(text: str) -> str:
    """Text of unknown origin for a message."""
    return repr(text if len(text) <= 120 else text[:120] + "...")
