"""The client's side of a gRPC connection: one call goes out, messages and a status come in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from urllib.parse import unquote

from h2.errors import ErrorCodes
from h2.events import Event as H2Event
from h2.events import ResponseReceived, StreamReset, TrailersReceived

from buildkit_py.errors import ConnectionLost
from buildkit_py.session.attachable import Code
from buildkit_py.session.grpc_core import (
    CONTENT_TYPE,
    FRAME_HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    Aborted,
    Event,
    GrpcCore,
    Stream,
    headers_of,
    is_grpc,
)

_GOAWAY = 0x7
_unpack_goaway = struct.Struct(">LL").unpack_from
_MAX_TEXT = 500

# Source: grpc, doc/http-grpc-status-mapping.md.
_CODE_OF_HTTP = {
    "400": Code.INTERNAL,
    "401": Code.UNAUTHENTICATED,
    "403": Code.PERMISSION_DENIED,
    "404": Code.UNIMPLEMENTED,
    "429": Code.UNAVAILABLE,
    "502": Code.UNAVAILABLE,
    "503": Code.UNAVAILABLE,
    "504": Code.UNAVAILABLE,
}


class ClientCore(GrpcCore):
    """Makes calls. What comes of one is Readable as messages come, and at its end, or Aborted; then status is set."""

    what = "session's stream"

    def __init__(self, *, max_message_size: int = MAX_MESSAGE_SIZE) -> None:
        super().__init__(client_side=True, max_message_size=max_message_size)

    def request(
        self, method: str, metadata: Sequence[tuple[str, str]], *, authority: str, scheme: str = "http"
    ) -> Stream:
        """Begin a call of this full method path."""
        stream = Stream(self._highest_id + 2 if self._highest_id else 1, method, metadata, self._initial_send_window)
        self._highest_id = stream.id
        self._streams[stream.id] = stream
        stream.headers_sent = True
        headers = [
            (":method", "POST"),
            (":scheme", scheme),
            (":path", method),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", CONTENT_TYPE),
            ("user-agent", "buildkit-py"),
            *metadata,
        ]
        self._h2.send_headers(stream.id, headers)
        self._pump()
        return stream

    def half_close(self, stream: Stream) -> None:
        """No more messages, after those that are queued."""
        if self.closed or stream.closed or stream.ending:
            return
        stream.ending = True
        if not stream.queued:
            self._end_stream(stream)

    def cancel(self, stream: Stream) -> None:
        """Drop the call; the peer is told."""
        if not self.closed and not stream.closed:
            self._drop(stream)

    def _other_frame(self, kind: int, flags: int, stream_id: int, frame: bytes, events: list[Event]) -> None:
        if kind == _GOAWAY and self._opened and not self._in_header_block:
            self._goaway(frame[FRAME_HEADER_SIZE:], events)
        else:
            super()._other_frame(kind, flags, stream_id, frame, events)

    def _goaway(self, payload: bytes, events: list[Event]) -> None:
        """A server that shuts down lets the calls that it has taken go on; h2 would not."""
        if len(payload) < 8:
            self._end(events, ConnectionLost("the daemon broke off the session's stream"))
            return
        last_stream_id, code = _unpack_goaway(payload)
        if code == ErrorCodes.NO_ERROR and (last_stream_id & 0x7FFF_FFFF) >= self._highest_id:
            return
        text = payload[8:][:_MAX_TEXT].decode("ascii", "replace")
        self._end(events, ConnectionLost(f"the daemon broke off the session's stream: {text or _name(code)}"))

    def _h2_event(self, event: H2Event, events: list[Event]) -> None:
        match event:
            case ResponseReceived():
                if stream := self._streams.get(event.stream_id):
                    self._response(stream, *headers_of(event.headers), events)
            case TrailersReceived():
                if stream := self._streams.get(event.stream_id):
                    self._ended(stream, headers_of(event.headers)[1])
            case StreamReset():
                if (stream := self._streams.get(event.stream_id)) is None:
                    return
                if stream.half_closed:  # all has been said: what we still had to say is not wanted
                    self._drop_outbound(stream)
                    self._streams.pop(stream.id, None)
                    return
                stream.status = (Code.UNAVAILABLE, f"the daemon reset the call: {_name(event.error_code)}")
                self._forget(stream)
                events.append(Aborted(stream))
            case _:
                super()._h2_event(event, events)

    def _response(
        self, stream: Stream, pseudo: dict[str, str], metadata: Sequence[tuple[str, str]], events: list[Event]
    ) -> None:
        status = pseudo.get(":status", "")
        if status != "200" or not is_grpc(metadata):
            code = Code.UNKNOWN if status == "200" else _CODE_OF_HTTP.get(status, Code.UNKNOWN)
            self._refuse(stream, code, f"what answers does not speak gRPC: HTTP status {status[:10]}")
            events.append(Aborted(stream))
        elif any(name == "grpc-status" for name, _ in metadata):  # "trailers-only"
            self._ended(stream, metadata)

    def _ended(self, stream: Stream, trailers: Sequence[tuple[str, str]]) -> None:
        fields = dict(trailers)
        try:
            code = Code(int(fields.get("grpc-status", "")))
        except ValueError:
            code = Code.UNKNOWN
        text = unquote(fields.get("grpc-message", ""), errors="replace")[:_MAX_TEXT]
        stream.status = (code, text)
        stream.ending = True
        self._drop_outbound(stream)

    def _half_close(self, stream: Stream, events: list[Event]) -> None:
        if stream.status is None:
            self._ended(stream, (("grpc-message", "the call ended without a status"),))
        super()._half_close(stream, events)

    def _end_stream(self, stream: Stream) -> None:
        self._h2.end_stream(stream.id)
        self._pump()

    def _refuse(self, stream: Stream, code: Code, text: str) -> None:
        stream.status = (code, text)
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        if stream.half_closed:  # the peer is through with it, and h2 may have forgotten it
            self._forget(stream)
        else:
            self._reset(stream, ErrorCodes.CANCEL)


def _name(code: int | ErrorCodes | None) -> str:
    try:
        return ErrorCodes(code).name if code is not None else "no reason given"
    except ValueError:
        return f"code {code}"
