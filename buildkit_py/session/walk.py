"""The listing of a tree: which entries are sent, in which order, and how each is described.

Blocking code, meant for a thread. The rules of order, stats, filters and followed links are the daemon's.

Source: tonistiigi/fsutil, fs.go, filter.go, followlinks.go, stat_unix.go, hardlinks.go.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as _stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
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

_RESERVED = b".fsutil-metadata"
"""A daemon drops this entry without counting it, and every later id would shift."""

_PRINTED = 400
"""Characters of a path in a message; a daemon passes on some thousand bytes of one."""

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
    """What os.DirEntry[bytes] has."""

    @property
    def name(self) -> bytes: ...
    def is_dir(self, *, follow_symlinks: bool = True) -> bool: ...
    def stat(self, *, follow_symlinks: bool = True) -> TreeStat: ...


class Tree(Protocol):
    """Where a listing comes from. Every method may raise OSError."""

    def scan(self, path: bytes) -> Sequence[TreeEntry]:
        """Entries of a directory, given relative to the root, b"" being the root; in any order."""
        ...

    def read_link(self, path: bytes) -> bytes:
        """Text of a symlink; raises OSError for everything else."""
        ...

    def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        """Extended attributes of an entry, not of what it links to."""
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

    entries: Iterator[TreeEntry]
    prefix: bytes
    """Path with a slash; empty for the root."""
    text: str
    """The same as text, if there are filters."""
    entry: TreeEntry | None = None
    """None once it is listed itself; the root never is."""
    include: Matched | None = None
    exclude: Matched | None = None


def walk(tree: Tree, filters: Filters) -> Iterator[Batch]:
    """List a tree. Raises WalkError, also for patterns that cannot be used.

    An entry that vanishes meanwhile is left out, and only that one.
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

    def run(self) -> Iterator[Batch]:
        filtered = self._include is not None or self._exclude is not None
        stack = [self._open(b"", "", None)]
        due = time.monotonic() + BATCH_SECONDS
        while stack:
            directory = stack[-1]
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
                name = entry.name
                path = directory.prefix + name
                if path == _RESERVED:
                    _log.warning("%r is not sent: daemons reserve the name", ".fsutil-metadata")
                    continue
                if not filtered:
                    if self._emit(path, entry) == _stat.S_IFDIR:
                        stack.append(self._open(path + b"/", "", None))
                        break
                    continue
                is_dir = entry.is_dir(follow_symlinks=False)
                text = directory.text + os.fsdecode(name)
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
                if wanted:
                    if not self._emit_parents(stack):
                        continue
                    is_dir = self._emit(path, entry) == _stat.S_IFDIR
                if is_dir:
                    below = self._open(path + b"/", text + "/", None if wanted else entry)
                    below.include, below.exclude = include, exclude
                    stack.append(below)
                    break
            else:
                stack.pop()
        if self._batch.visited:
            yield self._batch

    def _open(self, prefix: bytes, text: str, entry: TreeEntry | None) -> _Directory:
        """entry is the directory's own where it is not listed yet."""
        try:
            entries = sorted(self._tree.scan(prefix[:-1]), key=attrgetter("name"))
        except (FileNotFoundError, NotADirectoryError) as error:
            if not prefix:
                raise _walk_error(prefix, error) from error
            entries = []
        except PermissionError as error:
            if entry is None:
                raise _walk_error(prefix, error) from error
            entries = []
        except OSError as error:
            raise _walk_error(prefix, error) from error
        return _Directory(iter(entries), prefix, text, entry)

    def _emit_parents(self, stack: Sequence[_Directory]) -> bool:
        """List the directories above the current entry that are not; False if one is gone."""
        for directory in stack:
            if directory.entry is not None:
                if self._emit(directory.prefix[:-1], directory.entry) is None:
                    return False
                directory.entry = None
        return True

    def _emit(self, path: bytes, entry: TreeEntry) -> int | None:
        """Add an entry to the batch and return its type; None if it is gone."""
        linkname = extras = b""
        try:
            info = entry.stat(follow_symlinks=False)
            st_mode = info.st_mode
            kind = st_mode & 0o170000
            size = info.st_size
            regular = False
            if kind == _stat.S_IFREG:
                regular = True
            elif kind == _stat.S_IFDIR:
                size = 0
            elif kind == _stat.S_IFLNK:
                linkname = self._tree.read_link(path)
            elif kind == _stat.S_IFSOCK:
                regular = True
                size = 0
            elif kind in {_stat.S_IFBLK, _stat.S_IFCHR}:
                device = info.st_rdev
                extras = stat_extras(device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00, {})
            if info.st_nlink > 1 and kind not in {_stat.S_IFDIR, _stat.S_IFLNK}:
                linkname = self._links.setdefault((info.st_dev, info.st_ino), path)
                if linkname is path:
                    linkname = b""
            if info.st_dev not in self._no_xattrs:
                extras += self._xattr_fields(path, info.st_dev)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None  # no longer the symlink that it was
            raise _walk_error(path, error) from error
        batch = self._batch
        batch.packets.append(encode_stat(path, mode_field(go_mode(st_mode)), size, info.st_mtime_ns, linkname, extras))
        batch.files.append(path if regular else None)
        return kind

    def _xattr_fields(self, path: bytes, device: int) -> bytes:
        try:
            xattrs = self._tree.xattrs(path)
        except OSError as error:
            if error.errno in _XATTRS_UNSUPPORTED:
                self._no_xattrs.add(device)
            return b""
        return stat_extras(0, 0, xattrs) if xattrs else b""


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
    for path in paths:
        # Links lead from one path to the next; each symlink is taken once, so this ends.
        pending = [path]
        while pending:
            pending += _follow(tree, pending.pop(), found)
    return without_nested(sorted(found, key=os.fsencode))


def _follow(tree: Tree, path: str, found: set[str]) -> list[str]:
    """Add what has to be included for path, up to the first symlink; return what is to be followed then."""
    names = _inside(path).split("/")
    for count in range(1, len(names) + 1):
        current = "/".join(names[:count])
        targets = _targets(tree, current)
        last = count == len(names)
        if (targets or last) and current in found:
            return []
        if targets or last:
            found.add(current)
        if targets:
            return ["/".join([target, *names[count:]]) for target in targets]
    return []


def _targets(tree: Tree, path: str) -> list[str]:
    """Where path leads if it is a symlink; with a wildcard in its last part, where each match leads."""
    directory, _, name = path.rpartition("/")
    if not has_wildcard(name):
        target = _read_link(tree, path)
        return [] if target is None else [target]
    try:
        names = sorted(entry.name for entry in tree.scan(os.fsencode(directory)))
    except OSError:
        return []
    targets: list[str] = []
    for candidate in map(os.fsdecode, names):
        try:
            if match_name(name, candidate):
                target = _read_link(tree, f"{directory}/{candidate}" if directory else candidate)
                if target is not None:
                    targets.append(target)
        except BadPattern as error:
            raise WalkError(f"invalid followpaths: {path}: {error}") from error
    return targets


def _read_link(tree: Tree, path: str) -> str | None:
    """Target of a symlink, relative to the root and inside of it."""
    try:
        target = os.fsdecode(tree.read_link(os.fsencode(path)))
    except (OSError, ValueError):
        return None
    if target.startswith("/"):
        return _inside(target)
    return _inside(f"{path.rpartition('/')[0]}/{target}")


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


class DiskTree:
    """A directory of the disk. Its own path may lead through symlinks; below, none is followed."""

    def __init__(self, root: Path | bytes) -> None:
        """Raises OSError unless root is a directory."""
        self.root = os.path.realpath(os.fsencode(root), strict=True)
        if not _stat.S_ISDIR(os.stat(self.root).st_mode):  # noqa: PTH116 - bytes
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(self.root))
        self._base = self.root.rstrip(b"/") + b"/"

    def scan(self, path: bytes) -> Sequence[os.DirEntry[bytes]]:
        with os.scandir(self._base + path) as entries:
            return list(entries)

    def read_link(self, path: bytes) -> bytes:
        return os.readlink(self._base + path)  # noqa: PTH115 - bytes

    def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        if not hasattr(os, "listxattr"):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        full = self._base + path
        names = os.listxattr(full, follow_symlinks=False)
        found: dict[bytes, bytes] = {}
        for name in names:
            if not name.startswith("com.apple."):
                try:
                    found[os.fsencode(name)] = os.getxattr(full, name, follow_symlinks=False)
                except OSError:
                    continue  # gone, or not for us to read
        return found


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
    name: bytes
    info: _MemoryStat

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return _stat.S_ISDIR(self.info.st_mode)

    def stat(self, *, follow_symlinks: bool = True) -> TreeStat:
        return self.info


class MemoryTree:
    """Files held in memory, by their path; the directories above them are made up."""

    def __init__(self, files: Mapping[bytes, bytes], mtime_ns: int) -> None:
        self.files = dict(files)
        self._directories: dict[bytes, dict[bytes, _MemoryEntry]] = {b"": {}}
        for number, (path, content) in enumerate(self.files.items()):
            info = _MemoryStat(_stat.S_IFREG | 0o644, number, len(content), mtime_ns)
            while path:
                parent, _, name = path.rpartition(b"/")
                self._directories.setdefault(parent, {})[name] = _MemoryEntry(name, info)
                info = _MemoryStat(_stat.S_IFDIR | 0o755, 0, 0, mtime_ns)
                path = parent

    def scan(self, path: bytes) -> Sequence[_MemoryEntry]:
        directory = self._directories.get(path)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return list(directory.values())

    def read_link(self, path: bytes) -> bytes:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)

    def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        return {}


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
