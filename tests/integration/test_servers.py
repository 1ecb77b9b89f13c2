"""The servers that the other tests rely on are what they seem to be."""

from __future__ import annotations

import base64
import os
import runpy
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from buildkit_py.daemon.processes import Process
from tests.support.images import PLATFORMS, rootfs
from tests.support.leftovers import of_daemon as leftovers
from tests.support.servers import PrivateDaemon, Registry

pytestmark = pytest.mark.daemon

FETCH = Path(__file__).parents[2] / "scripts" / "fetch_servers.py"


def get(registry: Registry, *, login: bool = False) -> int:
    """Status of GET /v2/."""
    request = urllib.request.Request(f"{registry.url}/v2/")
    if login:
        pair = f"{registry.username}:{registry.password}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    context = ssl.create_default_context(cafile=str(registry.ca)) if registry.ca else None
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_plain_registry_answers(registry: Registry) -> None:
    assert get(registry) == 200


def test_registry_with_password_wants_it(auth_registry: Registry) -> None:
    """Without it the answer is 401, with it 200: the stored hash is of that password."""
    assert get(auth_registry) == 401
    assert get(auth_registry, login=True) == 200


def test_registry_with_tls_is_trusted_through_its_own_authority_alone(tls_registry: Registry) -> None:
    assert get(tls_registry) == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{tls_registry.url}/v2/", timeout=10)


RUN = """
import sys, time
from pathlib import Path
from tests.support import servers
folder = Path(sys.argv[1])
with servers.run_registry(folder / "registry") as registry, servers.run_daemon(folder) as daemon:
    print(registry.process.pid, daemon.pid, daemon.state_dir, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_run_that_is_killed_leaves_no_server(fresh_daemon: PrivateDaemon, tmp_path: Path, number: int) -> None:
    """No fixture ends them then; processes, mounts, network and data are gone a moment later."""
    command = [sys.executable, "-c", RUN, str(tmp_path / "killed")]
    run = subprocess.Popen(command, cwd=FETCH.parents[1], stdout=subprocess.PIPE, text=True)
    with run:
        assert run.stdout is not None
        registry, pid, folder = run.stdout.readline().split()
        assert all(Path("/proc", process).exists() for process in (registry, pid))
        run.send_signal(number)
        run.wait(20)
    state_dir = Path(folder)
    deadline = time.monotonic() + 30
    while state_dir.exists() or leftovers(state_dir) or Process.of(int(registry)):
        assert time.monotonic() < deadline, (state_dir, leftovers(state_dir), registry)
        time.sleep(0.1)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_registry_that_was_ended_is_gone(fresh_registry: Registry, end: str) -> None:
    """Both ways, and twice: a test may end it before the fixture does."""
    assert get(fresh_registry) == 200
    for _ in range(2):
        getattr(fresh_registry, end)()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(fresh_registry)


def test_base_images_have_a_tree_for_each_platform(emulators: None) -> None:
    """A context for each name in FROM, with a shell and go for every platform and sources for all."""
    contexts = rootfs()
    assert set(contexts) == {"alpine", "golang:alpine"}
    trees = [f"rootfs/{platform.split('/')[1]}" for platform in PLATFORMS]
    for tree in (context / tree for context in contexts.values() for tree in trees):
        assert (tree / "bin" / "busybox").stat().st_mode & 0o111
        assert (tree / "bin" / "sh").is_symlink()
        assert (tree / "tmp").stat().st_mode & 0o7777 == 0o1777
    for tree in (contexts["golang:alpine"] / tree for tree in trees):
        assert (tree / "usr/lib/go-1.19/bin/go").stat().st_mode & 0o111
    assert (contexts["golang:alpine"] / "common/usr/share/go-1.19/src/fmt/print.go").is_file()


def test_fetching_off_debian_says_what_to_do(tmp_path: Path) -> None:
    """One line for each group, exit code 1, nothing written."""
    done = subprocess.run(
        [sys.executable, str(FETCH), "daemon", "registry"],
        env={"PATH": str(tmp_path), "BUILDKIT_PY_PREFIX": str(tmp_path / "prefix")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["missing", "daemon"],
        ["missing", "registry"],
    ]
    assert "BUILDKIT_HOST" in done.stderr
    assert not (tmp_path / "prefix").exists()


@pytest.mark.parametrize("options", [["--check"], []], ids=["check", "fetch"])
def test_what_only_root_can_do_is_said_at_once(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Other users are not made to wait for the download of a daemon that they cannot start."""
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    monkeypatch.delenv("BUILDKIT_HOST", raising=False)
    monkeypatch.setenv("BUILDKIT_PY_PREFIX", str(tmp_path / "prefix"))
    assert runpy.run_path(str(FETCH))["main"]([*options, "daemon"]) == 1
    assert capsys.readouterr().err.startswith("missing: daemon: a private daemon needs root to start: ")
    assert not (tmp_path / "prefix").exists()


def test_with_a_daemon_of_their_own_users_need_no_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Emulators are a matter of the machine that the daemon is on."""
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    monkeypatch.setenv("BUILDKIT_HOST", "tcp://daemon.test:1234")
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: "disabled\n")
    assert runpy.run_path(str(FETCH))["main"](["daemon", "emulators"]) == 0
    assert capsys.readouterr().err == ""


def test_base_images_behind_a_symbolic_link(tmp_path: Path, emulators: None) -> None:
    """They go where the link leads, again and again; the link stays."""
    script = FETCH.with_name("make_base_images.py")
    place = tmp_path / "elsewhere" / "images"
    link = tmp_path / "checkout" / ".cache" / "images"
    link.parent.mkdir(parents=True)
    link.symlink_to(place)
    (tmp_path / "checkout" / "scripts").mkdir()
    shutil.copy(script, tmp_path / "checkout" / "scripts")
    prefix = os.environ.get("BUILDKIT_PY_PREFIX") or str(FETCH.parents[1] / ".cache" / "prefix")
    command = [sys.executable, str(tmp_path / "checkout" / "scripts" / script.name)]
    for _ in range(2):
        done = subprocess.run(
            command, env={**os.environ, "BUILDKIT_PY_PREFIX": prefix}, capture_output=True, text=True, timeout=100
        )
        assert (done.returncode, done.stdout.split()) == (0, [str(link / "alpine"), str(link / "golang")]), done.stderr
        assert link.readlink() == place
        assert (place / "alpine" / "Dockerfile").is_file()
        assert {path.name for path in place.parent.iterdir()} == {"images", "images.lock"}
        (place / "stamp.json").unlink()  # so that they are made again


def test_a_password_of_the_mirror_is_not_shown() -> None:
    """Apt prints the address with all it has; the message names the network as the likely cause."""
    reason = runpy.run_path(str(FETCH))["reason"]
    output = "Ign:1 x\nE: Failed to fetch https://me:hidden@mirror.test/debian/dists/forky/InRelease\n"
    assert reason(output).startswith("E: Failed to fetch https://mirror.test/debian/dists/forky/InRelease (is the")
