"""Cost of serving and receiving directories, without a daemon and without the tunnel.

Run: python -m tests.benchmarks.bench_filesync [serve|receive|all] [--profile]

A second process is the peer; messages go over a socket pair with a length before each. CPU and memory are those of
this process, so what they show is the library's own work: walking, coding packets, reading and writing files.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import os
import platform
import pstats
import resource
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from buildkit_py.session import filesend, filesync
from buildkit_py.session.directory import DirectoryTarget
from buildkit_py.session.filesend import FileSend, FileTarget
from buildkit_py.session.filesync import FileSync, LocalDir
from buildkit_py.session.fsutil import (
    END_OF_LISTING,
    FIN,
    Stat,
    data_header,
    encode_bytes_message,
    encode_request,
    end_of_file,
)

SMALL_FILES = 50_000
BIG_BYTES = 1 << 30
CHUNK = 256 * 1024


class SocketCall:
    """A call whose messages have their length before them."""

    method = ""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self.metadata = [("dir-name", name)]
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes | None:
        try:
            (size,) = struct.unpack("<I", await self._reader.readexactly(4))
            return await self._reader.readexactly(size) if size else b""
        except asyncio.IncompleteReadError:
            return None

    async def send(self, *messages: bytes | bytearray | memoryview) -> None:
        buffers: list[bytes | bytearray | memoryview] = []
        for message in messages:
            buffers += (struct.pack("<I", len(message)), message)
        self._writer.writelines(buffers)
        await self._writer.drain()


class Peer:
    """The other process's end: blocking, buffered."""

    def __init__(self, end: socket.socket) -> None:
        self._reader = end.makefile("rb", buffering=1 << 20)
        self._writer = end.makefile("wb", buffering=1 << 16)

    def receive(self) -> bytes:
        (size,) = struct.unpack("<I", self._reader.read(4))
        return self._reader.read(size) if size else b""

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._writer.write(struct.pack("<I", len(message)))
            self._writer.write(message)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self.flush()
        self._writer.close()
        self._reader.close()


def receive_everything(end: socket.socket, wanted: bool) -> None:
    """Play a daemon that fetches a directory: everything, or only its listing."""
    peer = Peer(end)
    listed = open_files = 0
    listed_all = False
    while not listed_all or open_files:
        message = peer.receive()
        if not message:
            listed_all = True
        elif message[0] == 0x12:
            # Regular files have the type bits zero, which makes their mode a varint of one or two bytes.
            path_end = 4 + message[3] if message[1] < 0x80 else 5 + message[4]
            if wanted and message[path_end] == 0x10 and not message[path_end + 2] & 0x80:
                open_files += 1
                peer.send(encode_request(listed))
                if not open_files % 64:
                    peer.flush()
            listed += 1
        elif len(message) < 9:
            open_files -= 1
        if listed_all or not listed % 1000:
            peer.flush()
    peer.send(FIN)
    peer.flush()
    assert peer.receive() == FIN
    peer.close()


def send_files(end: socket.socket, count: int) -> None:
    """Play the local exporter."""
    peer = Peer(end)
    for number in range(count):
        if not number % 1000:
            peer.send(Stat(path=b"d%02d" % (number // 1000), mode=1 << 31 | 0o755, mtime_ns=1).encode())
        peer.send(Stat(path=b"d%02d/f%05d" % (number // 1000, number), mode=0o644, mtime_ns=1).encode())
    peer.send(END_OF_LISTING)
    peer.flush()
    for _ in range(count):
        message = peer.receive()
        file_id = 0
        for shift, byte in enumerate(message[3:]):
            file_id |= (byte & 0x7F) << 7 * shift
        peer.send(data_header(file_id, 2000) + bytes(2000), end_of_file(file_id))
        peer.flush()
    assert peer.receive() == FIN
    peer.send(FIN)
    peer.close()


def send_stream(end: socket.socket, size: int) -> None:
    """Play the tar exporter."""
    peer = Peer(end)
    message = encode_bytes_message(bytes(32 * 1024))
    for _ in range(size // (32 * 1024)):
        peer.send(message)
    peer.close()


def measure(
    title: str,
    handle: Callable[[SocketCall], Awaitable[None]],
    play: Callable[[socket.socket, int], None],
    argument: int,
    profile: bool,
) -> None:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(ours, theirs, play, argument))
    child.start()
    theirs.close()

    async def run() -> None:
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        await handle(SocketCall(reader, writer, "context"))
        writer.close()

    profiler = cProfile.Profile() if profile else None
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if profiler:
        profiler.enable()
    asyncio.run(run())
    if profiler:
        profiler.disable()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    child.join()
    assert child.exitcode == 0
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    print(
        f"{title:34} {wall:6.2f} s wall, {user:5.2f} s user, {system:5.2f} s system, "
        f"{after.ru_maxrss // 1024:4} MiB peak so far"
    )
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def _child(
    ours: socket.socket, theirs: socket.socket, play: Callable[[socket.socket, int], None], argument: int
) -> None:
    ours.close()
    play(theirs, argument)


def play_all(end: socket.socket, _: int) -> None:
    receive_everything(end, wanted=True)


def play_unchanged(end: socket.socket, _: int) -> None:
    receive_everything(end, wanted=False)


def make_small(root: Path) -> None:
    for directory in range(SMALL_FILES // 100):
        path = root / f"d{directory // 25:02}" / f"e{directory:03}"
        path.mkdir(parents=True)
        for number in range(100):
            (path / f"file{number:02}.txt").write_bytes(os.urandom(64) * (number % 40))


def make_big(path: Path) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(BIG_BYTES >> 20):
            file.write(block)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["serve", "receive", "all"], default="all")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs")
    root = Path(tempfile.mkdtemp(prefix="bench-filesync-"))
    try:
        if options.what in {"serve", "all"}:
            (root / "small").mkdir()
            make_small(root / "small")
            serve = FileSync({"context": LocalDir(root / "small")}).methods()[filesync.DIFF_COPY]
            measure(f"{SMALL_FILES} files, unchanged", serve, play_unchanged, 0, options.profile)
            measure(f"{SMALL_FILES} files, all sent", serve, play_all, 0, options.profile)
            (root / "big").mkdir()
            make_big(root / "big" / "file")
            serve = FileSync({"context": LocalDir(root / "big")}).methods()[filesync.DIFF_COPY]
            measure("one file of 1 GiB, sent", serve, play_all, 0, options.profile)
            shutil.rmtree(root / "big")
        if options.what in {"receive", "all"}:
            receive = FileSend({0: FileTarget(root / "out.tar")}).methods()[filesend.DIFF_COPY]
            measure("one stream of 1 GiB, received", receive, send_stream, BIG_BYTES, options.profile)
            receive = FileSend({0: DirectoryTarget(root / "out")}).methods()[filesend.DIFF_COPY]
            measure(f"{SMALL_FILES} files, received", receive, send_files, SMALL_FILES, options.profile)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
