"""Session: what the daemon may call back for while solves run, and the life of its connection."""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from buildkit_py.errors import BuildKitError, DeadlineExceeded, InvalidOption, SessionClosed
from buildkit_py.session.attachable import Attachable, Handler
from buildkit_py.session.grpc_server import HEALTH_CHECK, HEALTH_WATCH, GrpcServer
from buildkit_py.session.tunnel import ByteStream, Dialer, open_tunnel

_log = logging.getLogger(__name__)

_ID_ALPHABET = string.digits + string.ascii_lowercase
_ID_LENGTH = 25

# Request metadata of the stream. Source: buildkit session/manager.go, session/grpchijack/dial.go.
_KEY_ID = "x-docker-expose-session-uuid"
_KEY_SHARED_KEY = "x-docker-expose-session-sharedkey"
_KEY_METHOD = "x-docker-expose-session-grpc-method"

_TICKS_PER_SILENCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTimeouts:
    """How long a session waits for the daemon, in seconds."""

    open: float = 20.0
    """For the HTTP/2 preface; as long as the daemon waits for ours."""
    first_sign: float = 45.0
    """For the first bytes after the preface; health checks begin after 5 s."""
    silence: float = 40.0
    """Between any two signs of life. Checks come every 5 s and may each take 30 s, so this means that the
    daemon has given up on the session, which it does without ending the stream."""
    close: float = 3.0
    """For an end in good order."""


class Session:
    """Attachables that a daemon may call during solves.

    Good for one connection: a daemon mixes up sessions that reuse an id. Several solves may use it at once.
    """

    def __init__(
        self,
        attachables: Iterable[Attachable],
        *,
        shared_key: str = "",
        session_id: str | None = None,
        timeouts: SessionTimeouts | None = None,
    ) -> None:
        """Raise InvalidOption for an id or key that cannot be sent, or two attachables for one method."""
        self.id = _new_id() if session_id is None else session_id
        self.shared_key = shared_key
        if not self.id or ":" in self.id or not _is_header_value(self.id):
            raise InvalidOption("session id: expected printable ASCII without ':' or spaces around it")
        if not _is_header_value(shared_key):
            raise InvalidOption("session shared key: expected printable ASCII without spaces around it")
        self._handlers = _merge(attachables)
        self._timeouts = timeouts or SessionTimeouts()
        self._server = GrpcServer(self._handlers)
        self._used = False
        self.closed = asyncio.Event()
        """Set when the daemon can call no more: serve() has ended, or the session died under it."""

    @property
    def failure(self) -> BuildKitError | None:
        """Why the session died; None while it lives and after it was closed in good order."""
        return self._server.failure

    @property
    def bytes_in(self) -> int:
        """Bytes received so far."""
        return self._server.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes sent so far."""
        return self._server.bytes_out

    @property
    def calls(self) -> Mapping[str, int]:
        """Calls begun so far, by full method path, health checks included; unknown methods are under ""."""
        return self._server.calls

    def serves(self, method: str) -> bool:
        """Whether an attachable answers calls of this full method path."""
        return method in self._handlers

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Request metadata of the ``Control.Session`` stream that carries this session."""
        methods = sorted({*self._handlers, HEALTH_CHECK, HEALTH_WATCH})
        return (
            (_KEY_ID, self.id),
            (_KEY_SHARED_KEY, self.shared_key),
            *((_KEY_METHOD, method) for method in methods),
        )

    async def wait_closed(self) -> None:
        """Wait until the session is over; failure then says why."""
        await self.closed.wait()

    @asynccontextmanager
    async def serve(self, stream: ByteStream) -> AsyncGenerator[Session]:
        """Serve on the stream; entered once the daemon's HTTP/2 preface is in, so that solves find it.

        Raises DeadlineExceeded when the preface does not come, else what ended the stream. A session that
        dies later does not interrupt the body: watch wait_closed(). The way out is bounded by the close
        timeout, whatever the daemon does; calls that still run are ended, and the stream is dropped.
        """
        if self._used:
            raise SessionClosed(f"session {self.id} was used before; make a new one for each connection")
        self._used = True
        # A task of its own: a task group around the yield would wrap the errors of the body. All ways out
        # await it.
        serving = asyncio.create_task(self._run(stream), name=f"session {self.id}")
        try:
            await self._wait_open()
            yield self
        finally:
            await self._stop(serving, stream)

    async def _wait_open(self) -> None:
        opened = self._server.opened
        timeout = self._timeouts.open
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as tasks:
                waits = [tasks.create_task(opened.wait()), tasks.create_task(self.closed.wait())]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        except TimeoutError:
            raise DeadlineExceeded(f"the daemon did not take up the session within {timeout:g} s") from None
        if self.closed.is_set():
            raise self.failure or SessionClosed("the session ended before it began")

    async def _run(self, stream: ByteStream) -> None:
        """Serve to the end of the connection; what went wrong is left in failure."""
        server = self._server
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch(stream), name="session watch")
                ending = tasks.create_task(self._note_end(), name="session end")
                await server.serve(stream)
                watching.cancel()
                ending.cancel()
        except Exception as error:  # ours, not the peer's: a handler cannot get here
            _log.error("the session server failed", exc_info=error)
            server.fail(SessionClosed(f"the session server failed: {type(error).__name__}"))
        finally:
            self.closed.set()

    async def _note_end(self) -> None:
        """Tell of the end at once, not only when the last handler is gone."""
        await self._server.ended.wait()
        self.closed.set()

    async def _watch(self, stream: ByteStream) -> None:
        """Fail the session when nothing has come from the daemon for too long.

        Time is counted in ticks, so that a process that was stopped, or whose loop was blocked, first reads
        what has come meanwhile.
        """
        server = self._server
        timeouts = self._timeouts
        await server.opened.wait()
        tick = min(timeouts.silence, timeouts.first_sign) / _TICKS_PER_SILENCE
        at_open = seen = server.bytes_in
        silent = 0.0
        while not server.ended.is_set():
            await asyncio.sleep(tick)
            silent = silent + tick if server.bytes_in == seen else 0.0
            seen = server.bytes_in
            limit = timeouts.first_sign if seen == at_open else timeouts.silence
            if silent >= limit:
                server.fail(SessionClosed(f"no health check from the daemon for {limit:g} s: it gave up the session"))
                stream.cancel()

    async def _stop(self, serving: asyncio.Task[None], stream: ByteStream) -> None:
        """Goodbye, flush, half-close, wait for the daemon to close too; then by force."""
        try:
            if self.closed.is_set():
                stream.cancel()  # the daemon keeps the stream of a dead session open
            self._server.shutdown()
            await asyncio.wait({serving}, timeout=self._timeouts.close)
        finally:
            stream.cancel()
            serving.cancel()
            await asyncio.wait({serving}, timeout=self._timeouts.close)
        if self.failure is not None:
            _log.debug("session %s ended: %s", self.id, self.failure)


@asynccontextmanager
async def open_session(connection: Dialer, session: Session) -> AsyncGenerator[Session]:
    """Register a session with a daemon for the time of the body; see Session.serve()."""
    async with open_tunnel(connection, session.metadata()) as stream, session.serve(stream):
        yield session


def _new_id() -> str:
    """As Go clients make them. Source: buildkit identity/randomid.go."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def _is_header_value(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def _merge(attachables: Iterable[Attachable]) -> dict[str, Handler]:
    handlers: dict[str, Handler] = {}
    for attachable in attachables:
        for method, handler in attachable.methods().items():
            if method in handlers or method in (HEALTH_CHECK, HEALTH_WATCH):
                raise InvalidOption(f"session: two attachables serve {method}")
            handlers[method] = handler
    return handlers


__all__ = ["Session", "SessionTimeouts", "open_session"]
