"""Concurrent calls whose one failure is raised as itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

from buildkit_py.errors import leaves

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


async def gather(calls: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Run all calls at once; their results in order. The first failure ends the others and is raised."""
    with _sole_failure():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


async def both(one: Coroutine[object, object, A], other: Coroutine[object, object, B]) -> tuple[A, B]:
    """Run two calls at once, whose results are different things; failures are as for gather."""
    with _sole_failure():
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(one), group.create_task(other)
    return first.result(), second.result()


@contextmanager
def _sole_failure() -> Generator[None]:
    try:
        yield
    except BaseExceptionGroup as failures:
        first = leaves(failures)[0]
        raise first from first.__cause__


__all__ = ["both", "gather"]
