"""``run``: images started as their configuration says, on every platform, with their output and exit code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, Platform, RunRequest, build, connect, run
from buildkit_py.errors import InvalidOption, InvalidPlatform, SolveError
from buildkit_py.oci import Index, parse_manifest_or_index
from buildkit_py.registry import Registry
from tests.integration.test_bad_input import ALIEN
from tests.support import servers
from tests.support.cli import CommandLine, refused

pytestmark = pytest.mark.daemon

PLATFORMS = ("linux/amd64", "linux/arm64")
SCRIPT = """#!/bin/sh
case "$1" in
args) shift; for word; do echo "<$word>"; done;;
env) echo "$GREETING|$EMPTY|$EXTRA|$PATH";;
who) echo "$(id -u):$(id -g) in $(pwd)";;
both) echo out; echo err >&2;;
slow) test "$(uname -m)" = x86_64 && sleep 2; uname -m;;
fail) test "$(uname -m)" = "$2" && exit "$3"; echo fine;;
exit) exit "$2";;
*) echo "default: $*";;
esac
"""
DOCKERFILE = """FROM alpine
COPY --chmod=755 script /script
ENV GREETING="hello world" EMPTY=
WORKDIR /some/dir
USER 1234:5678
ENTRYPOINT ["/script"]
CMD ["args", "by default", "", "$HOME"]
"""


@pytest.fixture(scope="module")
def image(
    daemon_address: str,
    registry: servers.Registry,
    base_images: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """An index of two platforms, with attestations."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "script").write_text(SCRIPT)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    cli = CommandLine(address=daemon_address, docker_config=folder / "docker")
    name = f"{registry.host}/run/image:1"
    done = cli(
        "build", folder, "-q", "-t", name, "--push", "--platform", ",".join(PLATFORMS),
        "--build-context", f"alpine={base_images['alpine']}",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return name


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


def printed(cli: CommandLine, *words: str) -> str:
    """What a run prints, which must succeed."""
    done = cli("run", *words)
    assert (done.code, done.stderr) == (0, "")
    return done.stdout


def test_the_entrypoint_gets_the_images_words_or_the_users(cli: CommandLine, image: str) -> None:
    """Words are passed on as they are: no shell splits or expands them."""
    assert printed(cli, image, "--platform", "linux/amd64") == "<by default>\n<>\n<$HOME>\n"
    assert printed(cli, image, "--platform", "amd64", "--", "args", "--progress", "a b", "*") == (
        "<--progress>\n<a b>\n<*>\n"
    )
    assert printed(cli, image, "--platform", "amd64", "--", "other") == "default: other\n"


def test_the_environment(cli: CommandLine, image: str) -> None:
    """The image's, then the user's; a path where the image has none."""
    only = ("--platform", "linux/amd64")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert printed(cli, image, *only, "--", "env") == f"hello world|||{path}\n"
    own = ("-e", "GREETING=", "-e", "EXTRA=a=b c", "-e", "PATH=/bin")
    assert printed(cli, image, *only, *own, "--", "env") == "||a=b c|/bin\n"


def test_user_and_directory(cli: CommandLine, image: str) -> None:
    assert printed(cli, image, "--platform", "linux/amd64", "--", "who") == "1234:5678 in /some/dir\n"


def test_two_streams(cli: CommandLine, image: str) -> None:
    done = cli("run", image, "--platform", "linux/amd64", "--", "both")
    assert (done.code, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_platforms_come_in_order_whoever_is_first(cli: CommandLine, image: str) -> None:
    """Of the index, or as they were asked for; the attestations of the index are no platforms."""
    assert printed(cli, image, "--", "slow") == "x86_64\naarch64\n"
    assert printed(cli, image, "--platform", "linux/arm64,linux/amd64", "--", "slow") == "aarch64\nx86_64\n"
    assert printed(cli, image, "--platform", "arm64", "--platform", "amd64", "--", "slow") == "aarch64\nx86_64\n"


@pytest.mark.parametrize("code", [1, 7, 126, 255])
def test_the_exit_code_is_the_programs(cli: CommandLine, image: str, code: int) -> None:
    """And nothing is said about it: it is a result, and no error of ours."""
    done = cli("run", image, "--platform", "linux/amd64", "--", "exit", str(code))
    assert (done.code, done.stdout, done.stderr) == (code, "", "")


def test_the_exit_code_of_several_is_the_first_that_is_not_zero(cli: CommandLine, image: str) -> None:
    """The others still run to their end."""
    done = cli("run", image, "--", "fail", "aarch64", "3")
    assert (done.code, done.stdout, done.stderr) == (3, "fine\n", "")
    done = cli("run", image, "--", "exit", "4")
    assert (done.code, done.stdout) == (4, "")


def test_it_runs_every_time(cli: CommandLine, image: str) -> None:
    """What a cache would give prints nothing."""
    for _ in range(2):
        assert printed(cli, image, "--platform", "linux/amd64", "--", "who") != ""


def test_progress_is_for_those_who_ask(cli: CommandLine, image: str) -> None:
    """On stderr; stdout stays the program's."""
    done = cli("run", image, "--platform", "linux/amd64", "--progress", "plain", "--", "who")
    assert (done.code, done.stdout) == (0, "1234:5678 in /some/dir\n")
    assert "run /script who" in done.stderr


def test_an_image_that_is_no_index(
    cli: CommandLine, registry: servers.Registry, base_images: Mapping[str, str], tmp_path: Path
) -> None:
    """It has one platform; another one is not there."""
    (tmp_path / "Dockerfile").write_text('FROM alpine\nCMD ["uname", "-m"]\n')
    name = f"{registry.host}/run/plain:1"
    done = cli(
        "build", tmp_path, "--progress", "quiet", "-t", name, "--push", "--provenance", "false",
        "--platform", "linux/arm64",
        "--build-context", f"alpine={base_images['alpine']}",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert printed(cli, name) == printed(cli, name, "--platform", "linux/arm64") == "aarch64\n"
    refused(cli("run", name, "--platform", "linux/amd64"), 2, "has linux/arm64 only")
    assert printed(cli, f"{name}@{done.stdout.strip()}") == "aarch64\n"


def test_an_image_without_a_command(cli: CommandLine, registry: servers.Registry, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    name = f"{registry.host}/run/nothing:1"
    assert cli("build", tmp_path, "-q", "-t", name, "--push").code == 0
    refused(cli("run", name), 2, f"{name}: the image has no command; give one")
    done = cli("run", name, "--", "/no-such-program")
    assert done.code not in (0, 2)
    assert "/no-such-program" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_platform_that_the_daemon_cannot_run(cli: CommandLine, registry: servers.Registry, tmp_path: Path) -> None:
    """One line, and how to add emulators; with --debug where it was raised."""
    (tmp_path / "alien").write_bytes(ALIEN)
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY --chmod=755 alien /\nCMD ["/alien"]\n')
    name = f"{registry.host}/run/alien:1"
    assert cli("build", tmp_path, "-q", "-t", name, "--push", "--platform", "linux/wasm").code == 0
    done = cli("run", name)
    refused(done, 1, "linux/wasm: process ")
    assert "hint: the daemon does not say that it can run linux/wasm; it says linux/amd64" in done.stderr
    debug = cli("run", name, "--debug")
    assert debug.code == 1
    assert "Traceback (most recent call last)" in debug.stderr


def test_a_registry_with_a_password(
    cli: CommandLine, auth_registry: servers.Registry, base_images: Mapping[str, str], tmp_path: Path
) -> None:
    """Both this process and the daemon log in."""
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text('FROM alpine\nCMD ["echo", "private"]\n')
    name = f"{auth_registry.host}/run/private:1"
    known = cli.logged_in(auth_registry)
    done = known(
        "build", tmp_path / "context", "-q", "-t", name, "--push",
        "--build-context", f"alpine={base_images['alpine']}",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert printed(known, name) == "private\n"
    stranger = CommandLine(address=cli.address, docker_config=tmp_path / "nobody")
    refused(stranger("run", name), 1, auth_registry.host, "401")


# The library


async def test_results_are_data(daemon_address: str, image: str) -> None:
    """Platform, digest, exit code and seconds of each, in order; status updates say whose they are."""
    labels: set[str] = set()
    output: list[tuple[str, int, bytes]] = []
    async with connect(daemon_address) as client, Registry() as registry:
        raw, _ = await registry.fetch_manifest(image)
        results = await run(
            client,
            RunRequest(reference=image, args=["fail", "aarch64", "5"]),
            registry=registry,
            on_output=lambda platform, stream, data: output.append((str(platform), stream, data)),
            on_status=lambda label, _: labels.add(label),
        )
    index = parse_manifest_or_index(raw)
    assert isinstance(index, Index)
    assert [str(entry.platform) for entry in results] == list(PLATFORMS)
    assert [entry.digest for entry in results] == [entry.digest for entry in index.images]
    assert [entry.exit_code for entry in results] == [0, 5]
    assert all(entry.seconds > 0 for entry in results)
    assert output == [("linux/amd64", 1, b"fine\n")]
    assert labels == set(PLATFORMS)


async def test_errors_are_typed(daemon_address: str, image: str, registry: servers.Registry, tmp_path: Path) -> None:
    """Bad requests before any work; what cannot be started is a failed solve."""

    def ignore(platform: Platform, stream: int, data: bytes) -> None:
        pass

    async with connect(daemon_address) as client, Registry() as own:
        with pytest.raises(InvalidPlatform, match=r"has no linux/s390x; its platforms are linux/amd64, linux/arm64"):
            await run(client, RunRequest(reference=image, platforms=["s390x"]), registry=own, on_output=ignore)
        with pytest.raises(InvalidOption, match="expected NAME=VALUE"):
            await run(client, RunRequest(reference=image, env=["x"]), registry=own, on_output=ignore)
        (tmp_path / "Dockerfile").write_text("FROM scratch\nUSER nobody-knows\nCOPY Dockerfile /\n")
        name = f"{registry.host}/run/user:1"
        await build(client, BuildRequest(context=tmp_path, tags=[name], push=True))
        with pytest.raises(SolveError, match="nobody-knows"):
            await run(client, RunRequest(reference=name, args=["/x"]), registry=own, on_output=ignore)
