"""Requests for graphs are checked, and marshalled for every platform, before any daemon is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from buildkit_py import ExporterSpec, GraphRequest, Platform, llb
from buildkit_py.builder.graph import plan_graph
from buildkit_py.errors import InvalidOption, InvalidPlatform, InvalidReference

ARM64 = Platform("linux", "arm64")


def graph(platform: Platform) -> llb.State:
    return llb.image("alpine").copy(llb.local("src"), "/", "/").with_env({"FOR": platform.architecture})


def test_the_usual_build(tmp_path: Path) -> None:
    """A definition and a config for each platform, and all else as for a Dockerfile."""
    request = GraphRequest(
        graph=graph,
        config=llb.ImageConfig(cmd=["x"]),
        locals={"src": tmp_path},
        platforms=["linux/arm64,amd64"],
        tags=["example.com/a"],
        push=True,
    )
    plan = plan_graph(request)
    assert [str(platform) for platform in plan.platforms] == ["linux/arm64", "linux/amd64"]
    assert plan.directories == {"src": tmp_path.resolve()}
    work = plan.work(ARM64, directories_session="s")
    assert work.frontend == ""
    assert work.attrs == {"attest:provenance": "mode=min,inline-only=true", "platform": "linux/arm64"}
    assert llb.Definition.parse(work.definition or b"").platform == ARM64
    assert json.loads(work.metadata["refs.platforms"]) == {
        "Platforms": [{"ID": "linux/arm64", "Platform": {"architecture": "arm64", "os": "linux"}}]
    }
    config = json.loads(work.metadata["containerimage.config"])
    assert config["architecture"] == "arm64"
    assert config["config"]["Cmd"] == ["x"]
    assert "FOR=arm64" in config["config"]["Env"]


def test_one_result_of_all_platforms(tmp_path: Path) -> None:
    """Every definition and config by its platform; what has been run is not run again."""
    states = {"amd64": llb.image("alpine").run("x", ignore_cache=True), "arm64": llb.image("alpine").run("y")}
    request = GraphRequest(
        graph=lambda platform: states[platform.architecture],
        config=lambda platform: llb.ImageConfig(cmd=[platform.architecture]),
        platforms=["linux/arm64,amd64"],
        no_cache=True,
    )
    work = plan_graph(request).joint_work()
    assert (work.attrs["platform"], work.definition) == ("linux/arm64,linux/amd64", None)
    assert list(work.definitions) == ["linux/arm64", "linux/amd64"]
    for name, data in work.definitions.items():
        definition = llb.Definition.parse(data)
        assert str(definition.platform) == name
        assert not any(vertex.ignore_cache for vertex in definition.vertexes)
        config = json.loads(work.metadata[f"containerimage.config/{name}"])
        assert config["config"]["Cmd"] == [name.partition("/")[2]]
    assert [entry["ID"] for entry in json.loads(work.metadata["refs.platforms"])["Platforms"]] == list(work.definitions)


def test_without_platforms_it_is_for_the_daemon() -> None:
    plan = plan_graph(GraphRequest(graph=lambda _: llb.image("alpine")), ARM64)
    assert plan.platforms == (ARM64,)


def test_without_cache_every_vertex_runs_again() -> None:
    plan = plan_graph(GraphRequest(graph=lambda _: llb.image("alpine"), no_cache=True), ARM64)
    definition = llb.Definition.parse(plan.work(ARM64, directories_session="").definition or b"")
    assert all(vertex.ignore_cache for vertex in definition.vertexes)


@pytest.mark.parametrize(
    ("fields", "error", "word"),
    [
        ({"locals": {}}, InvalidOption, "'src'"),
        ({"locals": {"src": "/nowhere"}}, InvalidOption, "local src"),
        ({"locals": {"src": ""}}, InvalidOption, "locals"),
        ({"locals": {"": "."}}, InvalidOption, "locals"),
        ({"graph": None}, InvalidOption, "graph"),
        ({"graph": lambda _: None}, InvalidOption, "graph(platform)"),
        ({"graph": lambda _: llb.image("a", platform="linux/386")}, InvalidOption, "linux/386"),
        ({"graph": lambda _: llb.scratch().mkfile("/a", bytes(16 << 20))}, InvalidOption, "for linux/arm64: has 16,78"),
        ({"config": {"Cmd": []}}, InvalidOption, "config"),
        ({"platforms": ["linux/amd46"]}, InvalidPlatform, "amd46"),
        ({"tags": ["A B"]}, InvalidReference, "A B"),
        ({"push": True}, InvalidOption, "push"),
        ({"attestations": {"vex": ""}}, InvalidOption, "vex"),
        ({"outputs": [ExporterSpec(type="oci")]}, InvalidOption, "dest"),
    ],
    ids=str,
)
def test_bad_input(fields: dict[str, Any], error: type[Exception], word: str) -> None:
    usual: dict[str, Any] = {"graph": graph, "locals": {"src": "."}, "platforms": ["linux/arm64"]}
    request = GraphRequest(**usual | fields)
    with pytest.raises(error) as caught:
        plan_graph(request)
    assert word in str(caught.value)
