"""Blocking work of the registry client, and how the event loop starts and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from buildkit_py.errors import RegistryError

T = TypeVar("T")

_END_SECONDS = 2.0
"""How long a cancelled call waits for its thread, which has lost its socket by then and ends at once."""


class Operation:
    """One call of the client. It can be cancelled from another thread at any time, also while it reads."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._deadline = clock() + seconds
        self._ended = threading.Event()
        self._expired = False
        self.begun = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._parts: list[Operation] = []

    def begin(self) -> None:
        """Let the time count from now."""
        self._deadline = self._clock() + self._seconds
        self.begun = True

    def part(self) -> Operation:
        """An operation for a second connection of this one, which ends when this one does."""
        part = Operation(self._seconds, clock=self._clock)
        part._deadline = self._deadline
        with self._lock:
            self._parts.append(part)
            part._expired = self._expired
            if self._ended.is_set():
                part._ended.set()
        return part

    def cancel(self) -> None:
        """Make the operation fail at its next step, and end the I/O it is waiting for."""
        with self._lock:
            self._ended.set()
            if self._socket is not None:
                _shut_down(self._socket)
            parts = tuple(self._parts)
        for part in parts:
            part._expired = self._expired
            part.cancel()

    def expire(self) -> None:
        """Like cancel, but the failure is that of the deadline."""
        self._expired = True
        self.cancel()

    @property
    def ended(self) -> bool:
        """Whether it was cancelled or its time is up."""
        return self._ended.is_set() or self.remaining() <= 0

    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline - self._clock()

    def check(self) -> None:
        """Raise RegistryError once the operation should not go on."""
        if self._expired or self.remaining() <= 0:
            raise RegistryError(f"the registry did not finish within {self._seconds:g} s", retryable=True)
        if self._ended.is_set():
            raise RegistryError("the request was cancelled")

    def wait(self, seconds: float) -> None:
        """Sleep, unless the operation ends first."""
        self._ended.wait(max(0.0, min(seconds, self.remaining())))
        self.check()

    def attach(self, sock: socket.socket | None) -> None:
        """Say which socket the operation is using; None when it uses none any more."""
        with self._lock:
            self._socket = sock
            if sock is not None and self._ended.is_set():
                _shut_down(sock)


class Turns:
    """Things that one thread does at a time, by name."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[str] = set()

    @contextlib.contextmanager
    def take(self, name: str, operation: Operation) -> Generator[bool]:
        """Wait for the thing, and have it to oneself; yields whether somebody else had it."""
        waited = False
        with self._changed:
            while name in self._taken:
                waited = True
                # In steps, so that whoever waits here can still be cancelled.
                self._changed.wait(0.2)
                operation.check()
            self._taken.add(name)
        try:
            yield waited
        finally:
            with self._changed:
                self._taken.discard(name)
                self._changed.notify_all()


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not sock.shutdown: that of an SSLSocket also takes the TLS state away from the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _look_at(future: asyncio.Future[T]) -> None:
    """A failure after the caller was cancelled is of no interest, and is not to be reported as lost."""
    if not future.cancelled():
        future.exception()


class Workers:
    """A bounded number of threads for one client, started as they are needed."""

    def __init__(self, count: int, *, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._operations: set[Operation] = set()

    async def run(self, seconds: float, action: Callable[[Operation], T]) -> T:
        """Run action in a thread, for so many seconds once its turn has come.

        Cancelling the call ends its I/O and waits, shortly, for the thread.
        """
        loop = asyncio.get_running_loop()
        operation = Operation(seconds)
        timer: asyncio.TimerHandle

        def watch() -> None:
            # Asked for from here, as waking the loop up for each beginning would cost more than the rest of this.
            nonlocal timer
            left = operation.remaining() if operation.begun else seconds
            if left > 0:
                timer = loop.call_later(left, watch)
            else:
                operation.expire()

        def act() -> T:
            # Waiting for a thread is no fault of the registry; whoever is before us has a limit, too.
            operation.begin()
            return action(operation)

        timer = loop.call_later(seconds, watch)
        try:
            work = self._executor.submit(act)
        except RuntimeError:
            timer.cancel()
            raise RegistryError("the registry client is closed") from None
        self._operations.add(operation)
        future = asyncio.wrap_future(work)
        future.add_done_callback(_look_at)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.cancelled():
                # Closed before its turn came; nobody cancelled the caller.
                raise RegistryError("the registry client is closed") from None
            operation.cancel()
            work.cancel()
            # A thread that still runs could write into what the caller is about to clean up.
            await asyncio.wait([future], timeout=_END_SECONDS)
            raise
        finally:
            self._operations.discard(operation)
            timer.cancel()

    async def close(self) -> None:
        """End what is running and let new calls fail; the threads end by themselves."""
        for operation in tuple(self._operations):
            operation.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
