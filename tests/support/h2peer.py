"""A gRPC client over HTTP/2 that plays the daemon on the other end of a session's stream, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from buildkit_py.errors import ConnectionLost


class MemoryStream:
    """One end of a joined pair; its peer reads what it writes. Satisfies ByteStream.

    Holds at most ``capacity`` bytes on the way; a writer waits for the rest. Like a tunnel, a half-close leaves
    the other direction open, and cancel() ends both ends.
    """

    def __init__(self, capacity: int) -> None:
        self.peer: MemoryStream = self
        self.written: list[int] = []
        """Sizes of all writes."""
        self.cancelled = False
        self._capacity = capacity
        self._chunks: list[bytes] = []  # to be read at this end
        self._size = 0
        self._eof = False
        self._changed = asyncio.Event()

    async def read(self) -> bytes:
        while not self._chunks:
            if self._eof or self.cancelled:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._chunks.pop(0)
        self._size -= len(data)
        self.peer._changed.set()
        return data

    async def write(self, data: bytes) -> None:
        assert data, "an empty message would make the daemon read garbage"
        self.written.append(len(data))
        peer = self.peer
        while peer._size >= peer._capacity and not self.cancelled:
            self._changed.clear()
            await self._changed.wait()
        if self.cancelled or peer._eof:
            raise ConnectionLost("the stream is over")
        peer._chunks.append(bytes(data))
        peer._size += len(data)
        peer._changed.set()

    async def done_writing(self) -> None:
        self.peer._eof = True
        self.peer._changed.set()

    def cancel(self) -> None:
        for end in (self, self.peer):
            end.cancelled = True
            end._chunks.clear()
            end._changed.set()


def memory_pair(capacity: int = 1 << 20) -> tuple[MemoryStream, MemoryStream]:
    """Two joined ends."""
    one, other = MemoryStream(capacity), MemoryStream(capacity)
    one.peer, other.peer = other, one
    return one, other


@dataclass
class Status:
    """End of a call as its client sees it."""

    code: int
    message: str = ""


@dataclass(eq=False)
class PeerCall:
    """A call that the peer makes."""

    peer: Peer
    id: int
    headers: dict[str, str] = field(default_factory=dict[str, str])
    status: Status | None = None
    reset: int | None = None
    """Error code of a RST_STREAM that came before the status."""
    data_frames: int = 0
    acknowledge: bool = True
    """Give windows back as data comes."""
    unacknowledged: int = 0
    _messages: list[bytes] = field(default_factory=list[bytes])
    _partial: bytearray = field(default_factory=bytearray)

    async def send(self, *messages: bytes, flag: int = 0) -> None:
        """Send messages within the windows, waiting for them to open."""
        await self.send_raw(b"".join(frame_message(message, flag) for message in messages))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, in DATA frames as large as windows allow."""
        connection = self.peer.connection
        while data:
            room = min(connection.local_flow_control_window(self.id), connection.max_outbound_frame_size)
            if room <= 0:
                await self.peer.changed()
                continue
            connection.send_data(self.id, data[:room])
            data = data[room:]
            await self.peer.flush()

    async def half_close(self) -> None:
        self.peer.connection.end_stream(self.id)
        await self.peer.flush()

    async def cancel(self) -> None:
        self.peer.connection.reset_stream(self.id, ErrorCodes.CANCEL)
        await self.peer.flush()

    async def receive(self) -> bytes | None:
        """Next message; None once the call is over."""
        while not self._messages:
            if self.status is not None or self.reset is not None or self.peer.terminated or self.peer.eof:
                return None
            await self.peer.changed()
        return self._messages.pop(0)

    async def receive_all(self) -> list[bytes]:
        messages: list[bytes] = []
        while (message := await self.receive()) is not None:
            messages.append(message)
        return messages

    async def ended(self) -> Status:
        """Status of the call, once it has one."""
        while self.status is None:
            assert self.reset is None, f"reset with code {self.reset} before a status"
            assert not self.peer.eof, "the connection ended before a status"
            await self.peer.changed()
        return self.status

    async def acknowledge_all(self) -> None:
        """Give back all of the window that was used, and go on doing so."""
        self.acknowledge = True
        if self.unacknowledged:
            self.peer.connection.acknowledge_received_data(self.unacknowledged, self.id)
            self.unacknowledged = 0
        await self.peer.flush()

    def _data(self, event: DataReceived) -> None:
        self.data_frames += 1
        size = event.flow_controlled_length or 0
        if self.acknowledge:
            self.peer.connection.acknowledge_received_data(size, self.id)
        else:
            self.unacknowledged += size
        self._partial += event.data or b""
        position = 0
        while len(self._partial) - position >= 5:
            assert self._partial[position] == 0, "a compressed message"
            end = position + 5 + int.from_bytes(self._partial[position + 1 : position + 5], "big")
            if end > len(self._partial):
                break
            self._messages.append(bytes(self._partial[position + 5 : end]))
            position = end
        del self._partial[:position]


class Peer:
    """The client's side of the connection; see open_peer()."""

    def __init__(self, stream: MemoryStream) -> None:
        self.connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.terminated: ConnectionTerminated | None = None
        """The GOAWAY of the session."""
        self.eof = False
        """The session has half-closed, or the stream is over."""
        self.hangs_up = True
        """End the stream when the session has, as the daemon does."""
        self._stream = stream
        self._calls: dict[int, PeerCall] = {}
        self._pings = 0
        self._pongs: set[bytes] = set()
        self._changed = asyncio.Condition()
        self._lock = asyncio.Lock()

    async def call(
        self,
        path: str,
        metadata: Sequence[tuple[str, str]] = (),
        *,
        message: bytes | None = None,
        headers: Sequence[tuple[str, str]] | None = None,
    ) -> PeerCall:
        """Begin a call; with a message it is unary on this side: sent and half-closed."""
        call = PeerCall(self, self.connection.get_next_available_stream_id())
        self._calls[call.id] = call
        self.connection.send_headers(call.id, headers or [*request_headers(path), *metadata])
        await self.flush()
        if message is not None:
            await call.send(message)
            await call.half_close()
        return call

    async def health(self) -> Status:
        """A health check, as the daemon makes it."""
        call = await self.call("/grpc.health.v1.Health/Check", message=b"")
        assert await call.receive() == b"\x08\x01"
        return await call.ended()

    async def ping(self) -> None:
        """A round trip: all that was sent before has been handled by the session's reader."""
        self._pings += 1
        data = self._pings.to_bytes(8, "big")
        self.connection.ping(data)
        await self.flush()
        while data not in self._pongs:
            await self.changed()

    async def goodbye(self) -> None:
        """GOAWAY, as Go's client sends it when it closes."""
        self.connection.close_connection(additional_data=b"client transport shutdown")
        await self.flush()

    async def raw(self, data: bytes) -> None:
        """Send bytes beside the connection's own."""
        await self._stream.write(data)

    async def flush(self) -> None:
        async with self._lock:
            if data := self.connection.data_to_send():
                await self._stream.write(data)

    async def changed(self) -> None:
        """Wait for something to come."""
        async with self._changed:
            await self._changed.wait()

    async def run(self) -> None:
        """Read to the end of the stream."""
        while data := await self._stream.read():
            if self.terminated is None:
                for event in self.connection.receive_data(data):
                    self._handle(event)
                await self.flush()
            await self._notify()
        self.eof = True
        if self.hangs_up:
            await self._stream.done_writing()
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _handle(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated = event
        elif isinstance(event, PingAckReceived):
            self._pongs.add(event.ping_data or b"")
        elif isinstance(event, DataReceived):
            self._calls[event.stream_id]._data(event)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            call = self._calls[event.stream_id or 0]
            call.headers |= {str(name): str(value) for name, value in event.headers or ()}
        elif isinstance(event, StreamEnded):
            call = self._calls[event.stream_id or 0]
            headers = call.headers
            call.status = Status(int(headers.get("grpc-status", -1)), unquote(headers.get("grpc-message", "")))
        elif isinstance(event, StreamReset):
            call = self._calls[event.stream_id]
            if call.status is None:
                call.reset = int(event.error_code or 0)


@asynccontextmanager
async def open_peer(stream: MemoryStream, *, preface: bool = True) -> AsyncIterator[Peer]:
    """A peer on its end of the pair; hangs up rudely when the body is left."""
    peer = Peer(stream)
    if preface:
        peer.connection.initiate_connection()
        await peer.flush()
    running = asyncio.create_task(peer.run())
    try:
        yield peer
    finally:
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()


def request_headers(path: str) -> list[tuple[str, str]]:
    """Headers of a request as grpc-go sends them."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.78.0"),
        ("te", "trailers"),
    ]


def frame_message(message: bytes, flag: int = 0) -> bytes:
    """A message with its five-byte prefix."""
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message
