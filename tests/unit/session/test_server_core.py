"""The protocol itself: bytes in, events and bytes out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from random import Random

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from buildkit_py.errors import ProtocolError, SessionClosed
from buildkit_py.session import grpc_core
from buildkit_py.session.attachable import Code
from buildkit_py.session.grpc_core import Aborted, Ended, Event, Opened, Readable, Requested, Stream
from buildkit_py.session.grpc_server_core import ServerCore
from tests.support.h2peer import frame_message, request_headers

METHOD = "/test.Service/Method"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()


def new_client() -> H2Connection:
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    return client


def recorded(messages: Iterable[bytes], *, stream_id: int = 1, end: bool = True) -> bytes:
    """All that a client sends for one call, each message in a frame of its own."""
    client = new_client()
    client.send_headers(stream_id, request_headers(METHOD))
    for message in messages:
        client.send_data(stream_id, frame_message(message))
    if end:
        client.end_stream(stream_id)
    return client.data_to_send()


class Reader:
    """Feeds a core and takes what becomes readable."""

    def __init__(self, core: ServerCore | None = None) -> None:
        self.core = core or ServerCore()
        self.events: list[str] = []
        self.messages: list[bytes] = []
        self.streams: list[Stream] = []
        self.failure: BaseException | None = None

    def feed(self, data: bytes) -> None:
        for event in self.core.receive(data):
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case Opened():
                self.events.append("opened")
            case Requested(stream):
                self.events.append(f"requested {stream.method}")
                self.streams.append(stream)
                self._take(stream)
            case Readable(stream):
                self._take(stream)
            case Aborted(_):
                self.events.append("aborted")
            case Ended(failure):
                self.failure = failure

    def _take(self, stream: Stream) -> None:
        while (message := self.core.take(stream)) is not None:
            self.messages.append(message)
        if stream.half_closed:
            self.events.append("half-closed")


@given(
    st.lists(st.binary(max_size=300), max_size=20),
    st.lists(st.integers(0, 5000), max_size=40),
)
def test_any_split_of_the_bytes_gives_the_same_calls_and_messages(messages: list[bytes], cuts: list[int]) -> None:
    data = recorded(messages)
    reader = Reader()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(edges):
        reader.feed(data[start:end])
    assert reader.messages == messages
    assert reader.events == ["opened", f"requested {METHOD}", "half-closed"]


def test_bytes_one_at_a_time() -> None:
    messages = [b"", b"one", b"x" * 5000]
    reader = Reader()
    for byte in recorded(messages):
        reader.feed(bytes((byte,)))
    assert reader.messages == messages


@given(st.lists(st.binary(max_size=50), max_size=30), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_messages_may_be_cut_into_frames_anywhere(messages: list[bytes], sizes: list[int]) -> None:
    """Prefixes too, and frames may be empty or padded."""
    stream = b"".join(map(frame_message, messages))
    client = new_client()
    client.send_headers(1, request_headers(METHOD))
    while stream:
        for size in sizes:
            client.send_data(1, stream[:size], pad_length=size % 3 or None)
            stream = stream[size:]
    client.send_data(1, b"", end_stream=True)
    reader = Reader()
    reader.feed(client.data_to_send())
    assert reader.messages == messages
    assert reader.failure is None


@given(st.lists(st.binary(max_size=70_000), max_size=5), st.integers(10, 40_000), st.integers(1, 200_000))
@settings(max_examples=50)
def test_what_is_sent_arrives_whole_in_frames_and_windows_of_the_peer(
    messages: list[bytes], limit: int, window: int
) -> None:
    client = new_client()
    client.update_settings({4: window})  # INITIAL_WINDOW_SIZE
    client.send_headers(1, request_headers(METHOD), end_stream=True)
    reader = Reader()
    reader.feed(client.data_to_send())
    core, stream = reader.core, reader.streams[0]
    core.send(stream, [memoryview(message) for message in messages])
    core.finish(stream, Code.OK)
    received = b""
    ended = False
    while True:
        output = core.data_to_send(limit)
        if not output:
            break
        for event in client.receive_data(output):
            if isinstance(event, DataReceived):
                received += event.data or b""
                client.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            ended |= isinstance(event, StreamEnded)
        reader.feed(client.data_to_send())
    assert received == b"".join(map(frame_message, messages))
    assert ended
    assert reader.failure is None


def test_buffers_of_all_kinds_are_sent() -> None:
    client = new_client()
    client.send_headers(1, request_headers(METHOD), end_stream=True)
    reader = Reader()
    reader.feed(client.data_to_send())
    stream = reader.streams[0]
    buffers: list[bytes | bytearray | memoryview] = []
    for size in (3, 20_000):
        buffers += [
            b"a" * size,
            bytearray(b"b" * size),
            memoryview(b"c" * size),
            memoryview(b"d" * size * 4).cast("I"),
        ]
    reader.core.send(stream, buffers)
    received = b"".join(
        event.data or b""
        for event in client.receive_data(b"".join(iter(lambda: reader.core.data_to_send(1 << 20), b"")))
        if isinstance(event, DataReceived)
    )
    expected = b"".join(frame_message(bytes(buffer)) for buffer in buffers)
    assert len(received) == 65_535  # the window of a peer that has not said more
    assert expected.startswith(received)


def test_streams_take_turns() -> None:
    """A long transfer does not hold up a short answer."""
    client = new_client()
    client.increment_flow_control_window(10 << 20)
    client.update_settings({4: 10 << 20})
    for stream_id in (1, 3):
        client.send_headers(stream_id, request_headers(METHOD), end_stream=True)
    reader = Reader()
    reader.feed(client.data_to_send())
    long, short = reader.streams
    reader.core.send(long, [b"x" * (5 << 20)])
    reader.core.send(short, [b"y"])
    reader.core.finish(short, Code.OK)
    ended = [
        event.stream_id
        for event in client.receive_data(reader.core.data_to_send(256 << 10))
        if isinstance(event, StreamEnded)
    ]
    assert ended == [3]


# What a peer must not do.


def window_update(stream_id: int, increment: int) -> bytes:
    return bytes((0, 0, 4, 8, 0)) + stream_id.to_bytes(4, "big") + increment.to_bytes(4, "big")


CALL = recorded([b"one"], end=False)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/2", id="http-1"),
        pytest.param(PREFACE[:24] + PingFrame(0, b"12345678").serialize(), "SETTINGS", id="no-settings"),
        pytest.param(PREFACE[:24] + SettingsFrame(0, flags=["ACK"]).serialize(), "SETTINGS", id="ack-first"),
        pytest.param(PREFACE + DataFrame(1, b"x").serialize(), "stream 1", id="data-on-idle"),
        pytest.param(PREFACE + b"\0\0\1\0\0\0\0\0\0x", "stream 0", id="data-on-connection"),
        pytest.param(PREFACE + DataFrame(2, b"x").serialize(), "stream 2", id="data-on-even"),
        pytest.param(PREFACE + window_update(1, 1), "stream 1", id="window-of-idle"),
        pytest.param(PREFACE + window_update(0, 0), "window", id="window-by-nothing"),
        pytest.param(PREFACE + window_update(0, 2**31 - 1), "window", id="window-too-far"),
        pytest.param(PREFACE + b"\0\0\3\x08\0\0\0\0\0abc", "size", id="window-frame-short"),
        pytest.param(PREFACE + b"\xff\xff\xff\x00\0\0\0\0\1", "16777215 bytes", id="frame-too-large"),
        pytest.param(CALL + b"\0\0\2\0\x08\0\0\0\1\x05x", "padding", id="padding"),
        pytest.param(PREFACE + b"\0\0\1\1\4\0\0\0\1\xff", "HTTP/2", id="headers-not-hpack"),
        pytest.param(
            PREFACE + b"\0\0\1\1\0\0\0\0\1\x82" + DataFrame(1, b"x").serialize(),
            "HTTP/2",
            id="data-in-headers",
        ),
        pytest.param(PREFACE + ContinuationFrame(1, b"x").serialize(), "HTTP/2", id="continuation"),
    ],
)
def test_a_broken_connection_ends_with_protocol_error_and_goaway(data: bytes, text: str) -> None:
    reader = Reader()
    reader.feed(data)
    assert isinstance(reader.failure, ProtocolError)
    assert text in str(reader.failure)
    output = reader.core.data_to_send(1 << 20)
    assert frame_types(output)[-1] == 7
    assert reader.core.closed
    assert reader.core.receive(b"more") == []


def frame_types(data: bytes) -> list[int]:
    types: list[int] = []
    while data:
        types.append(data[3])
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return types


def test_more_than_a_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    reader.feed(CALL)
    stream = reader.streams[0]
    stream.hungry = False  # a handler that is busy
    frame = DataFrame(1, frame_message(b"x" * (16_384 - 5))).serialize()
    for _ in range(grpc_core.STREAM_WINDOW // 16_384 - 1):
        reader.feed(frame)
    assert reader.failure is None
    reader.feed(frame)
    assert isinstance(reader.failure, ProtocolError)
    assert "window of stream 1" in str(reader.failure)


def test_what_all_calls_together_buffer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_core, "MAX_BUFFERED", 100_000)
    reader = Reader()
    reader.feed(CALL)
    reader.streams[0].hungry = False
    frame = DataFrame(1, frame_message(b"x" * (16_384 - 5))).serialize()
    for _ in range(7):
        reader.feed(frame)
    assert reader.events[-1] == "aborted"
    assert reader.failure is None
    reader.feed(DataFrame(1, b"late").serialize())
    assert reader.failure is None


def test_a_window_opened_too_far_resets_its_call_alone() -> None:
    reader = Reader()
    reader.feed(CALL + window_update(1, 2**31 - 1))
    assert reader.events[-1] == "aborted"
    assert reader.failure is None
    assert frame_types(reader.core.data_to_send(1 << 20))[-1] == 3


def test_data_behind_the_end_resets_its_call_alone() -> None:
    reader = Reader()
    reader.feed(recorded([b"one"]) + DataFrame(1, b"x").serialize())
    assert reader.events[-1] == "aborted"
    assert reader.failure is None


def test_a_goaway_says_what_the_peer_said() -> None:
    reader = Reader()
    reader.feed(CALL + GoAwayFrame(0, additional_data=b"client transport shutdown").serialize())
    assert isinstance(reader.failure, SessionClosed)
    assert "client transport shutdown" in str(reader.failure)


def test_a_reset_that_crosses_the_end_of_a_call_is_ignored() -> None:
    reader = Reader()
    reader.feed(recorded([b"one"]))
    reader.core.finish(reader.streams[0], Code.OK)
    reader.feed(headers_frame(3, end_stream=True, end_headers=True).serialize())  # makes h2 forget the first
    reader.feed(RstStreamFrame(1, 8).serialize())
    assert reader.failure is None
    assert "aborted" not in reader.events
    assert len(reader.streams) == 2


def test_more_headers_than_the_limit_end_the_connection_not_the_process() -> None:
    client = new_client()
    client.remote_settings[6] = 1 << 30  # MAX_HEADER_LIST_SIZE that this client ignores
    client.send_headers(1, [*request_headers(METHOD), *[("x", "y" * 1000)] * 1100])
    reader = Reader()
    reader.feed(client.data_to_send())
    assert isinstance(reader.failure, ProtocolError)


@pytest.mark.parametrize("content", [b"", b"x"])
def test_a_message_in_many_frames_takes_the_memory_of_its_bytes(content: bytes) -> None:
    """Frames without content are free for the daemon, and one of a byte keeps all that came with it."""
    reader = Reader()
    reader.feed(recorded([], end=False))
    reader.feed(DataFrame(1, b"\0" + (1 << 20).to_bytes(4, "big") + b"begun").serialize())
    frame = DataFrame(1, content).serialize()
    tracemalloc.start()
    try:
        for _ in range(100):
            reader.feed(frame * 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20
    reader.feed(DataFrame(1, bytes((1 << 20) - 5 - 100_000 * len(content))).serialize())
    assert reader.messages == [b"begun" + content * 100_000 + bytes((1 << 20) - 5 - 100_000 * len(content))]


# Fuzz: whatever comes, the core returns events and stays in bounds.


@given(st.lists(st.binary(max_size=200), max_size=10), st.booleans())
def test_random_bytes_never_raise(chunks: list[bytes], greeted: bool) -> None:
    reader = Reader()
    if greeted:
        reader.feed(PREFACE)
    for chunk in chunks:
        reader.feed(chunk)
        reader.core.data_to_send(1 << 16)
    assert reader.failure is None or isinstance(reader.failure, ProtocolError | SessionClosed)


stream_ids = st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1])


@st.composite
def raw_frames(draw: st.DrawFn) -> bytes:
    """A frame that has a true length and may be nonsense otherwise."""
    payload = draw(st.binary(max_size=40))
    header = bytes((draw(st.integers(0, 11)), draw(st.integers(0, 255))))
    return len(payload).to_bytes(3, "big") + header + draw(stream_ids).to_bytes(4, "big") + payload


def headers_frame(stream_id: int, end_stream: bool, end_headers: bool) -> Frame:
    # Static table alone, so that frames stay valid in any order: POST, http, path as a literal, content-type.
    block = b"\x83\x86\x04" + bytes((len(METHOD),)) + METHOD.encode() + b"\x0f\x10" + bytes((16,)) + b"application/grpc"
    flags = ["END_STREAM"] * end_stream + ["END_HEADERS"] * end_headers
    return HeadersFrame(stream_id, block, flags=flags)


odd_ids = st.sampled_from([1, 3, 5, 7])
valid_frames = st.one_of(
    st.builds(headers_frame, odd_ids, st.booleans(), st.sampled_from([True, True, True, False])),
    st.builds(
        lambda stream_id, data, end: DataFrame(stream_id, data, flags=["END_STREAM"] * end),
        odd_ids,
        st.one_of(st.binary(max_size=30), st.binary(max_size=30).map(frame_message)),
        st.sampled_from([False, False, False, True]),
    ),
    st.builds(lambda stream_id, code: RstStreamFrame(stream_id, code), odd_ids, st.integers(0, 20)),
    st.builds(
        lambda stream_id, increment: WindowUpdateFrame(stream_id, increment),
        st.sampled_from([0, 1, 3, 5]),
        st.integers(1, 2**20),
    ),
    st.builds(lambda value: SettingsFrame(0, {4: value}), st.integers(0, 2**20)),
    st.just(SettingsFrame(0, flags=["ACK"])),
    st.just(PingFrame(0, b"12345678")),
    st.builds(lambda stream_id: PriorityFrame(stream_id, depends_on=0), odd_ids),
).map(lambda frame: frame.serialize())


@given(
    st.lists(st.one_of(valid_frames, valid_frames, valid_frames, raw_frames()), max_size=30),
    st.lists(st.sampled_from(["send", "finish", "abort", "write", "nothing"]), min_size=30, max_size=30),
)
@settings(max_examples=300)
def test_random_frames_never_raise_and_never_lose_count(frames: list[bytes], actions: list[str]) -> None:
    reader = Reader()
    reader.feed(PREFACE)
    core = reader.core
    for frame, action in zip(frames, actions, strict=False):
        reader.feed(frame)
        for stream in reader.streams[-2:]:
            match action:
                case "send":
                    core.send(stream, [b"x" * 5000])
                case "finish":
                    core.finish(stream, Code.OK)
                case "abort":
                    core.abort(stream, Code.ABORTED, "no")
                case "write":
                    core.data_to_send(10_000)
                case _:
                    core.take(stream)
    core.data_to_send(1 << 20)
    assert reader.failure is None or isinstance(reader.failure, ProtocolError | SessionClosed)
    open_streams = [stream for stream in reader.streams if not stream.closed]
    assert core.buffered == sum(stream.held + stream.parts_size for stream in open_streams)
    assert core.buffered >= 0


@given(st.lists(valid_frames, max_size=30), st.randoms())
def test_random_frames_in_any_split_give_the_same_events(frames: list[bytes], random: Random) -> None:
    data = PREFACE + b"".join(frames)
    whole, split = Reader(), Reader()
    whole.feed(data)
    position = 0
    while position < len(data):
        size = random.randint(1, 60)
        split.feed(data[position : position + size])
        position += size
    assert [event for event in split.events if event != "half-closed"] == [
        event for event in whole.events if event != "half-closed"
    ]
    assert str(split.failure) == str(whole.failure)
