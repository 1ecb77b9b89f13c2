"""The server's side of a gRPC connection: a daemon's calls come in, messages and a status go out."""

from __future__ import annotations

from urllib.parse import quote

from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, RequestReceived, StreamReset
from h2.events import Event as H2Event

from buildkit_py.errors import SessionClosed
from buildkit_py.session.attachable import Code
from buildkit_py.session.grpc_core import (
    CONTENT_TYPE,
    MAX_MESSAGE_SIZE,
    Aborted,
    Event,
    GrpcCore,
    Requested,
    Stream,
    headers_of,
    is_grpc,
)

_MAX_STATUS_TEXT = 2000
# Everything printable but "%" may stand in grpc-message as it is. Source: grpc, doc/PROTOCOL-HTTP2.md.
_MESSAGE_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


class ServerCore(GrpcCore):
    """Answers calls; each is announced by a Requested event."""

    what = "session"

    def __init__(self, *, max_message_size: int = MAX_MESSAGE_SIZE) -> None:
        super().__init__(client_side=False, max_message_size=max_message_size)

    def finish(self, stream: Stream, code: Code, text: str = "") -> None:
        """End the call with a status, after all that is queued."""
        if self.closed or stream.closed or stream.ending:
            return
        stream.status = (code, text)
        stream.ending = stream.deaf = True  # only its last messages wait for the window
        self._drop_inbound(stream)
        self._credit(stream)
        if not stream.queued:
            self._end_stream(stream)

    def abort(self, stream: Stream, code: Code, text: str = "") -> None:
        """End the call with a status now; what is queued is dropped."""
        if self.closed or stream.closed:
            return
        self._drop_outbound(stream)
        stream.status = (code, text)
        self._end_stream(stream)

    def _h2_event(self, event: H2Event, events: list[Event]) -> None:
        match event:
            case RequestReceived():
                self._request(event, events)
            case StreamReset():
                if stream := self._streams.get(event.stream_id):
                    self._forget(stream)
                    events.append(Aborted(stream))
            case ConnectionTerminated():
                # Go's client sends it when it closes, which ends the open calls too.
                text = (event.additional_data or b"")[:200].decode("ascii", "replace")
                self._end(events, SessionClosed(f"the daemon closed the session{': ' if text else ''}{text}"))
            case _:
                super()._h2_event(event, events)

    def _request(self, event: RequestReceived, events: list[Event]) -> None:
        pseudo, metadata = headers_of(event.headers)
        stream_id = event.stream_id or 0
        self._highest_id = max(self._highest_id, stream_id)
        stream = Stream(stream_id, pseudo.get(":path", ""), metadata, self._initial_send_window)
        self._streams[stream_id] = stream
        if pseudo.get(":method") != "POST" or not stream.method.startswith("/"):
            self._reset(stream, ErrorCodes.PROTOCOL_ERROR)
        elif not is_grpc(metadata):
            self._h2.send_headers(stream_id, [(":status", "415")], end_stream=True)
            self._reset(stream, ErrorCodes.NO_ERROR)
        else:
            events.append(Requested(stream))

    def _send_headers(self, stream: Stream) -> None:
        stream.headers_sent = True
        self._h2.send_headers(stream.id, [(":status", "200"), ("content-type", CONTENT_TYPE)])
        self._pump()

    def _end_stream(self, stream: Stream) -> None:
        """Send the status, as trailers."""
        code, text = stream.status or (Code.OK, "")
        headers: list[tuple[str, str]] = []
        if not stream.headers_sent:  # "trailers-only"
            headers += [(":status", "200"), ("content-type", CONTENT_TYPE)]
        headers.append(("grpc-status", str(int(code))))
        if text:
            shown = text[:_MAX_STATUS_TEXT].strip()
            headers.append(("grpc-message", quote(shown, safe=_MESSAGE_SAFE, errors="replace")))
        self._h2.send_headers(stream.id, headers, end_stream=True)
        self._pump()
        if stream.half_closed:
            self._forget(stream)
        else:  # tells the peer that what it still sends is not wanted. RFC 9113, 8.1.
            self._reset(stream, ErrorCodes.NO_ERROR)

    def _refuse(self, stream: Stream, code: Code, text: str) -> None:
        self.abort(stream, code, text)
