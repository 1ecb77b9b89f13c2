"""Archives of several platforms joined into one, whatever a daemon has put into them."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from buildkit_py.builder.tars import MAX_EXTENSION_BYTES, forget_entries, join_tars
from buildkit_py.errors import ProtocolError


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, linkname
    return entry


def write(path: Path, entries: Iterable[tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            archive.addfile(entry)
            forget_entries(archive)
    return path


def test_every_entry_is_below_the_directory_of_its_platform(tmp_path: Path) -> None:
    """Absolute names too; symlinks say what they said, hard links follow what they are of."""
    entries = [
        member("/etc/passwd"),
        member("a..b"),
        member("up", tarfile.SYMTYPE, "../../outside"),
        member("same", tarfile.LNKTYPE, "a..b"),
        member("\udcff" + "x" * 200),
    ]
    first, second = write(tmp_path / "1.tar", entries), write(tmp_path / "2.tar", [member("f")])
    joined = io.BytesIO()
    join_tars([("linux_amd64", first), ("linux_arm64", second)], joined)
    joined.seek(0)
    with tarfile.open(fileobj=joined) as archive:
        found = {entry.name: entry.linkname for entry in archive}
    assert found == {
        "linux_amd64": "",
        "linux_amd64//etc/passwd": "",
        "linux_amd64/a..b": "",
        "linux_amd64/up": "../../outside",
        "linux_amd64/same": "linux_amd64/a..b",
        "linux_amd64/\udcff" + "x" * 200: "",
        "linux_arm64": "",
        "linux_arm64/f": "",
    }


@pytest.mark.parametrize(
    "entry",
    [
        member("../evil"),
        member("a/../../evil"),
        member(".."),
        member("x", tarfile.LNKTYPE, "../../etc/passwd"),
    ],
    ids=lambda entry: str(entry.name),
)
def test_names_that_lead_out_are_refused(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    """They would stand in an archive of ours, which somebody unpacks."""
    path = write(tmp_path / "1.tar", [member("fine"), entry])
    with pytest.raises(ProtocolError, match="linux_amd64 has an entry that leads out of it"):
        join_tars([("linux_amd64", path)], io.BytesIO())


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path, kind: bytes) -> None:
    entry = member("x", kind)
    entry.size = MAX_EXTENSION_BYTES + 1
    with (tmp_path / "1.tar").open("wb") as file:
        file.write(entry.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 30)
    with pytest.raises(ProtocolError, match="extension header of"):
        join_tars([("linux_amd64", tmp_path / "1.tar")], io.BytesIO())


@pytest.mark.parametrize("content", [b"no archive" * 100, b"\x1f\x8b\x08" + bytes(600)])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1.tar").write_bytes(content)
    with pytest.raises(ProtocolError, match="the tar archive of linux_amd64 cannot be read"):
        join_tars([("linux_amd64", tmp_path / "1.tar")], io.BytesIO())


def test_memory_does_not_grow_with_the_entries(tmp_path: Path) -> None:
    path = write(tmp_path / "1.tar", (member(f"d/file{number:06}.txt") for number in range(5000)))
    with Path("/dev/null").open("wb") as null:
        join_tars([("warm", write(tmp_path / "0.tar", [member("f")]))], null)
        tracemalloc.start()
        try:
            join_tars([("linux_amd64", path)], null)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 500_000
