"""What a failure or a cancellation must not leave: tasks, threads of the registry client, descriptors, files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from buildkit_py.daemon.launch import Layout
from buildkit_py.daemon.processes import marked, mounts_below

GRPC_DESCRIPTORS = 8
"""What gRPC opens for itself, a few at a time, and keeps for the next connection."""


@asynccontextmanager
async def nothing_left_behind(*folders: Path, descriptors: int = GRPC_DESCRIPTORS) -> AsyncGenerator[None, None]:
    """No task, thread or file more than before, and at most so many descriptors, once the block has ended."""
    process = psutil.Process()
    watched = [Path(tempfile.gettempdir()), *folders]
    tasks, threads, opened = asyncio.all_tasks(), _threads(), process.num_fds()
    files = [sorted(os.listdir(folder)) for folder in watched]
    yield
    for _ in range(250):
        # Transports close a moment after the call that ended them.
        if asyncio.all_tasks() == tasks and _threads() <= threads and process.num_fds() <= opened + descriptors:
            break
        await asyncio.sleep(0.02)
    assert asyncio.all_tasks() == tasks
    assert _threads() <= threads
    assert process.num_fds() <= opened + descriptors, _descriptors()
    assert [sorted(os.listdir(folder)) for folder in watched] == files


def of_daemon(state_dir: Path) -> list[str]:
    """Processes, mounts, interfaces, firewall rules, cgroups and runtime files of the daemon."""
    layout = Layout.of(state_dir)
    found = [f"process {pid}" for pid in marked(layout.tag)]
    found += [f"mount {path}" for path in mounts_below(layout.state, layout.runtime)]
    found += [f"interface {name}" for _, name in socket.if_nameindex() if name == layout.tag]
    if iptables := shutil.which("iptables", path="/usr/sbin:/sbin"):
        for table in ("nat", "filter"):
            listing = subprocess.run([iptables, "-w", "5", "-t", table, "-S"], capture_output=True, text=True)
            found += [f"rule {line}" for line in listing.stdout.splitlines() if layout.tag in line]
    found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"**/{layout.tag}")]
    found += [f"directory {layout.runtime}"] if layout.runtime.exists() else []
    for state in Path("/run/runc").glob("*/state.json"):
        if str(layout.state) in state.read_text():
            found.append(f"container {state}")
    return found


def _threads() -> set[threading.Thread]:
    """Those of the registry client; the loop's own wait for more work."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("registry")}


def _descriptors() -> list[str]:
    """What this process has open."""
    found: list[str] = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}")
    return found
