"""Directories served to a daemon: what it gets, what it cannot get, and how a transfer ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from buildkit_py.errors import InvalidOption, PeerError, ProtocolError, SessionClosed
from buildkit_py.session import filesync
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
from tests.support.calls import MemoryCall, call_pair

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
