"""The examples make graphs that can be marshalled for any platform, and differ where they say they do."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_py import llb
from buildkit_py.platforms import Platform

EXAMPLES = Path(__file__).parents[3] / "examples" / "llb"
NAMES = ["toolchain", "cross_compile", "merge_diff"]
PLATFORMS = ["linux/amd64", "linux/arm64", "linux/arm/v7"]


def definition(name: str, platform: str) -> llb.Definition:
    build: Callable[[Platform], llb.State] = runpy.run_path(str(EXAMPLES / f"{name}.py"))["build"]
    return llb.marshal(build(Platform.parse(platform)), platform=platform, unique_id="fixed")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_an_example_marshals(name: str, platform: str) -> None:
    made = definition(name, platform)
    assert llb.Definition.parse(made.to_bytes()) == made
    assert all(vertex.locations for vertex in made.vertexes)
    assert platform in {str(vertex.platform) for vertex in made.vertexes}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_writes_definitions(name: str) -> None:
    """As a program it writes those of the platforms it is given, and nothing else."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *PLATFORMS], capture_output=True, check=True, timeout=60
    )
    made = llb.parse_definitions(done.stdout)
    assert isinstance(made, tuple)
    assert [str(item.platform) for item in made] == PLATFORMS
    assert all(item.definition.vertexes and item.config for item in made)
    assert done.stderr == b""


def test_the_compiler_runs_on_the_builders_platform() -> None:
    """For every target; only the final image is for it."""
    for platform in PLATFORMS:
        made = definition("cross_compile", platform)
        assert {str(v.platform) for v in made.vertexes if v.kind == "exec"} == {"linux/amd64"}
        assert str(next(v for v in made.vertexes if v.name.endswith("alpine:latest")).platform) == platform


def test_another_tool_leaves_the_others_alone() -> None:
    """Of the installs of two lists, those of what both have are the same vertexes."""
    build: Callable[..., llb.State] = runpy.run_path(str(EXAMPLES / "merge_diff.py"))["build"]
    lists = ({"a": "true"}, {"b": "false", "a": "true"})
    arm64 = Platform("linux", "arm64")
    few, many = (llb.marshal(build(arm64, tools), platform=arm64) for tools in lists)
    assert llb.compare(few, many).shared == 3  # the base, and the install of a with its diff
