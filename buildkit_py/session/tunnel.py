"""The bytes between a daemon and the session's own gRPC server.

:class:`ByteStream` is the seam; :func:`open_tunnel` gives one over a ``Control.Session`` call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

import grpc
import grpc.aio

from buildkit_py.errors import BuildKitError, ConnectionLost, ProtocolError, RPCError

SESSION_METHOD = "/moby.buildkit.v1.Control/Session"

_MAX_ERROR_TEXT = 500
_DATA_TAG = 0x0A  # BytesMessage.data: field 1, length-delimited

_SessionCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


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


class HasChannel(Protocol):
    """What a tunnel needs of a connection to a daemon."""

    @property
    def channel(self) -> grpc.aio.Channel:
        """Channel to the daemon's Control service."""
        ...


@asynccontextmanager
async def open_tunnel(connection: HasChannel, metadata: Sequence[tuple[str, str]]) -> AsyncGenerator[ByteStream]:
    """Open a ``Control.Session`` stream with this request metadata; the way out drops it if still open.

    Does not wait for the daemon: a daemon that refuses shows as an error of read() and write().
    """
    stub = connection.channel.stream_stream(
        SESSION_METHOD,
        request_serializer=_wrap,
        response_deserializer=_unwrap,
    )
    tunnel = _Tunnel(stub(metadata=tuple(metadata)))
    try:
        yield tunnel
    finally:
        tunnel.cancel()


class _Tunnel:
    """ByteStream over the call."""

    def __init__(self, call: _SessionCall) -> None:
        self._call = call
        self._cancelled = False

    async def read(self) -> bytes:
        while True:
            try:
                data = await self._call.read()
            except asyncio.CancelledError:
                # grpc raises it as well when the call was cancelled, not the task that waits.
                if self._over():
                    return b""
                raise
            except Exception as error:
                raise _map_error(error) from error
            if not isinstance(data, bytes):  # grpc.aio.EOF
                return b""
            if data:
                return data

    async def write(self, data: bytes) -> None:
        if not data:
            # Daemons since v0.17 read stale bytes of an earlier message out of an empty one.
            return
        try:
            await self._call.write(data)
        except asyncio.CancelledError:
            if self._over():
                raise ConnectionLost("the session stream was cancelled") from None
            raise
        except Exception as error:
            raise _map_error(error) from error

    async def done_writing(self) -> None:
        if self._call.done():
            return
        try:
            await self._call.done_writing()
        except asyncio.CancelledError:
            if not self._over():
                raise
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # over already

    def cancel(self) -> None:
        self._cancelled = True
        self._call.cancel()

    def _over(self) -> bool:
        task = asyncio.current_task()
        return self._cancelled and (task is None or not task.cancelling())


def _wrap(data: bytes) -> bytes:
    """Encode a BytesMessage."""
    header = bytearray((_DATA_TAG,))
    size = len(data)
    while size > 0x7F:
        header.append(size & 0x7F | 0x80)
        size >>= 7
    header.append(size)
    return b"".join((header, data))


def _unwrap(message: bytes) -> bytes:
    """Decode a BytesMessage. Raises ProtocolError for anything that the daemon's encoder does not write."""
    if not message:
        return b""
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
    return message[position:]


def _map_error(error: Exception) -> BuildKitError:
    """Our error for one of grpc's."""
    if isinstance(error, BuildKitError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        text = (error.details() or "")[:_MAX_ERROR_TEXT]
        code = error.code()
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return ConnectionLost(f"the session stream broke: {text or code.name}")
        return RPCError(code.name, f"session: {text}")
    return ConnectionLost(f"the session stream is over: {str(error)[:_MAX_ERROR_TEXT] or type(error).__name__}")
