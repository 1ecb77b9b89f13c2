"""Progress on a stream while a command runs."""

from __future__ import annotations

import asyncio
import logging
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
    """Show what the yielded callback is told, as (label, update), until the context ends; then the warnings."""
    renderer = open_renderer(mode, stream, env=os.environ, clock=time.time)
    warnings = _Warnings()
    logging.getLogger("buildkit_py").addHandler(warnings)
    failed = True
    ticking = asyncio.create_task(_tick(renderer), name="progress")
    try:
        yield renderer.update
        failed = False
    finally:
        ticking.cancel()
        renderer.finish(failed=failed)
        logging.getLogger("buildkit_py").removeHandler(warnings)
        for text in warnings.texts:
            print(f"warning: {text}", file=stream)


class _Warnings(logging.Handler):
    """What the library warns of, kept until the display is done."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


async def _tick(renderer: Renderer) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        renderer.tick()
