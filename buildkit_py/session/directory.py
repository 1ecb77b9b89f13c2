"""A directory that an exporter sends: received packet by packet, written below one root and nowhere else.

Nothing that a daemon sends makes this write outside of that root: a directory is only ever entered from its
parent, by descriptor and without following symlinks, and every name is checked first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import stat as _stat
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from buildkit_py.errors import BuildKitError, ProtocolError
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
    unix_permissions,
)
from buildkit_py.session.walk import DirectoryHandles, printable

_log = logging.getLogger(__name__)

MAX_OPEN_REQUESTS = 128
"""Files asked for and not complete, for each call. Each may hold a descriptor; daemons send four at once."""
MAX_WARNINGS = 100
HOLE_BYTES = 4096
"""Zeros of this length become a hole in a file: a sparse file must not fill the disk."""

_ZEROS = bytes(64 * 1024)  # daemons send chunks of half the size

Directories: TypeAlias = Mapping[bytes, tuple[int, int]]
"""(permissions, time in ns) of directories, by their path below a root."""


class ExportError(BuildKitError):
    """What a daemon exports cannot be written here."""


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

    def __init__(
        self, path: Path | str, *, delete: bool = False, private: bool = False, above: Path | None = None
    ) -> None:
        """With delete, what is not in the export is removed, as ``mode=delete`` of the exporter wants it.

        The directory is made when the export begins, for its owner only; below one that is named as above it is
        made for all, and the one above for its owner. A private directory is one that nobody looks into before
        the export is complete: entries get their names at once, two of the same name are an error, also where
        only the file system takes them for the same, and the modes of its directories are left to apply_modes().
        """
        self.path = Path(path)
        self.delete = delete
        self.private = private
        self.export = DirectoryExport()
        self.directories: dict[bytes, tuple[int, int]] = {}
        """Of a private directory: what apply_modes() takes."""
        self._above = above
        self._lock = threading.Lock()
        self._writers = 0
        self._listed: dict[bytes, tuple[int, int]] = {}
        """(permissions, time) of the directories that were received; set when no stream is left."""
        self._made: set[bytes] = set()
        """Directories of a private directory, which several streams may have in common."""

    def open(self) -> DirectoryHandles:
        """Make and open the directory; the caller closes it."""
        if self._above is None:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            self._above.mkdir(mode=0o700, exist_ok=True)
            self.path.mkdir(exist_ok=True)
        return DirectoryHandles(self.path)

    def make_directory(self, name: bytes, parent: int, path: bytes) -> None:
        """Make a directory of a private directory, unless another stream has; FileExistsError for anything else."""
        with self._lock:
            if path not in self._made:
                os.mkdir(name, 0o700, dir_fd=parent)
                self._made.add(path)

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

    def leave(self, directories: Directories) -> Directories:
        """What the caller has to apply: everything, if it is the last one that writes here."""
        with self._lock:
            self._listed.update(directories)
            self._writers -= 1
            if self._writers:
                return {}
            listed, self._listed = self._listed, {}
            if not self.private:
                return listed
            self.directories.update(listed)
            return {}


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
        self._waiting: deque[Stat] = deque()
        """Files to be requested when others are complete."""
        self._waiting_ids = array("I")
        """Of all files that ever waited; a million of them must not fill the memory."""
        self._asked = 0
        """How many of them were requested."""
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
            self._handles = self._target.open()
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
                stat, file_id = self._waiting.popleft(), self._waiting_ids[self._asked]
                self._asked += 1
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
            apply_modes(self._handles, self._target.leave(self._modes))
        self._handles.close()
        self._handles = None

    def _finish(self) -> None:
        for stat in self._links:
            self._link(stat)
        if self._target.delete:
            self._delete_others()
        modes = self._target.leave(self._modes)
        try:
            apply_modes(self._opened(), modes)
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
            self._waiting.append(stat)
            self._waiting_ids.append(file_id)
        else:
            self._make_special(stat)

    def _make_directory(self, stat: Stat) -> None:
        """Open to its owner until the end, whatever its mode: entries still have to get in."""
        parent, name = self.parent(stat.path)
        if self._target.private:
            try:
                self._target.make_directory(name, parent, stat.path)
            except FileExistsError:
                raise _same_name(stat.path) from None
        else:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                info = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if not _stat.S_ISDIR(info.st_mode):
                    os.unlink(name, dir_fd=parent)
                    os.mkdir(name, 0o700, dir_fd=parent)
                elif info.st_mode & 0o700 != 0o700:
                    chmod_nofollow(name, _stat.S_IMODE(info.st_mode) | 0o700, parent)
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
        numbers = (stat.devmajor, stat.devminor)
        if not all(0 <= number < 1 << 32 for number in numbers):
            raise ProtocolError(f"{_show(stat.path)} has the device number {stat.devmajor}:{stat.devminor}")
        device = os.makedev(*numbers)
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
        """Make an entry that is no file."""
        with self._naming(stat.path) as (name, parent):
            make(name, parent)
            if not stat.is_symlink:
                chmod_nofollow(name, unix_permissions(stat.mode), parent)
            _set_xattrs(_below(parent, name), stat)
            os.utime(name, ns=(stat.mtime_ns, stat.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _link(self, stat: Stat) -> None:
        if stat.linkname in self._skipped:
            self._skip(stat, f"so was {_show(stat.linkname)}, which it links to")
            return
        source, source_name = self.parent(stat.linkname)
        source = os.dup(source)  # the next lookup may close it
        try:
            with self._naming(stat.path) as (name, parent):
                os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    @contextlib.contextmanager
    def _naming(self, path: bytes) -> Generator[tuple[bytes, int]]:
        """(name, directory) for a new entry, which has its own name after the block, or is gone."""
        name, parent = self.new_name(path)
        try:
            yield name, parent
        except FileExistsError:
            raise self.exists(path) from None
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=parent)
            raise
        self.publish(name, path)

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

    # For the files of this stream.

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory above, good until the next lookup, and the name in it."""
        directory, _, name = path.rpartition(b"/")
        return self._opened().open(directory), name

    def new_name(self, path: bytes) -> tuple[bytes, int]:
        """The name for a new entry until it is complete, and the directory to make it in."""
        parent, name = self.parent(path)
        return (name if self._target.private else temporary_name()), parent

    def exists(self, path: bytes) -> BaseException:
        """What it means that a new entry's name is taken."""
        return _same_name(path) if self._target.private else FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def publish(self, made: bytes, path: bytes) -> None:
        """Give an entry that new_name() named its own name, in place of whatever has it."""
        if self._target.private:
            return
        parent, name = self.parent(path)
        try:
            replace_entry(made, parent, name, parent)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(made, dir_fd=parent)
            raise
        # Renaming onto another name of the same file does nothing and leaves both.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made, dir_fd=parent)

    def _opened(self) -> DirectoryHandles:
        assert self._handles is not None, "used after the end"
        return self._handles


class _File:
    """A file on its way."""

    __slots__ = ("_fd", "_hole", "_name", "_stat", "_writer")

    def __init__(self, writer: DirectoryWriter, stat: Stat) -> None:
        self._writer = writer
        self._stat = stat
        self._name = b""
        """As new_name() gave it, until the file is complete."""
        self._fd = -1
        self._hole = False
        """Whether it ends with a hole so far."""

    def write(self, data: bytes) -> None:
        if self._fd < 0:
            self._create()
        size = len(data)
        if HOLE_BYTES <= size <= len(_ZEROS) and not data[0] and not data[-1] and data == _ZEROS[:size]:
            os.lseek(self._fd, size, os.SEEK_CUR)
            self._hole = True
            return
        self._hole = False
        written = os.write(self._fd, data)
        while written < size:
            written += os.write(self._fd, memoryview(data)[written:])

    def publish(self) -> None:
        stat = self._stat
        if self._fd < 0:
            self._create()
        if self._hole:
            os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR))
        if stat.xattrs:
            _set_xattrs(self._fd, stat)
        os.fchmod(self._fd, unix_permissions(stat.mode))
        os.utime(self._fd, ns=(stat.mtime_ns, stat.mtime_ns))
        fd, self._fd = self._fd, -1
        os.close(fd)
        name, self._name = self._name, b""
        self._writer.publish(name, stat.path)

    def discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._name:
            with contextlib.suppress(OSError):
                parent, _ = self._writer.parent(self._stat.path)
                os.unlink(self._name, dir_fd=parent)
            self._name = b""

    def _create(self) -> None:
        name, parent = self._writer.new_name(self._stat.path)
        try:
            self._fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=parent)
        except FileExistsError:
            raise self._writer.exists(self._stat.path) from None
        self._name = name


_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def temporary_name() -> bytes:
    return b".tmp." + secrets.token_hex(8).encode()


def apply_modes(handles: DirectoryHandles, directories: Directories) -> None:
    """Set modes and times of directories, the innermost first: a parent may become read-only."""
    for path in sorted(directories, reverse=True):
        permissions, mtime_ns = directories[path]
        fd = handles.open(path)
        os.fchmod(fd, permissions)
        os.utime(fd, ns=(mtime_ns, mtime_ns))


def replace_entry(source_name: bytes, source: int, name: bytes, directory: int) -> None:
    """Rename an entry, in place of whatever has the name; directories are descriptors. Follows no symlink."""
    try:
        os.rename(source_name, name, src_dir_fd=source, dst_dir_fd=directory)
    except (IsADirectoryError, FileExistsError):
        shutil.rmtree(name, dir_fd=directory)
        os.rename(source_name, name, src_dir_fd=source, dst_dir_fd=directory)


def chmod_nofollow(name: bytes, mode: int, parent: int) -> None:
    """Without following a symlink that takes the entry's place in this moment."""
    if sys.platform != "linux":
        os.chmod(name, mode, dir_fd=parent, follow_symlinks=False)
        return
    # Linux cannot do that by name, and not everything may be opened, except as a path.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if not _stat.S_ISLNK(os.fstat(fd).st_mode):
            Path(f"/proc/self/fd/{fd}").chmod(mode)
    finally:
        os.close(fd)


def _below(parent: int, name: bytes) -> bytes:
    """A path for calls that take no descriptor of a directory; Linux has one."""
    return b"/proc/self/fd/%d/%b" % (parent, name)


def _set_xattrs(where: int | bytes, stat: Stat) -> None:
    """Of a file, by its descriptor, or of anything else by path, which is not followed."""
    if stat.xattrs and hasattr(os, "setxattr"):
        for name, value in stat.xattrs.items():
            with contextlib.suppress(OSError, ValueError):  # not every file system or user can
                os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))


def _same_name(path: bytes) -> ExportError:
    return ExportError(
        f"cannot write {_show(path)}: the export has another entry of this name, from another platform or, where the "
        "file system does not tell upper from lower case, in other letters"
    )


def _show(path: bytes) -> str:
    return repr(printable(os.fsdecode(path)))
