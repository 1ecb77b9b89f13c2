"""The content store: what a daemon may read and write, and what it may not."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption
from buildkit_py.pb import content_pb2
from buildkit_py.session.attachable import CallError, Code
from buildkit_py.session.content import (
    ABORT,
    INFO,
    READ,
    STATUS,
    STORE_HEADER,
    WRITE,
    BlobStore,
    ContentStores,
    Ingest,
    open_layout_store,
)
from tests.support.calls import MemoryCall, call_pair

DATA = os.urandom(3 << 20)
DIGEST = Digest.of(DATA)
STAT, WRITING, COMMIT = content_pb2.STAT, content_pb2.WRITE, content_pb2.COMMIT


class Daemon:
    """Makes calls of one store."""

    def __init__(self, root: Path, *, writable: bool = True) -> None:
        self.store = BlobStore(root, writable=writable)
        self._handlers = ContentStores({"s": self.store}).methods()

    async def unary(self, method: str, request: bytes, store: str = "s") -> bytes:
        ours, daemon = call_pair(method, [(STORE_HEADER, store)])
        await daemon.send(request)
        daemon.end()
        await self._handlers[method](ours)
        answer = await daemon.receive()
        assert answer is not None
        return answer

    async def read(self, digest: Digest | str = DIGEST, offset: int = 0, size: int = 0) -> bytes:
        request = content_pb2.ReadContentRequest(digest=str(digest), offset=offset, size=size)
        ours, daemon = call_pair(READ, [(STORE_HEADER, "s")])
        await daemon.send(request.SerializeToString())
        daemon.end()
        parts = bytearray()

        async def receive() -> None:
            while (message := await daemon.receive()) is not None:
                reply = content_pb2.ReadContentResponse.FromString(message)
                assert reply.offset == len(parts), "offsets count from where the read began"
                assert len(reply.data) <= 1 << 20
                parts.extend(reply.data)

        receiving = asyncio.ensure_future(receive())
        try:
            await self._handlers[READ](ours)
        finally:
            ours.end()
            await receiving
        return bytes(parts)

    def begin(self) -> Writing:
        ours, daemon = call_pair(WRITE, [(STORE_HEADER, "s")])
        return Writing(daemon, asyncio.ensure_future(self._run(ours)))

    async def _run(self, call: MemoryCall) -> None:
        try:
            await self._handlers[WRITE](call)
        finally:
            call.end()

    async def write(self, data: bytes, ref: str = "r", expected: Digest | None = None) -> Digest:
        """As containerd's client writes a blob."""
        writing = self.begin()
        await writing.ask(action=STAT, ref=ref, total=len(data), expected=str(expected or ""))
        reply = await writing.ask(action=WRITING, data=data)
        assert reply.offset == len(data)
        reply = await writing.ask(action=COMMIT, offset=len(data), total=len(data), expected=str(Digest.of(data)))
        await writing.end()
        assert reply.offset == len(data)
        return Digest.parse(reply.digest)


class Writing:
    """One Write call."""

    def __init__(self, call: MemoryCall, serving: asyncio.Future[None]) -> None:
        self.call = call
        self.serving = serving

    async def ask(self, **fields: object) -> content_pb2.WriteContentResponse:
        await self.call.send(content_pb2.WriteContentRequest(**fields).SerializeToString())  # type: ignore[arg-type]
        answer = await self.call.receive()
        if answer is None:
            await self.serving
            raise AssertionError("the call ended without an error")
        return content_pb2.WriteContentResponse.FromString(answer)

    async def end(self) -> None:
        self.call.end()
        await self.serving


def put(root: Path, data: bytes = DATA) -> Digest:
    digest = Digest.of(data)
    path = root / "blobs" / digest.algorithm / digest.hex
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


async def test_blobs_are_read_whole_and_in_parts(tmp_path: Path) -> None:
    put(tmp_path)
    daemon = Daemon(tmp_path, writable=False)
    assert await daemon.read() == DATA
    assert await daemon.read(offset=5, size=7) == DATA[5:12]
    assert await daemon.read(offset=len(DATA) - 3, size=100) == DATA[-3:]
    assert await daemon.read(offset=len(DATA)) == b""
    assert await daemon.read(put(tmp_path, b"")) == b""
    with pytest.raises(CallError) as caught:
        await daemon.read(offset=len(DATA) + 1)
    assert caught.value.code is Code.OUT_OF_RANGE
    assert daemon.store.sent == len(DATA) + 7 + 3


async def test_info_tells_the_size(tmp_path: Path) -> None:
    put(tmp_path)
    request = content_pb2.InfoRequest(digest=str(DIGEST)).SerializeToString()
    reply = content_pb2.InfoResponse.FromString(await Daemon(tmp_path).unary(INFO, request))
    assert (reply.info.digest, reply.info.size) == (str(DIGEST), len(DATA))


@pytest.mark.parametrize("method", [INFO, READ])
async def test_what_is_not_a_blob_is_not_found(tmp_path: Path, method: str) -> None:
    """Neither what is missing, nor a directory, nor a name that leads out."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "blobs" / "sha256" / ("a" * 64)).mkdir(parents=True)
    daemon = Daemon(tmp_path)
    for digest, code in (
        (str(DIGEST), Code.NOT_FOUND),
        ("sha256:" + "a" * 64, Code.NOT_FOUND),
        ("sha256:../../secret", Code.INVALID_ARGUMENT),
        ("../blobs:../../secret", Code.INVALID_ARGUMENT),
        ("", Code.INVALID_ARGUMENT),
    ):
        request = content_pb2.InfoRequest(digest=digest).SerializeToString()  # field 1 of both
        with pytest.raises(CallError) as caught:
            await daemon.unary(method, request)
        assert caught.value.code is code, digest


async def test_stores_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path)
    request = content_pb2.InfoRequest(digest=str(DIGEST)).SerializeToString()
    with pytest.raises(CallError, match="unknown content store 'other'") as caught:
        await Daemon(tmp_path).unary(INFO, request, "other")
    assert caught.value.code is Code.NOT_FOUND
    ours, daemon = call_pair(INFO)
    await daemon.send(request)
    with pytest.raises(CallError, match="lacks the header"):
        await ContentStores({}).methods()[INFO](ours)


async def test_a_blob_is_written_under_its_digest(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "new")
    assert await daemon.write(DATA) == DIGEST
    assert (tmp_path / "new" / "blobs" / "sha256" / DIGEST.hex).read_bytes() == DATA
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["blobs"]
    assert daemon.store.committed == {DIGEST: len(DATA)}
    assert daemon.store.received == len(DATA)
    assert await daemon.read() == DATA


async def test_many_messages_offsets_and_starting_over(tmp_path: Path) -> None:
    """Offset 0 after some bytes means from the beginning; any other that is not the end is refused."""
    daemon = Daemon(tmp_path)
    writing = daemon.begin()
    await writing.ask(action=STAT, ref="r")
    await writing.ask(action=WRITING, data=b"rubbish")
    assert (await writing.ask(action=WRITING, data=DATA[:9])).offset == 9
    assert (await writing.ask(action=STAT)).digest == str(Digest.of(DATA[:9]))
    assert (await writing.ask(action=WRITING, offset=9, data=DATA[9:20])).offset == 20
    reply = await writing.ask(action=COMMIT, offset=20, data=DATA[20:])
    assert reply.digest == str(DIGEST)
    await writing.end()

    writing = daemon.begin()
    await writing.ask(action=STAT, ref="r")
    await writing.ask(action=WRITING, data=b"12345")
    with pytest.raises(CallError, match="a write at 3, where 5 bytes have come") as caught:
        await writing.ask(action=WRITING, offset=3, data=b"x")
    assert caught.value.code is Code.OUT_OF_RANGE


async def test_a_blob_that_exists_is_not_sent_again(tmp_path: Path) -> None:
    """At the first message that names it; it counts as committed, and comes last."""
    put(tmp_path)
    daemon = Daemon(tmp_path)
    other = await daemon.write(b"other")
    for first in (True, False):
        writing = daemon.begin()
        if not first:
            await writing.ask(action=STAT, ref="r")
        with pytest.raises(CallError) as caught:
            await writing.ask(action=COMMIT, ref="r", expected=str(DIGEST))
        assert caught.value.code is Code.ALREADY_EXISTS
    assert list(daemon.store.committed) == [other, DIGEST]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"expected": "sha256:" + "a" * 64}, "has digest .*, expected sha256:aaaa"),
        ({"total": 4}, "more than the 4 bytes that were announced|5 bytes came, 4 were announced"),
        ({"total": 6}, "5 bytes came, 6 were announced"),
    ],
)
async def test_a_blob_that_is_not_what_was_announced(tmp_path: Path, fields: dict[str, object], why: str) -> None:
    daemon = Daemon(tmp_path)
    writing = daemon.begin()
    await writing.ask(action=STAT, ref="r")
    await writing.ask(action=WRITING, data=b"12345")
    with pytest.raises(CallError, match=why) as caught:
        await writing.ask(action=COMMIT, offset=5, **fields)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert not list(tmp_path.iterdir())
    assert not daemon.store.committed


async def test_more_than_was_announced_is_refused_at_once(tmp_path: Path) -> None:
    writing = Daemon(tmp_path).begin()
    await writing.ask(action=STAT, ref="r", total=3)
    with pytest.raises(CallError, match="more than the 3 bytes"):
        await writing.ask(action=WRITING, data=b"1234")


@pytest.mark.parametrize("way", ["half-close", "lost", "cancel"])
async def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path, way: str) -> None:
    daemon = Daemon(tmp_path)
    writing = daemon.begin()
    await writing.ask(action=STAT, ref="r", total=10)
    await writing.ask(action=WRITING, data=b"12345")
    reply = await daemon.unary(STATUS, content_pb2.StatusRequest(ref="r").SerializeToString())
    status = content_pb2.StatusResponse.FromString(reply).status
    assert (status.ref, status.offset, status.total) == ("r", 5, 10)
    if way == "half-close":
        await writing.end()
    else:
        if way == "lost":
            writing.call.lose()
        else:
            writing.serving.cancel()
        await asyncio.wait([writing.serving])
    assert not list(tmp_path.iterdir())
    for method in (STATUS, ABORT):
        with pytest.raises(CallError) as caught:
            await daemon.unary(method, content_pb2.StatusRequest(ref="r").SerializeToString())
        assert caught.value.code is Code.NOT_FOUND


async def test_one_write_of_a_ref_at_a_time(tmp_path: Path) -> None:
    """Daemons take the code for "try again"."""
    daemon = Daemon(tmp_path)
    first, second = daemon.begin(), daemon.begin()
    await first.ask(action=STAT, ref="r")
    with pytest.raises(CallError) as caught:
        await second.ask(action=STAT, ref="r")
    assert caught.value.code is Code.UNAVAILABLE
    await first.end()
    assert await daemon.write(DATA) == DIGEST


async def test_two_writes_that_begin_at_once(tmp_path: Path) -> None:
    """One of them goes on, and its end does not disturb the other's refusal."""
    daemon = Daemon(tmp_path)
    ends = await asyncio.gather(*(daemon.write(DATA) for _ in range(2)), return_exceptions=True)
    assert DIGEST in ends
    (refused,) = [end for end in ends if isinstance(end, CallError)]
    assert refused.code is Code.UNAVAILABLE
    assert not daemon.store.writes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs"]


def test_writes_that_begin_while_others_end(tmp_path: Path) -> None:
    """The last one to end removes the directory of unfinished writes, under the feet of the next one."""

    def write_many(number: int) -> None:
        store = BlobStore(tmp_path, writable=True)
        for count in range(200):
            ingest = Ingest(store, 0, None)
            ingest.take(0, b"%d %d" % (number, count), commit=True)
            ingest.discard()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write_many, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["blobs"]
    assert len(list((tmp_path / "blobs" / "sha256").iterdir())) == 800


def test_a_write_that_was_discarded_takes_no_more(tmp_path: Path) -> None:
    """As a thread would try whose call was cancelled."""
    store = BlobStore(tmp_path, writable=True)
    ingest = Ingest(store, 0, None)
    ingest.take(0, b"12345", commit=False)
    ingest.discard()
    with pytest.raises(CallError, match="the write has ended"):
        ingest.take(5, b"6", commit=True)
    assert not list(tmp_path.iterdir())
    ingest.discard()


async def test_a_store_for_reading_is_not_written_to(tmp_path: Path) -> None:
    writing = Daemon(tmp_path, writable=False).begin()
    with pytest.raises(CallError, match="read-only") as caught:
        await writing.ask(action=STAT, ref="r")
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CallError, match=r"content store .*file.*: "):
        await Daemon(tmp_path / "file").write(DATA)


def test_only_layouts_are_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"build context x: .* is not an OCI layout directory"):
        open_layout_store(tmp_path, option="build context x")


async def test_so_many_writes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a file open; the next one is told to come again."""
    monkeypatch.setattr("buildkit_py.session.content.MAX_WRITES", 2)
    daemon = Daemon(tmp_path)
    going = [daemon.begin() for _ in range(2)]
    for number, writing in enumerate(going):
        await writing.ask(action=STAT, ref=f"r{number}")
    with pytest.raises(CallError, match="is going on") as caught:
        await daemon.begin().ask(action=STAT, ref="r2")
    assert caught.value.code is Code.UNAVAILABLE
    for writing in going:
        await writing.end()
    assert await daemon.write(DATA, ref="r2") == DIGEST


@pytest.mark.parametrize("ref", ["", "x" * 5000], ids=["none", "long"])
async def test_a_write_has_a_name(tmp_path: Path, ref: str) -> None:
    """It is kept as long as the write goes on."""
    with pytest.raises(CallError, match="must name it") as caught:
        await Daemon(tmp_path).begin().ask(action=STAT, ref=ref)
    assert caught.value.code is Code.INVALID_ARGUMENT
