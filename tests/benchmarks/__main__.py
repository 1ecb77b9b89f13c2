"""Measures this library against docker buildx, on the same daemon, in turns.

    python -m tests.benchmarks [NAME ...] [--repeat N] [--json FILE] [--list]

Names are those of cases, or of the modules bench_NAME.py beside this file, which measure one part alone and start what
they need. Without any, all cases run, and those of the registry before them. The daemon is $BUILDKIT_HOST, or one
started for this run; the registry is started for this run. Aims are printed as met or MISSED; nothing fails because of
them.

What daemons and registries write is below $TMPDIR. On a disk the cold contexts measure that disk: a TMPDIR in memory,
such as /dev/shm where it has 8 GiB free, leaves the clients and the daemon to be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from buildkit_py import connect
from tests.benchmarks import report
from tests.benchmarks.cases import Bench, Outcome, measure
from tests.benchmarks.contenders import Fresh, Job, open_all
from tests.benchmarks.trees import plain
from tests.support import servers

CASES = {
    "noop": "cached build of one platform",
    "push": "cached build of three platforms, pushed",
    "publish": "from the slowest solve to the tag",
    "files-unchanged": "context of 50,000 files that the daemon has",
    "files-cold": "context of 50,000 files that it does not have",
    "one-file-cold": "context of one file of 1 GiB that it does not have",
    "files-changed": "context of 50,000 files of which 1% have changed",
    "files-ignored": "context of 200,000 files of which .dockerignore drops 90%",
    "export-files": "export of 50,000 files to a directory",
    "export-one-file": "export of one file of 1 GiB to a directory",
    "at-once": "32 cached builds at once, in one process",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--repeat", type=int, metavar="N", help="builds of each contender (default: the case's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    options = parser.parse_args(arguments)
    parts = {path.stem.removeprefix("bench_"): path for path in sorted(Path(__file__).parent.glob("bench_*.py"))}
    if options.list:
        for name, what in CASES.items():
            print(f"{name:16} {what}")
        for name in parts:
            print(f"{name:16} python -m tests.benchmarks.bench_{name}")
        return 0
    names = options.names or [*CASES, "registry"]
    if unknown := [name for name in names if name not in CASES and name not in parts]:
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join([*CASES, *parts])}")
    if options.repeat is not None and options.repeat < 1:
        parser.error("--repeat: expected at least 1")
    # A run that is ended still ends its servers: the signal unwinds the stack that holds them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name in names:
        if name in parts:
            subprocess.run([sys.executable, "-m", f"tests.benchmarks.bench_{name}"], check=True)
    if wanted := [name for name in names if name in CASES]:
        return _compare(wanted, options.repeat, options.json)
    return 0


def _compare(names: Sequence[str], repeats: int | None, output: Path | None) -> int:
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="buildkit-py-bench-")))
        try:
            address = servers.daemon_host() or stack.enter_context(servers.run_daemon(folder / "daemon")).address
            registry = stack.enter_context(servers.run_registry(folder / "registry"))
            warm, cli, buildx = open_all(stack, address, folder)
        except servers.Unavailable as reason:
            print(f"error: {reason}", file=sys.stderr)
            return 1
        facts = report.machine() | {
            "daemon": f"{asyncio.run(_version(address))} at {address}",
            "peer": buildx.version,
            "files": f"{_file_system(folder)} at {folder.parent}",
            "load before": f"{os.getloadavg()[0]:.2f}",
        }
        print(report.header(facts), flush=True)
        # What is imported at the first build is no part of a warm process's second.
        warm.run(Job(context=plain().path))
        makers = Bench(address, registry.host, warm, Fresh(address, folder), cli, buildx).cases()
        for name in names:
            _note(f"{name}: preparing")
            try:
                case = makers[name]()
            except servers.Unavailable as reason:
                print(f"\n{name}: skipped: {reason}", flush=True)
                continue
            outcomes.append(measure(case, repeats, _note))
            print(f"\n{report.table(outcomes[-1])}", flush=True)
        facts["seconds"] = round(time.monotonic() - began)
    judged = [row for outcome in outcomes for row in report.rows(outcome)]
    print(f"\n{sum(row.met for row in judged)} of {len(judged)} aims met, in {facts['seconds']} s")
    if output is not None:
        output.write_text(json.dumps(report.as_json(facts, outcomes), indent=2) + "\n")
    return 0


async def _version(address: str) -> str:
    async with connect(address) as client:
        info = await client.info()
    return "BuildKit" if info is None else f"{info.package} {info.version}"


def _file_system(folder: Path) -> str:
    done = subprocess.run(["stat", "--file-system", "--format=%T", folder], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _note(text: str) -> None:
    """What is going on, for who waits; not part of the result."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
