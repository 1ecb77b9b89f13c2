"""FileSync: the directories of this machine that a daemon may read, such as build contexts.

A transfer has three parts that run at once: the listing of the tree, the requests that come back, and the
content of the files. What touches the disk runs in threads; many small files make one hop between thread
and loop.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ParamSpec, Protocol, TypeVar
from urllib.parse import unquote_plus

from buildkit_py.errors import BuildKitError, InvalidOption
from buildkit_py.errors import ProtocolError as _ProtocolError
from buildkit_py.session.attachable import Call, CallError, Code, Handler, metadata_values
from buildkit_py.session.fsutil import (
    END_OF_LISTING,
    FIN,
    Finished,
    Sender,
    SendFile,
    check_name,
    data_header,
    encode_error,
    end_of_file,
)
from buildkit_py.session.walk import (
    Batch,
    DiskTree,
    FileOpener,
    Filters,
    MemoryTree,
    Tree,
    WalkError,
    printable,
    walk,
)

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
TAR_STREAM = "/moby.filesync.v1.FileSync/TarStream"

READERS = 4
"""Most files read at the same time in one transfer: enough to hide the latency of a disk."""
SLOW_SECONDS = 1e-3
"""For one small file, where more readers help. Where files come from memory, more than one thread only costs
time: 50,000 files took 1.4 s of CPU with one and 2 s with four."""
PAUSE_SECONDS = 0.005
GATHER_FEW = 64
"""When requests trickle in, so many are awaited for so long: a hop between threads costs more than a file."""
CHUNK_BYTES = 256 * 1024
"""Content of one DATA packet of a large file."""
GATHER_FILES = 256
GATHER_BYTES = 512 * 1024
"""How many small files are read in one go."""
MAX_WARNINGS = 100
"""Warnings kept for one transfer; the rest are counted."""

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})


class TransferError(BuildKitError):
    """Content of a file could not be read to its end."""


@dataclass(slots=True)
class Transfer:
    """One transfer of a directory, as it goes on. Written by the transfer, read by whoever likes."""

    name: str
    """The directory's name."""
    visited: int = 0
    """Entries looked at, sent or not."""
    listed: int = 0
    """Entries sent."""
    requested: int = 0
    """Files that the daemon asked for."""
    files_sent: int = 0
    bytes_sent: int = 0
    """Content, without what describes it."""
    done: bool = False
    """Whether the daemon has all it wanted."""
    warnings: list[str] = field(default_factory=list[str])
    """Files that could not be read and arrived empty, the first MAX_WARNINGS of them."""
    warning_count: int = 0

    def warn(self, text: str) -> None:
        self.warning_count += 1
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)
            _log.warning("directory %r: %s", self.name, text)


class Directory(Protocol):
    """Something that can be served under a name."""

    def tree(self) -> Tree:
        """Where the listing comes from; may block and raise OSError."""
        ...

    def reader(self) -> Reader:
        """Reads files of the tree; does not block yet."""
        ...


@dataclass(slots=True)
class Gathered:
    """What a reader brought from one go."""

    packets: list[bytes | bytearray] = field(default_factory=list["bytes | bytearray"])
    taken: int = 0
    """How many of the wanted files it is done with, or has begun."""
    files: int = 0
    """How many are complete."""
    size: int = 0
    """Bytes of content."""
    more: bool = False
    """The last file goes on; proceed() brings the rest."""
    warnings: list[str] = field(default_factory=list[str])


class Reader(Protocol):
    """Reads files, one call at a time; every call may block and raise TransferError."""

    def gather(self, wanted: Sequence[SendFile[bytes]]) -> Gathered:
        """Content of some files, from the first one on, up to a bound."""
        ...

    def proceed(self) -> Gathered:
        """The next chunk of the file that gather() or proceed() left unfinished."""
        ...

    def close(self) -> None: ...


class LocalDir:
    """A directory of the disk. Its own path may lead through symlinks; below, none is followed."""

    def __init__(self, path: Path | str) -> None:
        """Raises InvalidOption unless path is a directory."""
        self.path = Path(path)
        try:
            self._root = DiskTree(self.path).root
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise InvalidOption(f"cannot use directory {str(path)!r}: {reason}") from error

    def __repr__(self) -> str:
        return f"LocalDir({str(self.path)!r})"

    def tree(self) -> Tree:
        return DiskTree(self._root)

    def reader(self) -> Reader:
        return _DiskReader(self._root)


class MemoryDir:
    """A directory that exists in memory alone, such as a Dockerfile that came from a pipe.

    Daemons compare time and size to see what changed, so its files have the time of its making unless one
    is given.
    """

    def __init__(self, files: Mapping[str, bytes], *, mtime_ns: int | None = None) -> None:
        """files by relative path. Raises InvalidOption for a path that cannot be one."""
        contents: dict[bytes, bytes] = {}
        for path, content in files.items():
            name = os.fsencode(path)
            try:
                for part in name.split(b"/"):
                    check_name(part, name)
            except _ProtocolError:
                raise InvalidOption(f"not a relative path of a file: {path!r}") from None
            contents[name] = bytes(content)
        for name in contents:
            parents = name.split(b"/")[:-1]
            if any(b"/".join(parents[:end]) in contents for end in range(1, len(parents) + 1)):
                raise InvalidOption(f"both a file and a directory: a parent of {os.fsdecode(name)!r}")
        self._tree = MemoryTree(contents, time.time_ns() if mtime_ns is None else mtime_ns)

    def __repr__(self) -> str:
        return f"MemoryDir({sorted(map(os.fsdecode, self._tree.files))})"

    def tree(self) -> Tree:
        return self._tree

    def reader(self) -> Reader:
        return _MemoryReader(self._tree.files)


class FileSync:
    """Serves directories by name. Only these names can be read, and only below these directories."""

    def __init__(self, directories: Mapping[str, Directory]) -> None:
        self.directories = MappingProxyType(dict(directories))
        self.transfers: deque[Transfer] = deque(maxlen=1000)
        """Transfers begun, oldest first."""

    def methods(self) -> Mapping[str, Handler]:
        return {DIFF_COPY: self._diff_copy, TAR_STREAM: _refuse}

    async def _diff_copy(self, call: Call) -> None:
        name = next(iter(metadata_values(call.metadata, "dir-name")), "")
        directory = self.directories.get(name)
        if directory is None:
            raise CallError(Code.NOT_FOUND, f'no access allowed to dir "{name}"')
        transfer = Transfer(name)
        self.transfers.append(transfer)
        await _Serving(call, directory, read_filters(call.metadata), transfer).run()


async def _refuse(call: Call) -> None:
    raise CallError(Code.UNIMPLEMENTED, f"{call.method} is not supported")


def read_filters(metadata: Sequence[tuple[str, str]]) -> Filters:
    """What the daemon wants of a directory, from the headers of its call."""

    def values(name: str) -> tuple[str, ...]:
        texts = metadata_values(metadata, name)
        if any(flag in _TRUE for flag in metadata_values(metadata, f"{name}-encoded")):
            # Go's query escaping, used for the whole list as soon as one value is not ASCII.
            texts = [unquote_plus(text, errors="surrogateescape") for text in texts]
        return tuple(texts)

    return Filters(values("include-patterns"), values("exclude-patterns"), values("followpaths"))


class _Serving:
    """One DiffCopy call."""

    def __init__(self, call: Call, directory: Directory, filters: Filters, transfer: Transfer) -> None:
        self._call = call
        self._directory = directory
        self._filters = filters
        self._transfer = transfer
        self._sender: Sender[bytes] = Sender()
        self._wanted: deque[SendFile[bytes]] = deque()
        self._wake = asyncio.Event()
        self._gathering = 0
        """Readers that fetch files now."""
        self._allowed = 1
        """How many may, by how slow the disk is."""
        self._gathered_at = 0.0
        # Threads of its own: a disk that hangs stops this transfer and nothing else.
        self._threads = ThreadPoolExecutor(READERS + 1, thread_name_prefix="filesync")

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = [tasks.create_task(self._list())]
                sending += [tasks.create_task(self._send_files()) for _ in range(READERS)]
                await self._take_requests()
                for task in sending:
                    task.cancel()
            await self._call.send(FIN)
            self._transfer.done = True
        except BaseExceptionGroup as group:
            # One failure ends the others; what it led to elsewhere is no news.
            error = group.exceptions[0]
            raise error from error.__cause__
        finally:
            self._threads.shutdown(wait=False)

    async def _take_requests(self) -> None:
        """Until the daemon says that it has everything."""
        receive, take = self._call.receive, self._sender.receive
        wanted, wake, transfer = self._wanted, self._wake, self._transfer
        while (message := await receive()) is not None:
            event = take(message)
            if isinstance(event, Finished):
                return
            wanted.append(event)
            transfer.requested += 1
            if self._gathering < self._allowed:
                wake.set()
        raise _ProtocolError(f"the daemon left the transfer of {self._transfer.name!r} before its end")

    async def _list(self) -> None:
        try:
            listing = _Listing(self._directory, self._filters)
            coming = self._run(listing.next)
            try:
                while (batch := await coming) is not None:
                    coming = self._run(listing.next)  # walks on while this one is sent
                    # Before the packets leave: the daemon may ask at once.
                    self._sender.announce(batch.files)
                    self._transfer.visited += batch.visited
                    self._transfer.listed += len(batch.packets)
                    if batch.packets:
                        await self._call.send(*batch.packets)
            finally:
                coming.cancel()
                self._threads.submit(listing.close)
        except (WalkError, OSError) as error:
            text = str(error)
            await self._call.send(encode_error(text))
            raise CallError(Code.UNKNOWN, text) from error
        await self._call.send(END_OF_LISTING)

    async def _send_files(self) -> None:
        reader = self._directory.reader()
        try:
            while True:
                while not self._wanted or self._gathering >= self._allowed:
                    self._wake.clear()
                    await self._wake.wait()
                await self._send_some(reader)
        finally:
            # In its turn after whatever the reader is at: a descriptor must not be closed under a read.
            self._threads.submit(reader.close)

    async def _send_some(self, reader: Reader) -> None:
        try:
            gathered = await self._gather(reader)
            while gathered.more:
                coming = self._run(reader.proceed)  # reads on while this is sent
                try:
                    await self._send(gathered)
                    gathered = await coming
                finally:
                    coming.cancel()
        except TransferError as error:
            await self._call.send(encode_error(str(error)))
            raise CallError(Code.UNKNOWN, str(error)) from error
        await self._send(gathered)

    async def _gather(self, reader: Reader) -> Gathered:
        self._gathering += 1
        try:
            pause = self._gathered_at + PAUSE_SECONDS - time.monotonic()
            if pause > 0 and len(self._wanted) < GATHER_FEW:
                await asyncio.sleep(pause)
            wanted = [self._wanted.popleft() for _ in range(min(GATHER_FILES, len(self._wanted)))]
            gathered, slow = await self._run(_gather_timed, reader, wanted)
        finally:
            self._gathering -= 1
            self._gathered_at = time.monotonic()
        self._allowed = min(self._allowed + 1, READERS) if slow else max(self._allowed - 1, 1)
        self._wanted.extendleft(reversed(wanted[gathered.taken :]))
        self._wake.set()
        return gathered

    async def _send(self, gathered: Gathered) -> None:
        for warning in gathered.warnings:
            self._transfer.warn(warning)
        await self._call.send(*gathered.packets)
        self._transfer.files_sent += gathered.files
        self._transfer.bytes_sent += gathered.size

    def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        call = functools.partial(function, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._threads, call)


def _gather_timed(reader: Reader, wanted: Sequence[SendFile[bytes]]) -> tuple[Gathered, bool]:
    """What the reader brings, and whether it had to wait for a disk or a network."""
    blocks, begun = _blocks_read(), time.perf_counter()
    gathered = reader.gather(wanted)
    slow = time.perf_counter() - begun > SLOW_SECONDS * gathered.taken
    # A fast disk is no slower than a wait for the interpreter's lock; only the blocks tell them apart.
    return gathered, bool(wanted) and (slow or _blocks_read() - blocks > gathered.taken)


def _blocks_read() -> int:
    """Blocks that this thread has had from disks, where the system counts that."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock if sys.platform == "linux" else 0


class _Listing:
    """A walk that may be closed while a thread is at it."""

    def __init__(self, directory: Directory, filters: Filters) -> None:
        self._directory = directory
        self._filters = filters
        self._batches: Generator[Batch] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def next(self) -> Batch | None:
        with self._lock:
            if self._closed:
                return None
            if self._batches is None:
                self._batches = walk(self._directory.tree(), self._filters)
            return next(self._batches, None)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._batches is not None:
                self._batches.close()


class _DiskReader:
    def __init__(self, root: bytes) -> None:
        self._root = root
        self._opener: FileOpener | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._fd = -1
        """The file that is not finished."""
        self._id = 0
        self._path = b""

    def gather(self, wanted: Sequence[SendFile[bytes]]) -> Gathered:
        result = Gathered()
        packets = result.packets
        with self._lock:
            opener = self._open()
            for request in wanted:
                file_id, path = request.id, request.file
                result.taken += 1
                try:
                    fd, size = opener.open(path)
                except OSError as error:
                    # The daemon has no way to be told: such a file arrives empty, as from every client.
                    if error.errno != errno.ENXIO:  # a socket, which never has content
                        result.warnings.append(f"{_name(path)} was sent empty: {error.strerror or error}")
                    packets.append(end_of_file(file_id))
                    result.files += 1
                    continue
                self._fd, self._id, self._path = fd, file_id, path
                if size > CHUNK_BYTES:
                    self._read_chunk(result)
                    break
                data = self._read(size + 1)
                if data:
                    packets.append(data_header(file_id, len(data)) + data)
                    result.size += len(data)
                if len(data) > size:
                    result.more = True  # it grew meanwhile
                    break
                self._end(result)
                if result.size >= GATHER_BYTES:
                    break
        return result

    def proceed(self) -> Gathered:
        result = Gathered()
        with self._lock:
            self._open()
            self._read_chunk(result)
        return result

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            if self._opener:
                self._opener.close()
                self._opener = None

    def _open(self) -> FileOpener:
        if self._closed:
            raise TransferError("the transfer is over")
        if self._opener is None:
            try:
                self._opener = FileOpener(self._root)
            except OSError as error:
                raise TransferError(f"cannot open {_name(self._root)}: {error.strerror}") from error
        return self._opener

    def _read(self, size: int) -> bytes:
        try:
            return os.read(self._fd, size)
        except OSError as error:
            raise TransferError(f"cannot read {_name(self._path)}: {error.strerror}") from error

    def _read_chunk(self, result: Gathered) -> None:
        # Read behind its header, so that nothing is copied.
        header = data_header(self._id, CHUNK_BYTES)
        packet = bytearray(len(header) + CHUNK_BYTES)
        try:
            size = os.readv(self._fd, [memoryview(packet)[len(header) :]])
        except OSError as error:
            raise TransferError(f"cannot read {_name(self._path)}: {error.strerror}") from error
        if size < CHUNK_BYTES:
            content = packet[len(header) : len(header) + size]
            header = data_header(self._id, size)
            packet = bytearray(header) + content
        if size:
            packet[: len(header)] = header
            result.packets.append(packet)
            result.size += size
            result.more = True
        else:
            self._end(result)

    def _end(self, result: Gathered) -> None:
        os.close(self._fd)
        self._fd = -1
        result.packets.append(end_of_file(self._id))
        result.files += 1


class _MemoryReader:
    def __init__(self, files: Mapping[bytes, bytes]) -> None:
        self._files = files

    def gather(self, wanted: Sequence[SendFile[bytes]]) -> Gathered:
        result = Gathered(taken=len(wanted), files=len(wanted))
        for request in wanted:
            content = self._files[request.file]
            for start in range(0, len(content), CHUNK_BYTES):
                chunk = content[start : start + CHUNK_BYTES]
                result.packets.append(data_header(request.id, len(chunk)) + chunk)
            result.packets.append(end_of_file(request.id))
            result.size += len(content)
        return result

    def proceed(self) -> Gathered:
        raise AssertionError("gather() leaves nothing unfinished")

    def close(self) -> None:
        """Nothing is held open."""


def _name(path: bytes) -> str:
    return printable(os.fsdecode(path))
