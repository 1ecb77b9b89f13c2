"""Layouts read, whether directories or archives: every blob is checked on its way."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

from buildkit_py import tarstream
from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError, InvalidDigest, InvalidOption, ProtocolError
from buildkit_py.layout.disk import READ_SIZE
from buildkit_py.layout.entries import INDEX_FILE, LAYOUT_FILE, MAX_ENTRIES, blob_name, check_version, names_of
from buildkit_py.oci import MAX_MANIFEST_BYTES, Descriptor, Index


class _Files(Protocol):
    """The files of a layout, wherever they are."""

    def size(self, name: str) -> int | None:
        """Bytes; None when there is no such file."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]: ...


class Layout:
    """A layout that is read; from open_layout. Every method blocks, and may be called from any thread."""

    def __init__(self, files: _Files, where: str) -> None:
        self._files = files
        self._where = where
        check_version(self._small(LAYOUT_FILE))
        self.index = Index.parse(self._small(INDEX_FILE))
        """Its ``index.json``."""

    def resolve(self, name: str | None = None) -> Descriptor:
        """The entry of this tag, image name or digest; without one, the only image there is.

        Raises InvalidOption, listing the names, when there is none or more than one.
        """
        found = {entry.digest: entry for entry in self.index.manifests if name is None or name in names_of(entry)}
        if len(found) == 1:
            return next(iter(found.values()))
        known = ", ".join(sorted({text for entry in self.index.manifests for text in names_of(entry)}))
        problem = "has more than one image" if found else "has no such image"
        raise InvalidOption(f"layout {self._where}: {name or 'without a name'}: {problem}; it has {known or 'none'}")

    def has(self, digest: Digest) -> bool:
        """Whether the blob is there; its content is not looked at."""
        return self._files.size(blob_name(digest)) is not None

    def read(self, descriptor: Descriptor, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """A whole blob, checked; ProtocolError when it is missing, wrong or larger than max_bytes."""
        if descriptor.size > max_bytes:
            raise ProtocolError(f"{descriptor.digest}: {descriptor.size} bytes are more than {max_bytes}")
        return b"".join(self.chunks(descriptor))

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob in pieces; ProtocolError, at the latest after the last one, when it is not right."""
        name = blob_name(descriptor.digest)
        size = self._files.size(name)
        if size is None:
            raise ProtocolError(f"layout {self._where}: {descriptor.digest} is missing")
        if size != descriptor.size:
            raise ProtocolError(
                f"layout {self._where}: {descriptor.digest} is {size} bytes, expected {descriptor.size}"
            )
        running = descriptor.digest.new_hash()
        for chunk in self._files.chunks(name):
            running.update(chunk)
            yield chunk
        try:
            descriptor.digest.verify_hash(running, f"layout {self._where}: blob")
        except InvalidDigest as error:
            raise ProtocolError(str(error)) from error

    def _small(self, name: str) -> bytes:
        size = self._files.size(name)
        if size is None:
            raise InvalidOption(f"layout {self._where}: has no {name}; this is no OCI layout")
        if size > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"layout {self._where}: {name} is {size} bytes, more than {MAX_MANIFEST_BYTES}")
        return b"".join(self._files.chunks(name))


@contextlib.contextmanager
def open_layout(path: Path) -> Generator[Layout]:
    """Read a layout: a directory, or a tar archive of one. Blocks; of an archive all headers are read first.

    Raises InvalidOption when there is no layout, ProtocolError when it is damaged.
    """
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            files: _Files = _DirectoryFiles(path)
        else:
            try:
                stream = stack.enter_context(path.open("rb", buffering=0))
            except OSError as error:
                raise InvalidOption(f"layout {path}: {error.strerror}") from error
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise InvalidOption(f"layout {path}: is neither a directory nor a file")
            try:
                files = _ArchiveFiles(stream)
            except ProtocolError as error:
                raise ProtocolError(f"layout {path}: {error}") from error
        yield Layout(files, str(path))


class _DirectoryFiles:
    """A layout directory. Names are ours or made of digests, so none leads elsewhere."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int | None:
        try:
            found = (self._root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BuildKitError(f"{self._root / name}: {error.strerror}") from error
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def chunks(self, name: str) -> Iterator[bytes]:
        try:
            with (self._root / name).open("rb", buffering=0) as stream:
                while chunk := stream.read(READ_SIZE):
                    yield chunk
        except OSError as error:
            raise BuildKitError(f"{self._root / name}: {error.strerror}") from error


class _ArchiveFiles:
    """A tar archive of a layout: where each file lies in it."""

    def __init__(self, stream: io.FileIO) -> None:
        self._descriptor = stream.fileno()
        self.spans: dict[str, tuple[int, int]] = {}
        reader = tarstream.TarReader()
        offset, end = 0, os.fstat(self._descriptor).st_size
        while offset < end:
            block = self._pread(offset, min(reader.wanted, end - offset))
            if not block:
                break  # it has shrunk meanwhile
            offset += len(block)
            for event in reader.feed(block):
                if isinstance(event, tarstream.Entry) and event.kind is tarstream.Kind.FILE:
                    if len(self.spans) >= MAX_ENTRIES:
                        raise ProtocolError(f"layout archive has more than {MAX_ENTRIES} files")
                    self.spans[event.name.removeprefix("./")] = (offset, event.size)
            if step := min(reader.content_left, end - offset):
                reader.skip(step)
                offset += step
        reader.close()

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise BuildKitError(f"layout archive: {error.strerror}") from error

    def size(self, name: str) -> int | None:
        span = self.spans.get(name)
        return None if span is None else span[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        offset, left = self.spans[name]
        while left and (chunk := self._pread(offset, min(left, READ_SIZE))):
            offset += len(chunk)
            left -= len(chunk)
            yield chunk


def archive_blobs(stream: io.FileIO) -> dict[Digest, tuple[int, int]]:
    """Where each blob of a tar archive of a layout lies: (offset, size). Blocks; raises ProtocolError."""
    blobs: dict[Digest, tuple[int, int]] = {}
    for name, span in _ArchiveFiles(stream).spans.items():
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == "blobs":
            with contextlib.suppress(InvalidDigest):
                blobs[Digest.parse(f"{parts[1]}:{parts[2]}")] = span
    return blobs
