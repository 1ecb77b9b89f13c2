"""The listing of a tree: which entries are sent, in which order, and how each is described.

Blocking code, meant for a thread. The rules of order, stats, filters and followed links are the daemon's. On a disk
every entry is looked at from the open directory that holds it: a directory that becomes a symlink meanwhile leads
nowhere.

Source: tonistiigi/fsutil, fs.go, filter.go, followlinks.go, stat_unix.go, hardlinks.go.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as _stat
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from buildkit_py.errors import BuildKitError
from buildkit_py.session.fsutil import encode_stat, go_mode, mode_field, stat_extras
from buildkit_py.session.patterns import (
    BadPattern,
    Matched,
    PatternMatcher,
    clean,
    has_wildcard,
    literal_prefixes,
    match_name,
)

_log = logging.getLogger(__name__)

BATCH_ENTRIES = 256
"""Most entries of one batch: one hop between threads for each."""
BATCH_VISITED = 4096
"""A batch is handed over after so many visits, whatever it holds, so that a walk can be stopped."""
BATCH_SECONDS = 0.05
"""A batch with something in it is handed over after so long: on a slow disk the daemon can begin early."""

OPEN_DIRECTORIES = 64
"""Of one walk, the innermost; trees that are deeper cost more, not descriptors."""

_RESERVED = b".fsutil-metadata"
"""A daemon drops this entry without counting it, and every later id would shift."""

_PRINTED = 400
"""Characters of a path in a message; a daemon passes on some thousand bytes of one."""

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What opening a directory says that is none, or none any more."""
_XATTRS_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class WalkError(BuildKitError):
    """A tree cannot be listed."""


class TreeStat(Protocol):
    """What os.stat_result has."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...


class TreeEntry(Protocol):
    """What os.DirEntry[str] has."""

    @property
    def name(self) -> str: ...
    def is_dir(self, *, follow_symlinks: bool = True) -> bool: ...
    def stat(self, *, follow_symlinks: bool = True) -> TreeStat: ...


class Folder(Protocol):
    """A directory that is open, until close(). Every other method may raise OSError."""

    def scan(self) -> list[TreeEntry]:
        """Entries, in any order; good as long as the directory is open."""
        ...

    def open(self, name: bytes) -> Folder:
        """A directory in this one; OSError with one of _GONE for anything else, symlinks included."""
        ...

    def read_link(self, name: bytes) -> bytes:
        """Text of a symlink; OSError with EINVAL for everything else."""
        ...

    def xattrs(self, name: bytes) -> Mapping[bytes, bytes]:
        """Extended attributes of an entry, not of what it links to."""
        ...

    def close(self) -> None: ...


class Tree(Protocol):
    """Where a listing comes from."""

    def open(self, path: bytes) -> Folder:
        """A directory, given relative to the root, b"" being the root; no symlink is followed. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Filters:
    """What a daemon wants of a tree."""

    include: tuple[str, ...] = ()
    """Only what these match; empty for all."""
    exclude: tuple[str, ...] = ()
    """Not what these match."""
    follow: tuple[str, ...] = ()
    """Only these paths, and what symlinks on the way to them point at; added to include."""


@dataclass(slots=True)
class Batch:
    """Some entries that follow one another in a listing."""

    packets: list[bytes] = field(default_factory=list[bytes])
    """STAT packets."""
    files: list[bytes | None] = field(default_factory=list["bytes | None"])
    """For each packet the path if the entry has content."""
    visited: int = 0
    """Entries looked at, sent or not."""


@dataclass(slots=True)
class _Directory:
    """A directory on the way from the root to the current entry."""

    folder: Folder | None
    """None while it is closed: too many others are open below it."""
    entries: Iterator[TreeEntry]
    prefix: bytes
    """Path with a slash; empty for the root."""
    text: str
    """The same as text, if there are filters."""
    current: bytes = b""
    """Name of the entry that the walk is in."""
    unlisted: bytes | None = None
    """STAT packet of the directory itself, until it is listed; the root never is."""
    include: Matched | None = None
    exclude: Matched | None = None


def walk(tree: Tree, filters: Filters) -> Generator[Batch]:
    """List a tree. Raises WalkError, also for patterns that cannot be used.

    An entry that vanishes meanwhile is left out, and only that one. Close the generator unless it comes to its end:
    it holds directories open.
    """
    walker = _Walk(tree, filters)
    return walker.run()


class _Walk:
    def __init__(self, tree: Tree, filters: Filters) -> None:
        self._tree = tree
        include = list(filters.include)
        if filters.follow:
            followed = follow_paths(tree, filters.follow)
            if followed:
                include = without_nested([*include, *followed])
        self._include = _matcher("includepatterns", include)
        self._exclude = _matcher("excludepatterns", filters.exclude)
        self._include_roots = self._exclude_roots = None
        if matcher := self._include:
            positive = zip(matcher.patterns, matcher.exceptions, strict=True)
            self._include_roots = literal_prefixes([text for text, exception in positive if not exception])
        if matcher := self._exclude:
            negative = zip(matcher.patterns, matcher.exceptions, strict=True)
            self._exclude_roots = literal_prefixes([text for text, exception in negative if exception])
        self._links: dict[tuple[int, int], bytes] = {}
        """First listed path of each file that has more than one name."""
        self._no_xattrs: set[int] = set()
        """Devices whose file system has none."""
        self._batch = Batch()
        self._stack: list[_Directory] = []

    def run(self) -> Generator[Batch]:
        try:
            yield from self._run()
        finally:
            for directory in self._stack:
                if directory.folder is not None:
                    directory.folder.close()

    def _run(self) -> Generator[Batch]:
        filtered = self._include is not None or self._exclude is not None
        stack = self._stack
        try:
            root = self._tree.open(b"")
            stack.append(_Directory(root, iter(()), b"", ""))
            stack[0].entries = _sorted(root.scan())
        except OSError as error:
            raise _walk_error(b"", error) from error
        due = time.monotonic() + BATCH_SECONDS
        while stack:
            directory = stack[-1]
            folder = directory.folder or self._reopen(directory)
            prefix = directory.prefix
            for entry in directory.entries:
                batch = self._batch
                if (
                    len(batch.packets) >= BATCH_ENTRIES
                    or batch.visited >= BATCH_VISITED
                    or (not batch.visited & 15 and batch.packets and time.monotonic() > due)
                ):
                    self._batch = Batch()
                    yield batch
                    batch = self._batch
                    due = time.monotonic() + BATCH_SECONDS
                batch.visited += 1
                name = entry.name.encode(_ENCODING, _ENCODING_ERRORS)
                path = prefix + name
                if path == _RESERVED:
                    _log.warning("%r is not sent: daemons reserve the name", ".fsutil-metadata")
                    continue
                if not filtered:
                    if self._emit(folder, name, path, entry) == _stat.S_IFDIR:
                        directory.current = name
                        if self._enter(folder, name, path, ""):
                            break
                    continue
                is_dir = entry.is_dir(follow_symlinks=False)
                text = directory.text + entry.name
                wanted = True
                include = exclude = None
                try:
                    if self._include is not None:
                        include = self._include.match_below(text, directory.include)
                        if not include.matched:
                            if not is_dir or _prunable(text, self._include_roots):
                                continue
                            wanted = False
                except BadPattern as error:
                    raise WalkError(f"failed to match includepatterns: {error}") from error
                try:
                    if self._exclude is not None:
                        exclude = self._exclude.match_below(text, directory.exclude)
                        if exclude.matched:
                            if not is_dir or _prunable(text, self._exclude_roots):
                                continue
                            wanted = False
                except BadPattern as error:
                    raise WalkError(f"failed to match excludepatterns: {error}") from error
                unlisted: bytes | None = None
                if wanted:
                    self._emit_parents()
                    is_dir = self._emit(folder, name, path, entry) == _stat.S_IFDIR
                elif is_dir:
                    unlisted = self._describe_unlisted(folder, name, path, entry)
                    is_dir = unlisted is not None
                if is_dir:
                    directory.current = name
                    if self._enter(folder, name, path, text, unlisted):
                        stack[-1].include, stack[-1].exclude = include, exclude
                        break
            else:
                stack.pop()
                folder.close()
        if self._batch.visited:
            yield self._batch

    def _enter(self, folder: Folder, name: bytes, path: bytes, text: str, unlisted: bytes | None = None) -> bool:
        """Go on with the entries of a directory; False if it is none any more, or may not be looked into.

        unlisted is its own packet where it is not listed yet.
        """
        stack = self._stack
        below: Folder | None = None
        try:
            below = folder.open(name)
            entries = _sorted(below.scan())
        except OSError as error:
            if below is not None:
                below.close()
            if error.errno in _GONE or (unlisted is not None and isinstance(error, PermissionError)):
                return False
            raise _walk_error(path, error) from error
        stack.append(_Directory(below, entries, path + b"/", text + "/" if text else "", unlisted=unlisted))
        if len(stack) > OPEN_DIRECTORIES:
            outer = stack[-1 - OPEN_DIRECTORIES]
            if outer.folder is not None:
                outer.folder.close()
                outer.folder = None
        return True

    def _reopen(self, directory: _Directory) -> Folder:
        """Open a directory again, with the entries that were not looked at."""
        path = directory.prefix[:-1]
        folder: Folder = _NOTHING
        try:
            folder = directory.folder = self._tree.open(path)
            directory.entries = _sorted(entry for entry in folder.scan() if _encoded(entry) > directory.current)
        except OSError as error:
            if error.errno not in _GONE:
                raise _walk_error(path, error) from error
            directory.entries = iter(())
        return folder

    def _emit_parents(self) -> None:
        """List the directories above the current entry that are not."""
        for directory in self._stack:
            if directory.unlisted is not None:
                self._batch.packets.append(directory.unlisted)
                self._batch.files.append(None)
                directory.unlisted = None

    def _emit(self, folder: Folder, name: bytes, path: bytes, entry: TreeEntry) -> int | None:
        """Add an entry to the batch and return its type; None if it is gone."""
        try:
            packet, kind = self._describe(folder, name, path, entry)
        except OSError as error:
            # EINVAL: no longer the symlink that it was.
            if error.errno in _GONE or error.errno == errno.EINVAL:
                return None
            raise _walk_error(path, error) from error
        batch = self._batch
        batch.packets.append(packet)
        batch.files.append(path if kind in _WITH_CONTENT else None)
        return kind

    def _describe_unlisted(self, folder: Folder, name: bytes, path: bytes, entry: TreeEntry) -> bytes | None:
        """Packet of a directory that is listed only if something below it is; None if it is of no use."""
        try:
            packet, kind = self._describe(folder, name, path, entry)
        except OSError:
            return None
        return packet if kind == _stat.S_IFDIR else None

    def _describe(self, folder: Folder, name: bytes, path: bytes, entry: TreeEntry) -> tuple[bytes, int]:
        """STAT packet of an entry, and its type. Raises OSError."""
        linkname = extras = b""
        info = entry.stat(follow_symlinks=False)
        st_mode = info.st_mode
        kind = st_mode & 0o170000
        size = info.st_size
        if kind == _stat.S_IFREG:
            pass
        elif kind in {_stat.S_IFDIR, _stat.S_IFSOCK}:
            size = 0
        elif kind == _stat.S_IFLNK:
            linkname = folder.read_link(name)
        elif kind in {_stat.S_IFBLK, _stat.S_IFCHR}:
            device = info.st_rdev
            extras = stat_extras(device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00, {})
        if info.st_nlink > 1 and kind not in {_stat.S_IFDIR, _stat.S_IFLNK}:
            linkname = self._links.setdefault((info.st_dev, info.st_ino), path)
            if linkname is path:
                linkname = b""
        if info.st_dev not in self._no_xattrs:
            extras += self._xattr_fields(folder, name, info.st_dev)
        return encode_stat(path, mode_field(go_mode(st_mode)), size, info.st_mtime_ns, linkname, extras), kind

    def _xattr_fields(self, folder: Folder, name: bytes, device: int) -> bytes:
        try:
            xattrs = folder.xattrs(name)
        except OSError as error:
            if error.errno in _XATTRS_UNSUPPORTED:
                self._no_xattrs.add(device)
            return b""
        return stat_extras(0, 0, xattrs) if xattrs else b""


_ENCODING = sys.getfilesystemencoding()
_ENCODING_ERRORS = sys.getfilesystemencodeerrors()
_WITH_CONTENT = frozenset({_stat.S_IFREG, _stat.S_IFSOCK})
"""What a daemon asks the content of; that of a socket is empty."""


def _encoded(entry: TreeEntry) -> bytes:
    return entry.name.encode(_ENCODING, _ENCODING_ERRORS)


def _sorted(entries: Iterable[TreeEntry]) -> Iterator[TreeEntry]:
    return iter(sorted(entries, key=_encoded))


def _matcher(what: str, patterns: Sequence[str]) -> PatternMatcher | None:
    if not patterns:
        return None
    try:
        return PatternMatcher(patterns)
    except BadPattern as error:
        raise WalkError(f"invalid {what}: [{' '.join(patterns)}]: {error}") from error


def _prunable(directory: str, roots: list[str] | None) -> bool:
    """Whether nothing below a directory that does not match can match either."""
    if roots is None:
        return False
    prefix = directory + "/"
    return not any(root.startswith(prefix) for root in roots)


def _walk_error(path: bytes, error: OSError) -> WalkError:
    name = os.fsdecode(path).rstrip("/") or "."
    return WalkError(f"cannot list {printable(name)}: {error.strerror or error}")


def printable(text: str) -> str:
    """A path for a message: bytes that are not UTF-8 are escaped, and of a very long one both ends are given."""
    if len(text) > _PRINTED:
        text = f"{text[: _PRINTED // 2]}...{text[-_PRINTED // 2 :]}"
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


# --- followed paths ----------------------------------------------------------------------------------------


def follow_paths(tree: Tree, paths: Sequence[str]) -> list[str]:
    """The paths and everything that symlinks on the way to them lead to, as include patterns, sorted.

    Empty when one of them is the root, which means that there is no limit.
    """
    found: set[str] = set()
    folders = _Folders(tree)
    try:
        for path in paths:
            # Links lead from one path to the next; each symlink is taken once, so this ends.
            pending = [path]
            while pending:
                pending += _follow(folders, pending.pop(), found)
    finally:
        folders.close()
    return without_nested(sorted(found, key=os.fsencode))


class _Folders:
    """The directory that was last looked into stays open."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._path = ""
        self._folder: Folder = _NOTHING

    def open(self, path: str) -> Folder:
        """Good until the next call. Raises OSError, and ValueError for what is no path."""
        if path != self._path or self._folder is _NOTHING:
            self.close()
            self._folder = self._tree.open(os.fsencode(path))
            self._path = path
        return self._folder

    def close(self) -> None:
        self._folder.close()
        self._folder = _NOTHING


def _follow(folders: _Folders, path: str, found: set[str]) -> list[str]:
    """Add what has to be included for path, up to the first symlink; return what is to be followed then."""
    names = _inside(path).split("/")
    for count in range(1, len(names) + 1):
        current = "/".join(names[:count])
        targets = _targets(folders, current)
        last = count == len(names)
        if (targets or last) and current in found:
            return []
        if targets or last:
            found.add(current)
        if targets:
            return ["/".join([target, *names[count:]]) for target in targets]
    return []


def _targets(folders: _Folders, path: str) -> list[str]:
    """Where path leads if it is a symlink; with a wildcard in its last part, where each match leads."""
    directory, _, name = path.rpartition("/")
    if not has_wildcard(name):
        target = _read_link(folders, directory, name)
        return [] if target is None else [target]
    try:
        names = sorted(entry.name for entry in folders.open(directory).scan())
    except (OSError, ValueError):
        return []
    targets: list[str] = []
    for candidate in names:
        try:
            if match_name(name, candidate):
                target = _read_link(folders, directory, candidate)
                if target is not None:
                    targets.append(target)
        except BadPattern as error:
            raise WalkError(f"invalid followpaths: {path}: {error}") from error
    return targets


def _read_link(folders: _Folders, directory: str, name: str) -> str | None:
    """Target of a symlink, relative to the root and inside of it."""
    try:
        target = os.fsdecode(folders.open(directory).read_link(os.fsencode(name)))
    except (OSError, ValueError):
        return None
    return _inside(target if target.startswith("/") else f"{directory}/{target}")


def _inside(path: str) -> str:
    """A clean path relative to the root; what leads above the root ends at the root."""
    return clean("/" + path)[1:] or "."


def without_nested(paths: Sequence[str]) -> list[str]:
    """Leave out each path that is below the one kept before it; empty when one is the root."""
    kept: list[str] = []
    last = ""
    for path in paths:
        if path == ".":
            return []
        if last and path.startswith(last + "/"):
            continue
        kept.append(path)
        last = path
    return kept


# --- the disk ----------------------------------------------------------------------------------------------

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the opening of a pipe that took a file's place would wait for a writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CACHED_DIRECTORIES = 16
_HAS_XATTRS = hasattr(os, "listxattr")


class DiskTree:
    """A directory of the disk. Its own path may lead through symlinks; below, none is followed."""

    def __init__(self, root: Path | bytes) -> None:
        """Raises OSError unless root is a directory."""
        self.root = os.path.realpath(os.fsencode(root), strict=True)
        if not _stat.S_ISDIR(os.stat(self.root).st_mode):  # noqa: PTH116 - bytes
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(self.root))

    def open(self, path: bytes) -> Folder:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        folder = _DiskFolder(fd, self.root.rstrip(b"/") + b"/")
        for name in path.split(b"/") if path else ():
            above = folder
            try:
                folder = above.open(name)
            finally:
                above.close()
        return folder


class _DiskFolder:
    __slots__ = ("_fd", "_path")

    def __init__(self, fd: int, path: bytes) -> None:
        """path, which ends in a slash, is where the directory was found; it may be elsewhere by now."""
        self._fd = fd
        self._path = path

    def scan(self) -> list[TreeEntry]:
        with os.scandir(self._fd) as entries:
            return list(entries)

    def open(self, name: bytes) -> _DiskFolder:
        return _DiskFolder(os.open(name, _DIRECTORY_FLAGS, dir_fd=self._fd), self._path + name + b"/")

    def read_link(self, name: bytes) -> bytes:
        return os.readlink(name, dir_fd=self._fd)

    def xattrs(self, name: bytes) -> Mapping[bytes, bytes]:
        if not _HAS_XATTRS:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        # Hardly any file has some. Whether there are may be asked by path, which costs half as much; what they are
        # is not, for by now the path may lead elsewhere.
        try:
            if not os.listxattr(self._path + name, follow_symlinks=False):
                return {}
        except OSError as error:
            if error.errno in _XATTRS_UNSUPPORTED:
                raise
        full = b"/proc/self/fd/%d/%b" % (self._fd, name)
        found: dict[bytes, bytes] = {}
        for attribute in os.listxattr(full, follow_symlinks=False):
            if not attribute.startswith("com.apple."):
                try:
                    found[os.fsencode(attribute)] = os.getxattr(full, attribute, follow_symlinks=False)
                except OSError:
                    continue  # gone, or not for us to read
        return found

    def close(self) -> None:
        os.close(self._fd)


class _Nothing:
    """A directory that has gone."""

    def scan(self) -> list[TreeEntry]:
        return []

    def open(self, name: bytes) -> Folder:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def read_link(self, name: bytes) -> bytes:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def xattrs(self, name: bytes) -> Mapping[bytes, bytes]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


_NOTHING = _Nothing()


@dataclass(frozen=True, slots=True)
class _MemoryStat:
    st_mode: int
    st_ino: int
    st_size: int
    st_mtime_ns: int
    st_nlink: int = 1
    st_dev: int = 0
    st_rdev: int = 0


@dataclass(frozen=True, slots=True)
class _MemoryEntry:
    name: str
    info: _MemoryStat

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return _stat.S_ISDIR(self.info.st_mode)

    def stat(self, *, follow_symlinks: bool = True) -> TreeStat:
        return self.info


class MemoryTree:
    """Files held in memory, by their path; the directories above them are made up."""

    def __init__(self, files: Mapping[bytes, bytes], mtime_ns: int) -> None:
        self.files = dict(files)
        self._directories: dict[bytes, dict[bytes, TreeEntry]] = {b"": {}}
        for number, (path, content) in enumerate(self.files.items()):
            info = _MemoryStat(_stat.S_IFREG | 0o644, number, len(content), mtime_ns)
            while path:
                parent, _, name = path.rpartition(b"/")
                self._directories.setdefault(parent, {})[name] = _MemoryEntry(os.fsdecode(name), info)
                info = _MemoryStat(_stat.S_IFDIR | 0o755, 0, 0, mtime_ns)
                path = parent

    def open(self, path: bytes) -> Folder:
        return _MemoryFolder(self._directories, path)


class _MemoryFolder:
    def __init__(self, directories: Mapping[bytes, Mapping[bytes, TreeEntry]], path: bytes) -> None:
        if path not in directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._directories = directories
        self._path = path

    def scan(self) -> list[TreeEntry]:
        return list(self._directories[self._path].values())

    def open(self, name: bytes) -> _MemoryFolder:
        return _MemoryFolder(self._directories, self._path + b"/" + name if self._path else name)

    def read_link(self, name: bytes) -> bytes:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)

    def xattrs(self, name: bytes) -> Mapping[bytes, bytes]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


class DirectoryHandles:
    """Descriptors of the directories below a root, none reached through a symlink. For one thread at a time.

    The last few stay open, because files mostly come in the order of a listing.
    """

    def __init__(self, root: bytes | Path) -> None:
        """Raises OSError, as open() does."""
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._handles: dict[bytes, int] = {}

    def open(self, path: bytes) -> int:
        """Of a directory relative to the root; good until the next call."""
        if not path:
            return self._root
        fd = self._handles.get(path)
        if fd is not None:
            return fd
        # From the innermost directory that is open, else from the root.
        names: list[bytes] = []
        above = path
        while above and above not in self._handles:
            above, _, name = above.rpartition(b"/")
            names.append(name)
        fd = self._handles[above] if above else self._root
        for name in reversed(names):
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
            above = above + b"/" + name if above else name
            self._handles[above] = fd
            if len(self._handles) > _CACHED_DIRECTORIES:
                os.close(self._handles.pop(next(iter(self._handles))))
        return fd

    def close(self) -> None:
        """Closes all; the object cannot be used afterwards."""
        for fd in [*self._handles.values(), self._root]:
            os.close(fd)
        self._handles = {}
        self._root = -1


class FileOpener:
    """Opens files below a root without following any symlink. For one thread at a time."""

    def __init__(self, root: bytes) -> None:
        """Raises OSError, as open() does."""
        self._directories = DirectoryHandles(root)

    def open(self, path: bytes) -> tuple[int, int]:
        """(descriptor, size) of a regular file. Raises OSError, also for everything else."""
        directory, _, name = path.rpartition(b"/")
        fd = os.open(name, _FILE_FLAGS, dir_fd=self._directories.open(directory))
        try:
            info = os.fstat(fd)
            if not _stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "no longer a regular file")
        except OSError:
            os.close(fd)
            raise
        return fd, info.st_size

    def close(self) -> None:
        self._directories.close()
