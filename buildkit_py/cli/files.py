"""Files that the command line writes."""

from __future__ import annotations

import os
from pathlib import Path

from buildkit_py.errors import InvalidOption


def check_writable(path: Path) -> None:
    """Raise InvalidOption unless a file could be written there."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InvalidOption(f"{path}: its directory does not exist")
    if path.is_dir():
        raise InvalidOption(f"{path}: is a directory")
    if not os.access(folder, os.W_OK):
        raise InvalidOption(f"{path}: its directory is not writable")


def write_text(path: Path, text: str) -> None:
    """Write by rename: the file is the old one or the new one, never half of it. Raises OSError."""
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
