"""A process that outlives the test run by a moment, and ends the servers that the run could not.

A run that is killed, or stopped twice, has no time for its fixtures; its servers are in sessions of their own and would
stay. The guardian is told of each when it starts, and acts when its pipe closes, which no end of a run can prevent.
It also deletes the data of daemons that have ended: that takes as long as the disk likes, and is no part of a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from buildkit_py import daemon
from buildkit_py.daemon.processes import Process
from buildkit_py.errors import BuildKitError

_REPOSITORY = Path(__file__).resolve().parents[2]
_CLOSE_SECONDS = 300.0

_process: subprocess.Popen[str] | None = None
_lock = threading.Lock()


def watch_daemon(state_dir: Path) -> None:
    """A daemon may be started there; to be called before."""
    _tell("daemon", str(state_dir))


def discard_daemon(state_dir: Path) -> None:
    """Delete what is there in the background, and forget it."""
    _tell("discard", str(state_dir))


def watch_group(leader: int) -> None:
    """A child of this process leads a process group of its own."""
    _tell("group", str(leader))


def forget_group(leader: int) -> None:
    """The group has ended."""
    _tell("ended", str(leader))


def close() -> None:
    """Wait until all is deleted; for the end of the run."""
    global _process
    with _lock:
        process, _process = _process, None
    if process is not None:
        assert process.stdin is not None
        process.stdin.close()
        # One that takes longer ends by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_CLOSE_SECONDS)


def _tell(word: str, value: str) -> None:
    global _process
    with _lock:
        if _process is None:
            _process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=_REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what interrupts the run is not for it
                text=True,
            )
        assert _process.stdin is not None
        _process.stdin.write(f"{word} {value}\n")
        _process.stdin.flush()


def main() -> None:
    daemons: set[Path] = set()
    groups: dict[int, Process] = {}
    deleting: list[threading.Thread] = []
    for line in sys.stdin:
        word, _, value = line.rstrip("\n").partition(" ")
        match word:
            case "daemon":
                daemons.add(Path(value))
            case "discard":
                daemons.discard(Path(value))
                thread = threading.Thread(target=_end_daemon, args=(Path(value),))
                thread.start()
                deleting.append(thread)
            case "group":
                if process := Process.of(int(value)):
                    groups[process.pid] = process
            case _:
                groups.pop(int(value), None)
    for process in groups.values():
        with contextlib.suppress(ProcessLookupError):
            if process.alive():
                os.killpg(process.pid, signal.SIGKILL)
    for state_dir in daemons:
        _end_daemon(state_dir)
    for thread in deleting:
        thread.join()


def _end_daemon(state_dir: Path) -> None:
    try:
        asyncio.run(daemon.stop(state_dir, timeout=0, remove=True))
    except (BuildKitError, OSError) as error:
        print(f"cannot clear {state_dir}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
