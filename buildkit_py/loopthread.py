"""An event loop on a thread of its own, for callers that block."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

from buildkit_py.errors import ConnectionLost

_T = TypeVar("_T")


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="buildkit_py.sync", daemon=True)
        self._thread.start()
        self._held: list[Callable[[], None]] = []
        """Ways out of what is held, in the order in which it was entered."""
        atexit.register(self._at_exit)

    def call(self, work: Coroutine[object, object, _T]) -> _T:
        """Run work on the loop and wait for it; when the waiting is interrupted, cancel it and wait again.

        Raise ConnectionLost when the loop is closed, and RuntimeError where the wait would never end.
        """
        try:
            self._check()
        except BaseException:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                # The work's own clean-up is bounded, so this wait ends.
                asyncio.run_coroutine_threadsafe(_settle(), self._loop).result()
            raise

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("made before this process was forked, which took no thread along: make a new one here")
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a callback cannot call the blocking client that it is called by: it would wait for itself"
            )
        if self._loop.is_closed():
            raise ConnectionLost("the client is closed")

    def iterate(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        """Items one by one; leaving the iteration closes the source."""
        try:
            while True:
                item = self.call(_next(items))
                if isinstance(item, _End):
                    return
                yield item
        finally:
            if not self._loop.is_closed():
                self.call(_close(items))

    @contextmanager
    def hold(self, context: AbstractAsyncContextManager[_T]) -> Generator[_T, None, None]:
        """Enter context, and leave it in the same task, as task groups demand."""
        leave = asyncio.Event()

        async def inside(entered: asyncio.Future[_T]) -> None:
            try:
                async with context as value:
                    entered.set_result(value)
                    await leave.wait()
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        async def enter() -> tuple[_T, asyncio.Task[None]]:
            entered = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(inside(entered))
            try:
                return await entered, task
            except asyncio.CancelledError:
                task.cancel()
                raise

        async def end(task: asyncio.Task[None]) -> None:
            leave.set()
            await task

        value, task = self.call(enter())

        def leave_now() -> None:
            self.call(end(task))

        self._held.append(leave_now)
        try:
            yield value
        finally:
            if leave_now in self._held:
                self._held.remove(leave_now)
                leave_now()

    def close(self) -> None:
        """Stop the loop and end its thread; nothing may run on it any more. Not an error when that has been done."""
        if self._loop.is_closed():
            return
        atexit.unregister(self._at_exit)
        self.call(self._loop.shutdown_asyncgens())
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _at_exit(self) -> None:
        """Leave and close what the program left open, while there are threads: later its wait would never end."""
        if os.getpid() == self._process:
            while self._held:
                self._held.pop()()
            self.close()


@contextmanager
def loop_thread() -> Generator[LoopThread, None, None]:
    """One for a with block."""
    loop = LoopThread()
    try:
        yield loop
    finally:
        loop.close()


async def _settle() -> None:
    """Wait until no other task of the loop is being cancelled."""
    me = asyncio.current_task()
    cancelled = [task for task in asyncio.all_tasks() if task is not me and task.cancelling()]
    if cancelled:
        await asyncio.wait(cancelled)


class _End:
    """No further item."""


async def _next(items: AsyncIterator[_T]) -> _T | _End:
    return await anext(items, _End())


async def _close(items: AsyncIterator[_T]) -> None:
    close: Callable[[], Coroutine[object, object, None]] | None = getattr(items, "aclose", None)
    if close is not None:
        await close()


__all__ = ["LoopThread", "loop_thread"]
