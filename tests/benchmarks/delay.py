"""A TCP proxy that makes a server look far away: ``python -m tests.benchmarks.delay PORT MILLISECONDS``.

Prints its own port and forwards until its stdin ends. What a client sends arrives so much later, without being held up:
bandwidth stays, and requests under way at once wait at once.
"""

from __future__ import annotations

import asyncio
import os
import sys

_CHUNK = 1 << 18
_QUEUED = 64


async def _late(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)

    async def read() -> None:
        while data := await source.read(_CHUNK):
            await queue.put((loop.time() + seconds, data))
        await queue.put((loop.time() + seconds, b""))

    async def write() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                sink.write_eof()
                return
            sink.write(data)
            await sink.drain()

    # The one that fails ends the other, which would wait for it without end.
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(write())


async def _straight(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    sink.write_eof()


async def main(port: int, seconds: float) -> None:
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # the loop itself keeps no task alive
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_late(reader, forth, seconds))
                    tasks.create_task(_straight(back, writer))
            finally:
                forth.close()
        except* OSError:
            pass
        finally:
            writer.close()
            serving.discard(asyncio.current_task())

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # connections that are kept open would be told of one by one


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]) / 1000))
