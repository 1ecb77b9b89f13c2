"""Calls of a daemon without a daemon: the two ends of one call, joined in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from buildkit_py.errors import SessionClosed

HIGH_WATER = 1 << 20
"""Bytes on the way in one direction before a writer has to wait."""


class _Pipe:
    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.size = 0
        self.closed = False
        self.broken = False
        self.changed = asyncio.Event()

    async def get(self) -> bytes | None:
        while not self.messages:
            if self.broken:
                raise SessionClosed("the session ended")
            if self.closed:
                return None
            await self._wait()
        message = self.messages.popleft()
        self.size -= len(message)
        self.changed.set()
        return message

    async def put(self, messages: Sequence[bytes | bytearray | memoryview]) -> None:
        assert self.broken or not self.closed, "sent after the half-close"
        for message in messages:
            while self.size > HIGH_WATER and not self.broken:
                await self._wait()
            if self.broken:
                raise SessionClosed("the session ended")
            self.messages.append(bytes(message))
            self.size += len(message)
            self.changed.set()

    async def _wait(self) -> None:
        self.changed.clear()
        await self.changed.wait()

    def end(self, *, broken: bool = False) -> None:
        self.closed = True
        self.broken |= broken
        self.changed.set()


class MemoryCall:
    """One end of a call, with back-pressure; as a handler sees it, and the other way round for its peer."""

    def __init__(self, method: str, metadata: Sequence[tuple[str, str]], incoming: _Pipe, outgoing: _Pipe) -> None:
        self.method = method
        self.metadata = tuple(metadata)
        self._incoming = incoming
        self._outgoing = outgoing

    async def receive(self) -> bytes | None:
        return await self._incoming.get()

    async def send(self, *messages: bytes | bytearray | memoryview) -> None:
        await self._outgoing.put(messages)

    def end(self) -> None:
        """Half-close: the other end receives None once it has taken what was sent."""
        self._outgoing.end()

    def lose(self) -> None:
        """The session ends: both ends get SessionClosed."""
        self._outgoing.end(broken=True)
        self._incoming.end(broken=True)


def call_pair(method: str = "", metadata: Sequence[tuple[str, str]] = ()) -> tuple[MemoryCall, MemoryCall]:
    """(the handler's end, the daemon's end)."""
    to_handler, to_daemon = _Pipe(), _Pipe()
    return (
        MemoryCall(method, metadata, to_handler, to_daemon),
        MemoryCall(method, metadata, to_daemon, to_handler),
    )
