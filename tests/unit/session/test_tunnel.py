"""The tunnel over a real gRPC call, to a server of this process on a unix socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import BuildKitError, ConnectFailed, ConnectionLost, ProtocolError, RPCError
from buildkit_py.pb import control_pb2
from buildkit_py.session.attachable import metadata_values
from buildkit_py.session.server import Session, open_session
from buildkit_py.session.tunnel import _unwrap, _wrap, open_tunnel
from tests.support.h2peer import MemoryStream, Peer, memory_pair, open_peer

ServicerContext: TypeAlias = "grpc.aio.ServicerContext[control_pb2.BytesMessage, control_pb2.BytesMessage]"
Behaviour: TypeAlias = Callable[[ServicerContext], Awaitable[None]]


@dataclass
class Daemon:
    """Where the tunnel connects to."""

    path: str
    authority: str = "localhost"
    scheme: str = "http"

    @asynccontextmanager
    async def open_transport(self, protocol: Callable[[], asyncio.Protocol]) -> AsyncIterator[asyncio.WriteTransport]:
        try:
            transport, _ = await asyncio.get_running_loop().create_unix_connection(protocol, self.path)
        except OSError as error:
            raise ConnectFailed(str(error)) from error
        yield transport
        transport.abort()


@asynccontextmanager
async def connected(behaviour: Behaviour) -> AsyncIterator[Daemon]:
    """A connection to a daemon whose Session call behaves like this."""

    async def session(_: object, context: ServicerContext) -> None:
        await behaviour(context)

    handlers = {
        "Session": grpc.stream_stream_rpc_method_handler(
            session,
            request_deserializer=control_pb2.BytesMessage.FromString,
            response_serializer=control_pb2.BytesMessage.SerializeToString,
        )
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("moby.buildkit.v1.Control", handlers),))
    with tempfile.TemporaryDirectory(prefix="bk") as folder:
        address = f"unix:{folder}/s"
        server.add_insecure_port(address)
        await server.start()
        try:
            yield Daemon(f"{folder}/s")
        finally:
            await server.stop(None)


async def next_chunk(context: ServicerContext) -> bytes | None:
    message = await context.read()
    return message.data if isinstance(message, control_pb2.BytesMessage) else None


async def echo(context: ServicerContext) -> None:
    while (data := await next_chunk(context)) is not None:
        assert data, "an empty message would make the daemon read garbage"
        await context.write(control_pb2.BytesMessage(data=data))


async def test_bytes_go_both_ways_and_end_after_the_half_close() -> None:
    async with connected(echo) as connection, open_tunnel(connection, ()) as tunnel:
        sent = [b"x", b"y" * 127, b"z" * 128, bytes(256 << 10)]
        for chunk in sent:
            await tunnel.write(chunk)
            assert await tunnel.read() == chunk
        await tunnel.write(b"")
        await tunnel.done_writing()
        assert await tunnel.read() == b""
        await tunnel.done_writing()


async def test_an_empty_message_of_the_daemon_is_not_the_end() -> None:
    async def behaviour(context: ServicerContext) -> None:
        await context.write(control_pb2.BytesMessage())
        await context.write(control_pb2.BytesMessage(data=b"x"))

    async with connected(behaviour) as connection, open_tunnel(connection, ()) as tunnel:
        assert await tunnel.read() == b"x"
        assert await tunnel.read() == b""


async def test_each_method_is_a_metadata_entry_of_its_own() -> None:
    """The daemon does not split at commas."""
    seen: list[tuple[str, str]] = []

    async def behaviour(context: ServicerContext) -> None:
        seen.extend((name, str(value)) for name, value in context.invocation_metadata() or ())

    session = Session([], shared_key="")
    async with connected(behaviour) as connection, open_tunnel(connection, session.metadata()) as tunnel:
        assert await tunnel.read() == b""
    assert metadata_values(seen, "x-docker-expose-session-uuid") == [session.id]
    assert metadata_values(seen, "x-docker-expose-session-sharedkey") == [""]
    assert metadata_values(seen, "x-docker-expose-session-grpc-method") == [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [(grpc.StatusCode.UNAVAILABLE, ConnectionLost), (grpc.StatusCode.PERMISSION_DENIED, RPCError)],
)
async def test_an_error_of_the_call_is_ours(code: grpc.StatusCode, expected: type[BuildKitError]) -> None:
    async def behaviour(context: ServicerContext) -> None:
        await context.abort(code, "go away")

    async with connected(behaviour) as connection:
        async with open_tunnel(connection, ()) as tunnel:
            with pytest.raises(expected, match="go away"):
                await tunnel.read()
            with pytest.raises(BuildKitError):
                await tunnel.write(b"x")
            await tunnel.done_writing()
        with pytest.raises(expected, match="go away"):
            async with open_session(connection, Session([])):
                pytest.fail("entered")


async def test_a_daemon_that_cannot_be_reached_any_more_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost, match="cannot connect to the daemon for the session"):
        async with open_tunnel(Daemon("/nowhere/s"), ()):
            pytest.fail("entered")


async def test_a_connection_that_breaks_wakes_the_reader_and_the_writer() -> None:
    async def behave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.transport.abort()

    with tempfile.TemporaryDirectory(prefix="bk") as folder:
        async with (
            await asyncio.start_unix_server(behave, f"{folder}/s"),
            open_tunnel(Daemon(f"{folder}/s"), ()) as tunnel,
        ):
            writing = asyncio.create_task(tunnel.write(bytes(4 << 20)))
            with pytest.raises(ConnectionLost, match="broke"):
                await tunnel.read()
            with pytest.raises(ConnectionLost, match="broke"):
                await writing
            await tunnel.done_writing()


async def test_cancel_wakes_the_reader_and_the_writer_and_is_no_cancellation_of_theirs() -> None:
    async def behaviour(context: ServicerContext) -> None:
        await asyncio.Event().wait()

    async def write_for_ever() -> None:
        while True:
            await tunnel.write(bytes(256 << 10))

    async with connected(behaviour) as connection, open_tunnel(connection, ()) as tunnel:
        reading = asyncio.create_task(tunnel.read())
        writing = asyncio.create_task(write_for_ever())
        await asyncio.wait({reading, writing}, timeout=0.2)
        assert not reading.done()
        assert not writing.done()
        tunnel.cancel()
        await asyncio.wait({reading, writing}, timeout=5)
        assert reading.result() == b""
        assert isinstance(writing.exception(), ConnectionLost)
        assert await tunnel.read() == b""


async def test_a_reader_that_is_cancelled_is_cancelled() -> None:
    async def behaviour(context: ServicerContext) -> None:
        await asyncio.Event().wait()

    async with connected(behaviour) as connection, open_tunnel(connection, ()) as tunnel:
        reading = asyncio.create_task(tunnel.read())
        await asyncio.wait({reading}, timeout=0.1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def pump(context: ServicerContext, stream: MemoryStream) -> None:
    """Join a Session call with the peer's stream, as the daemon does with its connection."""

    async def inwards() -> None:
        while (data := await next_chunk(context)) is not None:
            await stream.write(data)
        await stream.done_writing()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(inwards())
        while data := await stream.read():
            await context.write(control_pb2.BytesMessage(data=data))


async def test_a_session_over_a_real_call_opens_answers_and_closes_in_good_order() -> None:
    statuses: list[int] = []
    ended = asyncio.Event()

    async def behaviour(context: ServicerContext) -> None:
        near, far = memory_pair()

        async def play(peer: Peer) -> None:
            statuses.append((await peer.health()).code)

        async with open_peer(far) as peer, asyncio.TaskGroup() as tasks:
            tasks.create_task(play(peer))
            await pump(context, near)
        assert peer.terminated is not None
        ended.set()

    session = Session([])
    async with connected(behaviour) as connection:
        async with open_session(connection, session):
            async with asyncio.timeout(5):
                while not statuses:
                    await asyncio.sleep(0.01)
            assert session.failure is None
        async with asyncio.timeout(5):
            await ended.wait()
    assert statuses == [0]
    assert session.failure is None
    assert session.calls == {"/grpc.health.v1.Health/Check": 1}


@given(st.binary(min_size=1, max_size=300))
def test_the_wrapping_is_that_of_protobuf(data: bytes) -> None:
    message = control_pb2.BytesMessage(data=data).SerializeToString()
    assert _wrap(data) == message
    assert _unwrap(message) == data


@pytest.mark.parametrize("size", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_the_wrapping_of_large_chunks_is_that_of_protobuf(size: int) -> None:
    message = control_pb2.BytesMessage(data=bytes(size)).SerializeToString()
    assert _wrap(bytes(size)) == message
    assert _unwrap(message) == bytes(size)


@given(st.binary(max_size=30))
def test_a_message_that_is_something_else_is_refused_or_read_as_protobuf_reads_it(message: bytes) -> None:
    try:
        data = _unwrap(message)
    except ProtocolError:
        return
    assert data == control_pb2.BytesMessage.FromString(message).data
