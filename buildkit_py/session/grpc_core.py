"""gRPC over HTTP/2 without I/O: bytes in, events out, bytes out. What both sides of a connection share.

:class:`~buildkit_py.session.grpc_server_core.ServerCore` answers the daemon's calls inside a session;
:class:`~buildkit_py.session.grpc_client_core.ClientCore` makes the one call that carries the session.

The ``h2`` package does the connection's state, settings, headers and resets. DATA and WINDOW_UPDATE
frames, which are all but a handful of the frames of a transfer, never reach it: they are cut from the
stream of bytes before and written by hand behind it, with flow control of their own. Through h2 a DATA
frame of 16 KiB costs about 8 us to send and 23 us to receive; this way, handlers woken and all, 2 and 4.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event as H2Event
from h2.events import RemoteSettingsChanged, StreamEnded
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from buildkit_py.errors import BuildKitError, ProtocolError
from buildkit_py.session.attachable import Code

MAX_MESSAGE_SIZE = 16 << 20
"""Largest message taken from the peer; daemons send no larger ones. Source: buildkit defaults.go."""

STREAM_WINDOW = 4 << 20
"""What the peer may send on one stream before the handler has taken any of it."""

CONNECTION_WINDOW = 16 << 20
"""Given back as soon as bytes arrive: only the stream windows hold a peer back, so that one slow handler
does not stop the others."""

MAX_CONCURRENT_STREAMS = 250
MAX_FRAME_SIZE = 1 << 20
MAX_HEADER_LIST_SIZE = 1 << 20
"""DiffCopy requests carry one header for each line of a .dockerignore."""

MAX_BUFFERED = 256 << 20
"""Received bytes that handlers have not taken, over all streams; more resets the stream that goes over."""

_MAX_CONTROL_BACKLOG = 1 << 20
"""Replies that wait for a peer that sends requests, pings and settings but does not read."""

_MAX_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535  # RFC 9113, 6.9.2
_STREAM_CREDIT_STEP = STREAM_WINDOW // 4
_CONNECTION_CREDIT_STEP = CONNECTION_WINDOW // 4
_STREAM_QUANTUM = 64 << 10
"""Bytes of one stream before the next one has its turn."""

_MAX_PARTS = 64
"""Of one message; each keeps all of what it came with in memory."""

_SMALL = 8 << 10
"""Messages under this size are copied together; larger ones go out as they are."""

# Frame types and flags. Source: RFC 9113, section 6.
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _WINDOW_UPDATE, _CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x8, 0x9
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
FRAME_HEADER_SIZE = 9
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PREFACE_SIZE = len(_PREFACE)

_pack_frame_header = struct.Struct(">HBBBL").pack
_unpack_frame_header = struct.Struct(">HBBBL").unpack
_pack_window_update = struct.Struct(">HBBBLL").pack
_pack_prefix = struct.Struct(">BL").pack
_unpack_prefix = struct.Struct(">BL").unpack_from
_PREFIX_SIZE = 5

CONTENT_TYPE = "application/grpc"

_Buffer: TypeAlias = bytes | bytearray | memoryview


class Stream:
    """One call on the connection. The attributes of the first group are for others to read."""

    __slots__ = (
        "closed",
        "deaf",
        "ending",
        "half_closed",
        "headers_sent",
        "held",
        "hungry",
        "id",
        "inbox",
        "metadata",
        "method",
        "missing",
        "outbox",
        "parts",
        "parts_size",
        "queued",
        "send_window",
        "status",
        "unacked",
    )

    def __init__(self, stream_id: int, method: str, metadata: Sequence[tuple[str, str]], send_window: int) -> None:
        self.id = stream_id
        self.method = method
        self.metadata = metadata
        self.half_closed = False  # the peer will send no more messages
        self.closed = False  # nothing can be sent or received any more
        self.queued = 0  # bytes that wait to be sent
        self.send_window = send_window
        self.headers_sent = False
        self.deaf = False  # what still arrives is dropped
        self.ending = False  # nothing more will be queued; this side ends once the queue is empty
        self.status: tuple[Code, str] | None = None  # how the call ended: what a server says, what a client heard
        self.outbox: deque[_Buffer] = deque()
        self.inbox: deque[bytes] = deque()
        self.held = 0  # bytes in the inbox, prefixes included
        self.hungry = False  # somebody waits for a message
        self.unacked = 0  # received, and not yet given back to the peer's window
        # A message of which some is missing: its body so far, or the start of a prefix while missing is 0.
        self.parts: list[_Buffer] = []
        self.parts_size = 0
        self.missing = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer's preface and settings are in: the connection works."""


class Requested(NamedTuple):
    """A call has begun."""

    stream: Stream


class Readable(NamedTuple):
    """take() would answer now, where it did not before."""

    stream: Stream


class Aborted(NamedTuple):
    """A call is over before its handler said so: reset by the peer, or refused for what was sent on it."""

    stream: Stream


class Ended(NamedTuple):
    """The connection is over; the last event."""

    failure: BuildKitError


Event: TypeAlias = Opened | Requested | Readable | Aborted | Ended


class _Broken(Exception):
    """The connection cannot go on; becomes an Ended event."""

    def __init__(self, code: ErrorCodes, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(text)


class GrpcCore:
    """State of one connection, for one side of it to build upon.

    receive() never raises for what the peer sent: a broken connection is an Ended event.
    """

    what = "connection"
    """Its name in errors."""

    def __init__(self, *, client_side: bool, max_message_size: int = MAX_MESSAGE_SIZE) -> None:
        self.closed = False
        """After close() or Ended: what is queued can still be sent, all else is ignored."""
        self.output_ready = True
        """data_to_send() may have something; cleared by data_to_send()."""
        self._max_message_size = max_message_size
        # h2 would refuse header values with spaces around them, which Go sends: a path may begin with one.
        self._h2 = H2Connection(
            H2Configuration(client_side=client_side, validate_inbound_headers=False, normalize_inbound_headers=False)
        )
        # Given before initiate_connection(), so that they are in force at once and the first frame says so.
        self._h2.local_settings = Settings(
            client=client_side,
            initial_values={
                **({SettingCodes.ENABLE_PUSH: 0} if client_side else {}),
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_CONCURRENT_STREAMS,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_SIZE,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_SIZE,
            },
        )
        self._h2.max_inbound_frame_size = MAX_FRAME_SIZE
        self._h2.decoder.max_header_list_size = MAX_HEADER_LIST_SIZE
        self._h2.initiate_connection()

        self._streams: dict[int, Stream] = {}
        self._sending: dict[int, Stream] = {}  # those with an outbox, in the order of their turns
        self._highest_id = 0
        self._opened = False

        # Inbound: the preface and whole frames are collected here; a chunk is joined once.
        self._chunks: list[bytes] = []
        self._have = 0
        self._preface_seen = client_side  # a server sends none
        self._need = FRAME_HEADER_SIZE if client_side else _PREFACE_SIZE
        self._in_header_block = False
        self._unacked = 0
        self.buffered = 0
        """Received bytes that no handler has taken yet."""

        # Outbound.
        self._control: list[bytes] = []
        self._control_size = 0
        self._send_window = _DEFAULT_WINDOW
        self._initial_send_window = _DEFAULT_WINDOW
        self._max_frame_size = 16_384
        self._pump()
        self._credit_peer(0, CONNECTION_WINDOW - _DEFAULT_WINDOW)

    # What the peer sends.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes as they come, in any split."""
        events: list[Event] = []
        if self.closed:
            return events
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return events
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        try:
            rest = self._split(data, events)
            if self._control_size > _MAX_CONTROL_BACKLOG:
                raise _Broken(ErrorCodes.ENHANCE_YOUR_CALM, "does not read the replies to what it sends")
        except _Broken as broken:
            self._fail(broken, events)
            return events
        except H2Error as error:
            self._pump()  # h2 has queued the GOAWAY
            self._end(events, ProtocolError(f"the daemon broke HTTP/2 on the {self.what}: {_text(error)}"))
            return events
        if rest and not self.closed:
            self._chunks.append(rest)
        self._have = len(rest)
        return events

    def _split(self, data: bytes, events: list[Event]) -> bytes:
        """Handle all whole frames; return what is left and set _need to what is needed to go on."""
        position = 0
        size = len(data)
        if not self._preface_seen:
            if not data.startswith(_PREFACE):
                raise _Broken(ErrorCodes.PROTOCOL_ERROR, "does not speak HTTP/2")
            self._to_h2(data[:_PREFACE_SIZE], events)
            self._preface_seen = True
            position = _PREFACE_SIZE
        view = memoryview(data)
        while not self.closed:
            if size - position < FRAME_HEADER_SIZE:
                self._need = FRAME_HEADER_SIZE
                break
            high, low, kind, flags, stream_id = _unpack_frame_header(view[position : position + FRAME_HEADER_SIZE])
            length = high << 8 | low
            if length > MAX_FRAME_SIZE:
                raise _Broken(ErrorCodes.FRAME_SIZE_ERROR, f"sent a frame of {length} bytes")
            end = position + FRAME_HEADER_SIZE + length
            if end > size:
                self._need = FRAME_HEADER_SIZE + length
                break
            stream_id &= 0x7FFF_FFFF
            if kind == _DATA and self._opened and not self._in_header_block:
                self._data_frame(stream_id, flags, view[position + FRAME_HEADER_SIZE : end], events)
            elif kind == _WINDOW_UPDATE and self._opened and not self._in_header_block:
                self._window_update_frame(stream_id, view[position + FRAME_HEADER_SIZE : end], events)
            else:
                self._other_frame(kind, flags, stream_id, data[position:end], events)
            position = end
        return data[position:]

    def _other_frame(self, kind: int, flags: int, stream_id: int, frame: bytes, events: list[Event]) -> None:
        if not self._opened and (kind != _SETTINGS or flags & _ACK):
            raise _Broken(ErrorCodes.PROTOCOL_ERROR, "did not begin with a SETTINGS frame")
        if kind == _RST_STREAM and stream_id not in self._streams and 0 < stream_id <= self._highest_id:
            return  # crossed our own end of the call; h2 has forgotten how that one ended
        self._to_h2(frame, events)
        # DATA inside a header block must reach h2 too, which refuses it.
        if kind in (_HEADERS, _CONTINUATION):
            self._in_header_block = not flags & _END_HEADERS

    def _to_h2(self, frame: bytes, events: list[Event]) -> None:
        try:
            received = self._h2.receive_data(frame)
        except H2Error:
            raise
        except Exception as error:  # a parser fed by the peer: whatever it trips over is the peer's doing
            raise _Broken(ErrorCodes.PROTOCOL_ERROR, f"sent a frame that cannot be read: {_text(error)}") from error
        self._pump()
        for event in received:
            self._h2_event(event, events)

    def _h2_event(self, event: H2Event, events: list[Event]) -> None:
        """What h2 made of a frame; a side adds what concerns it alone."""
        match event:
            case StreamEnded():
                if stream := self._streams.get(event.stream_id):
                    self._half_close(stream, events)
            case RemoteSettingsChanged():
                self._settings_changed()
                if not self._opened:
                    self._opened = True
                    events.append(Opened())
            case _:
                pass

    def _settings_changed(self) -> None:
        settings = self._h2.remote_settings
        self._max_frame_size = settings.max_frame_size
        # Windows of open streams move by the difference, and may become negative. RFC 9113, 6.9.2.
        delta = settings.initial_window_size - self._initial_send_window
        self._initial_send_window = settings.initial_window_size
        for stream in self._streams.values():
            stream.send_window += delta
            if stream.send_window > _MAX_WINDOW:
                raise _Broken(ErrorCodes.FLOW_CONTROL_ERROR, "opened a window too far")
        self.output_ready = True

    def _window_update_frame(self, stream_id: int, payload: memoryview, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _Broken(ErrorCodes.FRAME_SIZE_ERROR, "sent a WINDOW_UPDATE of a wrong size")
        increment = int.from_bytes(payload, "big") & 0x7FFF_FFFF
        if stream_id == 0:
            self._send_window += increment
            if not increment or self._send_window > _MAX_WINDOW:
                raise _Broken(ErrorCodes.FLOW_CONTROL_ERROR, "opened the connection's window by too much or by nothing")
        elif stream := self._streams.get(stream_id):
            stream.send_window += increment
            if not increment or stream.send_window > _MAX_WINDOW:
                self._reset(stream, ErrorCodes.FLOW_CONTROL_ERROR)
                events.append(Aborted(stream))
        elif stream_id > self._highest_id or not stream_id & 1:
            raise _Broken(ErrorCodes.PROTOCOL_ERROR, f"opened the window of stream {stream_id}, which does not exist")
        self.output_ready = True

    def _data_frame(self, stream_id: int, flags: int, payload: memoryview, events: list[Event]) -> None:
        # All of the frame counts, padding too. RFC 9113, 6.1.
        length = len(payload)
        self._unacked += length
        if self._unacked >= _CONNECTION_CREDIT_STEP:
            # With no regard to who reads what: the connection's window is never used up.
            self._credit_peer(0, self._unacked)
            self._unacked = 0
        if flags & _PADDED:
            if not length or payload[0] >= length:
                raise _Broken(ErrorCodes.PROTOCOL_ERROR, "sent a frame with more padding than bytes")
            payload = payload[1 : length - payload[0]]
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._highest_id or not stream_id & 1:
                raise _Broken(ErrorCodes.PROTOCOL_ERROR, f"sent data on stream {stream_id}, which does not exist")
            return  # sent before our end of the call arrived
        if stream.half_closed:
            self._reset(stream, ErrorCodes.STREAM_CLOSED)
            events.append(Aborted(stream))
            return
        stream.unacked += length
        if stream.unacked > STREAM_WINDOW:
            raise _Broken(ErrorCodes.FLOW_CONTROL_ERROR, f"sent more than the window of stream {stream_id}")
        if not stream.deaf:
            if refusal := self._reassemble(stream, payload):
                self._refuse(stream, *refusal)
                events.append(Aborted(stream))
                return
            if stream.hungry and stream.inbox:
                stream.hungry = False
                events.append(Readable(stream))
        if flags & _END_STREAM:
            # h2 keeps the state of the stream; that is all it needs to know of the frame.
            self._to_h2(_pack_frame_header(0, 0, _DATA, _END_STREAM, stream_id), events)
        else:
            self._credit(stream)

    def _reassemble(self, stream: Stream, payload: memoryview) -> tuple[Code, str] | None:
        """Cut messages out of the stream; an answer is the status that refuses the call."""
        size = len(payload)
        position = 0
        self.buffered += size
        if self.buffered > MAX_BUFFERED:
            self.buffered -= size
            return Code.RESOURCE_EXHAUSTED, "too much is waiting to be handled"
        if stream.missing:
            if size < stream.missing:
                if size:
                    stream.parts.append(payload)
                    stream.parts_size += size
                    stream.missing -= size
                    if len(stream.parts) > _MAX_PARTS:
                        _gather(stream.parts)
                return None
            position = stream.missing
            stream.parts.append(payload[:position])
            message = b"".join(stream.parts)
            stream.parts.clear()
            stream.parts_size = stream.missing = 0
            stream.inbox.append(message)
            stream.held += len(message) + _PREFIX_SIZE
        elif stream.parts:
            payload = memoryview(b"".join((*stream.parts, payload)))
            size = len(payload)
            stream.parts.clear()
            stream.parts_size = 0
        while size - position >= _PREFIX_SIZE:
            flag, length = _unpack_prefix(payload, position)
            if flag:
                self.buffered -= size - position
                return _refuse_flag(flag, stream.metadata)
            if length > self._max_message_size:
                self.buffered -= size - position
                text = f"message of {length} bytes, more than the limit of {self._max_message_size}"
                return Code.RESOURCE_EXHAUSTED, text
            position += _PREFIX_SIZE
            end = position + length
            if end > size:
                stream.missing = end - size
                stream.parts_size = _PREFIX_SIZE
                break
            stream.inbox.append(bytes(payload[position:end]))
            stream.held += length + _PREFIX_SIZE
            position = end
        if position < size:
            stream.parts.append(payload[position:])
            stream.parts_size += size - position
        return None

    def _half_close(self, stream: Stream, events: list[Event]) -> None:
        stream.half_closed = True
        if (stream.parts_size or stream.missing) and not stream.deaf:
            self._refuse(stream, Code.INTERNAL, "the call ended in the middle of a message")
            events.append(Aborted(stream))
        elif stream.hungry:
            stream.hungry = False
            events.append(Readable(stream))

    # What is taken and sent.

    def take(self, stream: Stream) -> bytes | None:
        """Next message; None when there is none: Readable comes once there is, or at the half-close."""
        if stream.inbox:
            message = stream.inbox.popleft()
            size = len(message) + _PREFIX_SIZE
            stream.held -= size
            self.buffered -= size
            self._credit(stream)
            return message
        if not stream.half_closed and not stream.closed:
            stream.hungry = True
            self._credit(stream)
        return None

    def send(self, stream: Stream, messages: Iterable[_Buffer]) -> None:
        """Queue messages; the buffers must not change until they are sent."""
        if self.closed or stream.closed or stream.ending:
            return
        if not stream.headers_sent:
            self._send_headers(stream)
        small: list[_Buffer] = []
        outbox = stream.outbox
        queued = 0
        for message in messages:
            size = message.nbytes if isinstance(message, memoryview) else len(message)
            queued += size + _PREFIX_SIZE
            small.append(_pack_prefix(0, size))
            if size <= _SMALL:
                small.append(message)
            else:
                outbox.append(b"".join(small))
                small.clear()
                outbox.append(memoryview(message).cast("B"))
        if small:
            outbox.append(b"".join(small))
        if queued:
            stream.queued += queued
            self._sending[stream.id] = stream
            self.output_ready = True

    def close(self) -> None:
        """Say goodbye; only what is queued as control frames leaves after this."""
        if self.closed:
            return
        self._h2.close_connection(ErrorCodes.NO_ERROR)
        self._pump()
        self._close()

    def data_to_send(self, limit: int) -> bytes:
        """About limit bytes at most, cut anywhere; b"" when there is nothing, or no window for it."""
        parts: list[_Buffer] = list(self._control)
        size = self._control_size
        self._control.clear()
        self._control_size = 0
        while size < limit and self._send_window > 0:
            sent = 0
            for stream in list(self._sending.values()):
                sent += self._fill(stream, parts, min(limit - size - sent, _STREAM_QUANTUM))
                if not stream.queued:
                    del self._sending[stream.id]
                    if stream.ending:
                        self._end_stream(stream)
                        parts += self._control
                        sent += self._control_size
                        self._control.clear()
                        self._control_size = 0
                elif len(self._sending) > 1:  # to the end of the line
                    del self._sending[stream.id]
                    self._sending[stream.id] = stream
                if size + sent >= limit or self._send_window <= 0:
                    break
            if not sent:
                break
            size += sent
        if not parts:
            self.output_ready = False
            return b""
        return b"".join(parts)

    def _fill(self, stream: Stream, parts: list[_Buffer], limit: int) -> int:
        """Add DATA frames of one stream to parts; return the bytes added."""
        outbox = stream.outbox
        budget = min(limit, stream.send_window, self._send_window, stream.queued)
        if budget <= 0:
            return 0
        left = budget
        added = 0
        while left:
            frame = min(left, self._max_frame_size)
            left -= frame
            parts.append(_pack_frame_header(frame >> 8, frame & 0xFF, _DATA, 0, stream.id))
            added += FRAME_HEADER_SIZE + frame
            while frame:
                piece = outbox[0]
                size = len(piece)
                if size <= frame:
                    parts.append(piece)
                    outbox.popleft()
                    frame -= size
                else:
                    view = memoryview(piece)
                    parts.append(view[:frame])
                    outbox[0] = view[frame:]
                    frame = 0
        stream.queued -= budget
        stream.send_window -= budget
        self._send_window -= budget
        return added

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        self._h2.reset_stream(stream.id, code)
        self._pump()
        self._forget(stream)

    # What a side does in its own way.

    def _send_headers(self, stream: Stream) -> None:
        """Headers, before the first message."""
        raise NotImplementedError

    def _end_stream(self, stream: Stream) -> None:
        """This side of the call is over, and all that was queued has been sent."""
        raise NotImplementedError

    def _refuse(self, stream: Stream, code: Code, text: str) -> None:
        """End the call at once, because of what the peer sent."""
        raise NotImplementedError

    # Housekeeping.

    def _credit(self, stream: Stream) -> None:
        """Give back the window of all that is not held here, once that is worth a frame.

        A message larger than the window still gets through: while its handler waits, its parts do not count.
        """
        due = stream.unacked - stream.held - (0 if stream.hungry else stream.parts_size)
        if due >= _STREAM_CREDIT_STEP and not stream.half_closed and not stream.closed and not self.closed:
            stream.unacked -= due
            self._credit_peer(stream.id, due)

    def _credit_peer(self, stream_id: int, increment: int) -> None:
        self._queue_control(_pack_window_update(0, 4, _WINDOW_UPDATE, 0, stream_id, increment))

    def _pump(self) -> None:
        """Move h2's bytes behind ours; after each use of h2, so that header blocks stay in order."""
        if data := self._h2.data_to_send():
            self._queue_control(data)

    def _queue_control(self, data: bytes) -> None:
        self._control.append(data)
        self._control_size += len(data)
        self.output_ready = True

    def _drop_inbound(self, stream: Stream) -> None:
        self.buffered -= stream.held + stream.parts_size
        stream.inbox.clear()
        stream.parts.clear()
        stream.held = stream.parts_size = stream.missing = 0
        stream.hungry = False

    def _drop_outbound(self, stream: Stream) -> None:
        stream.outbox.clear()
        stream.queued = 0
        self._sending.pop(stream.id, None)

    def _forget(self, stream: Stream) -> None:
        stream.closed = True
        self._streams.pop(stream.id, None)
        self._drop_inbound(stream)
        self._drop_outbound(stream)

    def _fail(self, broken: _Broken, events: list[Event]) -> None:
        with contextlib.suppress(H2Error):  # it may have given up by itself
            self._h2.close_connection(broken.code)
        self._pump()
        self._end(events, ProtocolError(f"the daemon broke the protocol of the {self.what}: it {broken.text}"))

    def _end(self, events: list[Event], failure: BuildKitError) -> None:
        self._close()
        events.append(Ended(failure))

    def _close(self) -> None:
        self.closed = True
        self._chunks.clear()
        for stream in list(self._streams.values()):
            self._forget(stream)


def headers_of(event_headers: Iterable[tuple[bytes, bytes]] | None) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Pseudo headers, and the others in order. What is not UTF-8 comes out as os.fsdecode has it."""
    pseudo: dict[str, str] = {}
    metadata: list[tuple[str, str]] = []
    for name_bytes, value_bytes in event_headers or ():
        name = bytes(name_bytes).decode("ascii", "replace")
        value = bytes(value_bytes).decode("utf-8", "surrogateescape")
        if name.startswith(":"):
            pseudo[name] = value
        else:
            metadata.append((name, value))
    return pseudo, metadata


def is_grpc(metadata: Iterable[tuple[str, str]]) -> bool:
    """Whether the content type is that of gRPC."""
    for name, value in metadata:
        if name == "content-type":
            return value == CONTENT_TYPE or value.startswith((CONTENT_TYPE + "+", CONTENT_TYPE + ";"))
    return False


def _gather(parts: list[_Buffer]) -> None:
    """Copy many parts into one, which grows, so that each byte is copied once or twice and not with every part."""
    first = parts[0] if isinstance(parts[0], bytearray) else bytearray(parts[0])
    first += b"".join(parts[1:])
    parts[:] = [first]


def _refuse_flag(flag: int, metadata: Iterable[tuple[str, str]]) -> tuple[Code, str]:
    encodings = [value for name, value in metadata if name == "grpc-encoding" and value != "identity"]
    if flag == 1 and encodings:
        return Code.UNIMPLEMENTED, f"compression is not supported: {encodings[0][:50]}"
    return Code.INTERNAL, f"message with flag {flag}, expected 0"


def _text(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:200]
