"""One job per platform, as the README's recipe has it: real builds with --digest-file, joined elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.servers import Registry

pytestmark = pytest.mark.daemon


def test_jobs_and_their_index(daemon_address: str, registry: Registry, scratch: Path, tmp_path: Path) -> None:
    """Attestations come along; a job that is run twice is refused, and so is an image that another tag replaced."""
    job = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    join = CommandLine(address=None, docker_config=tmp_path / "docker")
    name = f"{registry.host}/ci/app"
    files: list[Path] = []
    for number, platform in enumerate(("linux/amd64", "linux/arm64")):
        files.append(tmp_path / f"digest-{number}.json")
        words = ["build", "--platform", platform, "-t", f"{name}:build-{number}", "--push", "--provenance=true"]
        done = job(*words, "--digest-file", files[-1], scratch)
        assert done.code == 0, done.stderr
    done = join("imagetools", "create", "-t", f"{name}:v1", "-t", f"{name}:latest", *files)
    assert done.code == 0, done.stderr
    assert done.stderr.count(" attestation of ") == 2
    again = join("imagetools", "create", "-t", f"{name}:v1", "-t", f"{name}:latest", *files)
    assert (again.code, again.stdout) == (0, done.stdout)
    assert again.stderr.count("was there already") == 2
    verified = join("imagetools", "verify", "--json", "--full", f"{name}:v1")
    assert verified.code == 0, verified.stdout
    assert set(json.loads(verified.stdout)["pulls"]) == {"linux/amd64", "linux/arm64"}

    (scratch / "file").write_text("other content")
    twice = tmp_path / "twice.json"
    words = ["build", "--platform", "linux/amd64", "-t", f"{name}:build-0", "--push"]
    assert job(*words, "--digest-file", twice, scratch).code == 0
    refused = join("imagetools", "create", "-t", f"{name}:v1", *files, twice)
    assert refused.code == 1
    assert "both have an image for linux/amd64" in refused.stderr
    assert join("imagetools", "inspect", "--format", "{{.Manifest.Digest}}", f"{name}:v1").stdout == done.stdout


def test_what_was_tested_is_what_ships(daemon_address: str, registry: Registry, scratch: Path, tmp_path: Path) -> None:
    """A layout of a build is pushed later: the digest that was in the layout is the one in the registry."""
    job = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    out = tmp_path / "out"
    done = job("build", "--platform", "linux/amd64,linux/arm64", "-o", f"type=oci,dest={out}/", scratch)
    assert done.code == 0, done.stderr
    layout, target = f"layout:{out}", f"{registry.host}/ci/tested:v1"
    tested = job("imagetools", "inspect", "--raw", layout)
    pushed = job("imagetools", "copy", layout, target)
    assert pushed.code == 0, pushed.stderr
    assert job("imagetools", "inspect", "--raw", target).out == tested.out
    assert job("imagetools", "verify", "--full", target).code == 0
