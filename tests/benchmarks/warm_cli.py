"""A long-lived process that runs the command's own main(): what a service that has the library loaded pays.

One JSON object a line: in comes ``argv``, out go ``wall``, ``cpu``, ``peak`` (bytes, so far) and ``code``.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
from pathlib import Path

from buildkit_py.cli.main import main


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak() -> int:
    """Since the start: getrusage would tell what the process that started this one held."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def run(argv: list[str]) -> dict[str, float]:
    began, cpu = time.perf_counter(), _cpu()
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        code = main(argv)
    return {
        "wall": time.perf_counter() - began,
        "cpu": _cpu() - cpu,
        "peak": _peak(),
        "code": code,
    }


if __name__ == "__main__":
    Path("/proc/self/clear_refs").write_text("5")
    while line := sys.stdin.readline():
        print(json.dumps(run(json.loads(line)["argv"])), flush=True)
