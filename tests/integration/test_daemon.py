"""Private daemons: started, found again, stopped, and nothing of them left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, build, connect, daemon
from buildkit_py.daemon import DaemonOptions
from buildkit_py.daemon.launch import Layout
from buildkit_py.daemon.processes import marked
from buildkit_py.errors import BuildKitError, ConnectFailed, DeadlineExceeded, InvalidOption
from tests.support import guardian
from tests.support.images import rootfs
from tests.support.leftovers import of_daemon as leftovers
from tests.support.peers import engine_prefix
from tests.support.servers import PrivateDaemon

pytestmark = pytest.mark.daemon


async def run_forever(address: str, folder: Path) -> None:
    """Build something whose RUN does not end."""
    context = folder / "forever"
    context.mkdir()
    shutil.copytree(rootfs()["alpine"], context, symlinks=True, dirs_exist_ok=True)
    with (context / "Dockerfile").open("a") as dockerfile:
        dockerfile.write("RUN sleep 300\n")
    async with connect(address) as client:
        await build(client, BuildRequest(context=context))


async def container_of(state_dir: Path) -> int:
    """Id of the process that a RUN of the daemon runs."""
    layout = Layout.of(state_dir)
    async with asyncio.timeout(30):
        while True:
            for pid in marked(layout.tag):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\x00300"):
                    return pid
            await asyncio.sleep(0.05)


@pytest.fixture
async def state_dir(tmp_path: Path, fresh_daemon: PrivateDaemon) -> AsyncIterator[Path]:
    """Where a test may start a daemon of its own; there is one to start, or the test would be skipped."""
    folder = tmp_path / "own"
    guardian.watch_daemon(folder)
    yield folder
    await daemon.stop(folder, timeout=2, remove=True)


async def test_starting_again_changes_nothing(fresh_daemon: PrivateDaemon) -> None:
    before = await daemon.status(fresh_daemon.state_dir)
    assert before.running
    assert before.address == fresh_daemon.address
    assert before.version
    assert await daemon.start(fresh_daemon.options) == before


async def test_a_running_daemon_is_not_taken_for_another(fresh_daemon: PrivateDaemon) -> None:
    """Other settings than the daemon has are an error, not silently ignored."""
    other = DaemonOptions(
        state_dir=fresh_daemon.state_dir, prefix=engine_prefix(), insecure_registries=("registry.test:5000",)
    )
    with pytest.raises(InvalidOption, match=r"registry\.test:5000"):
        await daemon.start(other)


async def test_two_daemons_run_side_by_side(fresh_daemon: PrivateDaemon, daemon_address: str, scratch: Path) -> None:
    """Neither disturbs the other: both build."""
    for address in (fresh_daemon.address, daemon_address):
        async with connect(address) as client:
            result = await build(client, BuildRequest(context=scratch))
        assert len(result.platforms) == 1


async def test_stop_leaves_the_data_and_nothing_else(fresh_daemon: PrivateDaemon, scratch: Path) -> None:
    """The next start finds the cache."""
    async with connect(fresh_daemon.address) as client:
        await build(client, BuildRequest(context=scratch))

    stopped = await daemon.stop(fresh_daemon.state_dir)
    assert not stopped.running
    assert leftovers(fresh_daemon.state_dir) == []
    assert not (await daemon.status(fresh_daemon.state_dir)).running

    await fresh_daemon.restart()
    async with connect(fresh_daemon.address) as client:
        result = await build(client, BuildRequest(context=scratch))
    assert result.platforms[0].cached > 0


async def test_stop_during_a_run_step_is_bounded(fresh_daemon: PrivateDaemon, tmp_path: Path) -> None:
    """A step that never ends does not hold up stop, and its container goes too."""
    building = asyncio.create_task(run_forever(fresh_daemon.address, tmp_path))
    await container_of(fresh_daemon.state_dir)
    async with asyncio.timeout(20):
        await daemon.stop(fresh_daemon.state_dir, timeout=3)
        with pytest.raises(BuildKitError):
            await building
    assert leftovers(fresh_daemon.state_dir) == []


async def test_what_a_killed_daemon_leaves_is_cleared_by_the_next_start(
    fresh_daemon: PrivateDaemon, tmp_path: Path
) -> None:
    """Its container survives it; the next start ends that, and works."""
    building = asyncio.create_task(run_forever(fresh_daemon.address, tmp_path))
    container = await container_of(fresh_daemon.state_dir)
    fresh_daemon.kill()
    async with asyncio.timeout(20):
        with pytest.raises(BuildKitError):
            await building
    assert not (await daemon.status(fresh_daemon.state_dir)).running
    assert Path(f"/proc/{container}").exists()

    await fresh_daemon.restart()
    assert container not in set(marked(Layout.of(fresh_daemon.state_dir).tag))
    async with connect(fresh_daemon.address) as client:
        assert await client.workers()


async def test_remove_deletes_everything(state_dir: Path) -> None:
    await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix()))
    await daemon.stop(state_dir, remove=True)
    assert not state_dir.exists()
    assert leftovers(state_dir) == []


async def test_remove_spares_what_others_put_there(state_dir: Path) -> None:
    await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix()))
    (state_dir / "mine").touch()
    await daemon.stop(state_dir, remove=True)
    assert [path.name for path in state_dir.iterdir()] == ["mine"]
    (state_dir / "mine").unlink()


async def test_dockerd_leaves_the_containerd_of_the_machine_alone(state_dir: Path) -> None:
    """It has one of its own; without that it does not count as running, and the next start begins anew."""
    options = DaemonOptions(state_dir=state_dir, prefix=engine_prefix(), kind="dockerd")
    try:
        daemon.find_daemon(options)
    except ConnectFailed as reason:
        pytest.skip(str(reason))
    first = await daemon.start(options)
    # Connections that somebody has accepted at its socket. Source: proc_net_unix(5).
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    assert [row for row in sockets if row[5] == "03" and row[7:] == [str(Layout.of(state_dir).containerd_socket)]]
    containerd = json.loads((state_dir / "daemon.json").read_text())["helper"]["pid"]
    os.kill(containerd, signal.SIGKILL)
    async with asyncio.timeout(10):
        while (await daemon.status(state_dir)).running:
            await asyncio.sleep(0.02)

    second = await daemon.start(options)
    assert second.running
    assert second.pid != first.pid


async def test_the_command_line(state_dir: Path) -> None:
    """start prints the address alone, as often as it is called; status tells by its exit code; stop says nothing."""

    async def run(action: str, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "buildkit_py", "daemon", action, "--state-dir", str(state_dir), *arguments]
        env = {**os.environ, "BUILDKIT_PY_PREFIX": str(engine_prefix())}
        done = await asyncio.to_thread(
            subprocess.run, command, env=env, stdout=subprocess.PIPE, text=True, timeout=90, check=False
        )
        return done.returncode, done.stdout

    assert await run("status") == (1, "")
    code, address = await run("start")
    assert code == 0
    assert await run("start") == (0, address)
    record = json.loads((state_dir / "daemon.json").read_text())
    assert await run("status") == (0, f"{address.strip()} {record['pid']}\n")
    assert await run("status", "--remove") == (2, "")
    assert await run("stop") == (0, "")
    assert await run("status") == (1, "")
    assert await run("stop", "--remove") == (0, "")
    assert not state_dir.exists()
    assert leftovers(state_dir) == []


async def test_a_daemon_that_ends_at_once_shows_its_log(state_dir: Path) -> None:
    """The error has the daemon's own words."""
    kind, _ = daemon.find_daemon(DaemonOptions(prefix=engine_prefix()))
    wrong = "--log-level=nonesuch" if kind == "dockerd" else "--oci-worker-snapshotter=nonesuch"
    options = DaemonOptions(state_dir=state_dir, prefix=engine_prefix(), arguments=(wrong,))
    with pytest.raises(ConnectFailed, match=r"ended before it answered(?s:.*)nonesuch"):
        await daemon.start(options)
    assert leftovers(state_dir) == []


async def test_a_daemon_that_does_not_answer_in_time_is_ended(state_dir: Path) -> None:
    with pytest.raises(DeadlineExceeded, match=r"did not answer .* within 0\.001 seconds"):
        await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix(), timeout=0.001))
    assert leftovers(state_dir) == []


async def test_a_start_that_is_cancelled_leaves_nothing(state_dir: Path) -> None:
    starting = asyncio.create_task(daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix())))
    layout = Layout.of(state_dir)
    async with asyncio.timeout(20):
        while not any(marked(layout.tag)):
            await asyncio.sleep(0.005)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert leftovers(state_dir) == []


async def test_two_starts_at_once_make_one_daemon(state_dir: Path) -> None:
    options = DaemonOptions(state_dir=state_dir, prefix=engine_prefix())
    first, second = await asyncio.gather(daemon.start(options), daemon.start(options))
    assert first == second


async def test_two_commands_that_start_at_once_make_one_daemon(state_dir: Path) -> None:
    """Each prints its address. Two that stop at once end it, and neither complains."""
    env = {**os.environ, "BUILDKIT_PY_PREFIX": str(engine_prefix())}

    async def both(*words: str) -> list[tuple[int | None, bytes, bytes]]:
        command = [sys.executable, "-m", "buildkit_py", "daemon", *words, "--state-dir", str(state_dir)]
        async with asyncio.timeout(90):
            started = [
                await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                for _ in range(2)
            ]
            said = [await process.communicate() for process in started]
        return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]

    first, second = await both("start")
    address = (await daemon.status(state_dir)).address.encode() + b"\n"
    assert first[:2] == second[:2] == (0, address)
    assert await both("stop") == [(0, b"", b"")] * 2
    assert leftovers(state_dir) == []


async def test_a_daemon_that_does_not_heed_being_asked_is_killed(state_dir: Path) -> None:
    """One that is frozen heeds nothing: after the time that it has, it is killed, with its helper."""
    started = await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix()))
    assert started.pid is not None
    os.kill(started.pid, signal.SIGSTOP)
    began = time.monotonic()
    await daemon.stop(state_dir, timeout=1)
    assert 1 <= time.monotonic() - began < 20
    assert leftovers(state_dir) == []


async def test_what_a_killed_command_has_begun_is_ended_by_stop_or_taken_by_start(state_dir: Path) -> None:
    """Whether or not it had written down what it started."""
    command = [sys.executable, "-m", "buildkit_py", "daemon", "start", "--state-dir", str(state_dir)]
    env = {**os.environ, "BUILDKIT_PY_PREFIX": str(engine_prefix())}
    layout = Layout.of(state_dir)
    for action in ("stop", "start"):
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.DEVNULL)
        async with asyncio.timeout(30):
            while not any(marked(layout.tag)):
                await asyncio.sleep(0.005)
            process.kill()
            await process.wait()
            if action == "start":
                started = await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix()))
                assert started.running
            await daemon.stop(state_dir, timeout=2)
        assert leftovers(state_dir) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with these options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this process may not mount")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("below", ["", "below"], ids=["itself", "below"])
@pytest.mark.parametrize(
    ("options", "reason"), [("ro", "Read-only file system"), ("size=4k", "No space left on device")], ids=["ro", "full"]
)
async def test_a_disk_that_cannot_be_written_is_named(
    fresh_daemon: PrivateDaemon, disk: Callable[[str], Path], options: str, reason: str, below: str
) -> None:
    state_dir = disk(options) / below
    with pytest.raises(ConnectFailed, match=f"^cannot use {state_dir}.*: {reason}$"):
        await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix()))
    await daemon.stop(state_dir, remove=True)
    assert leftovers(state_dir) == []


async def test_a_disk_that_is_mounted_as_the_state_directory_stays(
    fresh_daemon: PrivateDaemon, disk: Callable[[str], Path]
) -> None:
    """Its data is there for the next start; only what the daemon has mounted goes."""
    state_dir = disk("size=64m")
    started = await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix()))
    assert started.running
    await daemon.stop(state_dir, timeout=2)
    assert leftovers(state_dir) == []
    assert state_dir.is_mount()
    assert (state_dir / fresh_daemon.kind).is_dir()
    await daemon.stop(state_dir, remove=True)
    assert state_dir.is_mount()
    assert list(state_dir.iterdir()) == []


async def test_the_id_of_a_dead_daemon_may_be_anybodys(state_dir: Path) -> None:
    """A record that names a living process of others is not believed, and the process not touched."""
    started = await daemon.start(DaemonOptions(state_dir=state_dir, prefix=engine_prefix()))
    assert started.pid is not None
    record = state_dir / "daemon.json"
    text = record.read_text()
    await daemon.stop(state_dir)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        record.write_text(text.replace(f'"pid": {started.pid}', f'"pid": {bystander.pid}'))
        assert not (await daemon.status(state_dir)).running
        await daemon.stop(state_dir)
        assert bystander.poll() is None
    finally:
        os.killpg(bystander.pid, signal.SIGKILL)
        bystander.wait()
