"""Directories served to a daemon: what it gets, what it cannot get, and how a transfer ends."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from buildkit_py.errors import InvalidOption, PeerError, ProtocolError, SessionClosed
from buildkit_py.session import filesync, walk
from buildkit_py.session.attachable import CallError, Code
from buildkit_py.session.filesync import (
    CHUNK_BYTES,
    DIFF_COPY,
    TAR_STREAM,
    Directory,
    FileSync,
    LocalDir,
    MemoryDir,
    read_filters,
)
from buildkit_py.session.fsutil import FIN, PacketType, Stat, decode_packet, encode_error, encode_request
from buildkit_py.session.grpc_server import GrpcServer
from buildkit_py.session.walk import FileOpener, Folder, MemoryTree
from tests.support.calls import call_pair
from tests.support.h2peer import memory_pair, open_peer

Metadata = Sequence[tuple[str, str]]


class Daemon:
    """Receives a directory as a daemon does; files that it is told to leave out are not requested."""

    def __init__(self, sync: FileSync, name: str = "context", metadata: Metadata = ()) -> None:
        call, self.peer = call_pair(DIFF_COPY, [("dir-name", name), *metadata])
        self.serving = asyncio.ensure_future(sync.methods()[DIFF_COPY](call))
        self.stats: list[Stat] = []
        self.files: dict[bytes, bytes] = {}
        self.chunks: list[int] = []

    async def receive(self, *, wanted: bool = True) -> dict[bytes, bytes]:
        """Run a whole transfer; content by path."""
        open_files: dict[int, bytearray] = {}
        listed_all = False
        while not (listed_all and not open_files):
            packet = decode_packet(await self.message())
            match packet.type:
                case PacketType.STAT if packet.stat is None:
                    listed_all = True
                case PacketType.STAT:
                    assert packet.stat is not None
                    if wanted and packet.stat.has_data:
                        open_files[len(self.stats)] = bytearray()
                        await self.peer.send(encode_request(len(self.stats)))
                    self.stats.append(packet.stat)
                case PacketType.DATA if packet.data:
                    open_files[packet.id] += packet.data
                    self.chunks.append(len(packet.data))
                case PacketType.DATA:
                    self.files[self.stats[packet.id].path] = bytes(open_files.pop(packet.id))
                case _:
                    raise AssertionError(packet)
        await self.finish()
        return self.files

    async def message(self) -> bytes:
        message = await self.peer.receive()
        assert message is not None
        return message

    async def finish(self) -> None:
        await self.peer.send(FIN)
        assert await self.message() == FIN
        await self.serving


async def transfer(directory: Directory, metadata: Metadata = ()) -> dict[bytes, bytes]:
    return await Daemon(FileSync({"context": directory}), metadata=metadata).receive()


async def test_a_tree_arrives_as_it_is(tmp_path: Path) -> None:
    big = os.urandom(3 * CHUNK_BYTES + 17)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "big").write_bytes(big)
    (tmp_path / "d" / "exact").write_bytes(big[:CHUNK_BYTES])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "small").write_bytes(b"text")
    (tmp_path / "link").symlink_to("small")
    sync = FileSync({"context": LocalDir(tmp_path)})
    daemon = Daemon(sync)
    files = await daemon.receive()
    assert files == {b"d/big": big, b"d/exact": big[:CHUNK_BYTES], b"empty": b"", b"small": b"text"}
    assert [entry.path for entry in daemon.stats] == [b"d", b"d/big", b"d/exact", b"empty", b"link", b"small"]
    assert max(daemon.chunks) <= CHUNK_BYTES
    (seen,) = sync.transfers
    assert (seen.listed, seen.visited, seen.requested, seen.files_sent) == (6, 6, 4, 4)
    assert (seen.bytes_sent, seen.done, seen.warnings) == (sum(map(len, files.values())), True, [])


async def test_an_unchanged_tree_costs_no_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    sync = FileSync({"context": LocalDir(tmp_path)})
    assert await Daemon(sync).receive(wanted=False) == {}
    assert (sync.transfers[0].listed, sync.transfers[0].requested, sync.transfers[0].done) == (1, 0, True)


async def test_thousands_of_files_in_any_mix_of_sizes(tmp_path: Path) -> None:
    """More than fit one batch, one go of a reader, or the pipe between the ends."""
    expected: dict[bytes, bytes] = {}
    for number in range(1500):
        size = (number * 7919) % 3000 if number % 100 else CHUNK_BYTES + number * 300
        directory = tmp_path / f"d{number % 13}"
        directory.mkdir(exist_ok=True)
        content = bytes([number % 251]) * size
        (directory / str(number)).write_bytes(content)
        expected[f"d{number % 13}/{number}".encode()] = content
    assert await transfer(LocalDir(tmp_path)) == expected


async def test_several_readers_give_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is slow, files are read side by side."""
    monkeypatch.setattr(filesync, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(filesync, "GATHER_FILES", 3)
    expected = {b"%03d" % number: os.urandom(1 + number * 3000) for number in range(200)}
    for name, content in expected.items():
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    assert await transfer(LocalDir(tmp_path)) == expected


class SlowDir(MemoryDir):
    """A directory in memory; what is below ``z`` is listed when the event is set."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(files)
        self.go_on = threading.Event()
        self._slow = _SlowTree(self._tree.files, self.go_on)

    def tree(self) -> MemoryTree:
        return self._slow


class _SlowTree(MemoryTree):
    def __init__(self, files: Mapping[bytes, bytes], go_on: threading.Event) -> None:
        super().__init__(files, 1)
        self._go_on = go_on

    def open(self, path: bytes) -> Folder:
        return _SlowFolder(super().open(path), self._go_on)


class _SlowFolder:
    def __init__(self, folder: Folder, go_on: threading.Event) -> None:
        self._folder = folder
        self._go_on = go_on
        self.scan, self.open, self.read_link, self.close = folder.scan, folder.open, folder.read_link, folder.close

    def xattrs(self, name: bytes) -> Mapping[bytes, bytes]:
        assert name != b"z" or self._go_on.wait(10)
        return self._folder.xattrs(name)


async def test_requests_are_answered_while_the_listing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that waits for the first file before it reads on must get it."""
    monkeypatch.setattr(walk, "BATCH_ENTRIES", 1)
    directory = SlowDir({"a": b"first", "z/b": b""})
    daemon = Daemon(FileSync({"context": directory}))
    assert decode_packet(await daemon.message()).type is PacketType.STAT
    await daemon.peer.send(encode_request(0))
    assert decode_packet(await daemon.message()).data == b"first"
    directory.go_on.set()
    while await daemon.message() != b"":
        pass
    await daemon.finish()


async def test_names_that_are_not_utf8_travel(tmp_path: Path) -> None:
    name = b"caf\xe9"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"latin")
    os.symlink(b"\xff", os.path.join(os.fsencode(tmp_path), b"link"))
    daemon = Daemon(FileSync({"context": LocalDir(tmp_path)}))
    assert await daemon.receive() == {name: b"latin"}
    assert daemon.stats[1].linkname == b"\xff"


async def test_unknown_names_are_refused(tmp_path: Path) -> None:
    sync = FileSync({"context": LocalDir(tmp_path)})
    for metadata in ([("dir-name", "other")], []):
        call, _ = call_pair(DIFF_COPY, metadata)
        with pytest.raises(CallError, match="no access allowed to dir") as caught:
            await sync.methods()[DIFF_COPY](call)
        assert caught.value.code is Code.NOT_FOUND
    assert not sync.transfers


async def test_the_dead_method_is_refused() -> None:
    call, _ = call_pair(TAR_STREAM, [("dir-name", "context")])
    with pytest.raises(CallError) as caught:
        await FileSync({}).methods()[TAR_STREAM](call)
    assert caught.value.code is Code.UNIMPLEMENTED


def test_filters_are_read_from_the_headers() -> None:
    metadata = [
        ("dir-name", "context"),
        ("include-patterns", "a+b%20c"),
        ("include-patterns", "d"),
        ("exclude-patterns", quote_plus("é +x")),
        ("exclude-patterns", "y+z"),
        ("exclude-patterns-encoded", "1"),
        ("followpaths", "%C3%A9"),
        ("followpaths-encoded", "0"),
    ]
    filters = read_filters(metadata)
    assert filters.include == ("a+b%20c", "d")
    assert filters.exclude == ("é +x", "y z")
    assert filters.follow == ("%C3%A9",)
    # Bytes that are no text stay what they are.
    (path,) = read_filters([("followpaths", "%FF%2Fx"), ("followpaths-encoded", "1")]).follow
    assert os.fsencode(path) == b"\xff/x"


async def test_filters_are_applied(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ["d/a.go", "d/a.log", "b", "é"]:
        (tmp_path / name).write_bytes(name.encode())
    metadata = [
        ("exclude-patterns", "**%2F*.log"),
        ("exclude-patterns", quote_plus("é")),
        ("exclude-patterns-encoded", "true"),
    ]
    files = await transfer(LocalDir(tmp_path), metadata)
    assert sorted(files) == [b"b", b"d/a.go"]


@pytest.mark.parametrize("swap", ["missing", "symlink", "directory", "fifo", "parent"])
async def test_files_that_changed_into_something_else_arrive_empty(tmp_path: Path, swap: str) -> None:
    """Above all, a symlink that takes a file's place gives nothing from elsewhere away."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d").mkdir(parents=True)
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    (root / "d" / "f").write_bytes(b"public")
    sync = FileSync({"context": LocalDir(root)})
    daemon = Daemon(sync)
    while await daemon.message() != b"":
        pass
    if swap == "parent":
        (root / "d").rename(root / "moved")
        (root / "d").symlink_to(outside)
    else:
        (root / "d" / "f").unlink()
        match swap:
            case "symlink":
                (root / "d" / "f").symlink_to(outside / "f")
            case "directory":
                (root / "d" / "f").mkdir()
            case "fifo":
                os.mkfifo(root / "d" / "f")
            case _:
                pass
    await daemon.peer.send(encode_request(1))
    packet = decode_packet(await daemon.message())
    assert (packet.type, packet.id, packet.data) == (PacketType.DATA, 1, b"")
    await daemon.finish()
    (seen,) = sync.transfers
    assert seen.warning_count == 1
    assert seen.warnings[0].startswith("d/f was sent empty: ")


async def test_a_socket_is_an_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sync = FileSync({"context": LocalDir(tmp_path)})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert await Daemon(sync).receive() == {b"s": b""}
    assert sync.transfers[0].warnings == []


async def test_files_that_grow_or_shrink_are_sent_as_they_are(tmp_path: Path) -> None:
    """Sizes in the listing bind nobody."""
    for name in "abc":
        (tmp_path / name).write_bytes(b"x" * 10)
    daemon = Daemon(FileSync({"context": LocalDir(tmp_path)}))
    while await daemon.message() != b"":
        pass
    (tmp_path / "a").write_bytes(b"y" * (2 * CHUNK_BYTES + 5))
    (tmp_path / "b").write_bytes(b"")
    await daemon.peer.send(*map(encode_request, range(3)))
    content = {0: b"", 1: b"", 2: b""}
    ended: set[int] = set()
    while len(ended) < 3:
        packet = decode_packet(await daemon.message())
        assert packet.id not in ended
        content[packet.id] += packet.data
        if not packet.data:
            ended.add(packet.id)
    assert content == {0: b"y" * (2 * CHUNK_BYTES + 5), 1: b"", 2: b"x" * 10}
    await daemon.finish()


async def test_a_file_that_grows_while_it_is_read_is_sent_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(CHUNK_BYTES + 100)
    (tmp_path / "f").write_bytes(content)
    (tmp_path / "g").write_bytes(b"next")
    real = FileOpener.open

    def earlier(opener: FileOpener, path: bytes) -> tuple[int, int]:
        return real(opener, path)[0], 4

    monkeypatch.setattr(FileOpener, "open", earlier)
    assert await transfer(LocalDir(tmp_path)) == {b"f": content, b"g": b"next"}


@pytest.mark.parametrize("request_id", [0, 2, 77])
async def test_requests_for_what_has_no_content_end_the_call(tmp_path: Path, request_id: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "l").symlink_to("f")
    daemon = Daemon(FileSync({"context": LocalDir(tmp_path)}))
    while await daemon.message() != b"":
        pass
    await daemon.peer.send(encode_request(request_id))
    with pytest.raises(ProtocolError, match=f"invalid file id {request_id}"):
        await daemon.serving


async def test_a_file_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    daemon = Daemon(FileSync({"context": LocalDir(tmp_path)}))
    while await daemon.message() != b"":
        pass
    await daemon.peer.send(encode_request(0), encode_request(0))
    with pytest.raises(ProtocolError, match="invalid file id 0"):
        await daemon.serving


@pytest.mark.parametrize("end", ["half-close", "lose", "cancel", "error"])
async def test_an_early_end_leaves_nothing_running(tmp_path: Path, end: str) -> None:
    """In the middle of a large file, with everything waiting for the daemon to read."""
    (tmp_path / "big").write_bytes(bytes(20 << 20))
    before = set(asyncio.all_tasks())
    descriptors = len(os.listdir("/proc/self/fd"))
    daemon = Daemon(FileSync({"context": LocalDir(tmp_path)}))
    while await daemon.message() != b"":
        pass
    await daemon.peer.send(encode_request(0))
    assert decode_packet(await daemon.message()).data
    match end:
        case "half-close":
            daemon.peer.end()
            with pytest.raises(ProtocolError, match="before its end"):
                await daemon.serving
        case "lose":
            daemon.peer.lose()
            with pytest.raises(SessionClosed):
                await daemon.serving
        case "cancel":
            daemon.serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await daemon.serving
        case _:
            await daemon.peer.send(encode_error("no space left"))
            with pytest.raises(PeerError, match="error from receiver: no space left"):
                await daemon.serving
    assert asyncio.all_tasks() == before
    async with asyncio.timeout(10):  # threads close what they hold when they are through
        while len(os.listdir("/proc/self/fd")) > descriptors:
            await asyncio.sleep(0.001)


async def test_a_tree_that_cannot_be_listed_is_an_error_for_the_daemon(tmp_path: Path) -> None:
    """As a packet, for the message of the build, and as the status of the call."""
    sync = FileSync({"context": LocalDir(tmp_path)})
    daemon = Daemon(sync, metadata=[("include-patterns", "[")])
    packet = decode_packet(await daemon.message())
    assert packet.type is PacketType.ERR
    assert packet.data == b"invalid includepatterns: [[]: syntax error in pattern"
    with pytest.raises(CallError, match="invalid includepatterns"):
        await daemon.serving


async def test_a_directory_that_is_gone_is_an_error_for_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    sync = FileSync({"context": LocalDir(tmp_path / "context")})
    (tmp_path / "context").rmdir()
    daemon = Daemon(sync)
    assert decode_packet(await daemon.message()).type is PacketType.ERR
    with pytest.raises(CallError, match="No such file or directory"):
        await daemon.serving


async def test_a_read_error_ends_the_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike a file that cannot be opened: a part of it may have been sent."""
    (tmp_path / "f").write_bytes(b"x")

    def fail(fd: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fail)
    daemon = Daemon(FileSync({"context": LocalDir(tmp_path)}))
    while await daemon.message() != b"":
        pass
    await daemon.peer.send(encode_request(0))
    assert decode_packet(await daemon.message()).data == b"cannot read f: Input/output error"
    with pytest.raises(CallError, match="cannot read f: Input/output error"):
        await daemon.serving


async def test_a_directory_in_memory(tmp_path: Path) -> None:
    content = {"Dockerfile": b"FROM scratch\n", "a/b/c": os.urandom(CHUNK_BYTES + 1), "a.txt": b"", "é": b"x"}
    directory = MemoryDir(content, mtime_ns=12)
    daemon = Daemon(FileSync({"dockerfile": directory}), "dockerfile")
    assert await daemon.receive() == {name.encode(): data for name, data in content.items()}
    assert [entry.path.decode() for entry in daemon.stats] == [
        "Dockerfile",
        "a",
        "a/b",
        "a/b/c",
        "a.txt",
        "é",
    ]
    assert {entry.mtime_ns for entry in daemon.stats} == {12}
    follow = [("followpaths", "Dockerfile"), ("followpaths", "Dockerfile.dockerignore")]
    assert await transfer(directory, follow) == {b"Dockerfile": b"FROM scratch\n"}


async def test_two_directories_in_memory_differ_in_time() -> None:
    """A daemon takes a file of equal size and time for the same."""
    times: list[int] = []
    for content in (b"one", b"two"):
        daemon = Daemon(FileSync({"context": MemoryDir({"f": content})}))
        await daemon.receive()
        times.append(daemon.stats[0].mtime_ns)
    assert times[0] < times[1]


@pytest.mark.parametrize("path", ["", "/a", "a/", "../a", "a//b", ".", "a\0b", "x" * 256])
def test_paths_in_memory_are_checked(path: str) -> None:
    with pytest.raises(InvalidOption, match="not a relative path"):
        MemoryDir({path: b""})


def test_a_file_in_memory_is_no_directory() -> None:
    with pytest.raises(InvalidOption, match="both a file and a directory"):
        MemoryDir({"a": b"", "a/b/c": b""})


def test_only_directories_can_be_served(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    for path, reason in [("f", "Not a directory"), ("none", "No such file"), ("a\0b", "null")]:
        with pytest.raises(InvalidOption, match=reason):
            LocalDir(tmp_path / path)


async def test_a_transfer_through_the_session_server(tmp_path: Path) -> None:
    """The same handler behind real HTTP/2: windows, frames and trailers."""
    big = os.urandom(3 << 20)
    (tmp_path / "big").write_bytes(big)
    for number in range(300):
        (tmp_path / f"f{number:03}").write_bytes(b"%d" % number)
    server = GrpcServer(FileSync({"context": LocalDir(tmp_path)}).methods())
    ours, theirs = memory_pair()
    serving = asyncio.ensure_future(server.serve(ours))
    async with asyncio.timeout(20), open_peer(theirs) as peer:
        call = await peer.call(DIFF_COPY, [("dir-name", "context"), ("exclude-patterns", "f29*")])
        content: dict[int, bytes] = {}
        listed = ended = 0
        listed_all = False
        while not listed_all or ended < listed:
            message = await call.receive()
            assert message is not None
            packet = decode_packet(message)
            if packet.type is PacketType.DATA:
                content[packet.id] = content.get(packet.id, b"") + packet.data
                ended += not packet.data
            elif packet.stat is None:
                listed_all = True
            else:
                await call.send(encode_request(listed))
                listed += 1
        await call.send(FIN)
        assert await call.receive() == FIN
        status = await call.ended()
        assert (status.code, status.message) == (0, "")
        assert content == {0: big, **{number + 1: b"%d" % number for number in range(290)}}
        missing = await peer.call(DIFF_COPY, [("dir-name", "other")])
        status = await missing.ended()
        assert (status.code, status.message) == (Code.NOT_FOUND, 'no access allowed to dir "other"')
        server.shutdown()
        await serving
