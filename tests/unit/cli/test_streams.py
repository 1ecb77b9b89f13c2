"""Standard streams that are closed, or of an encoding that lacks what is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[3]


def run(closed: str, program: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a Python program; closed is what the shell closes, such as ``>&-``."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program],
        cwd=_ROOT,
        input="",
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | (env or {}),
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def command(*words: str) -> str:
    return f"import sys; sys.argv = {['buildkit-py', *words]}; from buildkit_py.cli.main import entry; entry()"


@pytest.mark.parametrize(
    ("closed", "words", "expected"),
    [
        ("<&-", ["solve"], (2, "", "error: standard input is empty; did the program that was to write it fail?\n")),
        (">&-", ["--version"], (1, "", "error: not all of the result could be printed: Bad file descriptor\n")),
        ("2>&-", ["build", "/nonexistent"], (2, "", "")),
        ("<&- >&- 2>&-", ["build", "/nonexistent"], (2, "", "")),
    ],
)
def test_closed_streams(closed: str, words: list[str], expected: tuple[int, str, str]) -> None:
    """An input is empty, a result cannot be printed, and what is said is lost; none of it is a bug."""
    assert run(closed, command(*words)) == expected


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    """Or a socket to the daemon would, and what is printed would go there."""
    program = """
import buildkit_py.cli.state as state, os
from buildkit_py.cli import main
async def execute(args):
    assert os.open("/dev/null", os.O_RDONLY) > 2
    return 5
state.execute = execute
"""
    assert run("<&- >&- 2>&-", program + command("info")) == (5, "", "")


def test_a_result_that_the_encoding_lacks_characters_for() -> None:
    """It is printed all the same."""
    program = """
import buildkit_py.cli.state as state
async def execute(args):
    print("\\N{SNOWMAN}")
    return 0
state.execute = execute
"""
    assert run("", program + command("info"), {"PYTHONIOENCODING": "ascii"}) == (0, "\\u2603\n", "")


def test_an_error_cannot_act_upon_the_terminal() -> None:
    """Daemons and registries say what strangers wrote. Nor does it tell passwords."""
    program = """
import buildkit_py.cli.state as state
from buildkit_py.errors import RPCError
async def execute(args):
    raise RPCError("UNKNOWN", "one\\x1b]0;title\\x07\\n\\tssh://git:two@host\\r")
state.execute = execute
"""
    assert run("", program + command("info")) == (1, "", "error: one\ufffd]0;title\ufffd\n\tssh://git:***@host\ufffd\n")
