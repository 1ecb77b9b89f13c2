"""A TCP proxy that breaks connections where a test wants it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

_CHUNK = 1 << 14


class Proxy:
    """Forwards to one server on loopback, and counts the bytes."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.connections = 0
        self.sent = 0
        self.answered = 0
        self.cut_after: int | None = None
        """Reset every connection once this many bytes went to the server, and refuse new ones."""
        self.hold_after: int | None = None
        """Forward nothing more once this many bytes went to the server."""
        self.hold_answers_after: int | None = None
        """Hand on nothing more once this many bytes came from the server."""
        self.answer: Callable[[bytes], bytes | None] | None = None
        """Gets what is on its way to the server; what it returns is the answer instead, the last on its connection."""
        self.answer_seconds = 0.0
        """How long such an answer takes."""
        self.reached = asyncio.Event()
        """Set when one of the limits was reached."""
        self._target_port = target_port
        self._open: set[asyncio.StreamWriter] = set()
        self._held = asyncio.Event()

    def release(self) -> None:
        """Go on with what was held."""
        self._held.set()

    @property
    def host(self) -> str:
        """As a registry is named in a reference."""
        return f"127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            if self.cut_after is not None and self.sent >= self.cut_after:
                return
            back, forth = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._open.add(forth)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pump(reader, forth, client=writer))
                    tasks.create_task(self._pump(back, writer, client=None))
            finally:
                self._open.discard(forth)
                forth.close()
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, client: asyncio.StreamWriter | None
    ) -> None:
        while data := await source.read(_CHUNK):
            if client is not None:
                if self.answer is not None and (answer := self.answer(data)) is not None:
                    await asyncio.sleep(self.answer_seconds)
                    client.write(answer)
                    await client.drain()
                    client.write_eof()
                    sink.close()
                    return
                self.sent += len(data)
                if self.cut_after is not None and self.sent >= self.cut_after:
                    self.reached.set()
                    self._cut()
                    return
                if self.hold_after is not None and self.sent >= self.hold_after:
                    self.reached.set()
                    await self._held.wait()
            else:
                self.answered += len(data)
                if self.hold_answers_after is not None and self.answered >= self.hold_answers_after:
                    self.reached.set()
                    await self._held.wait()
            sink.write(data)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()


@asynccontextmanager
async def proxy_to(port: int) -> AsyncGenerator[Proxy, None]:
    """A proxy to 127.0.0.1:port on a free port; ends with its connections."""
    proxy = Proxy(port)
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy._serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving, timeout=5)
        await server.wait_closed()
