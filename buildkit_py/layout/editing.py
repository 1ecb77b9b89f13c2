"""Layout directories changed in place: an entry put, what nothing leads to removed."""

from __future__ import annotations

from pathlib import Path

from buildkit_py.digest import Digest
from buildkit_py.layout.disk import locked, read_bounded, replace_file, writing
from buildkit_py.layout.entries import INDEX_FILE, LAYOUT_CONTENT, LAYOUT_FILE, REF_NAME, blob_name, merged_index
from buildkit_py.layout.reading import open_layout
from buildkit_py.oci import (
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    encode_json,
    parse_json,
)


def put_entry(directory: Path, descriptor: Descriptor, tag: str) -> None:
    """Give a blob of a layout directory a tag in its ``index.json``, in place of what had it. Blocks.

    Makes a layout of a directory that has none of its files yet. Raises ProtocolError when its ``index.json`` is
    damaged, DeadlineExceeded when another process keeps it locked.
    """
    entry = descriptor.with_annotations({**descriptor.annotations, REF_NAME: tag})
    mine = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json()]}
    with writing(directory), locked(directory):
        index = directory / INDEX_FILE
        raw = encode_json(mine)
        if index.exists():
            raw = merged_index(parse_json(read_bounded(index, MAX_MANIFEST_BYTES), str(index)), mine)
        if not (directory / LAYOUT_FILE).exists():
            replace_file(directory / LAYOUT_FILE, LAYOUT_CONTENT)
        replace_file(index, raw)


def remove_unreachable(directory: Path) -> int:
    """Remove the blobs of a layout directory that no entry of its ``index.json`` leads to; how many. Blocks.

    Raises ProtocolError, and removes nothing, when a manifest on the way is missing or damaged.
    """
    with writing(directory), locked(directory), open_layout(directory) as layout:
        reachable: set[Digest] = set()
        todo = list(layout.index.manifests)
        while todo:
            entry = todo.pop()
            if entry.digest in reachable:
                continue
            reachable.add(entry.digest)
            if entry.is_index:
                todo += Index.parse(layout.read(entry), entry.media_type).manifests
            elif entry.media_type in MANIFEST_TYPES:
                manifest = Manifest.parse(layout.read(entry), entry.media_type)
                todo += manifest.blobs
        keep = {directory / blob_name(digest) for digest in reachable}
        removed = [path for path in (directory / "blobs").glob("*/*") if path not in keep]
        for path in removed:
            path.unlink()
    return len(removed)
