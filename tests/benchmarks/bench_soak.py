"""Many small builds over one client: nothing may grow, here or in the daemon.

Run: python -m tests.benchmarks.bench_soak [BUILDS]

Each build has a context of its own content, a build argument, a local export, and every tenth one fails. At ten points
in time it tells this process's memory, descriptors, tasks and threads, and the daemon's sessions, goroutines and
descriptors where it is a buildkitd (which is started for this run, and tells them itself) or at least its descriptors.
The first tenth is warm-up; after it, growth beyond the limits below is told as MISSED.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from buildkit_py import BuildRequest, ExporterSpec, build, connect
from buildkit_py.client import Client
from buildkit_py.daemon.launch import Layout
from buildkit_py.errors import BuildKitError
from tests.support import servers

BUILDS = 2000
GROWTH_BYTES = 16 << 20
"""Of memory: an allocator's slack, not a thousand builds' worth of anything."""
_SESSIONS = re.compile(r"^(\d+) @.*\n(?:#.*\n)*?#.*session\.\(\*Manager\)\.HandleConn", re.MULTILINE)
_GOROUTINES = re.compile(r"^goroutine profile: total (\d+)")


@dataclass(frozen=True, slots=True)
class Point:
    """What there is at one point in time; -1 for what is not known."""

    builds: int
    seconds: float
    memory: int
    descriptors: int
    tasks: int
    threads: int
    daemon_descriptors: int
    daemon_sessions: int
    daemon_goroutines: int

    def __str__(self) -> str:
        return "  ".join(
            (
                f"{self.builds:6} builds {self.seconds:7.1f} s",
                f"{self.memory / 1e6:6.1f} MB {self.descriptors:4} descriptors {self.tasks:3} tasks",
                f"{self.threads:3} threads; daemon {self.daemon_descriptors:4} descriptors",
                f"{self.daemon_sessions:3} sessions {self.daemon_goroutines:5} goroutines",
            )
        )


class Soak:
    """One client, and what watches it."""

    def __init__(self, client: Client, folder: Path, daemon_pid: int, debug_url: str) -> None:
        self._client = client
        self._folder = folder
        self._daemon = psutil.Process(daemon_pid)
        self._debug_url = debug_url
        self._own = psutil.Process()
        self._began = time.monotonic()

    async def one(self, number: int) -> None:
        """A build; every tenth fails, as it should."""
        context = self._folder / "context"
        context.mkdir(exist_ok=True)
        failing = number % 10 == 9
        (context / "Dockerfile").write_text(f"FROM scratch\nARG N\nCOPY {'missing' if failing else 'file'} /$N\n")
        (context / "file").write_text(str(number))
        out = self._folder / "out"
        request = BuildRequest(
            context=context, build_args={"N": str(number)}, outputs=[ExporterSpec(type="local", dest=str(out))]
        )
        try:
            await build(self._client, request)
        except BuildKitError:
            if not failing:
                raise
        else:
            assert not failing, "a build that must fail did not"
            assert (out / str(number)).read_text() == str(number)
            shutil.rmtree(out)

    async def look(self, builds: int) -> Point:
        await asyncio.sleep(0.5)  # what a build leaves to be closed is closed a moment later
        gc.collect()
        profile = await asyncio.to_thread(self._profile)
        goroutines = _GOROUTINES.search(profile)
        return Point(
            builds=builds,
            seconds=time.monotonic() - self._began,
            memory=self._own.memory_info().rss,
            descriptors=self._own.num_fds(),
            tasks=len(asyncio.all_tasks()),
            threads=threading.active_count(),
            daemon_descriptors=self._daemon.num_fds(),
            daemon_sessions=sum(int(count) for count in _SESSIONS.findall(profile)) if profile else -1,
            daemon_goroutines=int(goroutines[1]) if goroutines else -1,
        )

    def _profile(self) -> str:
        if not self._debug_url:
            return ""
        with urllib.request.urlopen(f"{self._debug_url}/debug/pprof/goroutine?debug=1", timeout=10) as answer:
            return str(answer.read().decode())


async def soak(address: str, folder: Path, daemon_pid: int, debug_url: str, builds: int) -> list[Point]:
    points: list[Point] = []
    async with connect(address) as client:
        watch = Soak(client, folder, daemon_pid, debug_url)
        for number in range(builds):
            await watch.one(number)
            if (number + 1) % max(builds // 10, 1) == 0:
                points.append(await watch.look(number + 1))
                print(points[-1], flush=True)
    return points


def verdicts(points: Sequence[Point]) -> list[tuple[str, bool]]:
    """From the end of the warm-up to the end."""
    first, last = points[0], points[-1]
    return [
        (f"memory grew by {(last.memory - first.memory) / 1e6:.1f} MB", last.memory - first.memory < GROWTH_BYTES),
        (f"descriptors {first.descriptors} to {last.descriptors}", last.descriptors <= first.descriptors + 2),
        (f"tasks {first.tasks} to {last.tasks}", last.tasks <= first.tasks),
        (f"threads {first.threads} to {last.threads}", last.threads <= first.threads + 2),
        (
            f"the daemon's sessions {first.daemon_sessions} to {last.daemon_sessions}",
            last.daemon_sessions <= max(first.daemon_sessions, 0),
        ),
        (
            f"the daemon's descriptors {first.daemon_descriptors} to {last.daemon_descriptors}",
            last.daemon_descriptors <= first.daemon_descriptors + 16,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("builds", nargs="?", type=int, default=BUILDS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as name:
        folder = Path(name)
        arguments_, debug_url = [], ""
        if shutil.which("buildkitd"):
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                debug = f"127.0.0.1:{sock.getsockname()[1]}"
            private = Layout.of(folder / "daemon").socket("buildkitd")
            arguments_, debug_url = ["--addr", f"unix://{private}", "--debugaddr", debug], f"http://{debug}"
        try:
            with servers.run_daemon(folder, arguments=arguments_) as daemon:
                points = asyncio.run(soak(daemon.address, folder, daemon.pid, debug_url, options.builds))
        except servers.Unavailable as reason:
            sys.exit(f"error: {reason}")
    with suppress(BrokenPipeError):
        for text, met in verdicts(points):
            print(f"{'met' if met else 'MISSED':8}{text}")


if __name__ == "__main__":
    main()
