"""The client's side of the protocol: what a server may send, and what becomes of the call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import BuildKitError, ConnectionLost
from buildkit_py.session.attachable import Code
from buildkit_py.session.grpc_client_core import ClientCore
from buildkit_py.session.grpc_core import Aborted, Ended, Event, Opened, Readable
from tests.support.h2peer import frame_message

METHOD = "/test.Service/Method"
GRPC = [(":status", "200"), ("content-type", "application/grpc")]


class Call:
    """A call of a core, and a server in the same thread."""

    def __init__(self) -> None:
        self.core = ClientCore()
        self.stream = self.core.request(METHOD, [("name", "a"), ("name", "b")], authority="here")
        self.server = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.server.initiate_connection()
        self.events: list[Event] = []
        self.messages: list[bytes] = []
        self.failure: BuildKitError | None = None

    def request(self) -> Sequence[object]:
        """Hand over what the core sends; the server's events."""
        return self.server.receive_data(self.core.data_to_send(1 << 24))

    def answer(self) -> None:
        """Hand over what the server sends, and take what becomes readable."""
        self.feed(self.server.data_to_send())

    def feed(self, data: bytes) -> None:
        for event in self.core.receive(data):
            self.events.append(event)
            if isinstance(event, Ended):
                self.failure = event.failure
        while (message := self.core.take(self.stream)) is not None:
            self.messages.append(message)


def recorded(messages: Sequence[bytes], trailers: Sequence[tuple[str, str]]) -> bytes:
    """All that a server sends for one call."""
    call = Call()
    call.request()
    call.server.send_headers(1, GRPC)
    for message in messages:
        call.server.send_data(1, frame_message(message))
    call.server.send_headers(1, trailers, end_stream=True)
    return call.server.data_to_send()


def test_the_request_is_what_a_server_expects() -> None:
    call = Call()
    request = next(event for event in call.request() if isinstance(event, RequestReceived))
    assert [(str(name), str(value)) for name, value in request.headers] == [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", METHOD),
        (":authority", "here"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "buildkit-py"),
        ("name", "a"),
        ("name", "b"),
    ]


@given(st.lists(st.binary(max_size=300), max_size=20), st.lists(st.integers(0, 5000), max_size=40))
def test_any_split_of_the_bytes_gives_the_same_messages_and_status(messages: list[bytes], cuts: list[int]) -> None:
    data = recorded(messages, [("grpc-status", "5"), ("grpc-message", "not%20here%21 %E2%82%AC")])
    call = Call()
    call.request()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(edges):
        call.feed(data[start:end])
    assert call.messages == messages
    assert call.stream.half_closed
    assert call.stream.status == (Code.NOT_FOUND, "not here! €")
    assert isinstance(call.events[0], Opened)
    assert all(isinstance(event, Readable) for event in call.events[1:])


def test_messages_larger_than_the_windows_arrive_whole_once_the_server_opens_them() -> None:
    call = Call()
    call.request()
    call.answer()
    sent = [bytes([number]) * 100_000 for number in range(5)]
    call.core.send(call.stream, sent)
    call.core.half_close(call.stream)
    received = b""
    for _ in range(1000):
        events = call.request()
        for event in events:
            if isinstance(event, DataReceived):
                received += event.data
                call.server.acknowledge_received_data(event.flow_controlled_length, 1)
        if any(isinstance(event, StreamEnded) for event in events):
            break
        call.answer()
    assert received == b"".join(map(frame_message, sent))
    assert call.stream.queued == 0


def test_the_servers_window_is_opened_as_messages_are_taken() -> None:
    call = Call()
    call.request()
    call.server.send_headers(1, GRPC)
    for _ in range(300):
        message = frame_message(bytes(60_000))
        while message:
            room = min(call.server.local_flow_control_window(1), 16_384)
            assert room > 0, "the server may not send: its window is never opened again"
            call.server.send_data(1, message[:room])
            message = message[room:]
        call.answer()
        call.request()
    assert len(call.messages) == 300


@pytest.mark.parametrize(
    ("headers", "code", "text"),
    [
        ([*GRPC, ("grpc-status", "7"), ("grpc-message", "no")], Code.PERMISSION_DENIED, "no"),
        ([*GRPC, ("grpc-status", "99")], Code.UNKNOWN, ""),
        ([*GRPC, ("grpc-status", "many")], Code.UNKNOWN, ""),
        (GRPC, Code.UNKNOWN, "without a status"),
        ([(":status", "404"), ("content-type", "text/html")], Code.UNIMPLEMENTED, "HTTP status 404"),
        ([(":status", "503")], Code.UNAVAILABLE, "HTTP status 503"),
        ([(":status", "200"), ("content-type", "text/html")], Code.UNKNOWN, "does not speak gRPC"),
    ],
)
def test_an_answer_of_headers_alone_tells_the_status(headers: list[tuple[str, str]], code: Code, text: str) -> None:
    call = Call()
    call.request()
    call.server.send_headers(1, headers, end_stream=True)
    call.answer()
    assert call.stream.status is not None
    assert call.stream.status[0] is code
    assert text in call.stream.status[1]
    assert call.stream.half_closed or call.stream.closed


def test_a_call_that_ends_in_the_middle_of_a_message_did_not_end_well() -> None:
    call = Call()
    call.request()
    call.server.send_headers(1, GRPC)
    call.server.send_data(1, frame_message(b"whole") + frame_message(b"cut off")[:-2])
    call.server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    call.answer()
    assert call.stream.status == (Code.INTERNAL, "the call ended in the middle of a message")
    assert isinstance(call.events[-1], Aborted)


def test_a_reset_ends_the_call_and_names_the_code() -> None:
    call = Call()
    call.request()
    call.server.reset_stream(1, 7)
    call.answer()
    assert isinstance(call.events[-1], Aborted)
    assert call.stream.status == (Code.UNAVAILABLE, "the daemon reset the call: REFUSED_STREAM")


def test_a_reset_after_the_status_changes_nothing() -> None:
    """So a server tells that it does not want what we still have to say. RFC 9113, 8.1."""
    call = Call()
    call.feed(recorded([b"x"], [("grpc-status", "0")]) + b"\0\0\4\3\0\0\0\0\1\0\0\0\0")
    assert call.messages == [b"x"]
    assert call.stream.status == (Code.OK, "")
    call.core.send(call.stream, [b"more"])
    call.core.cancel(call.stream)
    assert call.failure is None


def test_a_server_that_shuts_down_lets_the_call_go_on() -> None:
    call = Call()
    call.request()
    call.server.send_headers(1, GRPC)
    call.answer()
    call.feed(GoAwayFrame(0, last_stream_id=2**31 - 1).serialize() + PingFrame(0, b"12345678").serialize())
    call.feed(GoAwayFrame(0, last_stream_id=1).serialize())
    call.feed(DataFrame(1, frame_message(b"still here")).serialize())
    assert call.messages == [b"still here"]
    assert call.failure is None


@pytest.mark.parametrize(
    "frame",
    [
        GoAwayFrame(0, last_stream_id=0, error_code=0).serialize(),
        GoAwayFrame(0, last_stream_id=1, error_code=11, additional_data=b"too_many_pings").serialize(),
        b"\0\0\4\7\0\0\0\0\0\0\0\0\0",
    ],
)
def test_a_server_that_breaks_off_ends_the_connection(frame: bytes) -> None:
    call = Call()
    call.request()
    call.answer()
    call.feed(frame)
    assert isinstance(call.failure, ConnectionLost)
    assert ("too_many_pings" in str(call.failure)) == (b"too_many_pings" in frame)


def test_cancelling_tells_the_server() -> None:
    call = Call()
    call.request()
    call.answer()
    call.core.cancel(call.stream)
    call.core.cancel(call.stream)
    assert [event for event in call.request() if isinstance(event, StreamReset)]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_nothing(data: bytes) -> None:
    call = Call()
    call.feed(SettingsFrame(0).serialize())
    call.feed(data)
    call.core.data_to_send(1 << 20)


@given(st.binary(max_size=400), st.integers(0, 3), st.integers(0, 255))
def test_any_frame_is_an_event_or_nothing(payload: bytes, stream_id: int, flags: int) -> None:
    for kind in range(11):
        call = Call()
        call.request()
        call.server.send_headers(1, GRPC)
        call.answer()
        header = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big")
        call.feed(header + payload)
        call.core.cancel(call.stream)
        call.core.data_to_send(1 << 20)
