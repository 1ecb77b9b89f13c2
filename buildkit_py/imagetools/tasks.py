"""Concurrent calls whose one failure is raised as itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

from buildkit_py.errors import leaves

T = TypeVar("T")


async def gather(calls: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Run all calls at once; their results in order. The first failure ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        first = leaves(failures)[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]


__all__ = ["gather"]
