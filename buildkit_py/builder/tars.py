"""Tar archives of several platforms, joined into one with a directory for each."""

from __future__ import annotations

import copy
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self, cast

from buildkit_py.errors import ProtocolError
from buildkit_py.session.walk import printable

MAX_EXTENSION_BYTES = 1 << 20
"""Of a header with long names or attributes, which has to be held in memory."""

# What the new name has to be written into anew; the rest of a PAX header, such as xattrs, goes on as it is.
_NAMES = ("path", "linkpath")


def join_tars(parts: Sequence[tuple[str, Path]], stream: BinaryIO) -> None:
    """Write the entries of all parts, each below its directory. Blocks; ProtocolError for what is no archive, and for
    entries that would not stay below it.

    Entries keep everything but their names: owners, times to the nanosecond, and extended attributes.
    """
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as joined:
        for folder, path in parts:
            directory = tarfile.TarInfo(f"{folder}/")
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            joined.addfile(directory)
            try:
                with tarfile.open(path, mode="r:", tarinfo=_Bounded) as part:
                    while (entry := part.next()) is not None:
                        joined.addfile(_below(folder, entry), part.extractfile(entry) if entry.isreg() else None)
                        forget_entries(part)
                        forget_entries(joined)
            except tarfile.TarError as error:
                raise ProtocolError(f"the tar archive of {folder} cannot be read: {error}") from error


def forget_entries(archive: tarfile.TarFile) -> None:
    """Let an archive that is read or written once forget the entries so far: it keeps all, of maybe a million."""
    cast("dict[str, list[tarfile.TarInfo]]", vars(archive))["members"].clear()


class _Bounded(tarfile.TarInfo):
    """Headers of what a daemon sent."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENSIONS and found.size > MAX_EXTENSION_BYTES:
            raise ProtocolError(f"a tar archive has an extension header of {found.size} bytes")
        return found


_EXTENSIONS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)


def _below(folder: str, entry: tarfile.TarInfo) -> tarfile.TarInfo:
    for name in (entry.name, entry.linkname if entry.islnk() else ""):
        if ".." in name.split("/"):
            raise ProtocolError(f"the tar archive of {folder} has an entry that leads out of it: {printable(name)!r}")
    moved = copy.copy(entry)
    moved.name = f"{folder}/{entry.name}"
    moved.pax_headers = {key: value for key, value in entry.pax_headers.items() if key not in _NAMES}
    if entry.islnk():
        moved.linkname = f"{folder}/{entry.linkname}"
    return moved
