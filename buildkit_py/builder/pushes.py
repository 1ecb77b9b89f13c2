"""Pushes of several platforms into one repository, and what to do when they stand in each other's way."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from buildkit_py.errors import SolveError

T = TypeVar("T")

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
"""Before a push is tried once more: others than this build may push the same."""

# A registry says so of a manifest whose layers it does not find. They were all pushed before, so it is wrong.
# Older daemons do not hand on what it says.
_MISSED = re.compile(
    r"failed to push [\s\S]*(?:blob unknown|BLOB_UNKNOWN|digest did not match|/manifests/\S+: 400 Bad Request\Z)"
)


class PushAttempts:
    """Tries pushes at once, and those that a registry gets wrong once more: one at a time, after all others.

    Platforms often share layers, and each solve pushes them. Distribution 2.8 on a file system writes the link to a
    layer anew at each push, and finds it empty in between when another solve's manifest asks for it.
    """

    def __init__(self, solves: int) -> None:
        self._left = solves
        self._all_tried = asyncio.Event()
        self._turn = asyncio.Lock()

    async def first(self, attempt: Callable[[SolveError | None], Awaitable[T]], *, may_repeat: Callable[[], bool]) -> T:
        """The result of one of the solves, which begin together.

        attempt is called once more, with the error, where a push failed so and may_repeat() says that it may be.
        """
        try:
            return await attempt(None)
        except SolveError as error:
            if not (_MISSED.search(error.message) and may_repeat()):
                raise
            _log.debug("a push is tried once more: %s", error.message)
            failed = error
        finally:
            self._left -= 1
            if self._left <= 0:
                self._all_tried.set()
        await self._all_tried.wait()
        async with self._turn:
            await asyncio.sleep(PAUSE_SECONDS)
            return await attempt(failed)

    async def later(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of a solve that only pushes what is solved already: one at a time."""
        async with self._turn:
            return await attempt()
