"""CPU that the session's gRPC server takes: ``python -m tests.benchmarks.bench_tunnel``.

The peer is in memory and only counts bytes, so that its own cost is nearly nothing; grpc and the daemon come on top.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import time
from importlib.metadata import version

from h2.config import H2Configuration
from h2.connection import H2Connection
from hyperframe.frame import DataFrame, WindowUpdateFrame

from buildkit_py.session.attachable import Call, Handler
from buildkit_py.session.server import Session
from tests.support.h2peer import MemoryStream, frame_message, memory_pair, request_headers

METHOD = "/bench.Bench/Run"
MIB = 1 << 20
FRAME = 16_384  # what grpc-go sends and takes
CHUNK = 32 << 10  # what a daemon writes at a time


class Table:
    """The attachable of one handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def methods(self) -> dict[str, Handler]:
        return {METHOD: self._handler}


def opening(window: int) -> bytes:
    """Preface and request of a peer that gives this window."""
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    client.update_settings({4: window})
    client.send_headers(1, request_headers(METHOD))
    return client.data_to_send()


async def count(stream: MemoryStream, done: asyncio.Event) -> int:
    """Swallow what comes, giving windows back, until the handler is done."""
    total = unacknowledged = 0
    while not done.is_set() and (data := await stream.read()):
        total += len(data)
        unacknowledged += len(data)
        if unacknowledged > MIB:
            await stream.write(b"".join(window_update(stream_id, unacknowledged) for stream_id in (0, 1)))
            unacknowledged = 0
    return total


def window_update(stream_id: int, increment: int) -> bytes:
    frame = WindowUpdateFrame(stream_id)
    frame.window_increment = increment
    return frame.serialize()


async def outbound(size: int, number: int, together: int) -> float:
    """Seconds of CPU to send number messages of size bytes, so many in one call of send()."""
    done = asyncio.Event()
    message = bytes(size)

    async def handler(call: Call) -> None:
        for _ in range(number // together):
            await call.send(*[message] * together)
        done.set()
        await call.receive()

    ours, theirs = memory_pair()
    await theirs.write(opening(8 * MIB) + window_update(0, 8 * MIB))
    async with Session([Table(handler)]).serve(ours):
        began = time.process_time()
        await count(theirs, done)
        taken = time.process_time() - began
        await theirs.done_writing()
    return taken


async def inbound(size: int, number: int) -> float:
    """Seconds of CPU to receive number messages of size bytes, in frames and chunks as a daemon cuts them."""
    done = asyncio.Event()

    async def handler(call: Call) -> None:
        for _ in range(number):
            await call.receive()
        done.set()

    # A stretch of whole messages, repeated; made before the clock starts.
    stretch = frame_message(bytes(size)) * max(1, 4 * MIB // (size + 5))
    frames = b"".join(
        DataFrame(1, stretch[start : start + FRAME]).serialize() for start in range(0, len(stretch), FRAME)
    )
    chunks = [frames[start : start + CHUNK] for start in range(0, len(frames), CHUNK)]
    repeats = -(-number * (size + 5) // len(stretch))

    async def drain() -> None:
        while await theirs.read():
            pass

    ours, theirs = memory_pair()
    await theirs.write(opening(MIB))
    async with Session([Table(handler)]).serve(ours), asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(drain())
        began = time.process_time()
        for _ in range(repeats):
            for chunk in chunks:
                await theirs.write(chunk)
        await done.wait()
        taken = time.process_time() - began
        draining.cancel()
        await theirs.done_writing()
    return taken


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024, help="bytes of the large transfers")
    parser.add_argument("--packets", type=int, default=200_000, help="number of the small ones")
    args = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("h2", "hpack"))
    system = f"{platform.machine()}, {platform.system()} {platform.release()}"
    print(f"{system}, Python {platform.python_version()}, {packages}")
    for together in (1, 128):
        taken = await outbound(80, args.packets, together)
        print(f"out  {args.packets} x 80 B, {together:3} a send: {taken / args.packets * 1e6:6.2f} us a packet")
    taken = await inbound(4, args.packets)
    print(f"in   {args.packets} x 4 B:              {taken / args.packets * 1e6:6.2f} us a packet")
    for size in (64 << 10, MIB):
        number = args.mib * MIB // size
        taken = await outbound(size, number, 1)
        print(f"out  {args.mib} MiB of {size >> 10} KiB:      {taken:6.2f} s, {args.mib / taken:6.0f} MiB/s")
        taken = await inbound(size, number)
        print(f"in   {args.mib} MiB of {size >> 10} KiB:      {taken:6.2f} s, {args.mib / taken:6.0f} MiB/s")


if __name__ == "__main__":
    asyncio.run(main())
