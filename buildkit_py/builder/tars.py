"""Tar archives of several platforms, joined into one with a directory for each."""

from __future__ import annotations

import copy
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from buildkit_py.errors import ProtocolError

# What the new name has to be written into anew; the rest of a PAX header, such as xattrs, goes on as it is.
_NAMES = ("path", "linkpath")


def join_tars(parts: Sequence[tuple[str, Path]], stream: BinaryIO) -> None:
    """Write the entries of all parts, each below its directory. Blocks; ProtocolError for what is no archive.

    Entries keep everything but their names: owners, times to the nanosecond, and extended attributes.
    """
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as joined:
        for folder, path in parts:
            directory = tarfile.TarInfo(f"{folder}/")
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            joined.addfile(directory)
            try:
                with tarfile.open(path, mode="r:") as part:
                    for entry in part:
                        joined.addfile(_below(folder, entry), part.extractfile(entry) if entry.isreg() else None)
            except tarfile.TarError as error:
                raise ProtocolError(f"the tar archive of {folder} cannot be read: {error}") from error


def _below(folder: str, entry: tarfile.TarInfo) -> tarfile.TarInfo:
    moved = copy.copy(entry)
    moved.name = f"{folder}/{entry.name}"
    moved.pax_headers = {key: value for key, value in entry.pax_headers.items() if key not in _NAMES}
    if entry.islnk():
        moved.linkname = f"{folder}/{entry.linkname}"
    return moved
