"""The tar streams in which daemons send layouts, taken apart as they come."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from buildkit_py import tarstream
from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, ProtocolError
from buildkit_py.layout.disk import writing
from buildkit_py.layout.entries import (
    DOCKER_FILE,
    INDEX_FILE,
    LAYOUT_FILE,
    MAX_ENTRIES,
    check_version,
    show,
)
from buildkit_py.layout.staging import StagedBlob, StagedLayout
from buildkit_py.oci import MAX_MANIFEST_BYTES, Index


class LayoutStream:
    """One platform's layout on its way in: a tar stream, in chunks of any size.

    Blobs go to the staging directory as they come, each under its name only once its digest is right.
    After an error the stream is closed, and says so. Write from one thread at a time; abort from any: a
    cancelled write may still be running in its thread.
    """

    def __init__(self, layout: StagedLayout, what: str) -> None:
        self.what = what
        """Names the stream in errors."""
        self._layout = layout
        self._reader = tarstream.TarReader()
        self._entries = 0
        self._target: StagedBlob | _SmallFile | None = None
        self._small: dict[str, bytes] = {}
        self._index: Index | None = None
        self._closed = False
        self._lock = threading.RLock()

    @property
    def index(self) -> Index:
        """Its ``index.json``; ProtocolError until close() has been called."""
        if self._index is None:
            raise ProtocolError(f"{self.what}: did not arrive completely")
        return self._index

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes. Blocks. Raises ProtocolError for what does not belong into a layout."""
        try:
            with self._lock, writing(self._layout.staging):
                if self._closed:
                    raise ProtocolError("more came after its end")
                for event in self._reader.feed(data):
                    if self._closed:
                        break  # by abort, which now waits
                    self._take(event)
        except BaseException as error:
            self.abort()
            if isinstance(error, ProtocolError):
                raise ProtocolError(f"{self.what}: {error}") from error
            raise

    def close(self) -> None:
        """Say that all of it was written; raises ProtocolError if something is missing. Blocks shortly."""
        if self._index is not None:
            return
        if self._closed:
            raise ProtocolError(f"{self.what}: did not arrive completely")
        self.abort()
        try:
            self._reader.close()
            for name in (LAYOUT_FILE, INDEX_FILE):
                if name not in self._small:
                    raise ProtocolError(f"{name} is missing")
            check_version(self._small[LAYOUT_FILE])
            self._index = Index.parse(self._small[INDEX_FILE])
        except ProtocolError as error:
            raise ProtocolError(f"{self.what}: {error}") from error

    def abort(self) -> None:
        """Close it as it is, dropping a blob that is not complete; again and again does no harm.

        Waits for a write that is going on, which ends early; nothing is written afterwards.
        """
        self._closed = True
        with self._lock:
            if isinstance(self._target, StagedBlob):
                self._target.abort()
            self._target = None

    def _take(self, event: tarstream.Event) -> None:
        match event:
            case tarstream.Entry():
                self._entries += 1
                if self._entries > MAX_ENTRIES:
                    raise ProtocolError(f"more than {MAX_ENTRIES} entries")
                self._target = self._begin(event)
            case tarstream.Content(data):
                if self._target is not None:
                    self._target.write(data)
            case tarstream.EntryEnd():
                if isinstance(self._target, StagedBlob):
                    self._target.close()
                elif isinstance(self._target, _SmallFile):
                    self._small[self._target.name] = self._target.content
                self._target = None

    def _begin(self, entry: tarstream.Entry) -> StagedBlob | _SmallFile | None:
        """Where the content of this entry goes; None for what has none that matters."""
        name = entry.name.removeprefix("./").rstrip("/")
        parts = name.split("/")
        if entry.kind is tarstream.Kind.DIRECTORY:
            if name in ("", ".", "blobs") or (
                len(parts) == 2 and parts[0] == "blobs" and parts[1].isalnum() and name.isascii()
            ):
                return None
        elif entry.kind is tarstream.Kind.FILE and not entry.name.endswith("/"):
            if name in (LAYOUT_FILE, INDEX_FILE, DOCKER_FILE):
                return self._begin_small(name, entry.size)
            if len(parts) == 3 and parts[0] == "blobs":
                return StagedBlob(self._layout, _blob_digest(entry.name, parts))
        raise ProtocolError(f"{show(entry.name)} does not belong into a layout ({entry.kind.value})")

    def _begin_small(self, name: str, size: int) -> _SmallFile:
        if name in self._small:
            raise ProtocolError(f"{name} came twice")
        if size > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"{name} is {size} bytes, more than the {MAX_MANIFEST_BYTES} that are allowed")
        self._small[name] = b""
        return _SmallFile(name)


class _SmallFile:
    """A file that is kept in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._content = bytearray()

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def write(self, data: memoryview) -> None:
        self._content += data


def _blob_digest(name: str, parts: Sequence[str]) -> Digest:
    try:
        return Digest(parts[1], parts[2])
    except InvalidDigest as error:
        raise ProtocolError(f"{show(name)} does not belong into a layout: {error}") from None
