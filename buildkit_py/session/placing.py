"""A finished tree moved to its place: all at once where nothing is, else merged into what is there.

As in the writing of an export, no symlink below the place is followed. Blocking.
"""

from __future__ import annotations

import os
import shutil
import stat as _stat
from pathlib import Path

from buildkit_py.session.directory import Directories, apply_modes, chmod_nofollow, replace_entry
from buildkit_py.session.walk import DirectoryHandles


def place_tree(source: Path, destination: Path, directories: Directories, *, delete: bool = False) -> None:
    """Move source, whose directories are open to their owner, and set their modes. Raises OSError.

    An existing directory keeps what the source does not have, unless delete says otherwise; whatever has the name
    of an entry of the source is replaced. Source and destination are on one file system.
    """
    if not _renamed(source, destination):
        _merge(source, destination, delete=delete)
        shutil.rmtree(source)
    handles = DirectoryHandles(destination)
    try:
        apply_modes(handles, directories)
    finally:
        handles.close()


def _renamed(source: Path, destination: Path) -> bool:
    """Whether nothing was in the way."""
    if os.path.lexists(destination):
        return False
    destination.parent.mkdir(parents=True, exist_ok=True)
    source.rename(destination)
    return True


def _merge(source: Path, destination: Path, *, delete: bool) -> None:
    own = os.fsencode(source.name) if source.parent == destination else None
    from_, to = DirectoryHandles(source), DirectoryHandles(destination)
    pending = [b""]
    try:
        while pending:
            path = pending.pop()
            here, there = from_.open(path), to.open(path)
            names = _names(here)
            common = [name for name in names if not _moved(name, here, there)]
            pending += [path + b"/" + name if path else name for name in common]
            if delete:
                for name in set(_names(there)).difference(names, () if path else (own,)):
                    _remove(name, there)
    finally:
        from_.close()
        to.close()


def _moved(name: bytes, here: int, there: int) -> bool:
    """Move an entry; False if it is a directory on both sides, whose entries are to be moved then."""
    if not _is_directory(name, here):
        replace_entry(name, here, name, there)
        return True
    try:
        info = os.stat(name, dir_fd=there, follow_symlinks=False)
    except FileNotFoundError:
        pass
    else:
        if _stat.S_ISDIR(info.st_mode):
            if info.st_mode & 0o700 != 0o700:
                chmod_nofollow(name, _stat.S_IMODE(info.st_mode) | 0o700, there)
            return False
        os.unlink(name, dir_fd=there)
    os.rename(name, name, src_dir_fd=here, dst_dir_fd=there)
    return True


def _remove(name: bytes, directory: int) -> None:
    if _is_directory(name, directory):
        shutil.rmtree(name, dir_fd=directory)
    else:
        os.unlink(name, dir_fd=directory)


def _is_directory(name: bytes, directory: int) -> bool:
    return _stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _names(directory: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(directory)]
