"""Runs programs and tells what each cost: a small process of its own, started with ``python -I -S``.

Linux counts what a process held before exec as its peak memory, so the parent of what is measured must be small. One
JSON object a line: in come ``argv``, ``env``, ``log`` (a file for stderr), ``seconds`` (the limit) and ``at_once`` (how
many of it to run), out go ``wall``, ``cpu`` and ``peak`` (bytes) of all together, and the first ``code`` that is not 0.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def run(argv: list[str], env: dict[str, str], log: str, seconds: float, at_once: int) -> dict[str, float]:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    began = time.perf_counter()
    children = {os.posix_spawn(argv[0], argv, env, file_actions=actions) for _ in range(at_once)}

    def kill(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    answer = {"cpu": 0.0, "peak": 0.0, "code": 0.0}
    while children:
        child, status, usage = os.wait4(-1, 0)
        children.discard(child)
        answer["cpu"] += usage.ru_utime + usage.ru_stime
        answer["peak"] += usage.ru_maxrss * 1024
        answer["code"] = answer["code"] or os.waitstatus_to_exitcode(status)
    answer["wall"] = time.perf_counter() - began
    signal.setitimer(signal.ITIMER_REAL, 0)
    return answer


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
