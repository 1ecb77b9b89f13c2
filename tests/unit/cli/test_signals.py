"""A command that is told to end: it clears up, whatever else comes meanwhile, and then the process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_PROGRAM = """
import asyncio, sys, time
import buildkit_py.cli.state as state
from buildkit_py.cli import main, signals

async def execute(args):
    print("begun", flush=True)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        {clearing}
        print("cleared", flush=True)
        {end}

state.execute = execute
sys.argv = ["buildkit-py", "info"]
{before}
main.entry()
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def begin(
    processes: list[subprocess.Popen[str]],
    *,
    clearing: str = "pass",
    end: str = "raise",
    before: str = "",
    through: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """A command that waits to be ended; through is what starts it."""
    program = _PROGRAM.format(clearing=clearing, end=end, before=before)
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [*through, sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("end", ["raise", "raise OSError('closed') from None", "return 7"])
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, "terminated\n"),
        (signal.SIGHUP, 129, "hung up\n"),
    ],
)
def test_a_signal_wins_over_the_error_that_it_causes(
    processes: list[subprocess.Popen[str]], number: signal.Signals, code: int, said: str, end: str
) -> None:
    """Being cancelled may end in any error; the user asked for the end. What is done all the same is done."""
    process = begin(processes, end=end)
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("cleared\n", "" if end == "return 7" else said)
    assert process.returncode == (7 if end == "return 7" else code)


def test_further_signals_do_not_cut_the_clearing_short(processes: list[subprocess.Popen[str]]) -> None:
    """Nor do those that come when it is done."""
    process = begin(processes, clearing="await asyncio.sleep(0.3)")
    for _ in range(60):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert process.communicate(timeout=20) == ("cleared\n", "interrupted\n")
    assert process.returncode == 130


def test_clearing_that_does_not_end_is_left_at_a_later_signal(processes: list[subprocess.Popen[str]]) -> None:
    """A disk that hangs holds up a thread, which cannot be cancelled."""
    process = begin(processes, before="signals.PATIENCE_SECONDS = 0.2", clearing="time.sleep(30)")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=5) == ("", "")
    assert process.returncode == 143


def test_clearing_that_does_not_end_is_left_in_the_end(processes: list[subprocess.Popen[str]]) -> None:
    """One signal is enough, for those that send no second."""
    process = begin(processes, before="signals._LIMIT_SECONDS = 1", clearing="time.sleep(30)")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 143


def test_a_signal_that_the_process_was_told_to_ignore(processes: list[subprocess.Popen[str]]) -> None:
    """Under nohup a build goes on when its terminal is closed, and can still be interrupted."""
    process = begin(processes, through=("sh", "-c", 'trap "" HUP && exec "$@"', "sh"))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("cleared\n", "interrupted\n")
