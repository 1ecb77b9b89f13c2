"""Private daemons, as far as no process is needed: what is found, refused and written down."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from buildkit_py import daemon
from buildkit_py.daemon import DaemonOptions, find_daemon, launch, network, processes
from buildkit_py.daemon.launch import Layout
from buildkit_py.errors import ConnectFailed, InvalidOption


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is found but in a prefix: the system's directories are not searched."""
    monkeypatch.setattr(launch, "SYSTEM_PATH", ())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("BUILDKIT_PY_PREFIX", raising=False)


def install(prefix: Path, *programs: str) -> Path:
    folder = prefix / "usr" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs:
        (folder / program).touch(mode=0o755)
    return folder


@pytest.mark.usefixtures("nothing_installed")
class TestFindDaemon:
    """Which daemon is taken, and what is said when none is."""

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConnectFailed, match="BUILDKIT_HOST") as caught:
            find_daemon(DaemonOptions(prefix=tmp_path))
        assert caught.value.attempts == (("buildkitd", "not found"), ("dockerd", "not found"))

    def test_buildkitd_comes_first(self, tmp_path: Path) -> None:
        folder = install(tmp_path, "buildkitd", "dockerd", "containerd", "runc")
        assert find_daemon(DaemonOptions(prefix=tmp_path)) == ("buildkitd", folder / "buildkitd")
        assert find_daemon(DaemonOptions(prefix=tmp_path, kind="dockerd")) == ("dockerd", folder / "dockerd")

    def test_a_daemon_without_its_helpers_is_passed_over(self, tmp_path: Path) -> None:
        folder = install(tmp_path, "buildkitd", "dockerd")
        with pytest.raises(ConnectFailed) as caught:
            find_daemon(DaemonOptions(prefix=tmp_path))
        assert caught.value.attempts == (
            (str(folder / "buildkitd"), "needs runc, not found"),
            (str(folder / "dockerd"), "needs containerd and runc, not found"),
        )

    def test_the_runc_that_comes_with_buildkitd_will_do(self, tmp_path: Path) -> None:
        install(tmp_path, "buildkitd", "buildkit-runc")
        assert find_daemon(DaemonOptions(prefix=tmp_path))[0] == "buildkitd"

    def test_the_prefix_may_come_from_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(tmp_path, "buildkitd", "runc")
        monkeypatch.setenv("BUILDKIT_PY_PREFIX", str(tmp_path))
        assert find_daemon(DaemonOptions())[0] == "buildkitd"


@pytest.mark.parametrize(
    ("options", "message"),
    {
        "timeout": (DaemonOptions(timeout=0), "more than 0 seconds"),
        "empty registry": (DaemonOptions(insecure_registries=("",)), "expected host"),
        "registry with a scheme": (DaemonOptions(insecure_registries=("http:x",)), "expected host"),
        "registry with a path": (DaemonOptions(insecure_registries=("host/path",)), "host/path"),
        "registry on two lines": (DaemonOptions(insecure_registries=("a\nb",)), "expected host"),
        "network for buildkitd": (
            DaemonOptions(kind="buildkitd", insecure_registries=("10.0.0.0/8",)),
            "not networks",
        ),
    }.values(),
)
async def test_bad_options_are_refused_before_anything_is_done(
    options: DaemonOptions, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(InvalidOption, match=message):
        await daemon.start(options)
    assert list(tmp_path.iterdir()) == []


async def test_start_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence says so, and what else there is to do; nothing is made."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConnectFailed, match=r"needs root.*BUILDKIT_HOST"):
        await daemon.start(DaemonOptions(state_dir=tmp_path / "state"))
    assert not (tmp_path / "state").exists()


async def test_status_and_stop_where_nothing_was_started(tmp_path: Path) -> None:
    status = await daemon.status(tmp_path / "none")
    assert not status.running
    assert status.address == ""
    assert await daemon.stop(tmp_path / "none", remove=True) == status
    assert not (tmp_path / "none").exists()


async def test_a_directory_that_holds_something_else_is_not_taken(tmp_path: Path) -> None:
    """Neither its mode nor its files change, whatever is asked for."""
    (tmp_path / "mine").write_text("precious")
    tmp_path.chmod(0o755)
    with pytest.raises(InvalidOption, match="not empty"):
        await daemon.start(DaemonOptions(state_dir=tmp_path))
    await daemon.stop(tmp_path, remove=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


async def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidOption, match="Not a directory"):
        await daemon.start(DaemonOptions(state_dir=tmp_path / "file"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "1"}', '{"pid": 1, "started": "x", "kind": "other"}'])
async def test_a_record_of_no_use_is_no_daemon(tmp_path: Path, text: str) -> None:
    (tmp_path / "daemon.json").write_text(text)
    assert not (await daemon.status(tmp_path)).running


def test_the_default_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert daemon.default_state_dir() == Path("/state/buildkit-py/daemon")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert daemon.default_state_dir() == Path("/home/me/.local/state/buildkit-py/daemon")


def test_names_fit_where_they_are_used() -> None:
    """A deep state directory makes no socket path too long (107 bytes), no interface name either (15)."""
    layout = Layout.of(Path("/" + "/".join(["a-rather-long-name"] * 20)))
    assert len(layout.tag) <= 15
    for socket in ("containerd.sock.ttrpc", "exec/libnetwork/68266b03314e.sock", "exec/metrics.sock"):
        assert len(os.fsencode(layout.runtime / socket)) <= 107
    assert Layout.of(Path("/other")).tag != layout.tag


def test_configuration_of_buildkitd_is_toml_and_of_dockerd_json() -> None:
    layout = Layout.of(Path('/state/with "quotes" and \\'))
    registries = ("registry.test:5000", "127.0.0.0/8")
    settings = tomllib.loads(launch.buildkitd_config(layout, registries))
    assert settings["root"] == str(layout.data("buildkitd"))
    assert settings["grpc"]["address"] == [f"unix://{layout.socket('buildkitd')}"]
    assert settings["registry"] == {"registry.test:5000": {"http": True, "insecure": True}}
    engine = json.loads(launch.dockerd_config(layout, registries))
    assert engine["insecure-registries"] == list(registries)
    assert engine["hosts"] == [f"unix://{layout.socket('dockerd')}"]
    runtime = tomllib.loads(launch.containerd_config(layout))
    assert runtime["grpc"]["address"] == engine["containerd"]
    assert Path(runtime["root"]).is_relative_to(layout.state)


def test_stack_frames_do_not_hide_the_error() -> None:
    log = ["starting", "buildkitd: no such thing", "main.main", "\tgithub.com/x/main.go:415", "done"]
    assert launch.without_frames(log) == ["starting", "buildkitd: no such thing", "done"]


ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0100A8C0	0003	0	0	0	00000000	0	0	0
eth0	0000D50A	00000000	0001	0	0	0	00FFFFFF	0	0	0
"""


@pytest.mark.skipif(sys.byteorder == "big", reason="the table is of a little-endian machine")
def test_routes_of_the_machine_are_read() -> None:
    """The default route covers everything and so says nothing."""
    assert network.used_networks(ROUTES) == [ipaddress.IPv4Network("10.213.0.0/24")]


def test_a_subnet_in_use_is_not_taken() -> None:
    first = network.free_subnet("name", [])
    second = network.free_subnet("name", [first])
    assert second != first
    assert second.subnet_of(network.SUBNETS)
    with pytest.raises(OSError, match="in use"):
        network.free_subnet("name", [network.SUBNETS])


def test_only_rules_with_the_tag_are_ours() -> None:
    """The comment decides, not the interface: another's rule may name our bridge."""
    listing = "\n".join(
        (
            "-P FORWARD DROP",
            "-A FORWARD -i bkpy-1 -m comment --comment bkpy-1 -j ACCEPT",
            "-A FORWARD -i bkpy-1 -j DROP",
            '-A FORWARD -m comment --comment "about bkpy-1" -j DROP',
            "-A POSTROUTING -m comment --comment bkpy-11 -j MASQUERADE",
        )
    )
    assert network.tagged_rules(listing, "bkpy-1") == [
        ["FORWARD", "-i", "bkpy-1", "-m", "comment", "--comment", "bkpy-1", "-j", "ACCEPT"]
    ]


def test_a_process_is_not_taken_for_a_later_one_of_its_id() -> None:
    own = processes.Process.of(os.getpid())
    assert own is not None
    assert own.alive()
    assert not processes.Process(own.pid, "another boot 1").alive()


def test_what_runc_knows_of_other_engines_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only containers whose root is below ours are forgotten; broken states are nobody's."""
    monkeypatch.setattr(processes, "_RUNC_STATE", tmp_path)
    states = {"ours": "/state/a/rootfs", "theirs": "/state-of-others/rootfs"}
    for name, rootfs in states.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"config": {"rootfs": rootfs}}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    processes.forget_containers(Path("/state"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "theirs"]
