"""Session on a stream in memory, with a peer that plays the daemon."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from buildkit_py.errors import (
    BuildKitError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidOption,
    ProtocolError,
    SessionClosed,
)
from buildkit_py.session.attachable import Call, CallError, Code, Handler, metadata_values
from buildkit_py.session.server import Session, SessionTimeouts
from tests.support.h2peer import (
    Peer,
    PeerCall,
    Status,
    frame_message,
    memory_pair,
    open_peer,
    request_headers,
)

METHOD = "/test.Service/Method"
OTHER = "/test.Service/Other"
MIB = 1 << 20


class Table:
    """An attachable made of its table."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def methods(self) -> Mapping[str, Handler]:
        return self._handlers


def session_of(
    handler: Handler | None = None, timeouts: SessionTimeouts | None = None, other: Handler | None = None
) -> Session:
    handlers = {method: value for method, value in ((METHOD, handler), (OTHER, other)) if value}
    return Session([Table(handlers)], timeouts=timeouts)


@asynccontextmanager
async def joined(session: Session, capacity: int = MIB) -> AsyncIterator[Peer]:
    """The session served to a peer; afterwards no task is left."""
    before = asyncio.all_tasks()
    ours, theirs = memory_pair(capacity)
    async with open_peer(theirs) as peer:
        async with session.serve(ours):
            yield peer
        assert ours.cancelled
        assert session.closed.is_set()
    assert asyncio.all_tasks() == before
    assert 0 not in ours.written
    assert max(ours.written) < 300_000


async def echo(call: Call) -> None:
    while (message := await call.receive()) is not None:
        await call.send(message)


async def until(condition: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await condition.wait()


class Hanging:
    """A handler that begins and then waits for what never comes; notes how it ended."""

    def __init__(self, *, on_call: bool) -> None:
        self.began = asyncio.Event()
        self.done = asyncio.Event()
        self.ended_by: BaseException | None = None
        self._on_call = on_call

    async def __call__(self, call: Call) -> None:
        self.began.set()
        try:
            if self._on_call:
                await call.receive()
            else:
                await asyncio.Event().wait()
        except BaseException as error:
            self.ended_by = error
            raise
        finally:
            self.done.set()


# Opening.


async def test_the_peer_is_told_of_windows_and_limits_in_the_first_frame() -> None:
    """A peer held to the defaults of HTTP/2 stalls at 65,535 bytes and at 64 KiB of headers."""
    async with joined(session_of()) as peer:
        await peer.health()
        settings = peer.connection.remote_settings
        assert settings.initial_window_size >= MIB
        assert settings.max_concurrent_streams == 250
        assert settings.max_frame_size >= MIB
        assert settings.max_header_list_size == MIB
        assert peer.connection.outbound_flow_control_window >= 4 * MIB


def test_metadata_names_id_key_and_each_method_once() -> None:
    async def handler(call: Call) -> None: ...

    session = Session([Table({METHOD: handler}), Table({OTHER: handler})], shared_key="k")
    metadata = session.metadata()
    assert metadata_values(metadata, "x-docker-expose-session-uuid") == [session.id]
    assert metadata_values(metadata, "x-docker-expose-session-sharedkey") == ["k"]
    assert metadata_values(metadata, "x-docker-expose-session-grpc-method") == [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        METHOD,
        OTHER,
    ]


def test_ids_are_25_base36_characters_and_differ() -> None:
    ids = {Session([]).id for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch("[0-9a-z]{25}", session_id) for session_id in ids)


@pytest.mark.parametrize("bad", ["", "a:b", "a\nb", "é", " a"])
def test_an_id_that_the_daemon_cannot_look_up_is_refused(bad: str) -> None:
    with pytest.raises(InvalidOption, match="session id"):
        Session([], session_id=bad)


def test_a_shared_key_that_is_no_header_value_is_refused() -> None:
    with pytest.raises(InvalidOption, match="shared key"):
        Session([], shared_key="a\r\nb")


@pytest.mark.parametrize("method", [METHOD, "/grpc.health.v1.Health/Check"])
def test_two_attachables_cannot_serve_one_method(method: str) -> None:
    async def handler(call: Call) -> None: ...

    with pytest.raises(InvalidOption, match=re.escape(method)):
        Session([Table({METHOD: handler}), Table({method: handler})])


async def test_a_session_serves_once() -> None:
    session = session_of()
    async with joined(session):
        pass
    with pytest.raises(SessionClosed, match="used before"):
        async with session.serve(memory_pair()[0]):
            pytest.fail("entered")


async def test_a_daemon_that_never_speaks_is_given_up() -> None:
    ours, _ = memory_pair()
    session = session_of(timeouts=SessionTimeouts(open=0.05, close=0.05))
    with pytest.raises(DeadlineExceeded, match="did not take up the session"):
        async with session.serve(ours):
            pytest.fail("entered")
    assert ours.cancelled


async def test_a_daemon_that_hangs_up_at_once_is_an_error_of_opening() -> None:
    ours, theirs = memory_pair()
    await theirs.done_writing()
    with pytest.raises(SessionClosed, match="the daemon ended the session"):
        async with session_of().serve(ours):
            pytest.fail("entered")


async def test_an_error_of_the_body_comes_out_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        async with joined(session_of()):
            raise ZeroDivisionError


# Calls.


async def test_messages_go_both_ways_and_the_call_ends_ok() -> None:
    seen: list[tuple[str, str]] = []

    async def handler(call: Call) -> None:
        assert call.method == METHOD
        seen.extend(call.metadata)
        await echo(call)

    session = session_of(handler)
    async with joined(session) as peer:
        call = await peer.call(METHOD, [("dir-name", "context"), ("exclude-patterns", "a"), ("exclude-patterns", "b")])
        await call.send(b"one", b"", b"three")
        assert [await call.receive() for _ in range(3)] == [b"one", b"", b"three"]
        await call.half_close()
        assert await call.ended() == Status(0)
        assert call.headers["content-type"] == "application/grpc"
    assert metadata_values(seen, "exclude-patterns") == ["a", "b"]
    assert not [name for name, _ in seen if name.startswith(":")]
    assert session.calls == {METHOD: 1}
    assert session.bytes_in > 0
    assert session.bytes_out > 0


async def test_messages_sent_together_share_frames() -> None:
    """10,000 packets that were frames of their own would cost the daemon as many wake-ups."""

    async def handler(call: Call) -> None:
        for _ in range(10):
            await call.send(*[b"x" * 60] * 1000)

    async with joined(session_of(handler)) as peer:
        call = await peer.call(METHOD, message=b"")
        assert await call.receive_all() == [b"x" * 60] * 10_000
        assert call.data_frames < 100


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (CallError(Code.NOT_FOUND, "no such dir: ä%"), Code.NOT_FOUND, "no such dir: ä%"),
        (RuntimeError("broken\nbadly"), Code.UNKNOWN, "broken\nbadly"),
        (KeyError(), Code.UNKNOWN, "KeyError"),
        (ExceptionGroup("g", [ValueError("v"), CallError(Code.ABORTED, "a")]), Code.ABORTED, "a"),
        (ExceptionGroup("g", [ExceptionGroup("h", [OSError("disk")])]), Code.UNKNOWN, "disk"),
    ],
)
async def test_an_error_of_a_handler_is_the_status_of_its_call_alone(error: Exception, code: Code, text: str) -> None:
    async def handler(call: Call) -> None:
        raise error

    async with joined(session_of(handler)) as peer:
        for _ in range(2):
            call = await peer.call(METHOD, message=b"")
            assert await call.ended() == Status(int(code), text)
        assert (await peer.health()).code == 0


async def test_an_error_after_messages_comes_behind_them() -> None:
    async def handler(call: Call) -> None:
        await call.send(b"x" * 100_000)
        raise CallError(Code.DATA_LOSS, "torn")

    async with joined(session_of(handler)) as peer:
        call = await peer.call(METHOD, message=b"")
        assert await call.receive_all() == [b"x" * 100_000]
        assert await call.ended() == Status(int(Code.DATA_LOSS), "torn")


async def test_the_text_of_an_error_is_kept_short() -> None:
    async def handler(call: Call) -> None:
        raise RuntimeError("x" * 1_000_000)

    async with joined(session_of(handler)) as peer:
        status = await (await peer.call(METHOD, message=b"")).ended()
        assert 100 < len(status.message) < 5000


@pytest.mark.parametrize("path", ["/no.Such/Method", "/grpc.health.v1.Health/Watch"])
async def test_an_unknown_method_is_unimplemented(path: str) -> None:
    session = session_of()
    async with joined(session) as peer:
        call = await peer.call(path, message=b"")
        status = await call.ended()
        assert status.code == Code.UNIMPLEMENTED
        assert path in status.message
    assert session.calls == {"": 1}


async def test_a_request_that_is_not_grpc_is_refused_alone() -> None:
    async with joined(session_of(echo)) as peer:
        get = [(":method", "GET") if name == ":method" else (name, value) for name, value in request_headers(METHOD)]
        call = await peer.call(METHOD, headers=get)
        await until_reset(peer, call)
        html = [(name, "text/html" if name == "content-type" else value) for name, value in request_headers(METHOD)]
        call = await peer.call(METHOD, headers=html)
        await call.ended()
        assert call.headers[":status"] == "415"
        assert (await peer.health()).code == 0


async def test_a_handler_that_is_done_early_ends_the_call() -> None:
    """And what the peer still sends does not disturb the session."""

    async def handler(call: Call) -> None:
        await call.receive()

    async with joined(session_of(handler)) as peer:
        for _ in range(50):
            call = await peer.call(METHOD)
            await call.send(b"x" * 10_000)
            assert await call.ended() == Status(0)
        assert (await peer.health()).code == 0


async def test_a_compressed_message_is_refused() -> None:
    async with joined(session_of(echo)) as peer:
        call = await peer.call(METHOD, [("grpc-encoding", "gzip")])
        await call.send(b"zzz", flag=1)
        status = await call.ended()
        assert status.code == Code.UNIMPLEMENTED
        assert "gzip" in status.message
        call = await peer.call(METHOD)
        await call.send(b"zzz", flag=1)
        assert (await call.ended()).code == Code.INTERNAL


async def test_a_message_over_the_limit_is_refused_before_it_is_buffered() -> None:
    hanging = Hanging(on_call=True)
    async with joined(session_of(hanging)) as peer:
        call = await peer.call(METHOD)
        await until(hanging.began)
        await call.send_raw(b"\0" + (16 * MIB + 1).to_bytes(4, "big"))
        status = await call.ended()
        assert status.code == Code.RESOURCE_EXHAUSTED
        assert "16777217 bytes" in status.message
        await until(hanging.done)


async def test_a_call_that_ends_inside_a_message_fails() -> None:
    async with joined(session_of(echo)) as peer:
        call = await peer.call(METHOD)
        await call.send_raw(frame_message(b"four")[:-1])
        await call.half_close()
        assert (await call.ended()).code == Code.INTERNAL


async def test_a_message_of_10_mib_gets_through_both_ways() -> None:
    """It is larger than the window of its stream."""
    big = bytes(range(256)) * (10 * MIB // 256)
    async with joined(session_of(echo)) as peer:
        call = await peer.call(METHOD)
        await call.send(big)
        assert await call.receive() == big
        await call.send(b"small")
        assert await call.receive() == b"small"


async def test_5000_patterns_arrive_as_they_are() -> None:
    """One header for each line of a .dockerignore; spaces around a value are part of it."""
    patterns = [f" dir-{i}/**/generated-{i * 7919 % 100_003}/*.log " for i in range(5000)]
    seen: list[str] = []

    async def handler(call: Call) -> None:
        seen.extend(metadata_values(call.metadata, "exclude-patterns"))

    async with joined(session_of(handler)) as peer:
        peer.connection.config.validate_outbound_headers = False
        peer.connection.config.normalize_outbound_headers = False
        call = await peer.call(METHOD, [("exclude-patterns", pattern) for pattern in patterns], message=b"")
        assert (await call.ended()).code == 0
    assert seen == patterns


async def test_two_calls_are_served_at_once() -> None:
    turns: list[str] = []
    swap = [asyncio.Event(), asyncio.Event()]

    async def first(call: Call) -> None:
        turns.append("first")
        swap[0].set()
        await until(swap[1])
        await call.send(b"1")

    async def second(call: Call) -> None:
        await until(swap[0])
        turns.append("second")
        swap[1].set()
        await call.send(b"2")

    async with joined(session_of(first, other=second)) as peer:
        one, two = await peer.call(METHOD, message=b""), await peer.call(OTHER, message=b"")
        assert await two.receive_all() == [b"2"]
        assert await one.receive_all() == [b"1"]
    assert turns == ["first", "second"]


# Flow control and load.


async def test_health_is_answered_while_megabytes_are_sent() -> None:
    async def handler(call: Call) -> None:
        for _ in range(64):
            await call.send(b"x" * MIB)

    session = session_of(handler)
    async with joined(session) as peer:
        call = await peer.call(METHOD, message=b"")
        received = 0
        while (message := await call.receive()) is not None:
            received += len(message)
            if received % (16 * MIB) == 0:
                async with asyncio.timeout(5):
                    assert (await peer.health()).code == 0
        assert received == 64 * MIB
    assert session.calls["/grpc.health.v1.Health/Check"] == 4


async def test_health_is_answered_while_a_stream_has_no_window() -> None:
    """And a handler that sends into it waits, with a bounded queue, until the window opens again."""
    sent = 0

    async def handler(call: Call) -> None:
        nonlocal sent
        for _ in range(64):
            await call.send(b"x" * 100_000)
            sent += 1

    async with joined(session_of(handler)) as peer:
        call = await peer.call(METHOD)
        call.acknowledge = False
        await call.half_close()
        while call.unacknowledged < 65_535:
            await peer.changed()
        # The connection's window is used up as well; a HEADERS frame needs none, a message does.
        peer.connection.increment_flow_control_window(1000)
        assert (await peer.health()).code == 0
        assert sent < 20
        await call.acknowledge_all()
        assert await call.receive_all() == [b"x" * 100_000] * 64


@pytest.mark.parametrize("by", ["stream", "settings"])
async def test_a_window_opens_by_update_and_by_settings(by: str) -> None:
    async def handler(call: Call) -> None:
        await call.send(b"x" * 200_000)

    async with joined(session_of(handler)) as peer:
        connection = peer.connection
        connection.increment_flow_control_window(MIB)
        connection.update_settings({4: 0})  # INITIAL_WINDOW_SIZE
        await peer.flush()
        call = await peer.call(METHOD, message=b"")
        while not call.headers:
            await peer.changed()
        await peer.ping()
        assert call.data_frames == 0
        if by == "stream":
            connection.increment_flow_control_window(MIB, call.id)
        else:
            connection.update_settings({4: MIB})
        await peer.flush()
        assert await call.receive_all() == [b"x" * 200_000]


async def test_a_slow_handler_holds_its_own_peer_back_and_nobody_else() -> None:
    """The window of one stream bounds what waits for its handler."""
    go = asyncio.Event()
    received: list[int] = []

    async def slow(call: Call) -> None:
        await go.wait()
        while (message := await call.receive()) is not None:
            received.append(len(message))

    async with joined(session_of(slow, other=echo)) as peer:
        call = await peer.call(METHOD)
        sending = asyncio.create_task(call.send(*[b"x" * 100_000] * 200))
        while peer.connection.local_flow_control_window(call.id) > 0:
            await asyncio.sleep(0)
        assert not sending.done()
        quick = await peer.call(OTHER, message=b"y" * 3 * MIB)
        assert await quick.receive_all() == [b"y" * 3 * MIB]
        go.set()
        await sending
        await call.half_close()
        assert (await call.ended()).code == 0
    assert received == [100_000] * 200


async def test_small_messages_do_not_block_the_loop() -> None:
    async def handler(call: Call) -> None:
        for _ in range(20_000):
            await call.send(b"x" * 20)

    async with joined(session_of(handler)) as peer:
        worst = 0.0

        async def watch() -> None:
            nonlocal worst
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0)
                worst = max(worst, time.perf_counter() - before)

        watching = asyncio.create_task(watch())
        call = await peer.call(METHOD, message=b"")
        assert len(await call.receive_all()) == 20_000
        watching.cancel()
    # The peer's parsing of a chunk of small messages is in there too.
    assert worst < 0.5


# Cancelling and ending.


async def test_a_reset_cancels_the_handler() -> None:
    hanging = Hanging(on_call=False)
    async with joined(session_of(hanging)) as peer:
        call = await peer.call(METHOD)
        await until(hanging.began)
        await call.cancel()
        await until(hanging.done)
        assert isinstance(hanging.ended_by, asyncio.CancelledError)
        assert (await peer.health()).code == 0


async def test_a_reset_right_behind_the_request_leaves_nothing() -> None:
    async with joined(session_of(echo)) as peer:
        for _ in range(300):  # more than may be open at once
            stream_id = peer.connection.get_next_available_stream_id()
            peer.connection.send_headers(stream_id, request_headers(METHOD))
            peer.connection.reset_stream(stream_id)
        await peer.flush()
        assert (await peer.health()).code == 0


async def test_a_reset_wakes_a_handler_that_waits_to_send() -> None:
    ended: list[BaseException] = []
    full = asyncio.Event()

    async def handler(call: Call) -> None:
        try:
            while True:
                full.set()
                await call.send(b"x" * MIB)
        except BaseException as error:
            ended.append(error)
            raise

    async with joined(session_of(handler)) as peer:
        call = await peer.call(METHOD)
        call.acknowledge = False
        await until(full)
        await peer.ping()
        await call.cancel()
        while not ended:
            await asyncio.sleep(0)
        assert isinstance(ended[0], asyncio.CancelledError)


@pytest.mark.parametrize("on_call", [True, False])
async def test_closing_ends_calls_says_goodbye_and_half_closes(on_call: bool) -> None:
    hanging = Hanging(on_call=on_call)
    session = session_of(hanging)
    async with joined(session) as peer:
        await peer.call(METHOD)
        await until(hanging.began)
    assert isinstance(hanging.ended_by, SessionClosed if on_call else asyncio.CancelledError)
    assert peer.terminated is not None
    assert peer.terminated.error_code == 0
    assert peer.eof
    assert session.failure is None


async def test_closing_is_bounded_when_the_peer_is_dead() -> None:
    """It neither reads nor hangs up, and a megabyte waits for it."""

    async def handler(call: Call) -> None:
        await call.send(b"x" * MIB)

    before = asyncio.all_tasks()
    ours, theirs = memory_pair(capacity=1000)
    session = session_of(handler, SessionTimeouts(close=0.1))
    peer = Peer(theirs)
    connection = peer.connection
    connection.initiate_connection()
    connection.send_headers(1, request_headers(METHOD), end_stream=True)
    await peer.raw(connection.data_to_send())
    async with session.serve(ours):
        while len(ours.written) < 2:
            await asyncio.sleep(0)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert session.failure is None
    assert asyncio.all_tasks() == before


async def test_cancelling_the_body_while_a_handler_sends_leaves_no_task() -> None:
    sending = asyncio.Event()

    async def handler(call: Call) -> None:
        while True:
            sending.set()
            await call.send(b"x" * MIB)

    before = asyncio.all_tasks()
    session = session_of(handler)

    async def body() -> None:
        async with joined(session) as peer:
            call = await peer.call(METHOD)
            call.acknowledge = False
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await until(sending)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
    assert session.closed.is_set()


async def test_a_handler_that_sends_after_the_end_gets_session_closed() -> None:
    ended = asyncio.Event()
    errors: list[BuildKitError] = []

    async def handler(call: Call) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for attempt in (call.receive, lambda: call.send(b"late")):
                try:
                    await attempt()
                except BuildKitError as error:
                    errors.append(error)
            ended.set()

    session = session_of(handler)
    async with joined(session) as peer:
        await peer.call(METHOD)
        await peer.health()
    await until(ended)
    assert [type(error) for error in errors] == [SessionClosed, SessionClosed]


@pytest.mark.parametrize("how", ["goodbye", "half-close", "cancel", "garbage"])
async def test_a_session_that_dies_early_says_why(how: str) -> None:
    hanging = Hanging(on_call=True)
    session = session_of(hanging)
    ours, theirs = memory_pair()
    async with open_peer(theirs) as peer, session.serve(ours):
        await peer.call(METHOD)
        await until(hanging.began)
        assert session.failure is None
        if how == "goodbye":
            await peer.goodbye()
        elif how == "half-close":
            await theirs.done_writing()
        elif how == "cancel":
            theirs.cancel()
        else:
            await peer.raw(b"\0\0\4\0\0\0\0\0\0spam")  # DATA on stream 0
        async with asyncio.timeout(5):
            await session.wait_closed()
        await until(hanging.done)
        assert isinstance(hanging.ended_by, SessionClosed)
        assert isinstance(session.failure, ProtocolError if how == "garbage" else SessionClosed)
        if how == "goodbye":
            assert "client transport shutdown" in str(session.failure)
    assert ours.cancelled


async def test_a_stream_that_breaks_while_writing_ends_the_session() -> None:
    class Breaking:
        def __init__(self) -> None:
            self.inner, self.theirs = memory_pair()
            self.broken = False

        async def read(self) -> bytes:
            return await self.inner.read()

        async def write(self, data: bytes) -> None:
            if self.broken:
                raise ConnectionLost("the network went away")
            await self.inner.write(data)

        async def done_writing(self) -> None:
            await self.inner.done_writing()

        def cancel(self) -> None:
            self.inner.cancel()

    stream = Breaking()
    session = session_of(echo)
    async with open_peer(stream.theirs) as peer, session.serve(stream):
        stream.broken = True
        await peer.call(METHOD, message=b"hello")
        async with asyncio.timeout(5):
            await session.wait_closed()
        assert isinstance(session.failure, ConnectionLost)


async def test_a_silent_daemon_has_given_up() -> None:
    """It keeps the stream open after it has killed the session."""
    session = session_of(timeouts=SessionTimeouts(silence=0.2, first_sign=0.2))
    async with joined(session) as peer:
        for _ in range(4):
            await asyncio.sleep(0.1)
            await peer.health()
        assert session.failure is None
        async with asyncio.timeout(5):
            await session.wait_closed()
        assert isinstance(session.failure, SessionClosed)
        assert "no health check" in str(session.failure)


async def test_a_blocked_loop_is_not_a_silent_daemon() -> None:
    """What came while nothing could be read counts."""
    session = session_of(timeouts=SessionTimeouts(silence=0.2, first_sign=0.2))
    async with joined(session) as peer:
        await peer.health()
        connection = peer.connection
        connection.ping(b"12345678")
        await peer.flush()
        time.sleep(0.4)
        await peer.health()
        assert session.failure is None


async def test_a_peer_that_does_not_read_replies_is_cut_off() -> None:
    """Its pings would fill the memory."""
    ours, theirs = memory_pair(capacity=1000)
    session = session_of()
    peer = Peer(theirs)
    peer.connection.initiate_connection()
    await peer.raw(peer.connection.data_to_send())

    async def flood() -> None:
        while True:
            await peer.raw(b"\0\0\x08\6\0\0\0\0\0........" * 500)

    async with session.serve(ours):
        flooding = asyncio.create_task(flood())
        async with asyncio.timeout(10):
            await session.wait_closed()
        flooding.cancel()
        await asyncio.wait({flooding})
        assert isinstance(session.failure, ProtocolError)


async def until_reset(peer: Peer, call: PeerCall) -> None:
    while call.reset is None:
        await peer.changed()
