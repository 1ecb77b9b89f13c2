"""gRPC server on one stream of bytes: one reader, one writer, a task for each call."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import assert_never, cast

from buildkit_py.errors import BuildKitError, SessionClosed
from buildkit_py.session.attachable import CallError, Code, Handler
from buildkit_py.session.grpc_core import (
    MAX_MESSAGE_SIZE,
    Aborted,
    Ended,
    Event,
    Opened,
    Readable,
    Requested,
    Stream,
)
from buildkit_py.session.grpc_server_core import ServerCore
from buildkit_py.session.tunnel import ByteStream

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"

_log = logging.getLogger(__name__)

_CHUNK_SIZE = 256 << 10
_HIGH_WATER = 1 << 20
"""Queued bytes of one call from which its senders wait, until half of them have left."""

_BURST = 256
"""Messages that one call may send or receive without giving others a turn."""

_FLUSH_SECONDS = 1.0
"""Time to send the GOAWAY of a connection that failed."""

_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}


class GrpcServer:
    """Serves handlers, by full method path, on one connection; answers health checks by itself."""

    def __init__(self, handlers: Mapping[str, Handler], *, max_message_size: int = MAX_MESSAGE_SIZE) -> None:
        self.opened = asyncio.Event()
        """Set once the peer's HTTP/2 preface is in."""
        self.ended = asyncio.Event()
        """Set once no call can go on, for whatever reason."""
        self.failure: BuildKitError | None = None
        """Why it ended, unless that was shutdown()."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.calls: Counter[str] = Counter()
        """Calls begun so far, by method; those of unknown methods are under ""."""
        self._handlers = dict(handlers)
        self._core = ServerCore(max_message_size=max_message_size)
        self._wake = asyncio.Event()
        self._calls: dict[Stream, _Call] = {}
        self._health: set[Stream] = set()
        self._blocked: dict[_Call, None] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def serve(self, stream: ByteStream) -> BuildKitError | None:
        """Serve until the peer or shutdown() ends the connection; return why, None after a shutdown.

        Handlers that still run are woken with SessionClosed or cancelled, and awaited.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                writing = tasks.create_task(self._write(stream), name="session writer")
                await self._read(stream)
                self.fail(SessionClosed("the daemon ended the session"))
                await asyncio.wait({writing}, timeout=_FLUSH_SECONDS)
                writing.cancel()
        finally:
            self.fail(SessionClosed("the session was abandoned"))
        return self.failure

    def shutdown(self) -> None:
        """End calls, say goodbye and half-close; serve() returns once the peer has closed as well."""
        self._end()

    def fail(self, failure: BuildKitError) -> None:
        """End calls because of failure; the first one counts."""
        if not self.ended.is_set():
            self.failure = failure
            self._end()

    def _end(self) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        self._core.close()
        self._wake.set()
        for call in list(self._calls.values()):
            call.session_ended()
        self._health.clear()

    async def _read(self, stream: ByteStream) -> None:
        """Until the end of the stream or of the session; never waits for a writer."""
        core = self._core
        while True:
            try:
                data = await stream.read()
            except BuildKitError as error:
                self.fail(error)
                return
            if not data:
                return
            self.bytes_in += len(data)
            for event in core.receive(data):
                self._handle(event)
            if core.output_ready:
                self._wake.set()
            if self.failure is not None:
                return

    def _handle(self, event: Event) -> None:
        match event:
            case Readable(stream):
                if call := self._calls.get(stream):
                    call.wake_reader()
                elif stream in self._health:
                    self._check_health(stream)
            case Requested(stream):
                self._start(stream)
            case Aborted(stream):
                self._health.discard(stream)
                if call := self._calls.pop(stream, None):
                    call.cancel()
            case Opened():
                self.opened.set()
            case Ended(failure):
                self.fail(failure)
            case _:
                assert_never(event)

    def _start(self, stream: Stream) -> None:
        if stream.closed or self._tasks is None:
            return
        method = stream.method
        if method == HEALTH_CHECK:
            self.calls[method] += 1
            self._health.add(stream)
            self._check_health(stream)
        elif handler := self._handlers.get(method):
            self.calls[method] += 1
            call = _Call(stream, self, self._core)
            self._calls[stream] = call
            call.task = self._tasks.create_task(self._run(call, handler), name=f"session {method}")
        else:
            self.calls[""] += 1
            self._core.finish(stream, Code.UNIMPLEMENTED, f"unknown method {method[:200]}")

    def _check_health(self, stream: Stream) -> None:
        """Answer once the request is complete, here in the reader, however busy the handlers are."""
        core = self._core
        while core.take(stream) is not None:
            pass
        if stream.half_closed:
            self._health.discard(stream)
            core.send(stream, (_SERVING,))
            core.finish(stream, Code.OK)

    async def _run(self, call: _Call, handler: Handler) -> None:
        code, text = Code.CANCELLED, "the handler was cancelled"
        try:
            await handler(call)
            code, text = Code.OK, ""
        except Exception as error:  # of one call; it must not end the others
            cause = _first_cause(error)
            if isinstance(cause, CallError):
                code, text = cause.code, cause.message
            else:
                code, text = Code.UNKNOWN, str(cause) or type(cause).__name__
            if not call.over:
                _log.debug("call of %s failed", call.method, exc_info=error)
        finally:
            call.finished()
            self._calls.pop(call.stream, None)
            self._core.finish(call.stream, code, text)
            self._wake.set()

    async def _write(self, stream: ByteStream) -> None:
        """Send what is queued, as much at a time as there is, until the session ends; then half-close."""
        core = self._core
        try:
            while True:
                self._wake.clear()
                while data := core.data_to_send(_CHUNK_SIZE):
                    if self._blocked:
                        self._unblock()
                    await stream.write(data)
                    self.bytes_out += len(data)
                if core.closed:
                    await stream.done_writing()
                    return
                await self._wake.wait()
        except BuildKitError as error:
            self.fail(error)
            stream.cancel()  # wakes the reader

    def _unblock(self) -> None:
        for call in list(self._blocked):
            if call.stream.queued <= _HIGH_WATER // 2:
                del self._blocked[call]
                call.wake_senders()

    # For calls.

    def wake_writer(self) -> None:
        if self._core.output_ready:
            self._wake.set()

    def block(self, call: _Call) -> None:
        self._blocked[call] = None


class _Call:
    """A Call of a handler."""

    def __init__(self, stream: Stream, server: GrpcServer, core: ServerCore) -> None:
        self.stream = stream
        self.task: asyncio.Task[None] | None = None
        self.over = False
        """Nothing can be sent or received any more."""
        self._server = server
        self._core = core
        self._error: BuildKitError = SessionClosed("the call is over")
        self._reader: asyncio.Future[None] | None = None
        self._senders: deque[asyncio.Future[None]] = deque()
        self._burst = 0

    @property
    def method(self) -> str:
        return self.stream.method

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        return self.stream.metadata

    async def receive(self) -> bytes | None:
        await self._share(1)
        while True:
            if self.over:
                raise self._error
            message = self._core.take(self.stream)
            self._server.wake_writer()  # taking may open the peer's window
            if message is not None:
                return message
            if self.stream.half_closed:
                return None
            if self._reader is not None:
                raise RuntimeError("two tasks receive on one call")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def send(self, *messages: bytes | bytearray | memoryview) -> None:
        await self._share(len(messages))
        while not self.over and self.stream.queued >= _HIGH_WATER:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._senders.append(room)
            self._server.block(self)
            await room
        if self.over:
            raise self._error
        self._core.send(self.stream, messages)
        self._server.wake_writer()

    async def _share(self, messages: int) -> None:
        """Let the loop run other tasks every few messages, where nothing else would.

        Before a message is taken or queued, so that a cancelled wait has done neither.
        """
        self._burst += messages
        if self._burst >= _BURST:
            self._burst = 0
            await asyncio.sleep(0)

    # For the server.

    def wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def wake_senders(self) -> None:
        while self._senders:
            room = self._senders.popleft()
            if not room.done():
                room.set_result(None)

    def session_ended(self) -> None:
        """Wake who waits here, to see SessionClosed; a handler that waits for something else is cancelled."""
        waiting = self._reader is not None or bool(self._senders)
        reason = self._server.failure
        self._error = SessionClosed(f"the session ended: {reason}" if reason else "the session was closed")
        self.finished()
        if not waiting and self.task is not None:
            self.task.cancel()

    def cancel(self) -> None:
        """The peer wants no answer any more."""
        self._error = CallError(Code.CANCELLED, "the daemon cancelled the call")
        self.over = True
        if self.task is not None:
            self.task.cancel()

    def finished(self) -> None:
        self.over = True
        self.wake_reader()
        self.wake_senders()


def _first_cause(error: Exception) -> Exception:
    """The error that says most of a group: a CallError if there is one, else the first."""
    while isinstance(error, ExceptionGroup):
        members = cast("ExceptionGroup[Exception]", error).exceptions
        error = next((member for member in members if isinstance(member, CallError)), members[0])
    return error
