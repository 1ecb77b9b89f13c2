"""Progress on a stream while a command runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

from buildkit_py.progress import Renderer, StatusUpdate, open_renderer

_TICK_SECONDS = 0.1


@asynccontextmanager
async def show_progress(mode: str, stream: TextIO) -> AsyncIterator[Callable[[str, StatusUpdate], None]]:
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
        await asyncio.sleep(_TICK_SECONDS)
        renderer.tick()
