"""Content: blobs of this machine that a daemon reads and writes, by digest, through containerd's content service.

OCI layouts as build contexts are read that way, and local caches are read and written.
Source: containerd v2, api/services/content/v1 and plugins/services/content; moby/buildkit v0.32, session/content.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import stat
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from buildkit_py.digest import Digest, new_hash
from buildkit_py.errors import InvalidDigest, InvalidOption, ProtocolError
from buildkit_py.layout.reading import archive_blobs
from buildkit_py.session.attachable import Call, CallError, Code, Handler, metadata_values, only_message

if TYPE_CHECKING:
    from buildkit_py.pb import content_pb2

_SERVICE = "/containerd.services.content.v1.Content/"
INFO, READ, WRITE = f"{_SERVICE}Info", f"{_SERVICE}Read", f"{_SERVICE}Write"
STATUS, ABORT = f"{_SERVICE}Status", f"{_SERVICE}Abort"
STORE_HEADER = "buildkit-attachable-store-id"

CHUNK_BYTES = 1 << 20
MAX_WRITES = 64
"""Unfinished writes of one store; daemons have some at a time."""
_MAX_REF = 1024
_ATTEMPTS = 100


class BlobStore:
    """The blobs of an OCI layout directory.

    A blob appears under its name when it is complete and has its digest. What is written stays, also when the
    solve fails later: a blob without an entry in ``index.json`` does no harm, and the next export need not send it.
    """

    def __init__(self, root: Path, *, writable: bool = False) -> None:
        """The directory may be missing; a writable one is then made at the first write."""
        self.root = root
        self.writable = writable
        self.committed: dict[Digest, int] = {}
        """Sizes of the blobs that writes ended with, whether new or there before, in the order of their ends."""
        self.received = 0
        """Bytes of blobs that were written."""
        self.sent = 0
        """Bytes of blobs that were read."""
        self.writes: dict[str, Ingest] = {}
        """Unfinished writes, by ref."""

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self.root / "blobs" / digest.algorithm / digest.hex

    def size(self, digest: Digest) -> int | None:
        """Bytes of the blob; None when there is none. Blocks."""
        try:
            found = self.path(digest).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def note(self, digest: Digest, size: int) -> None:
        """A write has ended with this blob."""
        self.committed.pop(digest, None)  # the last one comes last, also when it came before
        self.committed[digest] = size

    def open(self, digest: Digest) -> tuple[BinaryIO, int]:
        """A file for the caller to close, and where in it the blob begins; raises OSError, as open() does."""
        return self.path(digest).open("rb", buffering=0), 0


class ArchiveStore(BlobStore):
    """The blobs of an OCI layout in a tar archive, read where they lie in it. Not writable."""

    def __init__(self, path: Path) -> None:
        """Read the archive's headers. Raises OSError, and ProtocolError for an archive that is damaged."""
        super().__init__(path)
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._blobs = archive_blobs(self._file)

    def size(self, digest: Digest) -> int | None:
        """See BlobStore."""
        span = self._blobs.get(digest)
        return None if span is None else span[1]

    def open(self, digest: Digest) -> tuple[BinaryIO, int]:
        """See BlobStore."""
        offset, _ = self._blobs[digest]
        return os.fdopen(os.dup(self._file.fileno()), "rb", buffering=0), offset


class Ingest:
    """A blob on its way into a store, from one thread at a time. Making it touches no disk; the rest blocks."""

    def __init__(self, store: BlobStore, total: int, expected: Digest | None) -> None:
        self._store = store
        self.total = total
        """Size it should have; 0 when the daemon has not said."""
        self.expected = expected
        self.offset = 0
        """Bytes written so far."""
        self._hash = new_hash("sha256" if expected is None else expected.algorithm)
        self._temporary = store.root / "ingest" / secrets.token_hex(8)
        self._file: BinaryIO | None = None
        self._over = False
        # A call that is cancelled leaves a thread behind that may still be writing.
        self._lock = threading.Lock()

    @property
    def digest(self) -> Digest:
        """Of what was written so far."""
        return Digest.of_hash(self._hash)

    def take(self, offset: int, data: bytes, *, commit: bool) -> None:
        """Write data at offset, which is the end or the beginning; the latter forgets what was written before.

        With commit, put the blob in place then. CallError unless offset, size and digest are what they should be.
        """
        with self._lock:
            if self._over:
                raise CallError(Code.CANCELLED, "the write has ended")
            file = self._open()
            if offset == 0 and self.offset:
                file.seek(0)
                file.truncate()
                self._hash = new_hash(self._hash.name)
                self.offset = 0
            elif offset != self.offset:
                raise CallError(Code.OUT_OF_RANGE, f"a write at {offset}, where {self.offset} bytes have come")
            self._write(file, data)
            if commit:
                self._commit(file)

    def discard(self) -> None:
        """Remove what is not in place; after a commit it only tidies up. Does not raise."""
        with self._lock, contextlib.suppress(OSError):
            self._over = True
            if self._file is not None:
                self._file.close()
                self._temporary.unlink(missing_ok=True)
                self._temporary.parent.rmdir()  # fails while others write

    def _open(self) -> BinaryIO:
        for attempt in range(_ATTEMPTS):
            if self._file is not None:
                break
            try:
                self._temporary.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._temporary.open("xb", buffering=0)
            except (FileExistsError, FileNotFoundError):
                # Another write has ended meanwhile, perhaps that of another process, and removed the directory.
                if attempt == _ATTEMPTS - 1:
                    raise
        assert self._file is not None
        return self._file

    def _write(self, file: BinaryIO, data: bytes) -> None:
        if self.total and self.offset + len(data) > self.total:
            raise CallError(Code.FAILED_PRECONDITION, f"more than the {self.total} bytes that were announced")
        view = memoryview(data)
        self._hash.update(view)
        while view:
            view = view[file.write(view) :]
        self.offset += len(data)
        self._store.received += len(data)

    def _commit(self, file: BinaryIO) -> None:
        if self.total and self.offset != self.total:
            raise CallError(Code.FAILED_PRECONDITION, f"{self.offset} bytes came, {self.total} were announced")
        digest = self.digest
        if self.expected is not None and digest != self.expected:
            raise CallError(Code.FAILED_PRECONDITION, f"the content has digest {digest}, expected {self.expected}")
        file.close()
        path = self._store.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another write may have brought the same blob meanwhile: the same content.
        self._temporary.replace(path)
        self._store.note(digest, self.offset)


class ContentStores:
    """Serves stores by the ids that daemons ask for, such as ``oci:NAME`` and ``local:NAME``."""

    def __init__(self, stores: Mapping[str, BlobStore]) -> None:
        self.stores = dict(stores)

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        table = {INFO: self._info, READ: self._read, WRITE: self._write, STATUS: self._status, ABORT: self._abort}
        return {name: functools.partial(_mapped, handler) for name, handler in table.items()}

    async def _info(self, call: Call) -> None:
        from buildkit_py.pb import content_pb2

        store = self._store(call)
        digest = Digest.parse(content_pb2.InfoRequest.FromString(await only_message(call)).digest)
        size = await _size(store, digest)
        info = content_pb2.Info(digest=str(digest), size=size)
        await call.send(content_pb2.InfoResponse(info=info).SerializeToString())

    async def _read(self, call: Call) -> None:
        from buildkit_py.pb import content_pb2

        store = self._store(call)
        request = content_pb2.ReadContentRequest.FromString(await only_message(call))
        digest = Digest.parse(request.digest)
        size = await _size(store, digest)
        begin = max(0, request.offset)
        if begin > size:
            raise CallError(Code.OUT_OF_RANGE, f"{digest}: has {size} bytes, {begin} is past its end")
        end = min(size, begin + request.size) if request.size > 0 else size
        file, start = await asyncio.to_thread(store.open, digest)
        try:
            position = begin
            while position < end:
                count = min(CHUNK_BYTES, end - position)
                data = await asyncio.to_thread(os.pread, file.fileno(), count, start + position)
                if not data:
                    raise CallError(Code.DATA_LOSS, f"{digest}: has shrunk to {position} bytes")
                reply = content_pb2.ReadContentResponse(offset=position - begin, data=data)
                position += len(data)
                store.sent += len(data)
                await call.send(reply.SerializeToString())
        finally:
            file.close()

    async def _write(self, call: Call) -> None:
        from buildkit_py.pb import content_pb2

        store = self._store(call)
        if not store.writable:
            raise CallError(Code.PERMISSION_DENIED, "this content store is read-only")
        request = content_pb2.WriteContentRequest.FromString(await only_message(call))
        if not 0 < len(request.ref) <= _MAX_REF:
            raise CallError(Code.INVALID_ARGUMENT, "the first message of a write must name it")
        if request.ref in store.writes or len(store.writes) >= MAX_WRITES:
            # Daemons wait and come again; by then the blob is mostly there.
            raise CallError(Code.UNAVAILABLE, f"write {request.ref[:100]}: is going on already")
        ingest = store.writes[request.ref] = Ingest(store, max(0, request.total), _expected(request.expected))
        try:
            await _Write(call, store, ingest).run(request)
        finally:
            del store.writes[request.ref]
            await asyncio.shield(asyncio.to_thread(ingest.discard))

    async def _status(self, call: Call) -> None:
        from buildkit_py.pb import content_pb2

        store = self._store(call)
        ref = content_pb2.StatusRequest.FromString(await only_message(call)).ref
        ingest = store.writes.get(ref)
        if ingest is None:
            raise CallError(Code.NOT_FOUND, f"no write {ref[:100]} is going on")
        expected = "" if ingest.expected is None else str(ingest.expected)
        status = content_pb2.Status(ref=ref, offset=ingest.offset, total=ingest.total, expected=expected)
        await call.send(content_pb2.StatusResponse(status=status).SerializeToString())

    async def _abort(self, call: Call) -> None:
        """Nothing is kept of a write whose call has ended, so there is nothing to abort."""
        self._store(call)
        await only_message(call)
        raise CallError(Code.NOT_FOUND, "writes end with their calls")

    def _store(self, call: Call) -> BlobStore:
        name = next(iter(metadata_values(call.metadata, STORE_HEADER)), None)
        if name is None:
            raise CallError(Code.INVALID_ARGUMENT, f"the request lacks the header {STORE_HEADER}")
        store = self.stores.get(name)
        if store is None:
            raise CallError(Code.NOT_FOUND, f"unknown content store {name[:200]!r}")
        return store


class _Write:
    """One Write call: an answer to each message, until one commits or the daemon half-closes."""

    def __init__(self, call: Call, store: BlobStore, ingest: Ingest) -> None:
        self._call = call
        self._store = store
        self._ingest = ingest

    async def run(self, request: content_pb2.WriteContentRequest) -> None:
        from buildkit_py.pb import content_pb2

        ingest = self._ingest
        while True:
            if request.expected:
                await _refuse_existing(self._store, request.expected)
                ingest.expected = _expected(request.expected)
            ingest.total = request.total if request.total > 0 else ingest.total
            commits = request.action == content_pb2.COMMIT
            if request.action != content_pb2.STAT:
                await asyncio.to_thread(ingest.take, request.offset, request.data, commit=commits)
            reply = content_pb2.WriteContentResponse(
                action=request.action, offset=ingest.offset, total=ingest.total, digest=str(ingest.digest)
            )
            await self._call.send(reply.SerializeToString())
            if commits:
                return
            message = await self._call.receive()
            if message is None:
                return
            request = content_pb2.WriteContentRequest.FromString(message)


async def _mapped(handler: Callable[[Call], Awaitable[None]], call: Call) -> None:
    """Failures of digests and disks as what they are to the daemon."""
    try:
        await handler(call)
    except InvalidDigest as error:
        raise CallError(Code.INVALID_ARGUMENT, str(error)) from error
    except OSError as error:
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        raise CallError(Code.UNKNOWN, f"content store{where}: {error.strerror or error}") from error


async def _size(store: BlobStore, digest: Digest) -> int:
    size = await asyncio.to_thread(store.size, digest)
    if size is None:
        raise CallError(Code.NOT_FOUND, f"{digest}: not found")
    return size


async def _refuse_existing(store: BlobStore, expected: str) -> None:
    """End the write with what daemons take for success when the blob is there."""
    digest = _expected(expected)
    if digest is None:
        return
    size = await asyncio.to_thread(store.size, digest)
    if size is not None:
        store.note(digest, size)
        raise CallError(Code.ALREADY_EXISTS, f"{digest}: exists")


def _expected(text: str) -> Digest | None:
    return Digest.parse(text) if text else None


def open_layout_store(root: Path, *, option: str) -> BlobStore:
    """The blobs of a layout that exists; option names it in the InvalidOption that is raised otherwise. Blocks."""
    if root.is_file():
        try:
            return ArchiveStore(root)
        except (OSError, ProtocolError) as error:
            raise InvalidOption(f"{option}: {root}: {error}") from error
    if not (root / "oci-layout").is_file():
        raise InvalidOption(f"{option}: {root} is not an OCI layout directory, nor a tar archive of one")
    return BlobStore(root)


__all__ = ["ArchiveStore", "BlobStore", "ContentStores", "open_layout_store"]
