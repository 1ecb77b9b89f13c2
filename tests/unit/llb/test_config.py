"""Image configs: what is said, what the state has, and what the base image had, in that order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from buildkit_py import llb
from buildkit_py.oci import ImageConfig
from buildkit_py.platforms import Platform

AMD64 = Platform("linux", "amd64")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE = {
    "architecture": "s390x",
    "os": "linux",
    "history": [{"created_by": "somebody"}],
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "a" * 64]},
    "config": {
        "Env": ["PATH=/base", "A=base", "B=base"],
        "Entrypoint": ["/base"],
        "Cmd": ["arg"],
        "Labels": {"base": "1", "both": "1"},
        "User": "base",
        "WorkingDir": "/base",
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/base": {}},
        "StopSignal": "SIGQUIT",
        "Healthcheck": {"Test": ["CMD", "true"]},
        "OnBuild": ["RUN x"],
    },
}


def config_of(state: llb.State, config: llb.ImageConfig | None = None, platform: Platform = AMD64) -> dict[str, Any]:
    """The config that an image of the state gets."""
    (made,) = llb.marshal_platforms(lambda _: state, [platform], config)
    assert made.config is not None
    ImageConfig.parse(made.config)
    parsed: dict[str, Any] = json.loads(made.config)
    return parsed


def test_nothing_said() -> None:
    """As the daemon makes it where it gets none, but for the platform asked for."""
    assert config_of(llb.scratch(), platform=Platform("linux", "arm", "v7")) == {
        "architecture": "arm",
        "os": "linux",
        "variant": "v7",
        "config": {"Env": [PATH], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": []},
    }


def test_windows_has_no_default_path() -> None:
    made = config_of(llb.scratch(), platform=Platform("windows", "amd64", os_version="10.0.1"))
    assert made["os.version"] == "10.0.1"
    assert "Env" not in made["config"]


def test_the_state_says_environment_directory_and_user() -> None:
    state = llb.image("alpine").with_env({"A": "1", "PATH": "/bin"}).with_cwd("/app").with_user("me:us")
    assert config_of(state.mkdir("/x"))["config"] == {
        "User": "me:us",
        "Env": ["A=1", "PATH=/bin"],
        "WorkingDir": "/app",
    }


def test_options_of_one_process_are_not_the_images() -> None:
    state = llb.image("alpine").run("x", env={"A": "1"}, cwd="/tmp", user="nobody")
    assert config_of(state)["config"] == {"Env": [PATH], "WorkingDir": "/"}


def test_everything_said() -> None:
    """It goes before what the state has."""
    state = llb.image("alpine").with_env({"A": "state", "B": "state"}).with_cwd("/state").with_user("state")
    config = llb.ImageConfig(
        env={"B": "said", "C": "said"},
        entrypoint=["/bin/app", "run"],
        cmd=["--now"],
        labels={"z": "1", "a": "<2>"},
        user="",
        working_dir="/said",
        exposed_ports=["53/udp", "8080", "080"],
        volumes=["/data"],
        stop_signal="SIGINT",
        extra={"Healthcheck": {"Test": ["NONE"]}},
    )
    assert config_of(state, config)["config"] == {
        "ExposedPorts": {"53/udp": {}, "80/tcp": {}, "8080/tcp": {}},
        "Env": [PATH, "A=state", "B=said", "C=said"],
        "Entrypoint": ["/bin/app", "run"],
        "Cmd": ["--now"],
        "Volumes": {"/data": {}},
        "WorkingDir": "/said",
        "Labels": {"a": "<2>", "z": "1"},
        "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["NONE"]},
    }


@pytest.mark.parametrize("base", [BASE, json.dumps(BASE), json.dumps(BASE).encode()], ids=["parsed", "text", "bytes"])
def test_a_base_image_says_the_rest(base: dict[str, Any] | str | bytes) -> None:
    """But for its platform, its layers and its history, and for triggers that are meant for a Dockerfile."""
    state = llb.image("alpine", config=base).with_env({"A": "state"}).with_platform(AMD64)
    config = llb.ImageConfig(env={"B": "said"}, labels={"both": "2"}, exposed_ports=["443"], base=base)
    assert config_of(state, config) == {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": "base",
            "ExposedPorts": {"443/tcp": {}, "80/tcp": {}},
            "Env": ["PATH=/base", "A=state", "B=said"],
            "Entrypoint": ["/base"],
            "Cmd": ["arg"],
            "Volumes": {"/base": {}},
            "WorkingDir": "/base",
            "Labels": {"base": "1", "both": "2"},
            "StopSignal": "SIGQUIT",
            "Healthcheck": {"Test": ["CMD", "true"]},
        },
        "rootfs": {"type": "layers", "diff_ids": []},
    }


def test_an_entrypoint_drops_the_command_of_the_base() -> None:
    """Which was an argument of another program; a command alone leaves the entrypoint."""
    state = llb.scratch()
    assert "Cmd" not in config_of(state, llb.ImageConfig(entrypoint=["/x"], base=BASE))["config"]
    made = config_of(state, llb.ImageConfig(cmd=["y"], base=BASE))["config"]
    assert (made["Entrypoint"], made["Cmd"]) == (["/base"], ["y"])


def test_a_config_may_differ_by_platform() -> None:
    platforms = [AMD64, Platform("linux", "arm64")]
    made = llb.marshal_platforms(
        lambda _: llb.image("alpine"), platforms, lambda p: llb.ImageConfig(labels={"for": p.architecture})
    )
    labels = [json.loads(item.config or b"")["config"]["Labels"] for item in made]
    assert labels == [{"for": "amd64"}, {"for": "arm64"}]
