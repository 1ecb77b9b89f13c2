"""Build contexts as archives of every kind that a daemon unpacks."""

from __future__ import annotations

import io
import tarfile


def _archive(mode: str, format: int = tarfile.USTAR_FORMAT, **headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format, pax_headers=headers) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("Dockerfile")
        member.size = 13
        archive.addfile(member, io.BytesIO(b"FROM scratch\n"))
    return buffer.getvalue()


ARCHIVES = {
    "plain": _archive("w"),
    "pax": _archive("w", tarfile.PAX_FORMAT, comment="x"),
    "gzip": _archive("w:gz"),
    "bzip2": _archive("w:bz2"),
    "xz": _archive("w:xz"),
}
