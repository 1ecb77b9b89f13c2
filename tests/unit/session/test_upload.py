"""Streams that are read once and served as often as a daemon asks."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import pytest

from buildkit_py.pb import upload_pb2
from buildkit_py.session.attachable import CallError, Code
from buildkit_py.session.upload import PULL, Replay, Upload, new_url
from tests.support.calls import call_pair

DATA = os.urandom(1 << 20) + b"end"


async def pull(upload: Upload, url: str) -> bytes:
    path = "/" + url.rpartition("/")[2]
    ours, daemon = call_pair(PULL, [("urlpath", path), ("urlhost", "buildkit-session")])
    parts: list[bytes] = []

    async def receive() -> None:
        while (message := await daemon.receive()) is not None:
            parts.append(upload_pb2.BytesMessage.FromString(message).data)

    receiving = asyncio.ensure_future(receive())
    try:
        await upload.methods()[PULL](ours)
    finally:
        ours.end()
        await receiving
    return b"".join(parts)


def stream_of(kind: str, folder: Path) -> io.BufferedIOBase:
    if kind == "memory":
        return io.BytesIO(DATA)
    if kind == "file":
        (folder / "file").write_bytes(b"before" + DATA)
        file = (folder / "file").open("rb")
        file.read(6)
        return file
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as end:
            end.write(DATA)

    asyncio.get_running_loop().run_in_executor(None, feed)
    return os.fdopen(reading, "rb")


@pytest.mark.parametrize("kind", ["memory", "file", "pipe"])
async def test_a_stream_is_served_again_and_to_several_at_once(kind: str, tmp_path: Path) -> None:
    """From where it stands; what was looked at before comes too."""
    with stream_of(kind, tmp_path) as stream:
        replay = Replay(stream)
        assert await replay.head(1024) == DATA[:1024]
        url = new_url()
        upload = Upload({url: replay})
        assert await asyncio.gather(*(pull(upload, url) for _ in range(3))) == [DATA] * 3
        assert await pull(upload, url) == DATA
        assert replay.sent == 4 * len(DATA)


async def test_a_slow_stream_is_served_as_it_comes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        replay = Replay(stream)
        os.write(writing, b"first")
        assert await replay.read(0, 100) == b"first"
        later = asyncio.ensure_future(replay.read(5, 100))
        await asyncio.sleep(0)
        os.write(writing, b"second")
        assert await later == b"second"
        os.close(writing)
        assert await replay.read(11, 100) == b""
        assert await replay.head(100) == b"firstsecond"


async def test_nobody_else_can_guess_a_url() -> None:
    with pytest.raises(CallError, match="nothing is served at /x") as caught:
        await pull(Upload({new_url(): Replay(io.BytesIO(DATA))}), "/x")
    assert caught.value.code is Code.NOT_FOUND
    assert len({new_url() for _ in range(100)}) == 100


async def test_a_stream_that_fails_fails_its_source() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    url = new_url()
    with pytest.raises(CallError, match="tar: cannot be read: Input/output error"):
        await pull(Upload({url: Replay(Broken(), what="tar")}), url)
