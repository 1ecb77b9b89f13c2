"""Progress on a stream while a command runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

from buildkit_py.progress import TICK_SECONDS, Renderer, StatusUpdate, open_renderer


def shows_logs(mode: str) -> bool:
    """Whether a display of this mode prints the last log lines of what failed."""
    if mode == "auto":
        mode = os.environ.get("BUILDKIT_PROGRESS") or mode
    return mode not in {"quiet", "rawjson"}


@asynccontextmanager
async def show_progress(mode: str, stream: TextIO) -> AsyncGenerator[Callable[[str, StatusUpdate], None], None]:
    """Show what the yielded callback is told, as (label, update), until the context ends."""
    renderer = open_renderer(mode, stream, env=os.environ, clock=time.time)
    failed = True
    ticking = asyncio.create_task(_tick(renderer), name="progress")
    try:
        yield renderer.update
        failed = False
    finally:
        ticking.cancel()
        renderer.finish(failed=failed)


async def _tick(renderer: Renderer) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        renderer.tick()
