"""What git says of contexts goes into provenance and labels as docker-buildx has it, on a real work tree."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import servers
from tests.support.buildx import Buildx
from tests.support.cli import CommandLine

pytestmark = pytest.mark.daemon

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.com")
BUILDKIT = "https://mobyproject.org/buildkit@v1#metadata"


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *words], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with the context in a directory of it."""
    root = tmp_path / "tree"
    (root / "app" / "more").mkdir(parents=True)
    (root / "app" / "Dockerfile").write_text("FROM scratch\nCOPY file /\nCOPY --from=more . /\n")
    (root / "app" / "file").write_text("content")
    (root / "app" / "more" / "inner").write_text("x")
    git(root, "init", "-q", "-b", "main")
    git(root, "remote", "add", "origin", "https://someone:secret@example.com/team/app.git")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


@pytest.fixture(scope="module")
def peer(daemon_address: str, tmp_path_factory: pytest.TempPathFactory) -> Buildx:
    try:
        return Buildx(daemon_address, tmp_path_factory.mktemp("buildx"))
    except servers.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


def described(run: Any, tree: Path, env: Mapping[str, str], *context: str | Path) -> tuple[Any, Any, str]:
    """What the provenance has of version control, the labels of the image, and all that was written."""
    metadata, layout = tree.parent / "metadata.json", tree.parent / "out"
    done = run(
        *("-o", f"type=oci,tar=false,dest={layout}", "--metadata-file", metadata),
        *("--provenance=mode=max", "--build-context", f"more={tree / 'app' / 'more'}", *context),
        env={"BUILDX_METADATA_PROVENANCE": "max", "BUILDX_GIT_INFO": "true", **env},
        cwd=tree,
    )
    assert done.code == 0, done.stderr
    fields = json.loads(metadata.read_text())
    blobs = layout / "blobs" / "sha256"
    # Not from the metadata file: daemons before v0.14 lose it on the way there.
    vcs = _vcs(_provenance(blobs, fields["containerimage.digest"]))
    config = (
        json.loads((blobs / fields["containerimage.config.digest"].partition(":")[2]).read_text())
        if ("containerimage.config.digest" in fields)
        else _config(blobs, fields["containerimage.digest"])
    )
    return vcs, config["config"].get("Labels"), metadata.read_text() + done.stderr


def _provenance(blobs: Path, digest: str) -> Any:
    """What is attested of the only image of an index."""
    index = json.loads((blobs / digest.partition(":")[2]).read_text())
    (entry,) = [entry for entry in index["manifests"] if "vnd.docker.reference.type" in entry.get("annotations", {})]
    manifest = json.loads((blobs / entry["digest"].partition(":")[2]).read_text())
    (layer,) = manifest["layers"]
    return json.loads((blobs / layer["digest"].partition(":")[2]).read_text())["predicate"]


def _vcs(predicate: Any) -> Any:
    """Where the versions 0.2 and 1 of provenance have it."""
    if "runDetails" in predicate:
        return predicate["runDetails"]["metadata"].get("buildkit_metadata", {}).get("vcs")
    return predicate["metadata"].get(BUILDKIT, {}).get("vcs")


def _config(blobs: Path, digest: str) -> Any:
    manifest = json.loads((blobs / digest.partition(":")[2]).read_text())
    while "manifests" in manifest:
        manifest = json.loads((blobs / manifest["manifests"][0]["digest"].partition(":")[2]).read_text())
    return json.loads((blobs / manifest["config"]["digest"].partition(":")[2]).read_text())


CASES: Mapping[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "usual": ({}, ("app",)),
    "labels": ({"BUILDX_GIT_LABELS": "1"}, ("app",)),
    "full labels, another Dockerfile": ({"BUILDX_GIT_LABELS": "full"}, ("-f", "other/Dockerfile", "app")),
    "labels alone": ({"BUILDX_GIT_LABELS": "1", "BUILDX_GIT_INFO": "0"}, ("app",)),
    "labels that are there": ({"BUILDX_GIT_LABELS": "1"}, ("--label", "org.opencontainers.image.revision=x", "app")),
    "dirty": ({"BUILDX_GIT_CHECK_DIRTY": "1", "BUILDX_GIT_LABELS": "1"}, ("app",)),
    "nothing": ({"BUILDX_GIT_INFO": "false"}, ("app",)),
    "no boolean": ({"BUILDX_GIT_INFO": "x", "BUILDX_GIT_LABELS": "x"}, ("app",)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_docker_buildx(case: str, peer: Buildx, cli: CommandLine, tree: Path) -> None:
    """Commit, remote without its password, and where in the tree each directory is."""
    env, words = CASES[case]
    (tree / "other").mkdir()
    (tree / "other" / "Dockerfile").write_text((tree / "app" / "Dockerfile").read_text())
    theirs = described(peer.build, tree, env, *words)
    ours = described(lambda *args, **kwargs: cli("build", *args, **kwargs), tree, env, *words)
    assert ours[:2] == theirs[:2]
    assert "secret" not in ours[2]
    vcs, labels, _ = ours
    assert (vcs is None) == (case in {"nothing", "labels alone"})
    assert (labels is not None) == ("labels" in case or case == "dirty")
    commit = git(tree, "rev-parse", "HEAD") + ("-dirty" if case == "dirty" else "")
    if vcs:
        assert (vcs["revision"], vcs["source"]) == (commit, "https://example.com/team/app.git")
        assert vcs["localdir:context"] == "app"
    if labels:
        assert labels["org.opencontainers.image.revision"] == commit


def test_trees_that_say_less(peer: Buildx, cli: CommandLine, tree: Path) -> None:
    """A branch that follows another remote; no commit; no remote; no repository."""
    git(tree, "remote", "add", "fork", "git@example.com:me/app.git")
    git(tree, "config", "branch.main.remote", "fork")
    git(tree, "config", "branch.main.merge", "refs/heads/main")

    def same() -> Any:
        theirs = described(peer.build, tree, {}, "app")[0]
        assert described(lambda *args, **kwargs: cli("build", *args, **kwargs), tree, {}, "app")[0] == theirs
        return theirs

    assert same()["source"] == "git@example.com:me/app.git"
    git(tree, "checkout", "-q", "--orphan", "empty")
    for name in ("origin", "fork"):
        git(tree, "remote", "remove", name)
    assert set(same() or {}) <= {"localdir:context", "localdir:dockerfile", "localdir:more"}
    (tree / ".git").rename(tree.parent / "git-was-here")
    assert same() is None
