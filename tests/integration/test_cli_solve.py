"""``buildkit-py solve`` as a process: what programs pipe into it, files, outputs, services and failures."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from buildkit_py import llb
from tests.support import servers
from tests.support.cli import SECONDS, CommandLine

pytestmark = pytest.mark.daemon

PLATFORMS = "linux/amd64,linux/arm64,linux/arm/v7"
EXAMPLES = Path(__file__).parents[2] / "examples" / "llb"


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


@pytest.fixture
def alpine(base_images: Mapping[str, str]) -> str:
    return base_images["alpine"].removeprefix("docker-image://")


def stream(state: llb.State, platforms: str, folder: Path, config: llb.ImageConfig | None = None) -> Path:
    """A file with the definitions of a state."""
    path = folder / "definitions"
    with path.open("wb") as file:
        llb.emit(lambda _: state, platforms, config=config, file=file)
    return path


def test_a_program_is_piped_in_pushed_and_run(
    cli: CommandLine, alpine: str, registry: servers.Registry, tmp_path: Path
) -> None:
    """The line of the README: a shell, a pipe, three platforms, one index."""
    name, metadata = f"{registry.host}/solve/tools", tmp_path / "metadata.json"
    program = shlex.join([sys.executable, str(EXAMPLES / "merge_diff.py"), *PLATFORMS.split(","), "--base", alpine])
    flags = ["--platform", PLATFORMS, "-t", name, "--push", "--metadata-file", str(metadata), "--progress", "plain"]
    solve = shlex.join([sys.executable, "-m", "buildkit_py", "solve", *flags])
    done = subprocess.run(
        f"{program} | {solve}",
        shell=True,
        env=cli.environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", done.stdout)
    written = json.loads(metadata.read_text())
    assert written["containerimage.digest"] == done.stdout.strip()
    assert list(written["buildkit_py.platforms"]) == PLATFORMS.split(",")
    assert "all tools" in done.stderr
    assert "WARN" not in done.stderr
    ran = cli("run", name)
    assert ran.stdout.splitlines() == [f"Hello from {machine}" for machine in ("x86_64", "aarch64", "armv7l")]


def test_a_pipe_from_a_program_that_fails(cli: CommandLine, registry: servers.Registry) -> None:
    """Nothing is built of it, though nothing is what scratch looks like."""
    done = cli("solve", "-t", f"{registry.host}/solve/nothing", "--push", stdin=b"")
    assert (done.code, done.stdout) == (2, "")
    assert "did the program" in done.stderr


def test_a_definition_alone_says_what_it_is_for(cli: CommandLine, tmp_path: Path) -> None:
    """As buildctl takes it, from a file or a pipe; the image is for what the graph is for, without being told."""
    definition = llb.marshal(llb.image("scratch-like", platform="linux/arm64").mkfile("/a"), platform="linux/arm64")
    assert str(definition.platform) == "linux/arm64"
    state = llb.scratch().mkfile("/greeting", "hello")
    data = llb.marshal(state).to_bytes()
    out = tmp_path / "out"
    assert cli("solve", "-o", str(out), stdin=data).code == 0
    assert (out / "greeting").read_text() == "hello"
    (tmp_path / "graph.pb").write_bytes(data)
    (tmp_path / "config.json").write_text('{"config": {"Cmd": ["/greeting"]}}')
    done = cli(
        *("solve", tmp_path / "graph.pb", "--platform", "linux/arm/v7", "--image-config", tmp_path / "config.json"),
        *("-o", f"type=oci,dest={tmp_path}/layout/", "--provenance=false"),
    )
    assert done.code == 0, done.stderr
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    manifest = json.loads((blobs / done.stdout.strip().removeprefix("sha256:")).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    assert (config["os"], config["architecture"], config["variant"]) == ("linux", "arm", "v7")
    assert config["config"]["Cmd"] == ["/greeting"]


def test_directories_and_secrets(cli: CommandLine, alpine: str, tmp_path: Path) -> None:
    """--local and --secret reach the processes; a secret is in no output and no progress."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "file").write_text("of the client\n")
    (tmp_path / "token").write_text("hunter2")
    script = 'cat /src/file > /out/file; { wc -c < /run/secrets/token; printf %s "$WORD" | wc -c; } > /out/size'
    state = llb.image(alpine).run(
        ["sh", "-ec", script],
        mounts=[llb.bind("/src", llb.local("src"), readonly=True), llb.bind("/out")],
        secrets=["token", llb.Secret("word", env="WORD")],
    )
    definitions = stream(state.mount("/out"), "linux/amd64,linux/arm64", tmp_path)
    done = cli(
        *("solve", definitions, "--local", f"src={source}", "--progress", "plain", "-o", out),
        *("--secret", f"id=token,src={tmp_path}/token", "--secret", "id=word,env=SECRET_WORD"),
        env={"SECRET_WORD": "correct horse"},
    )
    assert done.code == 0, done.stderr
    for platform in ("linux_amd64", "linux_arm64"):
        assert (out / platform / "file").read_text() == "of the client\n"
        assert (out / platform / "size").read_text() == "7\n13\n"
    assert "hunter2" not in done.stderr
    assert "correct horse" not in done.stderr


def test_a_missing_secret_is_named(cli: CommandLine, alpine: str, tmp_path: Path) -> None:
    definitions = stream(llb.image(alpine).run("true", secrets=["absent"]), "linux/amd64", tmp_path)
    done = cli("solve", definitions)
    assert (done.code, done.stdout) == (1, "")
    assert "absent" in done.stderr


@pytest.mark.parametrize("progress", ["plain", "quiet"])
def test_a_failure_shows_the_line_of_the_program(cli: CommandLine, alpine: str, tmp_path: Path, progress: str) -> None:
    """With its neighbours, and what the process said."""
    program = tmp_path / "mybuild.py"
    program.write_text(
        "from buildkit_py import llb\n"
        "def build(platform):\n"
        f"    state = llb.image({alpine!r})\n"
        "    state = state.run('sh -c \"echo not today; exit 3\"')\n"
        "    return state\n"
        "llb.emit(build, 'linux/amd64')\n"
    )
    made = subprocess.run([sys.executable, str(program)], capture_output=True, check=True, timeout=SECONDS)
    done = cli("solve", "--progress", progress, stdin=made.stdout)
    assert (done.code, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    at = lines.index(f"{program}:4")
    assert lines[at + 1 : at + 6] == [
        "--------------------",
        "   2 |     def build(platform):",
        f"   3 |         state = llb.image({alpine!r})",
        "   4 | >>>     state = state.run('sh -c \"echo not today; exit 3\"')",
        "   5 |         return state",
    ]
    assert "not today" in done.stderr
    assert lines[-1].startswith("error: linux/amd64: process")
    assert lines[-1].endswith("exit code: 3")


def test_without_cache_steps_run_again(cli: CommandLine, alpine: str, tmp_path: Path) -> None:
    """The one of a definition that was made to be cached, too."""
    state = llb.image(alpine).run(["sh", "-c", "cat /proc/sys/kernel/random/uuid > /id"])
    definitions = stream(llb.scratch().copy(state, "/id", "/"), "linux/amd64", tmp_path)
    ids: list[str] = []
    for number, flags in enumerate(((), (), ("--no-cache",))):
        out = tmp_path / f"out{number}"
        assert cli("solve", definitions, *flags, "-o", out).code == 0
        ids.append((out / "id").read_text())
    assert ids[0] == ids[1] != ids[2]


def test_a_cache_is_kept_and_used(tmp_path: Path, fresh_daemon: servers.PrivateDaemon) -> None:
    """In a directory of this machine, with a daemon that has forgotten all else; the graph needs no image."""
    cli = CommandLine(address=fresh_daemon.address, docker_config=tmp_path / "docker")
    state = llb.scratch().mkdir("/a")
    for number in range(5):
        state = state.mkfile(f"/a/{number}", str(number))
    definitions = stream(state, "linux/amd64", tmp_path)
    cache, metadata = tmp_path / "cache", tmp_path / "metadata.json"
    assert cli("solve", definitions, "--cache-to", f"type=local,dest={cache},mode=max").code == 0
    assert (cache / "index.json").is_file()
    assert cli("prune", "--all").code == 0
    done = cli(
        *("solve", definitions, "--cache-from", f"type=local,src={cache}", "--metadata-file", metadata),
        *("-o", f"type=tar,dest={tmp_path}/out.tar"),
    )
    assert done.code == 0, done.stderr
    figures = json.loads(metadata.read_text())["buildkit_py.platforms"]["linux/amd64"]
    assert figures["vertexes.cached"] >= 5
