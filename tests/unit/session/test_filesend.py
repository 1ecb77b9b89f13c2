"""What exporters send to this machine: files that appear when complete, directories that nothing leaves."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from buildkit_py.errors import InvalidOption, PeerError, ProtocolError, SessionClosed
from buildkit_py.session import directory, filesend
from buildkit_py.session.attachable import CallError, Code
from buildkit_py.session.directory import DirectoryTarget, DirectoryWriter, ExportError
from buildkit_py.session.filesend import (
    DIFF_COPY,
    FileSend,
    FileTarget,
    StreamSink,
    Target,
    WriterTarget,
)
from buildkit_py.session.filesync import DIFF_COPY as SYNC
from buildkit_py.session.filesync import FileSync, LocalDir
from buildkit_py.session.fsutil import (
    END_OF_LISTING,
    FIN,
    MODE_CHAR_DEVICE,
    MODE_DEVICE,
    MODE_DIR,
    MODE_SYMLINK,
    PacketType,
    Stat,
    data_header,
    decode_packet,
    encode_bytes_message,
    encode_error,
    end_of_file,
)
from tests.support.calls import HIGH_WATER, MemoryCall, call_pair
from tests.unit.session.test_walk import TREES, listing, make_tree

ROOT = os.geteuid() == 0


def begin(
    targets: Mapping[int, Target], exporter: str | None = "0", metadata: Sequence[tuple[str, str]] = ()
) -> tuple[asyncio.Future[None], MemoryCall]:
    """A call of the daemon: (the handler at work, the daemon's end)."""
    ids = [] if exporter is None else [("buildkit-attachable-exporter-id", exporter)]
    call, peer = call_pair(DIFF_COPY, [*ids, *metadata])
    return asyncio.ensure_future(FileSend(targets).methods()[DIFF_COPY](call)), peer


def data(file_id: int, content: bytes) -> bytes:
    return data_header(file_id, len(content)) + content


def file(path: bytes, mode: int = 0o644) -> Stat:
    return Stat(path=path, mode=mode, mtime_ns=1_600_000_000_000_000_001)


async def export(target: DirectoryTarget, entries: Sequence[tuple[Stat, bytes]]) -> None:
    """Send a directory as a daemon does, answering requests in any order they come."""
    serving, peer = begin({0: target})
    await peer.send(*(entry.encode() for entry, _ in entries), END_OF_LISTING)
    await answer(peer, [content for _, content in entries])
    await serving


async def answer(peer: MemoryCall, contents: Sequence[bytes]) -> None:
    while (message := await peer.receive()) is not None:
        packet = decode_packet(message)
        if packet.type is PacketType.FIN:
            await peer.send(FIN)
            return
        assert packet.type is PacketType.REQ
        content = contents[packet.id]
        for start in range(0, len(content), 1000):
            await peer.send(data(packet.id, content[start : start + 1000]))
        await peer.send(end_of_file(packet.id))
    raise AssertionError("the receiver hung up")


def tree(root: Path) -> list[bytes]:
    """The STAT packets of what is there: types, modes, times, links."""
    return listing(root)


# --- one file ----------------------------------------------------------------------------------------------


async def test_a_file_appears_with_the_commit(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "out.tar")
    headers = [
        ("exporter-md-containerimage.digest", "sha256:1"),
        ("exporter-md-image.name", "a"),
        ("exporter-md-image.name", "b"),
    ]
    serving, peer = begin({3: target}, "3", headers)
    parts = [os.urandom(size) for size in (1, 4096, 40_000, 3 << 20)]
    for part in parts:
        await peer.send(encode_bytes_message(part))
    peer.end()
    await serving
    assert not (tmp_path / "out.tar").exists()
    assert target.bytes == sum(map(len, parts))
    assert dict(target.metadata) == {"containerimage.digest": "sha256:1", "image.name": "a,b"}
    await target.commit()
    assert (tmp_path / "out.tar").read_bytes() == b"".join(parts)
    assert os.listdir(tmp_path) == ["out.tar"]


async def test_a_file_that_is_still_on_its_way_is_not_committed(tmp_path: Path) -> None:
    """The solve is over, the stream is not: half a file is none."""
    target = FileTarget(tmp_path / "out.tar")
    sink = await target.open({})
    await sink.write(b"half")
    with pytest.raises(ExportError, match="completely"):
        await target.commit()
    await sink.abort()
    await target.abort()
    assert os.listdir(tmp_path) == []


async def test_an_aborted_file_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out.tar").write_bytes(b"old")
    target = FileTarget(tmp_path / "out.tar")
    serving, peer = begin({0: target})
    await peer.send(encode_bytes_message(b"new"))
    peer.end()
    await serving
    await target.abort()
    assert os.listdir(tmp_path) == ["out.tar"]
    assert (tmp_path / "out.tar").read_bytes() == b"old"
    with pytest.raises(ExportError, match="completely"):
        await target.commit()


@pytest.mark.parametrize("end", ["cancel", "lose", "garbage"])
async def test_a_broken_stream_leaves_nothing(tmp_path: Path, end: str) -> None:
    target = FileTarget(tmp_path / "out.tar")
    serving, peer = begin({0: target})
    await peer.send(encode_bytes_message(b"x" * filesend.WRITE_BYTES))
    while target.bytes == 0:
        await asyncio.sleep(0)
    if end == "cancel":
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    elif end == "lose":
        peer.lose()
        with pytest.raises(SessionClosed):
            await serving
    else:
        await peer.send(b"\x0a\xff")
        peer.end()
        with pytest.raises(ProtocolError):
            await serving
    assert os.listdir(tmp_path) == []
    with pytest.raises(ExportError):
        await target.commit()


async def test_a_second_stream_for_one_file_is_refused(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "out.tar")
    serving, peer = begin({0: target})
    peer.end()
    await serving
    second, _ = begin({0: target})
    with pytest.raises(ExportError, match="twice"):
        await second
    await target.commit()
    assert (tmp_path / "out.tar").read_bytes() == b""


def test_places_for_a_file_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="not a directory"):
        FileTarget(tmp_path / "none" / "out.tar")
    with pytest.raises(InvalidOption, match="it is a directory"):
        FileTarget(tmp_path)


async def test_an_open_file_takes_a_stream_and_stays_open() -> None:
    out = io.BytesIO()
    serving, peer = begin({0: WriterTarget(out)}, exporter=None)
    await peer.send(encode_bytes_message(b"one "), encode_bytes_message(b"two"), b"")
    peer.end()
    await serving
    assert out.getvalue() == b"one two"


class Recorder:
    """A target of its own kind."""

    def __init__(self, fail: bool = False) -> None:
        self.calls: list[str] = []
        self.data = b""
        self._fail = fail

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        self.calls.append(f"open {dict(metadata)}")
        return self

    async def write(self, chunk: bytes) -> None:
        if self._fail:
            raise OSError(28, "No space left on device", "here")
        self.data += chunk

    async def close(self) -> None:
        self.calls.append("close")

    async def abort(self) -> None:
        self.calls.append("abort")


async def test_a_target_of_its_own_kind_gets_the_stream() -> None:
    target = Recorder()
    serving, peer = begin({1: target}, "1", [("exporter-md-image.name", "x"), ("other", "y")])
    await peer.send(encode_bytes_message(b"abc"))
    peer.end()
    await serving
    assert (target.calls, target.data) == (["open {'image.name': 'x'}", "close"], b"abc")


class Slow(Recorder):
    """Takes nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def write(self, chunk: bytes) -> None:
        await self.go_on.wait()
        await super().write(chunk)


async def test_a_slow_target_holds_the_daemon_back() -> None:
    """Memory is bounded, whatever the speed of either side."""
    target = Slow()
    serving, peer = begin({0: target})
    total, sent = 40, 0

    async def send() -> None:
        nonlocal sent
        for _ in range(total):
            await peer.send(encode_bytes_message(bytes(1 << 20)))
            sent += 1
        peer.end()

    sending = asyncio.ensure_future(send())
    for _ in range(1000):
        await asyncio.sleep(0)
    on_the_way = filesend.QUEUED_BYTES + filesend.WRITE_BYTES + HIGH_WATER
    assert sent <= (on_the_way >> 20) + 2 < total
    target.go_on.set()
    await sending
    await serving
    assert len(target.data) == total << 20


async def test_a_full_disk_is_reported_to_the_daemon() -> None:
    target = Recorder(fail=True)
    serving, peer = begin({0: target})
    await peer.send(encode_bytes_message(bytes(filesend.WRITE_BYTES)))
    with pytest.raises(CallError, match="cannot write 'here': No space left on device"):
        await serving
    assert target.calls[-1] == "abort"


@pytest.mark.parametrize(
    ("exporter", "found"), [("1", 1), (None, 0), ("", 0), ("x", 0), ("-1", 0), ("7", 7), ("9" * 30, 0)]
)
async def test_exporters_are_found_by_their_position(exporter: str | None, found: int) -> None:
    targets: dict[int, Target] = {0: Recorder(), 1: Recorder()}
    serving, peer = begin(targets, exporter)
    peer.end()
    if found not in targets:
        with pytest.raises(CallError, match=f"exporter {found} not found"):
            await serving
    else:
        await serving
    assert [index for index, target in targets.items() if isinstance(target, Recorder) and target.calls] == [found] * (
        found in targets
    )


# --- a directory -------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("name", [name for name in TREES if name not in {"bad-filters", "owners-xattrs"}])
async def test_golden_trees_survive_the_journey(name: str, tmp_path: Path) -> None:
    """A tree served by FileSync and received by FileSend is the same tree, up to its owners."""
    if not ROOT and (TREES[name].get("needs_root") or name == "modes"):
        pytest.skip("needs root, for mknod or to read what is closed to its owner")
    source, destination = tmp_path / "source", tmp_path / "new" / "destination"
    source.mkdir()
    make_tree(source, TREES[name]["entries"])
    one, other = call_pair(metadata=[("dir-name", "x")])
    target = DirectoryTarget(destination)
    serving = asyncio.ensure_future(FileSync({"x": LocalDir(source)}).methods()[SYNC](one))
    await FileSend({0: target}).methods()[DIFF_COPY](other)
    await serving
    assert target.export.warnings == []
    assert stat.S_IMODE(destination.stat().st_mode) == 0o700
    assert tree(destination) == tree(source)
    for path in source.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert (destination / path.relative_to(source)).read_bytes() == path.read_bytes()


async def test_what_was_there_is_replaced_or_kept(tmp_path: Path) -> None:
    (tmp_path / "keep").write_bytes(b"kept")
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "was-dir" / "sub").mkdir(parents=True)
    (tmp_path / "was-file").write_bytes(b"")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "old").write_bytes(b"old")
    (tmp_path / "dir").chmod(0o500)
    entries = [
        (file(b"dir", MODE_DIR | 0o555), b""),
        (file(b"dir/new", 0o444), b"n" * 5000),
        (file(b"file", 0o755), b"new"),
        (file(b"was-dir"), b"now a file"),
        (file(b"was-file", MODE_DIR | 0o755), b""),
        (file(b"was-file/empty"), b""),
    ]
    target = DirectoryTarget(tmp_path)
    await export(target, entries)
    assert (tmp_path / "keep").read_bytes() == b"kept"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "was-dir").read_bytes() == b"now a file"
    assert (tmp_path / "was-file" / "empty").read_bytes() == b""
    assert sorted(os.listdir(tmp_path / "dir")) == ["new", "old"]
    info = (tmp_path / "dir").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o555, 1_600_000_000_000_000_001)
    info = (tmp_path / "dir" / "new").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o444, 1_600_000_000_000_000_001)
    assert (target.export.files, target.export.streams, target.export.entries) == (4, 1, 6)
    assert target.export.bytes == 5000 + 3 + 10
    (tmp_path / "dir").chmod(0o755)


async def test_many_files_are_asked_for_a_few_at_a_time(tmp_path: Path) -> None:
    """A daemon that lists a million files and opens all of them does not use up our descriptors."""
    count = directory.MAX_OPEN_REQUESTS * 2 + 10
    serving, peer = begin({0: DirectoryTarget(tmp_path)})
    await peer.send(*(file(b"f%06d" % number).encode() for number in range(count)), END_OF_LISTING)
    asked = 0
    while asked < count:
        batch = min(directory.MAX_OPEN_REQUESTS, count - asked)
        ids = [decode_packet(await peer.receive() or b"").id for _ in range(batch)]
        asked += batch
        assert peer._incoming.size == 0
        for file_id in ids:
            await peer.send(data(file_id, b"%d" % file_id))
        for file_id in reversed(ids):
            await peer.send(end_of_file(file_id))
    assert await peer.receive() == FIN
    await peer.send(FIN)
    await serving
    assert (tmp_path / f"f{count - 1:06d}").read_bytes() == b"%d" % (count - 1)
    assert len(os.listdir(tmp_path)) == count


async def test_streams_of_two_platforms_share_a_directory(tmp_path: Path) -> None:
    """A directory that one stream makes read-only stays open until the other one is through."""
    target = DirectoryTarget(tmp_path)
    first, peer = begin({0: target})
    second, other = begin({0: target})
    for end, name in [(peer, b"usr/a"), (other, b"usr/b")]:
        await end.send(file(b"usr", MODE_DIR | 0o555).encode(), file(name).encode(), END_OF_LISTING)
    while target.export.entries < 4:  # both have begun
        await asyncio.sleep(0)
    await answer(peer, [b"", b"from a"])
    await first
    assert stat.S_IMODE((tmp_path / "usr").stat().st_mode) == 0o700
    await answer(other, [b"", b"from b"])
    await second
    info = (tmp_path / "usr").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o555, 1_600_000_000_000_000_001)
    assert {path.name: path.read_bytes() for path in (tmp_path / "usr").iterdir()} == {
        "a": b"from a",
        "b": b"from b",
    }
    assert target.export.streams == 2
    (tmp_path / "usr").chmod(0o755)


@pytest.mark.parametrize("end", ["half-close", "lose", "cancel"])
async def test_any_end_after_our_last_word_is_a_success(tmp_path: Path, end: str) -> None:
    target = DirectoryTarget(tmp_path)
    serving, peer = begin({0: target})
    await peer.send(file(b"f").encode(), END_OF_LISTING)
    assert decode_packet(await peer.receive() or b"").type is PacketType.REQ
    await peer.send(data(0, b"x"), end_of_file(0))
    assert await peer.receive() == FIN
    if end == "half-close":
        peer.end()
        await serving
    elif end == "lose":
        peer.lose()
        await serving
    else:
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert target.export.streams == 1
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("end", ["half-close", "lose", "cancel", "error"])
async def test_an_early_end_leaves_no_partial_file(tmp_path: Path, end: str) -> None:
    target = DirectoryTarget(tmp_path)
    serving, peer = begin({0: target})
    await peer.send(file(b"done").encode(), file(b"partial").encode(), END_OF_LISTING)
    for _ in range(2):
        assert decode_packet(await peer.receive() or b"").type is PacketType.REQ
    await peer.send(data(0, b"x"), end_of_file(0), data(1, b"y"))
    while target.export.bytes < 2:
        await asyncio.sleep(0)
    match end:
        case "half-close":
            peer.end()
            with pytest.raises(ProtocolError, match="before its end"):
                await serving
        case "lose":
            peer.lose()
            with pytest.raises(SessionClosed):
                await serving
        case "cancel":
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
        case _:
            await peer.send(encode_error("disk on fire"))
            with pytest.raises(PeerError, match="disk on fire"):
                await serving
    await cleaned(tmp_path, ["done"])
    assert target.export.streams == 0


async def cleaned(path: Path, names: list[str]) -> None:
    """Clean-up goes on in its thread after the call; wait for it."""
    async with asyncio.timeout(10):
        while os.listdir(path) != names:
            await asyncio.sleep(0.001)


HOSTILE = {
    "parent": [file(b"../evil")],
    "absolute": [file(b"/evil")],
    "listed parent": [file(b"..", MODE_DIR | 0o755), file(b"../evil")],
    "listed parent inside": [
        file(b"a", MODE_DIR | 0o755),
        file(b"a/..", MODE_DIR | 0o755),
        file(b"a/../..", MODE_DIR | 0o755),
        file(b"a/../../evil"),
    ],
    "listed root": [file(b"", MODE_DIR | 0o755), file(b"/evil")],
    "long path": [file(b"/".join([b"d" * 200] * depth), MODE_DIR | 0o755) for depth in range(1, 84)],
    "dots inside": [file(b"a", MODE_DIR | 0o755), file(b"a/../../evil")],
    "dot": [file(b".", MODE_DIR)],
    "empty": [file(b"")],
    "trailing slash": [file(b"a/", MODE_DIR)],
    "double slash": [file(b"a", MODE_DIR), file(b"a//b")],
    "nul": [file(b"a\0b")],
    "long": [file(b"x" * 256)],
    "deep": [file(b"/".join([b"d" * 250] * depth), MODE_DIR | 0o755) for depth in range(1, 70)],
    "unlisted parent": [file(b"a/b")],
    "symlink as parent": [
        Stat(path=b"a", mode=MODE_SYMLINK | 0o777, linkname=b"../outside"),
        file(b"a/evil"),
    ],
    "file as parent": [file(b"a"), file(b"a/b")],
    "twice": [file(b"a"), file(b"a")],
    "order": [file(b"b"), file(b"a")],
    "link to nowhere": [Stat(path=b"a", mode=0o644, linkname=b"missing")],
    "link outside": [Stat(path=b"a", mode=0o644, linkname=b"../outside/secret")],
    "link without target": [Stat(path=b"a", mode=MODE_SYMLINK)],
    "link with nul": [Stat(path=b"a", mode=MODE_SYMLINK, linkname=b"x\0y")],
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_listings_are_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    destination = tmp_path / "destination"
    serving, peer = begin({0: DirectoryTarget(destination)})
    await peer.send(*(entry.encode() for entry in HOSTILE[case]), END_OF_LISTING)
    # By what is said of the listing, not by what the disk then makes of it.
    said = r"^a (listing|listed path) has|^changes out of order|which was not listed|has no valid target"
    with pytest.raises(ProtocolError, match=said):
        await serving
    assert sorted(os.listdir(tmp_path)) == ["destination", "outside"]
    assert os.listdir(tmp_path / "outside") == ["secret"]


async def test_existing_symlinks_are_replaced_and_not_followed(tmp_path: Path) -> None:
    """Links that lie in the destination already lead nowhere."""
    outside, destination = tmp_path / "outside", tmp_path / "destination"
    outside.mkdir(mode=0o700)
    destination.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    (destination / "dir").symlink_to(outside)
    (destination / "file").symlink_to(outside / "victim")
    entries = [(file(b"dir", MODE_DIR | 0o755), b""), (file(b"dir/victim"), b"new"), (file(b"file"), b"new")]
    await export(DirectoryTarget(destination), entries)
    assert (outside / "victim").read_bytes() == b"untouched"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700
    assert not (destination / "dir").is_symlink()
    assert (destination / "dir" / "victim").read_bytes() == b"new"
    assert (destination / "file").read_bytes() == b"new"
    assert not (destination / "file").is_symlink()


async def test_a_directory_swapped_for_a_symlink_is_not_entered(tmp_path: Path) -> None:
    """Even when it happens between the listing and the data."""
    outside, destination = tmp_path / "outside", tmp_path / "destination"
    outside.mkdir()
    serving, peer = begin({0: DirectoryTarget(destination)})
    directories = [file(b"d%03d" % number, MODE_DIR | 0o755) for number in range(100)]
    await peer.send(*(entry.encode() for entry in directories))
    await peer.send(file(b"d099/x").encode(), END_OF_LISTING)
    assert decode_packet(await peer.receive() or b"").type is PacketType.REQ
    (destination / "d099").rename(destination / "moved")
    (destination / "d099").symlink_to(outside)
    await peer.send(data(100, b"x"), end_of_file(100))
    with pytest.raises(CallError, match="cannot write"):
        await serving
    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    "message",
    [
        data(0, b"not asked for"),
        end_of_file(5),
        FIN,
        b"\x08\x01",
        b"\x08\x09",
        b"\xff",
        b"\x12\x05abc",
        b"\x0b",
    ],
)
async def test_packets_out_of_place_are_refused(message: bytes, tmp_path: Path) -> None:
    serving, peer = begin({0: DirectoryTarget(tmp_path)})
    await peer.send(message)
    with pytest.raises(ProtocolError):
        await serving


async def test_devices_are_left_out_where_they_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    null = Stat(path=b"null", mode=MODE_DEVICE | MODE_CHAR_DEVICE | 0o666, devmajor=1, devminor=3)
    linked = Stat(path=b"null2", mode=null.mode, devmajor=1, devminor=3, linkname=b"null")
    target = DirectoryTarget(tmp_path)
    await export(target, [(null, b""), (linked, b""), (file(b"plain"), b"x")])
    assert os.listdir(tmp_path) == ["plain"]
    assert [text.partition(":")[0] for text in target.export.warnings] == [
        "'null' was left out",
        "'null2' was left out",
    ]


@pytest.mark.skipif(not ROOT, reason="gives up root's rights, which ignore modes")
def test_read_only_directories_do_not_stop_an_ordinary_user() -> None:
    """Modes are set at the end, from the inside out; a second export into them works as well."""
    root = Path(tempfile.mkdtemp(prefix="export-"))
    try:
        os.chown(root, 65534, 65534)
        os.seteuid(65534)
        try:
            for content in (b"first", b"second"):
                writer = DirectoryWriter(DirectoryTarget(root))
                listed = [file(b"a", MODE_DIR | 0o400), file(b"a/b", MODE_DIR), file(b"a/b/f", 0o000)]
                writer.process([*(entry.encode() for entry in listed), END_OF_LISTING])
                assert writer.process([data(2, content), end_of_file(2)]) == [FIN]
                assert writer.written
        finally:
            os.seteuid(0)
        assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b", "a/b/f")] == [0o400, 0, 0]
        assert (root / "a" / "b" / "f").read_bytes() == b"second"
    finally:
        shutil.rmtree(root)


async def test_delete_needs_one_stream_for_all_platforms(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"")
    serving, _ = begin({0: DirectoryTarget(tmp_path, delete=True)})
    with pytest.raises(CallError, match="mode=delete") as caught:
        await serving
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert os.listdir(tmp_path) == ["old"]


async def test_delete_removes_what_is_not_exported(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "safe").write_bytes(b"")
    destination = tmp_path / "destination"
    (destination / "old" / "sub").mkdir(parents=True)
    (destination / "dir").mkdir()
    (destination / "dir" / "stale").write_bytes(b"")
    (destination / "link").symlink_to(outside)
    marker = [("buildkit-exporter-multi-platform", "1")]
    serving, peer = begin({0: DirectoryTarget(destination, delete=True)}, metadata=marker)
    await peer.send(file(b"dir", MODE_DIR | 0o755).encode(), file(b"dir/new").encode(), END_OF_LISTING)
    await answer(peer, [b"", b"x"])
    await serving
    assert sorted(str(path.relative_to(destination)) for path in destination.rglob("*")) == ["dir", "dir/new"]
    assert (outside / "safe").exists()


async def test_messages_without_content_are_counted_too() -> None:
    """A daemon could else fill the memory with what is nothing to write."""
    target = Slow()
    taken = 0

    class Endless(MemoryCall):
        async def receive(self) -> bytes | None:
            nonlocal taken
            taken += 1
            if not taken % 1000:
                await asyncio.sleep(0)
            return b""

    call, _ = call_pair(DIFF_COPY, [("buildkit-attachable-exporter-id", "0")])
    endless = Endless.__new__(Endless)
    endless.__dict__.update(call.__dict__)
    serving = asyncio.ensure_future(FileSend({0: target}).methods()[DIFF_COPY](endless))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert taken < 200_000
    serving.cancel()
    await asyncio.wait([serving])
