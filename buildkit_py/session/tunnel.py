"""The bytes between a daemon and the session's own gRPC server.

:class:`ByteStream` is the seam; :func:`open_tunnel` gives one over a ``Control.Session`` call, on a connection of its
own: a session is found by its id, whichever connection brings it. The call is made by our own client core, in the
event loop. Through grpcio each message took 100 to 200 us and a change of threads, and a daemon that is busy sends a
message for each file that it asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol, assert_never, cast

from buildkit_py.errors import BuildKitError, ConnectFailed, ConnectionLost, ProtocolError, RPCError
from buildkit_py.session.attachable import Code
from buildkit_py.session.grpc_client_core import ClientCore
from buildkit_py.session.grpc_core import Aborted, Ended, Event, Opened, Readable, Requested

SESSION_METHOD = "/moby.buildkit.v1.Control/Session"

_DATA_TAG = 0x0A  # BytesMessage.data: field 1, length-delimited
_CHUNK_SIZE = 256 << 10
_HIGH_WATER = 512 << 10
"""Bytes that wait for the daemon's window before a writer has to."""


class ByteStream(Protocol):
    """An ordered pipe of bytes, with one reader and one writer at a time."""

    async def read(self) -> bytes:
        """Next bytes, in any split; b"" at the end and after cancel(). Raises BuildKitError when it broke."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting while the peer does not take them. Raises BuildKitError when it broke."""
        ...

    async def done_writing(self) -> None:
        """Half-close; does nothing when the stream is over."""
        ...

    def cancel(self) -> None:
        """Drop the stream at once; whoever waits in it is woken."""
        ...


class Dialer(Protocol):
    """What a tunnel needs of a connection to a daemon."""

    @property
    def authority(self) -> str:
        """Name of the daemon, for HTTP/2."""
        ...

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, for HTTP/2."""
        ...

    def open_transport(
        self, protocol: Callable[[], asyncio.Protocol]
    ) -> AbstractAsyncContextManager[asyncio.WriteTransport]:
        """A further connection to the same daemon, closed at the end; raises ConnectFailed."""
        ...


@asynccontextmanager
async def open_tunnel(connection: Dialer, metadata: Sequence[tuple[str, str]]) -> AsyncGenerator[ByteStream]:
    """Open a ``Control.Session`` stream with this request metadata; the way out drops it if still open.

    Raises ConnectionLost when the daemon cannot be reached any more. Does not wait for its answer: a daemon that
    refuses shows as an error of read() and write().
    """
    tunnel = _Tunnel(metadata, authority=connection.authority, scheme=connection.scheme)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(connection.open_transport(lambda: tunnel))
        except ConnectFailed as error:
            raise ConnectionLost(f"cannot connect to the daemon for the session: {error}") from error
        stack.callback(tunnel.cancel)
        yield tunnel


class _Tunnel(asyncio.Protocol):
    """ByteStream over the call; the protocol of its own connection."""

    def __init__(self, metadata: Sequence[tuple[str, str]], *, authority: str, scheme: str) -> None:
        self._core = ClientCore()
        self._stream = self._core.request(SESSION_METHOD, metadata, authority=authority, scheme=scheme)
        self._transport: asyncio.WriteTransport | None = None
        self._writable = False
        """The socket takes bytes."""
        self._failure: BuildKitError | None = None
        self._cancelled = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # ByteStream

    async def read(self) -> bytes:
        while True:
            if self._cancelled:
                return b""
            if data := self._take():
                return data
            if self._stream.half_closed or self._failure is not None or self._stream.closed:
                if error := self._error():
                    raise error
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def write(self, data: bytes) -> None:
        if not data:
            # Daemons since v0.17 read stale bytes of an earlier message out of an empty one.
            return
        self._check_writable()
        self._core.send(self._stream, (_wrap(data),))
        self.flush()
        while self._stream.queued >= _HIGH_WATER or not self._writable:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
            self._check_writable()

    async def done_writing(self) -> None:
        if not self._cancelled and self._failure is None:
            self._core.half_close(self._stream)
            self.flush()

    def cancel(self) -> None:
        if self._cancelled:
            return
        self._cancelled = True
        self._core.cancel(self._stream)
        self.flush()
        if self._transport is not None:
            # What a daemon does not read must not keep the socket open.
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()
        self._wake()

    def flush(self) -> None:
        """Hand to the socket what it takes."""
        transport = self._transport
        while self._writable and transport is not None and (data := self._core.data_to_send(_CHUNK_SIZE)):
            transport.write(data)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are none by their class
        self._writable = True
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self._core.receive(data):
            self._handle(event)
        if self._core.output_ready:
            self.flush()
            if self._writer is not None and self._stream.queued < _HIGH_WATER and self._writable:
                self._wake_writer()

    def eof_received(self) -> bool:
        return False  # close; connection_lost() follows

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable = False
        self._transport = None
        if self._failure is None and not self._stream.half_closed:
            text = (getattr(exc, "strerror", None) or str(exc)) if exc else "it closed the connection"
            self._failure = ConnectionLost(f"the session's connection to the daemon broke: {text}")
        self._wake()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.flush()
        if self._writable:
            self._wake_writer()

    # Within.

    def _handle(self, event: Event) -> None:
        match event:
            case Readable():
                if self._reader is not None and not self._reader.done():
                    self._reader.set_result(None)
                if self._stream.half_closed:
                    self._wake_writer()
            case Aborted():
                self._wake()
            case Ended(failure):
                self._failure = failure
                self._wake()
            case Opened() | Requested():
                pass
            case _:
                assert_never(event)

    def _take(self) -> bytes:
        """All that has come, of as many messages as it may be."""
        core = self._core
        parts: list[bytes | memoryview] = []
        while (message := core.take(self._stream)) is not None:
            parts.append(_unwrap(message))
        if core.output_ready:  # taking may open the daemon's window
            self.flush()
        return b"".join(parts)

    def _check_writable(self) -> None:
        if self._cancelled:
            raise ConnectionLost("the session stream was cancelled")
        if error := self._error():
            raise error
        if self._stream.status is not None:
            raise ConnectionLost("the session stream is over: the daemon ended it")

    def _error(self) -> BuildKitError | None:
        """What ended the stream, unless it was the daemon in good order."""
        if self._stream.status is not None:
            code, text = self._stream.status
            if code is Code.OK:
                return None
            if code in (Code.UNAVAILABLE, Code.CANCELLED):
                return ConnectionLost(f"the session stream broke: {text or code.name}")
            return RPCError(code.name, f"session: {text}")
        return self._failure

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)


def _wrap(data: bytes) -> bytes:
    """Encode a BytesMessage."""
    header = bytearray((_DATA_TAG,))
    size = len(data)
    while size > 0x7F:
        header.append(size & 0x7F | 0x80)
        size >>= 7
    header.append(size)
    return b"".join((header, data))


def _unwrap(message: bytes) -> memoryview:
    """Decode a BytesMessage. Raises ProtocolError for anything that the daemon's encoder does not write."""
    if not message:
        return memoryview(b"")
    size = shift = 0
    position = 1
    while position < len(message):
        byte = message[position]
        size |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80 or shift > 28:
            break
    if message[0] != _DATA_TAG or position == 1 or message[position - 1] >= 0x80 or position + size != len(message):
        raise ProtocolError("the daemon sent a session message that is not a BytesMessage")
    return memoryview(message)[position:]
