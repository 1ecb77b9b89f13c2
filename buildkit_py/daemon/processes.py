"""Processes of a private daemon: started apart from this one, known again later, ended with all they started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "BUILDKIT_PY_DAEMON"
"""Environment variable that a daemon hands down to its helpers; its value is the daemon's tag."""

_PROC = Path("/proc")
_RUNC_STATE = Path("/run/runc")
_POLL_SECONDS = 0.03
_MNT_DETACH = 2
_COMMAND_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Process:
    """One process, not confused with a later one of the same id."""

    pid: int
    started: str
    """Boot id and clock ticks from boot to the process's start."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has the id now; None when there is none, or only its corpse."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # ours, if this process started it: nobody else will reap it
        try:
            stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
            boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        # The second field is a name in parentheses and may hold anything.
        fields = stat.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return cls(pid, f"{boot} {fields[19]}")

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Process.of(self.pid) == self


def spawn(command: Sequence[str], *, env: Mapping[str, str], log: Path) -> Process | None:
    """Start a command that outlives this process, as leader of a session, with its output in log.

    None when it has already ended. Raise OSError when it cannot be started.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        list(command),
        dict(env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        # Python ignores these, and what is ignored stays so in a child.
        setsigdef=[signal.SIGPIPE, signal.SIGINT],
        setsigmask=[],
    )
    return Process.of(pid)


async def wait_gone(process: Process, seconds: float) -> bool:
    """Whether the process ended within the time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while process.alive():  # noqa: ASYNC110  # not a child of every caller: no event tells
                await asyncio.sleep(_POLL_SECONDS)
    return not process.alive()


async def kill_marked(tag: str, seconds: float) -> bool:
    """Kill every process that carries the tag, and those they start meanwhile; False when some stay."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = False
        for pid in marked(tag):
            found = True
            _kill_if_marked(pid, tag)
        if not found:
            return True
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)


def marked(tag: str) -> Iterator[int]:
    """Ids of the live processes that carry the tag: helpers by their environment, containers by their cgroup."""
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid() and _carries(entry, tag):
            yield int(entry.name)


def _carries(entry: Path, tag: str) -> bool:
    try:
        if f"{MARK}={tag}".encode() in (entry / "environ").read_bytes().split(b"\0"):
            return Process.of(int(entry.name)) is not None
        groups = (entry / "cgroup").read_text().splitlines()
    except OSError:
        return False
    inside = any(tag in line.split(":", 2)[-1].split("/") for line in groups)
    return inside and Process.of(int(entry.name)) is not None


def _kill_if_marked(pid: int, tag: str) -> None:
    # The descriptor pins the process, so that a reused id is never hit.
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _carries(_PROC / str(pid), tag):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def mounts_below(*roots: Path) -> list[Path]:
    """Mount points below the directories, the innermost first; a disk that is mounted as one of them is not."""
    found: list[Path] = []
    for line in (_PROC / "self/mountinfo").read_text(errors="surrogateescape").splitlines():
        # Blanks and backslashes are written as octal escapes.
        text = line.split(" ")[4].encode("utf-8", "surrogateescape")
        path = Path(os.fsdecode(text.decode("unicode_escape").encode("latin-1")))
        if any(path != root and path.is_relative_to(root) for root in roots):
            found.append(path)
    # Later mounts cover earlier ones: the list is in the order of mounting.
    return found[::-1]


def unmount_below(*roots: Path) -> list[Path]:
    """Detach every mount below the directories; return those that stayed."""
    libc = ctypes.CDLL(None, use_errno=True)
    for path in mounts_below(*roots):
        libc.umount2(os.fsencode(path), _MNT_DETACH)
    return mounts_below(*roots)


async def remove_cgroups(tag: str, seconds: float) -> None:
    """Remove the control groups that carry the tag, in every hierarchy; what stays busy for so long is left."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            # A group is busy until the last of its dead has been reaped by init.
            while _remove_cgroups(tag):  # noqa: ASYNC110  # the kernel tells nobody
                await asyncio.sleep(_POLL_SECONDS)


def _remove_cgroups(tag: str) -> bool:
    """Whether some are left."""
    left = False
    for line in (_PROC / "self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] in {"cgroup", "cgroup2"}:
            root = Path(before.split(" ")[4]) / tag
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            left = left or root.exists()
    return left


def forget_containers(root: Path) -> None:
    """Remove what runc remembers of containers whose files are below root; the processes must be gone.

    Both daemons leave runc's state in its default directory, where those of other engines are too.
    """
    for state in _RUNC_STATE.glob("*/state.json"):
        try:
            values: object = json.loads(state.read_bytes())
        except (OSError, ValueError):
            continue  # being written, or gone: not of a daemon that is down
        match values:
            case {"config": {"rootfs": str() as rootfs}} if Path(rootfs).is_relative_to(root):
                shutil.rmtree(state.parent, ignore_errors=True)
            case _:
                pass


async def run(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of a short command; code 127 when it cannot be started or does not end."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        return 127, str(error)
    try:
        async with asyncio.timeout(_COMMAND_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return 127, f"{command[0]} did not end within {_COMMAND_SECONDS} seconds"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace").strip()
