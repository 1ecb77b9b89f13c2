"""The same API for code without asyncio: every call blocks until it is done.

The work runs on one background event loop per client, so that a session is served while its solve runs::

    with buildkit_py.sync.connect() as client:
        result = client.build(BuildRequest(context=".", tags=["localhost:5000/app"], push=True))

Names, arguments and errors are those of the asynchronous API. KeyboardInterrupt cancels what runs.
Callbacks such as on_status are called on the background thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, TypeVar

from buildkit_py import builder
from buildkit_py import client as aio
from buildkit_py.builder import BuildRequest, BuildResult, GraphRequest, StatusCallback, TransferCallback
from buildkit_py.builder import call as builder_call
from buildkit_py.builder.call import CallResult
from buildkit_py.client import SolveRequest, SolveResult, StatusHandler
from buildkit_py.progress import StatusUpdate
from buildkit_py.records import DaemonInfo, UsageRecord, Worker
from buildkit_py.registry import CredentialStore, RegistryConfig
from buildkit_py.rpc import TLSConfig
from buildkit_py.session.attachable import Attachable

if TYPE_CHECKING:
    from buildkit_py.llb.definition import Definition

_T = TypeVar("_T")


class Client:
    """Blocking view of :class:`buildkit_py.client.Client`; made by :func:`connect`. Threads may share it."""

    def __init__(self, client: aio.Client, loop: _LoopThread) -> None:
        self._client = client
        self._loop = loop

    @property
    def address(self) -> str:
        """Where the daemon is."""
        return self._client.address

    def info(self) -> DaemonInfo | None:
        """Version of the daemon; None from one older than v0.11."""
        return self._loop.call(self._client.info())

    def workers(self, filters: Sequence[str] = ()) -> tuple[Worker, ...]:
        """The daemon's workers, the one that builds first."""
        return self._loop.call(self._client.workers(filters))

    def disk_usage(self, filters: Sequence[str] = ()) -> tuple[UsageRecord, ...]:
        """Records of the build cache."""
        return self._loop.call(self._client.disk_usage(filters))

    def prune(
        self,
        filters: Sequence[str] = (),
        *,
        all: bool = False,
        keep_seconds: float = 0,
        reserved_space: int = 0,
        max_used_space: int = 0,
        min_free_space: int = 0,
    ) -> Iterator[UsageRecord]:
        """Delete cache records and yield each one deleted."""
        return self._loop.iterate(
            self._client.prune(
                filters,
                all=all,
                keep_seconds=keep_seconds,
                reserved_space=reserved_space,
                max_used_space=max_used_space,
                min_free_space=min_free_space,
            )
        )

    def status(self, ref: str) -> Iterator[StatusUpdate]:
        """Follow one solve to its end."""
        return self._loop.iterate(self._client.status(ref))

    def solve(
        self,
        request: SolveRequest | Definition,
        *,
        attachables: Sequence[Attachable] = (),
        on_status: StatusHandler | None = None,
    ) -> SolveResult:
        """Run one solve to its end on a session of its own."""
        return self._loop.call(self._client.solve(request, attachables=attachables, on_status=on_status))

    def build(
        self,
        request: BuildRequest | GraphRequest,
        *,
        credentials: CredentialStore | None = None,
        registry_config: RegistryConfig | None = None,
        on_status: StatusCallback | None = None,
        on_transfer: TransferCallback | None = None,
    ) -> BuildResult:
        """Build a Dockerfile or a graph for one platform or many; see :func:`buildkit_py.build`."""
        return self._loop.call(
            builder.build(
                self._client,
                request,
                credentials=credentials,
                registry_config=registry_config,
                on_status=on_status,
                on_transfer=on_transfer,
            )
        )

    def call(
        self,
        request: BuildRequest,
        method: str,
        *,
        credentials: CredentialStore | None = None,
        registry_config: RegistryConfig | None = None,
        on_status: StatusCallback | None = None,
    ) -> CallResult:
        """Ask a Dockerfile's frontend about a build; see :func:`buildkit_py.call`."""
        return self._loop.call(
            builder_call.call(
                self._client,
                request,
                method,
                credentials=credentials,
                registry_config=registry_config,
                on_status=on_status,
            )
        )


@contextmanager
def connect(
    address: str | None = None, *, tls: TLSConfig | None = None, dial_timeout: float = 10.0
) -> Generator[Client, None, None]:
    """Connect to a daemon and close the connection at the end; see :func:`buildkit_py.connect`."""
    with (
        _loop_thread() as loop,
        loop.hold(aio.connect(address, tls=tls, dial_timeout=dial_timeout)) as client,
    ):
        yield Client(client, loop)


class _LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="buildkit_py.sync", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[object, object, _T]) -> _T:
        """Run work on the loop and wait for it; when the waiting is interrupted, cancel it and wait again."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                # The work's own clean-up is bounded, so this wait ends.
                asyncio.run_coroutine_threadsafe(_settle(), self._loop).result()
            raise

    def iterate(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        """Items one by one; leaving the iteration closes the source."""
        try:
            while True:
                item = self.call(_next(items))
                if isinstance(item, _End):
                    return
                yield item
        finally:
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
        try:
            yield value
        finally:
            self.call(end(task))

    def close(self) -> None:
        """Stop the loop and end its thread; nothing may run on it any more."""
        self.call(self._loop.shutdown_asyncgens())
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def _loop_thread() -> Generator[_LoopThread, None, None]:
    loop = _LoopThread()
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


__all__ = ["Client", "connect"]
