"""A layout that is made beside its destination, and published by renames once it is complete."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from buildkit_py import tarstream
from buildkit_py.digest import Digest, Hash, new_hash
from buildkit_py.errors import InvalidDigest, ProtocolError
from buildkit_py.layout.destination import check_destination, existing_parent, is_special
from buildkit_py.layout.disk import READ_SIZE, locked, read_bounded, writing
from buildkit_py.layout.entries import DOCKER_FILE, INDEX_FILE, LAYOUT_CONTENT, LAYOUT_FILE, merged_index
from buildkit_py.oci import MAX_MANIFEST_BYTES, Descriptor, parse_json


class StagedLayout:
    """The directory in which a layout is collected, then published or thrown away.

    Leaving the ``with`` block removes whatever was not published. Its subclasses say how blobs come, and when all did.
    """

    def __init__(self, staging: Path, *, mode: int = 0o777) -> None:
        """Make the staging directory, which must not exist yet; mode as for mkdir."""
        self.staging = staging
        self._complete = False
        self._numbers = itertools.count()
        with writing(staging):
            staging.mkdir(mode)
            (staging / "tmp").mkdir()
            (staging / "blobs").mkdir()

    @classmethod
    def create(cls, destination: Path | None) -> Self:
        """Stage where publishing to destination takes renames; None is the temporary directory."""
        name = f".buildkit-py-{secrets.token_hex(8)}"
        if destination is None or is_special(destination):
            return cls(Path(tempfile.gettempdir()) / name, mode=0o700)
        if destination.is_dir():
            return cls(destination / name)  # it may be a mount point of its own
        return cls(existing_parent(destination) / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove everything that was staged; again and again does no harm."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def publish_directory(self, destination: Path) -> None:
        """Put the layout in place: by a rename where nothing is, else blob by blob, ``index.json`` last.

        Entries of other names stay in an existing layout. Raises InvalidOption for a directory that holds
        something else, DeadlineExceeded when another process keeps the layout locked.
        """
        self._check_finished()
        check_destination(destination, directory=True, ours=self.staging)
        with writing(destination):
            if not destination.exists():
                destination.parent.mkdir(parents=True, exist_ok=True)
                if _renamed(self.staging, destination):
                    return
            with locked(destination):
                self._merge_into(destination)
        self.discard()

    def publish_file(self, destination: Path) -> None:
        """Write the layout as a tar archive under a temporary name and rename it; a device is written to."""
        self._check_finished()
        check_destination(destination, directory=False)
        with writing(destination):
            if is_special(destination):
                with destination.open("wb") as stream:
                    self.write_tar(stream)
            else:
                # Through a symbolic link to what it names, as a plain open would.
                target = Path(os.path.realpath(destination))
                temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
                try:
                    with temporary.open("xb") as stream:
                        self.write_tar(stream)
                    temporary.replace(target)
                finally:
                    temporary.unlink(missing_ok=True)
        self.discard()

    def write_tar(self, stream: BinaryIO) -> None:
        """Write the layout as a tar archive, with the bytes that BuildKit gives one. The stream stays open.

        OSError of the stream goes through as it is.
        """
        stream.writelines(self.tar_chunks())
        stream.flush()

    def tar_chunks(self, *, without: Collection[Digest] = ()) -> Iterator[bytes]:
        """The same archive in pieces, but for the blobs named."""
        self._check_finished()
        left_out = {self.blob_path(digest) for digest in without}
        for path in sorted(self.staging.rglob("*")):
            name = path.relative_to(self.staging).as_posix()
            if path.is_dir():
                yield tarstream.header(f"{name}/", directory=True)
                continue
            if path in left_out:
                continue
            size = path.stat().st_size
            yield tarstream.header(name, size, writable=name == INDEX_FILE)
            with path.open("rb") as content:
                while chunk := content.read(READ_SIZE):
                    yield chunk
            yield tarstream.padding(size)
        yield tarstream.END

    def digests(self) -> tuple[Digest, ...]:
        """All blobs, sorted."""
        self._check_finished()
        return tuple(Digest(path.parent.name, path.name) for path in sorted((self.staging / "blobs").glob("*/*")))

    def _finish(self, index: bytes) -> None:
        """Say that all blobs were staged, and what ``index.json`` is."""
        with writing(self.staging):
            (self.staging / LAYOUT_FILE).write_bytes(LAYOUT_CONTENT)
            (self.staging / INDEX_FILE).write_bytes(index)
            shutil.rmtree(self.staging / "tmp")
        self._complete = True

    def _check_finished(self) -> None:
        if not self._complete:
            raise RuntimeError("finish() comes before publishing")

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob of this digest is staged."""
        return self.staging / "blobs" / digest.algorithm / digest.hex

    def temporary_path(self) -> Path:
        """A file name that nobody else uses; safe to call from any thread."""
        return self.staging / "tmp" / str(next(self._numbers))

    def _check_blob(self, descriptor: Descriptor) -> None:
        """Raise ProtocolError unless the blob is there; its digest was checked when it came."""
        try:
            size = self.blob_path(descriptor.digest).stat().st_size
        except FileNotFoundError:
            raise ProtocolError(f"{descriptor.digest}: the daemon did not send this blob") from None
        if size != descriptor.size:
            raise ProtocolError(f"{descriptor.digest} is {size} bytes, its descriptor says {descriptor.size}")

    def _merge_into(self, destination: Path) -> None:
        mine = parse_json((self.staging / INDEX_FILE).read_bytes(), INDEX_FILE)
        existing = destination / INDEX_FILE
        if existing.exists():
            raw = read_bounded(existing, MAX_MANIFEST_BYTES)
            merged = merged_index(parse_json(raw, str(existing)), mine)
        else:
            merged = (self.staging / INDEX_FILE).read_bytes()
        for path in sorted((self.staging / "blobs").glob("*/*")):
            target = destination / "blobs" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        if not (destination / LAYOUT_FILE).exists():
            (self.staging / LAYOUT_FILE).replace(destination / LAYOUT_FILE)
        if (self.staging / DOCKER_FILE).exists():
            (self.staging / DOCKER_FILE).replace(destination / DOCKER_FILE)
        (self.staging / INDEX_FILE).write_bytes(merged)
        (self.staging / INDEX_FILE).replace(existing)


class StagedBlob:
    """A blob on its way to the disk. One that is there already is only checked."""

    def __init__(self, layout: StagedLayout, digest: Digest, *, checked: bool = False) -> None:
        self._digest = digest
        self._hash: Hash | None = None if checked else new_hash(digest.algorithm)
        self._path = layout.blob_path(digest)
        self._temporary: Path | None = None
        self._file: BinaryIO | None = None
        if not self._path.exists():
            self._temporary = layout.temporary_path()
            self._file = self._temporary.open("xb")

    def write(self, data: memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)
        if self._file is not None:
            self._file.write(data)

    def close(self) -> None:
        try:
            if self._hash is not None:
                self._digest.verify_hash(self._hash, "blob")
        except InvalidDigest as error:
            raise ProtocolError(str(error)) from error
        if self._file is not None and self._temporary is not None:
            self._file.close()
            self._path.parent.mkdir(exist_ok=True)
            # Another stream may have brought the same blob meanwhile: the same content.
            self._temporary.replace(self._path)

    def abort(self) -> None:
        if self._file is not None and self._temporary is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def _renamed(source: Path, target: Path) -> bool:
    """Whether the directory could be renamed; not when another process has put something there."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True
