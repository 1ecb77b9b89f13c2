"""How far the files of a build have come on their way to the daemon, while they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

INTERVAL_SECONDS = 0.1
"""Between two looks at the counters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCounts:
    """One transfer to a daemon: of a directory, of a stream, or of the blobs of an OCI layout or local cache."""

    name: str
    """Of the directory, such as ``context`` or ``dockerfile``; what the stream is; where the layout or cache is."""
    visited: int = 0
    """Entries of the directory that were looked at, sent or not."""
    listed: int = 0
    """Entries of the directory that the daemon was told of."""
    requested: int = 0
    """Files that the daemon asked for."""
    files_sent: int = 0
    bytes_sent: int = 0
    """Content, without what describes it."""
    bytes_received: int = 0
    """Content that the daemon sent, as it does for a local cache that is exported."""
    done: bool = False
    """True when the daemon has all it wanted of a directory; streams and blobs it may ask for until the end."""


TransferCallback: TypeAlias = Callable[[TransferCounts], None]
"""Gets the counts of one transfer on the event loop whenever they have changed; must not block."""


@asynccontextmanager
async def watched(
    counts: Callable[[], Sequence[TransferCounts]], on_transfer: TransferCallback | None
) -> AsyncGenerator[None]:
    """Tell of changes while the body runs, and of the last ones after it.

    What on_transfer raises ends the telling, and is raised at the end of a body that raised nothing itself.
    """
    if on_transfer is None:
        yield
        return
    told: list[TransferCounts] = []

    def tell() -> None:
        now = list(counts())
        for position, transfer in enumerate(now):
            if position >= len(told) or told[position] != transfer:
                on_transfer(transfer)
        told[:] = now

    async def follow() -> None:
        while True:
            tell()
            await asyncio.sleep(INTERVAL_SECONDS)

    # A task of its own: a task group around the yield would wrap the errors of the body.
    following = asyncio.create_task(follow(), name="transfers")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait({following})
    if not following.cancelled():
        following.result()
    tell()
