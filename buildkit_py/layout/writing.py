"""A layout made of content that is known piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from buildkit_py.digest import Digest
from buildkit_py.layout.disk import writing
from buildkit_py.layout.staging import StagedBlob, StagedLayout
from buildkit_py.oci import OCI_INDEX, Descriptor, encode_json


class LayoutWriter(StagedLayout):
    """Makes a layout of content that is known piece by piece, and puts it in place as its base class does.

    ``put`` and ``open_blob`` for every blob, manifests included, then ``finish_entries``, then a publish method.
    Blobs may be written from several threads at once.
    """

    def put(self, digest: Digest, raw: bytes) -> None:
        """Stage a blob that is in memory. Blocks shortly; raises ProtocolError unless it has this digest."""
        blob = self.open_blob(digest)
        try:
            blob.write(raw)
            blob.close()
        finally:
            blob.abort()

    def open_blob(self, digest: Digest, *, checked: bool = False) -> LayoutBlob:
        """Where the content of a blob is written; checked says that the writer looks at its digest before close()."""
        with writing(self.staging):
            return LayoutBlob(self, digest, checked=checked)

    def finish_entries(self, entries: Sequence[Descriptor]) -> None:
        """Say that all blobs were staged; entries, with their names as annotations, are the ``index.json``.

        Raises ProtocolError when the blob of an entry is missing.
        """
        for entry in entries:
            self._check_blob(entry)
        fields = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in entries]}
        self._finish(encode_json(fields))


class LayoutBlob:
    """A blob that is written into a LayoutWriter; it is part of the layout once close() returns. Blocks."""

    def __init__(self, writer: LayoutWriter, digest: Digest, *, checked: bool) -> None:
        self._staging = writer.staging
        self._blob = StagedBlob(writer, digest, checked=checked)

    def write(self, data: bytes, /) -> None:
        """Take the next bytes."""
        with writing(self._staging):
            self._blob.write(memoryview(data))

    def close(self) -> None:
        """Say that all of it was written; ProtocolError where it is checked here and is not what it should be."""
        with writing(self._staging):
            self._blob.close()

    def abort(self) -> None:
        """Remove what is not complete; after close() it does nothing."""
        self._blob.abort()
