"""Tar streams: what tarfile writes is read back, whatever the chunks; what is no tar stream is refused."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py import tarstream
from buildkit_py.errors import BuildKitError, ProtocolError
from buildkit_py.tarstream import Content, Entry, EntryEnd, Kind, TarReader

LONG = "blobs/" + "d/" * 80 + "e" * 150
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def written(files: Iterable[tuple[str, bytes]], style: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=style) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def read(chunks: Iterable[bytes]) -> list[tuple[str, Kind, bytes]]:
    reader = TarReader()
    files: list[tuple[str, Kind, bytes]] = []
    name, kind, size, content = "", Kind.OTHER, 0, b""
    for chunk in chunks:
        for event in reader.feed(chunk):
            match event:
                case Entry():
                    name, kind, size, content = event.name, event.kind, event.size, b""
                case Content(data):
                    content += data
                case EntryEnd():
                    assert len(content) == size
                    files.append((name, kind, content))
    reader.close()
    return files


@pytest.mark.parametrize("style", FORMATS.values(), ids=FORMATS)
def test_every_format_is_read(style: int) -> None:
    files = [("a", b""), ("b/c", b"x" * 1000), ("n" * 90 + "/" + "m" * 90, b"y" * 512)]
    if style != tarfile.USTAR_FORMAT:
        files += [(LONG, b"z"), ("ü" * 120, b"q")]
    assert read([written(files, style)]) == [(name, Kind.FILE, content) for name, content in files]


def test_what_is_not_a_file_is_named_so() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("l", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
            ("c", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "x" * 200
            archive.addfile(info)
    assert [(name.rstrip("/"), kind) for name, kind, _ in read([stream.getvalue()])] == [
        ("d", Kind.DIRECTORY),
        ("l", Kind.OTHER),
        ("h", Kind.OTHER),
        ("c", Kind.OTHER),
    ]


def test_sizes_beyond_octal_are_read() -> None:
    size = 9 << 30
    info = tarfile.TarInfo("big")
    info.size = size
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        reader = TarReader()
        events = reader.feed(info.tobuf(style))
        assert events == [Entry("big", Kind.FILE, size)]
        assert reader.content_left == size
        assert reader.skip(size) == [EntryEnd()]


def test_our_own_headers_are_what_tarfile_reads() -> None:
    raw = (
        tarstream.header("blobs/", directory=True)
        + tarstream.header(LONG, 3)
        + b"abc"
        + tarstream.padding(3)
        + tarstream.END
    )
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        members = archive.getmembers()
        assert [(member.name, member.isdir(), member.mtime, member.uid) for member in members] == [
            ("blobs", True, 0, 0),
            (LONG, False, 0, 0),
        ]
        content = archive.extractfile(members[1])
        assert content is not None
        assert content.read() == b"abc"


def damaged(at: int, value: bytes) -> bytes:
    raw = bytearray(written([("a", b"abc")]))
    raw[at : at + len(value)] = value
    return bytes(raw)


def with_checksum(block: bytes) -> bytes:
    total = sum(block[:148] + b" " * 8 + block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def header_with(**parts: bytes) -> bytes:
    block = bytearray(tarstream.header("a", 3)[:512])
    places = {"size": 124, "flag": 156, "name": 0}
    for part, value in parts.items():
        block[places[part] : places[part] + len(value)] = value
    return with_checksum(bytes(block))


def pax(content: bytes) -> bytes:
    return header_with(flag=b"x", size=b"%011o\0" % len(content)) + content + tarstream.padding(len(content))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "cut short"),
        (b"x" * 100, "cut short"),
        (written([("a", b"abc")])[:512], "cut short"),
        (written([("a", b"abc")])[:514], "cut short"),
        (written([("a", b"abc")])[:1024], "cut short"),
        (b"<html>" + b" " * 1000, "malformed number|wrong checksum"),
        (damaged(0, b"b"), "wrong checksum"),
        (damaged(148, b"zzz"), "malformed number"),
        (header_with(size=b"12345678x"), "malformed number"),
        (header_with(size=b"\xff" * 12), "out of range"),
        (header_with(size=b"\x80" + b"\x7f" * 11), "out of range"),
        (header_with(name=b"\xff\xfe"), "not UTF-8"),
        (header_with(name=b"\0"), "empty"),
        (header_with(flag=b"S"), "sparse"),
        (header_with(flag=b"x", size=b"77777777777"), "extension header of"),
        (pax(b"9 path=abc\n"), "malformed PAX"),
        (pax(b"12 path=abc\n"), "cut short"),
        (pax(b"99 path=abc\n"), "malformed PAX"),
        (pax(b"path=abc\n"), "malformed PAX"),
        (pax(b"10 size=a\n"), "malformed size"),
        (pax(b"11 size=-1\n"), "malformed size"),
        (pax(b"28 size=99999999999999999999\n"), "malformed"),
        (pax(b"22 GNU.sparse.major=1\n"), "sparse"),
        (pax(b"12 path=a\0c\n"), "empty or not UTF-8"),
        (tarstream.END + b"x" * 512, "follows its end"),
        (bytes(512) + tarstream.header("a"), "follows its end"),
    ],
)
def test_what_is_no_tar_stream_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        read([raw])


names = st.text("abc/ü", min_size=1, max_size=40).map(lambda name: name.strip("/") or "x")
contents = st.binary(max_size=20) | st.sampled_from([512, 513, 1024, 3000]).map(lambda size: b"c" * size)


@given(
    st.lists(st.tuples(names, contents), max_size=4),
    st.lists(st.integers(0, 9000)),
    st.sampled_from([*FORMATS.values()][1:]),
)
def test_any_split_into_chunks_reads_the_same(files: list[tuple[str, bytes]], cuts: list[int], style: int) -> None:
    raw = written(files, style)
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    expected = [(name, Kind.FILE, content) for name, content in files]
    assert read([raw]) == expected
    assert read(raw[start:end] for start, end in pairwise(edges)) == expected


def test_single_bytes_read_the_same() -> None:
    raw = written([("a" * 150, b"abc"), ("b", b"")])
    assert read(raw[at : at + 1] for at in range(len(raw))) == read([raw])


@given(st.lists(st.tuples(st.integers(0, 2047), st.binary(min_size=1, max_size=12)), max_size=6), st.booleans())
def test_any_bytes_are_read_or_refused(changes: list[tuple[int, bytes]], repair: bool) -> None:
    raw = bytearray(written([(LONG, b"abc"), ("b", b"x" * 600)]))
    for at, value in changes:
        raw[at : at + len(value)] = value
    if repair:
        for at in range(0, 2048, 512):
            raw[at : at + 512] = with_checksum(bytes(raw[at : at + 512]))
    with contextlib.suppress(BuildKitError):
        read([bytes(raw)])


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_entries_without_content_have_none_whatever_their_size_says(kind: bytes) -> None:
    """Some writers give links the size of what they lead to; what follows is the next header."""
    odd = tarfile.TarInfo("odd")
    odd.type, odd.size = kind, 5
    (_, second) = read([odd.tobuf(tarfile.USTAR_FORMAT) + written([("file", b"content")])])
    assert second == ("file", Kind.FILE, b"content")
