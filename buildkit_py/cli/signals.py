"""Signals that end a command. It gets the time to clear up: its solves, its session, files that are half written."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import NoReturn

_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}

PATIENCE_SECONDS = 3.0
"""How long after the first signal others change nothing; clearing up takes less, if no disk or name server hangs."""

_LIMIT_SECONDS = 30
"""How long after the first signal the process ends in any case."""


class Ended(BaseException):
    """The command was ended by a signal, and has cleared up."""

    def __init__(self, number: signal.Signals) -> None:
        self.exit_code = 128 + number
        super().__init__(_SAID[number])


class _Ending:
    """Which signal came first in this process, and whom it ends."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self.cancel: Callable[[], object] | None = None
        """How the command that runs is ended."""
        self._since = 0.0

    def come(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal. It never raises: that would be in the middle of anything, such as of clearing up."""
        if self.number is None and self.cancel is not None:
            self.number, self._since = signal.Signals(number), time.monotonic()
            signal.signal(signal.SIGALRM, self.give_up)
            signal.alarm(_LIMIT_SECONDS)
            self.cancel()
        elif self.number is None:
            os._exit(128 + number)  # nothing has begun, or all is done
        elif time.monotonic() - self._since > PATIENCE_SECONDS:
            self.give_up()

    def give_up(self, *_signal: object) -> NoReturn:
        """End the process at once, as clearing up takes too long."""
        assert self.number is not None
        os._exit(128 + self.number)


_ending = _Ending()


def install() -> None:
    """Handle the signals from now on, to the end of the process; those that it was told to ignore stay ignored."""
    for number in _SAID:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _ending.come)


def run(command: Coroutine[object, object, int]) -> int:
    """Run a command to its end; raise Ended where a signal cancelled it, whatever it made of that."""
    import asyncio

    async def cancellable() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        _ending.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await command
        finally:
            _ending.cancel = None

    try:
        return asyncio.run(cancellable())
    except BaseException as error:
        if _ending.number is None:
            raise
        raise Ended(_ending.number) from error
    finally:
        command.close()  # where it was never begun


__all__ = ["Ended", "install", "run"]
