"""Live counts of what crosses to a daemon."""

from __future__ import annotations

import asyncio

import pytest

from buildkit_py.builder.transfers import TransferCounts, watched


async def test_changes_are_told_while_the_body_runs_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_py.builder.transfers.INTERVAL_SECONDS", 0.001)
    now: list[TransferCounts] = []
    told: list[TransferCounts] = []
    seen = asyncio.Event()

    def note(transfer: TransferCounts) -> None:
        told.append(transfer)
        seen.set()

    async with asyncio.timeout(5):
        async with watched(lambda: now, note):
            now.append(TransferCounts(name="a"))
            await seen.wait()
            now.append(TransferCounts(name="b", bytes_sent=1))
            seen.clear()
            await seen.wait()
            now[0] = TransferCounts(name="a", done=True)
    assert told == [
        TransferCounts(name="a"),
        TransferCounts(name="b", bytes_sent=1),
        TransferCounts(name="a", done=True),
    ]


async def test_a_callback_that_fails_is_told_of_at_the_end() -> None:
    def broken(transfer: TransferCounts) -> None:
        raise ValueError("mine")

    async def body(error: Exception | None) -> None:
        async with watched(lambda: [TransferCounts(name="a")], broken):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if error is not None:
                raise error

    with pytest.raises(ValueError, match="mine"):
        await body(None)
    with pytest.raises(KeyError, match="of the body"):
        await body(KeyError("of the body"))
