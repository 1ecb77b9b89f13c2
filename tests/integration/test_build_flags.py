"""Every flag of ``docker buildx build``, and where a real daemon shows that it does what it says.

A test named here fails when its flag is dropped or means something else; those that are in no other file follow.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.test_buildx_parity import CASES
from tests.support import peers, servers
from tests.support.buildx import Buildx
from tests.support.cli import CommandLine

pytestmark = pytest.mark.daemon

HERE = Path(__file__).parent
PARITY = "test_buildx_parity.py::test_the_same_image"

SHOWN_BY: Mapping[str, str] = {
    "--add-host": f"{PARITY}[hosts]",
    "--allow": "test_build_flags.py::test_the_network_of_the_host",
    "--annotation": f"{PARITY}[annotations everywhere]",
    "--attest": "test_build_flags.py::test_attest_and_its_short_forms",
    "--build-arg": f"{PARITY}[build arguments]",
    "--build-context": f"{PARITY}[a named directory]",
    "--cache-from": "test_build_flags.py::test_caches",
    "--cache-to": "test_build_flags.py::test_caches",
    "--call": "test_buildx_parity.py::test_the_same_answers",
    "--cgroup-parent": "test_build_flags.py::test_the_control_group",
    "--check": "test_buildx_parity.py::test_the_same_answers",
    "--file": f"{PARITY}[another Dockerfile]",
    "--iidfile": "test_buildx_parity.py::test_the_same_image_id",
    "--label": f"{PARITY}[labels]",
    "--load": "test_build_flags.py::test_load",
    "--metadata-file": "test_buildx_parity.py::test_the_same_metadata",
    "--network": f"{PARITY}[no network]",
    "--no-cache": "test_build_flags.py::test_steps_that_run_again",
    "--no-cache-filter": "test_build_flags.py::test_steps_that_run_again",
    "--output": "test_outputs.py::test_all_kinds_in_one_build",
    "--platform": f"{PARITY}[three platforms]",
    "--progress": "test_build_flags.py::test_progress_and_quiet",
    "--provenance": "test_build_flags.py::test_attest_and_its_short_forms",
    "--pull": "test_build_flags.py::test_pull",
    "--push": "test_cli.py::test_a_build_and_what_imagetools_makes_of_it",
    "--quiet": "test_build_flags.py::test_progress_and_quiet",
    "--sbom": "test_build_flags.py::test_attest_and_its_short_forms",
    "--secret": f"{PARITY}[a secret]",
    "--shm-size": f"{PARITY}[shared memory]",
    "--ssh": "test_cli_sources.py::test_ssh_keys",
    "--tag": f"{PARITY}[plain]",
    "--target": f"{PARITY}[target]",
    "--ulimit": f"{PARITY}[limits]",
}
ELSEWHERE = frozenset({"--builder", "--debug", "--help"})
"""Of all commands of docker-buildx, and not about the build."""


@pytest.mark.parametrize("flag", SHOWN_BY)
def test_the_table_names_tests_that_exist(flag: str) -> None:
    file, _, rest = SHOWN_BY[flag].partition("::")
    function, _, case = rest.partition("[")
    tree = ast.parse((HERE / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert function in names
    assert not case or case.removesuffix("]") in CASES


def test_the_table_has_every_flag(cli: CommandLine) -> None:
    """Those that the docker-buildx here lists, and ours takes each of them."""
    binary = peers.buildx()
    if binary is None:
        pytest.skip("no docker-buildx found (make servers)")
    listed = subprocess.run([binary, "build", "--help"], capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", listed, re.MULTILINE)) - ELSEWHERE
    assert flags == set(SHOWN_BY)
    ours = set(re.findall(r"--[a-z-]+", cli("build", "--help").stdout))
    assert flags <= ours


def test_every_flag_has_the_same_form(cli: CommandLine) -> None:
    """The short name; a value where docker-buildx's has one, and =false where it has none."""
    binary = peers.buildx()
    if binary is None:
        pytest.skip("no docker-buildx found (make servers)")
    listed = subprocess.run([binary, "build", "--help"], capture_output=True, text=True, check=True).stdout
    forms = re.findall(r"^ +(?:(-\w), )?(--[a-z-]+)(?: (\w+))?  ", listed, re.MULTILINE)
    forms = [form for form in forms if form[1] not in ELSEWHERE]
    assert {name for _, name, _ in forms} == set(SHOWN_BY)
    ours = cli("build", "--help").stdout
    for short, name, kind in forms:
        assert not short or re.search(rf"^  {short}(?: \S+)?, {name}\b", ours, re.MULTILINE), name
        if kind:
            refused = cli("build", name)
            assert (refused.code, "expected one argument" in refused.stderr) == (2, True), name
        else:
            assert cli("build", f"{name}=false", "--help").code == 0, name


FORMS = (
    *("--push=false", "--no-cache=true", "--pull --pull=false", "-q=false", "--check=true", "-qt x", "-t=x", "-D"),
    *("--add-host one:10.0.0.1,two:10.0.0.2", "--no-cache-filter a,b", "--cache-from a,b", "--ulimit nofile=1"),
    *("--shm-size 64M", "--platform local", "-o type=tar", "-o TYPE=tar,DEST=-", "--rm", "--load=maybe"),
    *(
        "--annotation a",
        "--attest mode=max",
        "--secret a",
        "--network bridge",
        "--target nope",
        "--cache-to type=inline,",
    ),
)


@pytest.mark.parametrize("half", [0, 1])
def test_the_same_forms_are_taken(half: int, daemon_address: str, cli: CommandLine, tmp_path: Path) -> None:
    """Spellings of flags that docker-buildx takes are taken, those that it refuses are refused."""
    try:
        peer = Buildx(daemon_address, tmp_path / "buildx")
    except servers.Unavailable as reason:
        pytest.skip(str(reason))
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "file").write_text("x")
    (folder / "Dockerfile").write_text("FROM scratch AS a\nCOPY file /a\nFROM scratch AS b\nCOPY --from=a / /\n")
    for form in FORMS[half::2]:
        theirs, ours = peer.build(*form.split(), folder), cli("build", *form.split(), folder)
        assert (ours.code == 0) == (theirs.code == 0), (form, theirs.stderr, ours.stderr)


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


@pytest.fixture
def context(tmp_path: Path, base_images: Mapping[str, str]) -> tuple[Path, str]:
    folder = tmp_path / "context"
    folder.mkdir()
    return folder, f"alpine={base_images['alpine']}"


def files(cli: CommandLine, context: tuple[Path, str], dockerfile: str, *flags: str) -> Path:
    """Build, and where the files are."""
    folder, alpine = context
    (folder / "Dockerfile").write_text(dockerfile)
    out = folder.parent / "out"
    done = cli("build", folder, "--build-context", alpine, "-o", f"{out}", *flags)
    assert done.code == 0, done.stderr
    return out


def test_the_network_of_the_host(cli: CommandLine, context: tuple[Path, str]) -> None:
    """A daemon that does not allow it says so; without --allow the frontend would have been refused as well."""
    folder, alpine = context
    (folder / "Dockerfile").write_text("FROM alpine\nRUN --network=host echo x > /x\n")
    plain = cli("build", folder, "--build-context", alpine)
    assert plain.code == 1
    assert "network.host is not allowed" in plain.stderr
    allowed = cli("build", folder, "--build-context", alpine, "--allow", "network.host")
    assert "error: network.host is not allowed" not in allowed.stderr
    assert allowed.code == 0 or "granting entitlement network.host is not allowed by build daemon" in allowed.stderr


def test_the_control_group(cli: CommandLine, context: tuple[Path, str]) -> None:
    """A step sees its group, below the one that was named."""
    dockerfile = "FROM alpine\nRUN cat /proc/self/cgroup /proc/self/mountinfo > /groups\n"
    out = files(cli, context, dockerfile, "--cgroup-parent", "tests-of-flags", "--no-cache")
    text = (out / "groups").read_text()
    if "0::/\n" in text and "tests-of-flags" not in text:
        # Steps have a name space of their own for control groups; those of this machine show it.
        if servers.daemon_host():
            pytest.skip("steps cannot tell their control group, and the daemon may be elsewhere")
        groups = Path("/sys/fs/cgroup")
        assert [*groups.glob("tests-of-flags"), *groups.glob("*/tests-of-flags")]
        return
    assert "tests-of-flags" in text


def test_caches(cli: CommandLine, context: tuple[Path, str]) -> None:
    """One build writes it, and a next one whose own cache is refused reads it."""
    folder, alpine = context
    (folder / "Dockerfile").write_text("FROM alpine\nRUN head -c 8 /dev/urandom > /random\n")
    cache = folder.parent / "cache"
    written = cli(
        *("build", folder, "--build-context", alpine, "-o", f"{folder.parent}/first"),
        *("--cache-to", f"type=local,dest={cache}"),
    )
    assert written.code == 0, written.stderr
    assert (cache / "index.json").exists()
    read = cli("build", folder, "--build-context", alpine, "--cache-from", f"type=local,src={cache}")
    assert read.code == 0, read.stderr
    assert "importing cache manifest from" in read.stderr


def test_steps_that_run_again(cli: CommandLine, context: tuple[Path, str]) -> None:
    """All of them with --no-cache, those of one stage with --no-cache-filter, none otherwise."""
    dockerfile = (
        "FROM alpine AS one\nRUN head -c 8 /dev/urandom > /random\n"
        "FROM alpine AS two\nRUN head -c 9 /dev/urandom > /random\n"
        "FROM scratch\nCOPY --from=one /random /one\nCOPY --from=two /random /two\n"
    )

    def built(*flags: str) -> tuple[bytes, bytes]:
        out = files(cli, context, dockerfile, *flags)
        return (out / "one").read_bytes(), (out / "two").read_bytes()

    first = built()
    assert built() == first
    again = built("--no-cache")
    assert again[0] != first[0]
    assert again[1] != first[1]
    filtered = built("--no-cache-filter", "two")
    assert filtered[0] == again[0]
    assert filtered[1] != again[1]


def test_pull(cli: CommandLine, daemon_address: str, context: tuple[Path, str], registry: servers.Registry) -> None:
    """A tag that has moved is found."""
    folder, _ = context
    name = f"{registry.host}/flags/moving:1"
    out = folder.parent / "out"
    for content in ("first", "second"):
        (folder / "file").write_text(content)
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
        pushed = cli("build", folder, "-t", name, "--push")
        assert pushed.code == 0, pushed.stderr
        (folder / "Dockerfile").write_text(f"FROM {name}\n")
        pulled = cli("build", folder, "--pull", "-o", f"{out}")
        assert pulled.code == 0, pulled.stderr
        assert (out / "file").read_text() == content


def test_load(cli: CommandLine, context: tuple[Path, str], engine_address: str) -> None:
    """Into the engine of $DOCKER_HOST, or into the one that builds."""
    folder, _ = context
    (folder / "Dockerfile").write_text("FROM scratch\nLABEL loaded=yes\n")
    socket = engine_address.removeprefix("docker://")
    command = CommandLine(address=engine_address, docker_config=cli.docker_config)
    assert command("build", folder, "--load", "-t", "flags/own:1").code == 0
    done = cli("build", folder, "-o", "type=docker", "-t", "flags/other:1", env={"DOCKER_HOST": f"unix://{socket}"})
    assert done.code == 0, done.stderr


def test_attest_and_its_short_forms(cli: CommandLine, context: tuple[Path, str]) -> None:
    """Attestations beside files: which there are is what was asked for."""

    def attested(*flags: str) -> set[str]:
        (context[0] / "file").write_text("x")
        out = files(cli, context, "FROM scratch\nCOPY file /\n", *flags)
        return {path.name for path in out.iterdir()} - {"file"}

    assert attested() == set()
    assert attested("--provenance=mode=max") == {"provenance.json"}
    assert attested("--attest", "type=provenance,mode=min,filename=other.json") >= {"other.json"}
    folder, alpine = context
    refused = cli("build", folder, "--build-context", alpine, "--sbom=generator=127.0.0.1:1/no/scanner")
    assert refused.code == 1
    assert "no/scanner" in refused.stderr


def test_progress_and_quiet(cli: CommandLine, context: tuple[Path, str]) -> None:
    """Lines of text, lines of JSON, nothing; -q leaves the id of the image alone."""
    folder, _ = context
    (folder / "Dockerfile").write_text("FROM scratch\nLABEL shown=yes\n")
    command = ("build", folder, "-o", f"type=oci,dest={folder.parent}/out.tar")
    assert "#1 [internal] load build definition from Dockerfile" in cli(*command, "--progress", "plain").stderr
    first = cli(*command, "--progress", "rawjson").stderr.splitlines()[0]
    assert "vertexes" in json.loads(first)
    for mode in ("quiet", "none"):
        assert cli(*command, "--progress", mode).stderr == ""
    quiet = cli(*command, "-q", "--provenance=false")
    assert quiet.stderr == ""
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", quiet.stdout)
    assert cli(*command, "-q", "--progress", "plain").code == 2
