"""Files that the command line writes."""

from __future__ import annotations

import os
from pathlib import Path

from buildkit_py.errors import InvalidOption


def check_writable(path: Path) -> None:
    """Raise InvalidOption unless a file could be written there."""
    import tempfile

    from buildkit_py.layout.destination import is_special  # for those who ask for such a file

    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InvalidOption(f"{path}: its directory does not exist")
    if path.is_dir():
        raise InvalidOption(f"{path}: is a directory")
    try:
        if is_special(path):
            path.open("ab").close()
            return
        # Permissions alone do not tell: the file system may be read-only, full, or one of the kernel's own.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = "cannot be written" if is_special(path) else "its directory is not writable"
        raise InvalidOption(f"{path}: {what}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write by rename: the file is the old one or the new one, never half of it. Raises OSError.

    A symbolic link is followed, and a device or pipe, such as /dev/stdout, is written to.
    """
    import tempfile

    from buildkit_py.layout.destination import is_special

    if is_special(path):
        path.write_text(text, encoding="utf-8")
        return
    target = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
