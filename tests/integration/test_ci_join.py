"""One job per platform, as the README's recipe has it: real builds with --digest-file, joined elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support import peers
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


def test_the_recipe_itself(daemon_address: str, registry: Registry, scratch: Path, tmp_path: Path) -> None:
    """The commands of the README's workflow as they stand, each job in a directory of its own with its downloads."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    workflow = text[text.index("```yaml") : text.index("```\n", text.index("```yaml"))]
    platforms = re.findall(r"platform: (\S+),", workflow)
    build, *index = [" ".join(found.split()) for found in re.findall(r"- run: (.*(?:\n {15,}.*)*)", workflow)]
    assert len(platforms) == 2
    assert [words.split()[:3] for words in (build, *index)] == [
        ["buildkit-py", "build", "--platform"],
        ["buildkit-py", "imagetools", "create"],
        ["buildkit-py", "imagetools", "verify"],
    ]
    image = f"{registry.host}/ci/recipe"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "HOME": str(tmp_path),
        "BUILDKIT_HOST": daemon_address,
        "IMAGE": image,
    }

    def run(command: str, directory: Path, **values: str) -> subprocess.CompletedProcess[str]:
        values["github.sha"] = "0123abc"
        command = re.sub(r"\$\{\{ (\S+) \}\}", lambda match: values[match[1]], command)
        done = subprocess.run(
            ["/bin/sh", "-ec", command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for number, platform in enumerate(platforms):
        checkout = tmp_path / f"checkout-{number}"
        shutil.copytree(scratch, checkout)
        run(build, checkout, **{"matrix.platform": platform, "strategy.job-index": str(number)})
        for artifact in checkout.glob("digest-*.json"):
            assert not (downloads / artifact.name).exists()
            shutil.copy(artifact, downloads)
    for _ in range(2):
        create, verify = (run(command, downloads) for command in index)
        assert all(platform in verify.stdout for platform in platforms)
    assert create.stderr.count("was there already") == 2


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


def test_an_archive_of_docker(daemon_address: str, registry: Registry, scratch: Path, tmp_path: Path) -> None:
    """skopeo reads what ``type=docker`` writes; the image is the same when it has come back by a registry."""
    skopeo = peers.skopeo()
    if skopeo is None:
        pytest.skip("no skopeo found (make servers)")
    job = CommandLine(address=daemon_address, docker_config=tmp_path / "docker")
    archive, target = tmp_path / "image.tar", f"{registry.host}/ci/archive:v1"
    done = job(
        "build", "--platform", "linux/arm64", "-t", "example.org/app:v1", "-o", f"type=docker,dest={archive}", scratch
    )
    assert done.code == 0, done.stderr
    options = ["--dest-tls-verify=false", "--override-os", "linux", "--override-arch", "arm64"]
    subprocess.run(
        [skopeo, "copy", *options, f"docker-archive:{archive}:example.org/app:v1", f"docker://{target}"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert job("imagetools", "verify", "--full", target).code == 0
    with tarfile.open(archive) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        config = tar.extractfile(json.load(manifest)[0]["Config"])
        assert config is not None
        built = json.load(config)
    read = json.loads(job("imagetools", "inspect", "--format", "{{json .Image}}", target).stdout)
    assert (read["architecture"], read["rootfs"]) == ("arm64", built["rootfs"])
