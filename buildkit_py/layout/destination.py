"""Where an export may be written, found out before anything is built."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from buildkit_py.errors import InvalidOption
from buildkit_py.layout.entries import LAYOUT_FILE


def check_destination(destination: Path, *, directory: bool, ours: Path | None = None) -> None:
    """Raise InvalidOption, naming the reason, unless a layout can be written there. Writes nothing.

    ours may stand in the destination directory without making it one that is in use.
    """
    if directory:
        if destination.is_dir():
            used = any(path != ours for path in destination.iterdir())
            if used and not (destination / LAYOUT_FILE).is_file():
                raise InvalidOption(f"output {destination}: is neither empty nor an OCI layout")
            _check_writable(destination, destination)
        elif destination.exists():
            raise InvalidOption(f"output {destination}: is not a directory")
        else:
            _check_writable(destination, existing_parent(destination))
    elif destination.is_dir():
        raise InvalidOption(f"output {destination}: is a directory, expected the name of a file")
    elif not destination.parent.is_dir():
        raise InvalidOption(f"output {destination}: there is no directory {destination.parent}")
    elif is_special(destination):
        if not os.access(destination, os.W_OK):
            raise InvalidOption(f"output {destination}: cannot be written to")
    else:
        _check_writable(destination, Path(os.path.realpath(destination)).parent)


def check_tree_destination(destination: Path) -> Path:
    """The directory in which a tree can be staged, to be moved to destination; InvalidOption where none can."""
    if destination.is_dir():
        staging = destination
    elif os.path.lexists(destination):
        raise InvalidOption(f"output {destination}: is not a directory")
    else:
        staging = existing_parent(destination)
    _check_writable(destination, staging)
    return staging


def is_special(destination: Path) -> bool:
    """Whether it is a device or a pipe, which is written to; a rename would put a file in its place."""
    return destination.exists() and not destination.is_file() and not destination.is_dir()


def _check_writable(destination: Path, directory: Path) -> None:
    if not directory.is_dir():
        raise InvalidOption(f"output {destination}: {directory} is not a directory")
    try:
        # Permissions alone do not tell: the file system may be read-only, or one of the kernel's own.
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InvalidOption(f"output {destination}: {directory} cannot be written to: {error.strerror}") from error


def existing_parent(path: Path) -> Path:
    """The nearest directory above that exists."""
    path = path.absolute()
    return next(parent for parent in path.parents if parent.exists())
