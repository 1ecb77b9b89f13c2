"""FileSend: what exporters send to this machine, as one stream of bytes or as a directory.

Which of the two an exporter speaks follows from its type, so each target speaks one. Nothing that a daemon
sends makes this write outside of a target: a directory is only ever entered from its parent, by descriptor
and without following symlinks, and every name is checked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import stat as _stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol, TypeAlias

from buildkit_py.errors import BuildKitError, InvalidOption, ProtocolError, SessionClosed
from buildkit_py.session.attachable import Call, CallError, Code, Handler, metadata_values
from buildkit_py.session.fsutil import (
    MODE_CHAR_DEVICE,
    MODE_DEVICE,
    MODE_NAMED_PIPE,
    Chunk,
    FileEnd,
    Finished,
    Listed,
    ListingEnd,
    Receiver,
    Stat,
    decode_bytes_message,
    unix_permissions,
)
from buildkit_py.session.walk import DirectoryHandles, printable

_log = logging.getLogger(__name__)

DIFF_COPY = "/moby.filesync.v1.FileSend/DiffCopy"

_EXPORTER_ID = "buildkit-attachable-exporter-id"
_MULTI_PLATFORM = "buildkit-exporter-multi-platform"
_METADATA_PREFIX = "exporter-md-"

QUEUED_BYTES = 4 << 20
"""Received and not yet written, for each call; the daemon waits when it is more."""
WRITE_BYTES = 1 << 20
"""Of a stream, written in one go."""
MAX_OPEN_REQUESTS = 128
"""Files asked for and not complete, for each call. Each may hold a descriptor; daemons send four at once."""
MAX_WARNINGS = 100
CLOSE_SECONDS = 5.0
"""How long a call that has failed waits for what it is just writing."""


class ExportError(BuildKitError):
    """What a daemon exports cannot be written here."""


class StreamSink(Protocol):
    """Where one stream goes. Ends with one call of close() or abort()."""

    async def write(self, chunk: bytes) -> None: ...

    async def close(self) -> None:
        """The stream is complete. Failing here fails the export."""
        ...

    async def abort(self) -> None:
        """The stream broke off; must not raise."""
        ...


class StreamTarget(Protocol):
    """Takes the output of an exporter that sends one file: tar, oci and docker."""

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        """metadata is what the exporter says of it, such as ``containerimage.digest``; oci and docker do."""
        ...


@dataclass(slots=True)
class DirectoryExport:
    """What a directory target received so far, over all its streams."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    """Content of files."""
    streams: int = 0
    """Streams that are complete."""
    warnings: list[str] = field(default_factory=list[str])
    """What could not be done, such as devices that only root may make; the first MAX_WARNINGS."""


class DirectoryTarget:
    """Takes the output of the local exporter: files go into a directory, which keeps what else it holds.

    Files appear under their names when they are complete. Owners are this process's own. Several streams may
    come at once, one for each platform.
    """

    def __init__(self, path: Path | str, *, delete: bool = False) -> None:
        """With delete, what is not in the export is removed, as ``mode=delete`` of the exporter wants it.

        The directory is made, for its owner only, when the export begins.
        """
        self.path = Path(path)
        self.delete = delete
        self.export = DirectoryExport()
        self._lock = threading.Lock()
        self._writers = 0
        self._listed: dict[bytes, tuple[int, int]] = {}
        """(permissions, time) of the directories that were received; set when no stream is left."""

    def add(self, part: DirectoryExport) -> None:
        """Count what one stream received; streams are written by threads of their own."""
        with self._lock:
            total = self.export
            total.entries += part.entries
            total.files += part.files
            total.bytes += part.bytes
            total.streams += part.streams
            total.warnings += part.warnings[: MAX_WARNINGS - len(total.warnings)]

    def enter(self) -> None:
        with self._lock:
            self._writers += 1

    def leave(self, directories: Mapping[bytes, tuple[int, int]]) -> dict[bytes, tuple[int, int]]:
        """What the caller has to apply: everything, if it is the last one that writes here."""
        with self._lock:
            self._listed.update(directories)
            self._writers -= 1
            if self._writers:
                return {}
            listed, self._listed = self._listed, {}
            return listed


Target: TypeAlias = StreamTarget | DirectoryTarget


class FileSend:
    """Receives exports. Keys of targets are positions in the solve's list of exporters."""

    def __init__(self, targets: Mapping[int, Target]) -> None:
        self.targets = MappingProxyType(dict(targets))

    def methods(self) -> Mapping[str, Handler]:
        return {DIFF_COPY: self._diff_copy}

    async def _diff_copy(self, call: Call) -> None:
        exporter = _exporter_id(call.metadata)
        target = self.targets.get(exporter)
        if target is None:
            raise CallError(Code.UNKNOWN, f"exporter {exporter} not found")
        try:
            if isinstance(target, DirectoryTarget):
                await _receive_directory(call, target)
            else:
                await _receive_stream(call, target)
        except OSError as error:
            where = "" if error.filename is None else f" {printable(os.fsdecode(error.filename))!r}"
            raise CallError(Code.UNKNOWN, f"cannot write{where}: {error.strerror or error}") from error


def _exporter_id(metadata: Sequence[tuple[str, str]]) -> int:
    """0 when the header is absent or no number, as from daemons before v0.13."""
    text = next(iter(metadata_values(metadata, _EXPORTER_ID)), "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def exporter_metadata(metadata: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What an exporter says of its output; repeated values are joined with commas."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if key.startswith(_METADATA_PREFIX):
            name = key.removeprefix(_METADATA_PREFIX)
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


class _Inbox:
    """Messages of a call, fetched ahead up to a bound, so that they can be handled many at a time."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def fetch(self) -> None:
        """Until the daemon half-closes. Raises what receive() raises."""
        while (message := await self._call.receive()) is not None:
            self._messages.append(message)
            self._size += len(message)
            self._changed.set()
            while self._size > QUEUED_BYTES:
                await self._wait()
        self.end()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._changed.set()

    async def take(self, at_least: int = 1) -> list[bytes]:
        """Everything fetched so far, at least so many bytes unless the daemon has half-closed.

        Nothing once it has half-closed and everything is taken.
        """
        while self._size < at_least and not self._ended and (at_least > 1 or not self._messages):
            await self._wait()
        messages = list(self._messages)
        self._messages.clear()
        self._size = 0
        self._changed.set()
        return messages

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


# --- one file ----------------------------------------------------------------------------------------------


async def _receive_stream(call: Call, target: StreamTarget) -> None:
    sink = await target.open(MappingProxyType(exporter_metadata(call.metadata)))
    inbox = _Inbox(call)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(inbox.fetch())
            # Messages hold 4 to 32 KiB, and nobody waits for them one by one.
            while messages := await inbox.take(WRITE_BYTES):
                await sink.write(b"".join(map(decode_bytes_message, messages)))
        await sink.close()
    except BaseExceptionGroup as group:
        await sink.abort()
        cause = group.exceptions[0]
        raise cause from cause.__cause__
    except BaseException:
        await sink.abort()
        raise


class FileTarget:
    """Writes an export to a file, which appears under its name when commit() is called and not before.

    The owner calls commit() after the solve succeeded, and abort() in every other case.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises InvalidOption if the directory of the file does not exist, or path is a directory."""
        self.path = Path(path)
        self.metadata: Mapping[str, str] = MappingProxyType({})
        """What the exporter said of the file; there once it has begun to send."""
        self.bytes = 0
        """Written so far."""
        self._temporary: Path | None = None
        self._complete = False
        if not self.path.parent.is_dir():
            raise InvalidOption(f"cannot write {str(path)!r}: {str(self.path.parent)!r} is not a directory")
        if self.path.is_dir():
            raise InvalidOption(f"cannot write {str(path)!r}: it is a directory")

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        if self._temporary is not None:
            raise ExportError(f"{str(self.path)!r} is exported twice")
        self.metadata = metadata
        self._temporary = self.path.with_name(f".{self.path.name[:100]}.{secrets.token_hex(8)}.tmp")
        fd = os.open(self._temporary, _CREATE_FLAGS, 0o666)  # less the umask
        return _FileSink(self, os.fdopen(fd, "wb", buffering=0))

    def wrote(self, size: int) -> None:
        self.bytes += size

    def completed(self) -> None:
        self._complete = True

    async def commit(self) -> None:
        """Publish the file. Raises ExportError if it did not arrive completely."""
        if self._temporary is None or not self._complete:
            raise ExportError(f"the daemon did not export {str(self.path)!r} completely")
        self._temporary.replace(self.path)
        self._temporary = None

    async def abort(self) -> None:
        """Remove what was written, if anything; the target may then be used again."""
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
        self._temporary = None
        self._complete = False
        self.bytes = 0


class _FileSink:
    def __init__(self, target: FileTarget, file: BinaryIO) -> None:
        self._target = target
        self._writing = _Writing(file)

    async def write(self, chunk: bytes) -> None:
        await self._writing.write(chunk)
        self._target.wrote(len(chunk))

    async def close(self) -> None:
        await self._writing.close()
        self._target.completed()

    async def abort(self) -> None:
        await self._writing.close()
        await self._target.abort()


class WriterTarget:
    """Writes an export to a binary file that is open, such as standard output. It stays open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.metadata: Mapping[str, str] = MappingProxyType({})
        self._used = False

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        if self._used:
            raise ExportError("a stream can take one export only")
        self._used = True
        self.metadata = metadata
        return _WriterSink(self._file)


class _WriterSink:
    def __init__(self, file: BinaryIO) -> None:
        self._writing = _Writing(file)

    async def write(self, chunk: bytes) -> None:
        await self._writing.write(chunk)

    async def close(self) -> None:
        await self._writing.flush()

    async def abort(self) -> None:
        """What was written cannot be taken back, and a write may hang for as long as its reader does."""


class _Writing:
    """Writes to a file in a thread, one write after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    async def write(self, chunk: bytes) -> None:
        await asyncio.to_thread(self._write, chunk)

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        with self._lock:
            while rest:
                # A raw file may take a part only.
                rest = rest[self._file.write(rest) :]

    async def flush(self) -> None:
        await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._file.flush()

    async def close(self) -> None:
        """After a cancelled write, which goes on in its thread, this waits until that is over."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._file.close()


# --- a directory -------------------------------------------------------------------------------------------


async def _receive_directory(call: Call, target: DirectoryTarget) -> None:
    if target.delete and "1" not in metadata_values(call.metadata, _MULTI_PLATFORM):
        # Each platform would delete what the other one wrote.
        raise CallError(
            Code.FAILED_PRECONDITION,
            "mode=delete needs a daemon that sends all platforms in one stream (BuildKit v0.31)",
        )
    inbox = _Inbox(call)
    # One thread: what arrives is written in order.
    threads = ThreadPoolExecutor(1, thread_name_prefix="filesend")
    loop = asyncio.get_running_loop()
    writer = DirectoryWriter(target)
    try:
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(_fetch(inbox, writer))
            while not writer.finished:
                messages = await inbox.take()
                if not messages:
                    if writer.written:
                        break  # gone without a last word, after it had all of ours
                    raise ProtocolError("the daemon left an export before its end")
                replies = await loop.run_in_executor(threads, writer.process, messages)
                if replies:
                    await _reply(call, writer, replies)
            fetching.cancel()
    except BaseExceptionGroup as group:
        cause = group.exceptions[0]
        raise cause from cause.__cause__
    finally:
        # In its turn behind a write that still goes on in the thread. Waited for, so that whoever clears the
        # directory after a failure finds nobody writing into it.
        closing = asyncio.wrap_future(threads.submit(writer.close))
        threads.shutdown(wait=False)
        await asyncio.wait((closing,), timeout=CLOSE_SECONDS)


async def _fetch(inbox: _Inbox, writer: DirectoryWriter) -> None:
    try:
        await inbox.fetch()
    except SessionClosed:
        if not writer.written:
            raise
        inbox.end()


async def _reply(call: Call, writer: DirectoryWriter, replies: Sequence[bytes]) -> None:
    try:
        await call.send(*replies)
    except SessionClosed:
        if not writer.written:
            raise


class DirectoryWriter:
    """Receives one stream into a directory. Blocking; one call at a time, in whatever thread.

    Raises ProtocolError or PeerError for what the daemon did, OSError for what the disk did.
    """

    def __init__(self, target: DirectoryTarget) -> None:
        self._target = target
        self._report = DirectoryExport()
        """What is not yet added to the target's."""
        self._receiver = Receiver()
        self._handles: DirectoryHandles | None = None
        self._files: dict[int, _File] = {}
        """Requested and not complete."""
        self._waiting: deque[tuple[int, Stat]] = deque()
        """Files to be requested when others are complete."""
        self._links: list[Stat] = []
        """Hard links are made at the end, when what they point at is complete."""
        self._modes: dict[bytes, tuple[int, int]] = {}
        self._keep: set[bytes] = set()
        self._skipped: set[bytes] = set()
        self.written = False
        """Everything is in place; only the end of the call is missing."""
        self.finished = False
        """The daemon knows."""

    def process(self, messages: Sequence[bytes]) -> list[bytes]:
        """Take messages in; returns the packets to send."""
        try:
            return self._process(messages)
        finally:
            self._target.add(self._report)
            self._report = DirectoryExport()

    def _process(self, messages: Sequence[bytes]) -> list[bytes]:
        if self._handles is None and not self.written:
            self._target.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handles = DirectoryHandles(self._target.path)
            self._target.enter()
        replies: list[bytes] = []
        for message in messages:
            event = self._receiver.receive(message)
            match event:
                case Listed():
                    self._list(event.id, event.stat)
                case Chunk():
                    self._report.bytes += len(event.data)
                    self._files[event.id].write(event.data)
                case FileEnd():
                    self._files[event.id].publish()
                    del self._files[event.id]
                    self._report.files += 1
                case ListingEnd():
                    pass
                case Finished():
                    self.finished = True
            while self._waiting and self._receiver.requested < MAX_OPEN_REQUESTS:
                file_id, stat = self._waiting.popleft()
                self._files[file_id] = _File(self, stat)
                replies.append(self._receiver.request(file_id))
        if self._receiver.complete and not self._waiting and not self.written:
            self._finish()
            replies.append(self._receiver.finish())
        return replies

    def close(self) -> None:
        """Remove what is incomplete and close everything. Does nothing the second time."""
        if self._handles is None:
            return
        for file in self._files.values():
            file.discard()
        self._files.clear()
        with contextlib.suppress(OSError):
            self._apply(self._target.leave(self._modes))
        self._handles.close()
        self._handles = None

    def _finish(self) -> None:
        for stat in self._links:
            self._link(stat)
        if self._target.delete:
            self._delete_others()
        modes = self._target.leave(self._modes)
        try:
            self._apply(modes)
        finally:
            self._opened().close()
            self._handles = None
        self.written = True
        self._report.streams += 1

    def _list(self, file_id: int, stat: Stat) -> None:
        self._report.entries += 1
        if self._target.delete:
            self._keep.add(stat.path)
        if stat.is_dir:
            self._make_directory(stat)
        elif stat.is_hardlink:
            self._links.append(stat)
        elif stat.is_symlink:
            self._put(stat, lambda name, fd: os.symlink(stat.linkname, name, dir_fd=fd))
        elif stat.has_data:
            self._waiting.append((file_id, stat))
        else:
            self._make_special(stat)

    def _make_directory(self, stat: Stat) -> None:
        """Open to its owner until the end, whatever its mode: entries still have to get in."""
        parent, name = self.parent(stat.path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not _stat.S_ISDIR(info.st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
            elif info.st_mode & 0o700 != 0o700:
                _chmod_directory(name, _stat.S_IMODE(info.st_mode) | 0o700, parent)
        self._modes[stat.path] = (unix_permissions(stat.mode), stat.mtime_ns)
        if stat.xattrs:
            _set_xattrs(self._opened().open(stat.path), stat)

    def _make_special(self, stat: Stat) -> None:
        kind = 0
        if stat.mode & MODE_NAMED_PIPE:
            kind = _stat.S_IFIFO
        elif stat.mode & MODE_DEVICE:
            kind = _stat.S_IFCHR if stat.mode & MODE_CHAR_DEVICE else _stat.S_IFBLK
        if not kind:
            self._skip(stat, "an entry of this kind cannot be made")
            return
        try:
            device = os.makedev(stat.devmajor, stat.devminor)
        except (OverflowError, ValueError):
            raise ProtocolError(f"{_show(stat.path)} has the device number {stat.devmajor}") from None
        try:
            self._put(stat, lambda name, fd: os.mknod(name, kind | 0o600, device, dir_fd=fd))
        except PermissionError:
            self._skip(stat, "this user may not make devices")

    def _skip(self, stat: Stat, reason: str) -> None:
        self._skipped.add(stat.path)
        if len(self._report.warnings) < MAX_WARNINGS:
            text = f"{_show(stat.path)} was left out: {reason}"
            self._report.warnings.append(text)
            _log.warning("export to %s: %s", self._target.path, text)

    def _put(self, stat: Stat, make: Callable[[bytes, int], None]) -> None:
        """Make an entry under a temporary name, then give it the one it should have."""
        parent, _ = self.parent(stat.path)
        temporary = temporary_name()
        make(temporary, parent)
        try:
            if not stat.is_symlink:
                os.chmod(temporary, unix_permissions(stat.mode), dir_fd=parent)
            os.utime(temporary, ns=(stat.mtime_ns, stat.mtime_ns), dir_fd=parent, follow_symlinks=False)
            self.publish(temporary, stat.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise

    def _link(self, stat: Stat) -> None:
        if stat.linkname in self._skipped:
            self._skip(stat, f"so was {_show(stat.linkname)}, which it links to")
            return
        source, source_name = self.parent(stat.linkname)
        source = os.dup(source)  # the next lookup may close it
        try:
            parent, _ = self.parent(stat.path)
            temporary = temporary_name()
            os.link(source_name, temporary, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)
        try:
            self.publish(temporary, stat.path)
        finally:
            # Renaming onto another name of the same file does nothing and leaves both.
            parent, _ = self.parent(stat.path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)

    def _delete_others(self) -> None:
        """Remove what is not in the export."""
        pending = [b""]
        while pending:
            directory = pending.pop()
            fd = self._opened().open(directory)
            for name in map(os.fsencode, os.listdir(fd)):  # noqa: PTH208 - a descriptor
                path = directory + b"/" + name if directory else name
                is_dir = _stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
                if path in self._keep:
                    if is_dir:
                        pending.append(path)
                elif is_dir:
                    shutil.rmtree(name, dir_fd=fd)
                else:
                    os.unlink(name, dir_fd=fd)

    def _apply(self, modes: Mapping[bytes, tuple[int, int]]) -> None:
        """Modes and times of directories, the innermost first: a parent may become read-only."""
        for path in sorted(modes, reverse=True):
            permissions, mtime_ns = modes[path]
            fd = self._opened().open(path)
            os.fchmod(fd, permissions)
            os.utime(fd, ns=(mtime_ns, mtime_ns))

    # For the files of this stream.

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory above, good until the next lookup, and the name in it."""
        directory, _, name = path.rpartition(b"/")
        return self._opened().open(directory), name

    def publish(self, temporary: bytes, path: bytes) -> None:
        """Rename an entry, in place of whatever has the name."""
        parent, name = self.parent(path)
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except (IsADirectoryError, FileExistsError):
            shutil.rmtree(name, dir_fd=parent)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)

    def _opened(self) -> DirectoryHandles:
        assert self._handles is not None, "used after the end"
        return self._handles


class _File:
    """A file on its way; until it is complete it has a temporary name."""

    def __init__(self, writer: DirectoryWriter, stat: Stat) -> None:
        self._writer = writer
        self._stat = stat
        self._temporary = b""
        self._fd = -1

    def write(self, data: bytes) -> None:
        if self._fd < 0:
            self._create()
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def publish(self) -> None:
        stat = self._stat
        if self._fd < 0:
            self._create()
        _set_xattrs(self._fd, stat)
        os.fchmod(self._fd, unix_permissions(stat.mode))
        os.utime(self._fd, ns=(stat.mtime_ns, stat.mtime_ns))
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._writer.publish(self._temporary, stat.path)
        self._temporary = b""

    def discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary:
            with contextlib.suppress(OSError):
                parent, _ = self._writer.parent(self._stat.path)
                os.unlink(self._temporary, dir_fd=parent)
            self._temporary = b""

    def _create(self) -> None:
        parent, _ = self._writer.parent(self._stat.path)
        name = temporary_name()
        self._fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=parent)
        self._temporary = name


_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def temporary_name() -> bytes:
    return b".tmp." + secrets.token_hex(8).encode()


def _chmod_directory(name: bytes, mode: int, parent: int) -> None:
    """Without following a symlink that takes the directory's place in this moment."""
    if sys.platform != "linux":
        os.chmod(name, mode, dir_fd=parent, follow_symlinks=False)
        return
    # Linux cannot do that by name, and a directory that its owner may not read only opens as a path.
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{fd}").chmod(mode)
    finally:
        os.close(fd)


def _set_xattrs(fd: int, stat: Stat) -> None:
    if hasattr(os, "setxattr"):
        for name, value in stat.xattrs.items():
            with contextlib.suppress(OSError, ValueError):  # not every file system or user can
                os.setxattr(fd, name, value)


def _show(path: bytes) -> str:
    return repr(printable(os.fsdecode(path)))
