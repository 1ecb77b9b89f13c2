"""Runs programs and tells what each cost: a small process of its own, started with ``python -I -S``.

Linux counts what a process held before exec as its peak memory, so the parent of what is measured must be small. One
JSON object a line: in come ``argv``, ``env``, ``log`` (a file for stderr) and ``seconds`` (the limit), out go
``wall``, ``cpu``, ``peak`` (bytes) and ``code``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def run(argv: list[str], env: dict[str, str], log: str, seconds: float) -> dict[str, float]:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    began = time.perf_counter()
    child = os.posix_spawn(argv[0], argv, env, file_actions=actions)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - began
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
        "code": os.waitstatus_to_exitcode(status),
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
