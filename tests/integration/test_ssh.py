"""Repositories over ssh and steps that use an agent, through the command line, against OpenSSH's own server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_py import ExporterSpec, GraphRequest, SSHSpec, build, connect, llb
from buildkit_py.errors import SolveError
from tests.support.cli import CommandLine
from tests.support.git_server import git
from tests.support.servers import Unavailable
from tests.support.ssh_server import Server, new_key, run_agent, serve_ssh

pytestmark = pytest.mark.daemon

DOCKERFILE = "FROM scratch\nCOPY file /\n"


@dataclass(frozen=True)
class Remote:
    """A server, who may log in to it, and a repository there."""

    server: Server
    key: Path
    stranger: Path
    """A key that the server does not know."""
    path: Path

    @property
    def url(self) -> str:
        return self.server.url(self.path)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    if shutil.which("ssh") is None or shutil.which("git") is None:
        pytest.skip("no ssh or git here, which the daemon runs")
    work, path = tmp_path / "work", tmp_path / "repo.git"
    (work / "sub").mkdir(parents=True)
    for folder, content in ((work, "main"), (work / "sub", "sub")):
        (folder / "Dockerfile").write_text(DOCKERFILE)
        (folder / "file").write_text(content)
    git(work, "init", "-q", "-b", "main")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "one")
    git(work, "clone", "-q", "--bare", str(work), str(path))
    key, stranger = tmp_path / "key", tmp_path / "stranger"
    public = new_key(key)
    new_key(stranger)
    try:
        with serve_ssh(tmp_path / "server", [public]) as server:
            yield Remote(server, key, stranger, path)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


@pytest.mark.parametrize("flags", [("--ssh", "default"), ()])
def test_a_repository_with_an_agent(cli: CommandLine, remote: Remote, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The agent of the environment is forwarded, asked for or not, as docker buildx does for such a context."""
    with run_agent(tmp_path / "agent.sock", remote.key) as environ:
        done = cli("build", *flags, "-q", "-o", tmp_path / "out", f"{remote.url}#main:sub", env=environ)
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "file").read_text() == "sub"
    assert remote.server.logins() > 0


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_repository_with_a_key(cli: CommandLine, remote: Remote, tmp_path: Path, kind: str) -> None:
    """This process signs; no agent is there. Also by name, and for ADD."""
    key = tmp_path / kind
    with (tmp_path / "server" / "keys").open("a") as keys:
        keys.write(new_key(key, kind) + "\n")
    build = ("build", "--ssh", f"default={key}", "-q", "-o", tmp_path / "out")
    without = {"SSH_AUTH_SOCK": ""}
    done = cli(*build, remote.url, env=without)
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "file").read_text() == "main"
    dockerfile = f"FROM scratch\nCOPY --from=other /file /named\nADD {remote.url}#main /added/\n"
    named = ("--build-context", f"other={remote.url}#main:sub")
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    without["HOME"] = str(tmp_path / "home")
    done = cli(*build, *named, "-", stdin=dockerfile.encode(), env=without)
    assert done.code == 2
    assert f"no known_hosts file has a key of 127.0.0.1, port {remote.server.port}" in done.stderr
    (tmp_path / "home" / ".ssh" / "known_hosts").write_text(f"{remote.server.known_host}\n")
    done = cli(*build, *named, "--platform", "linux/amd64,linux/arm64", "-", stdin=dockerfile.encode(), env=without)
    assert done.code == 0, done.stderr
    for platform in ("linux_amd64", "linux_arm64"):
        assert (tmp_path / "out" / platform / "named").read_text() == "sub"
        assert (tmp_path / "out" / platform / "added" / "file").read_text() == "main"


def test_who_is_not_let_in(cli: CommandLine, remote: Remote, tmp_path: Path) -> None:
    """A key that the server does not know, and no key at all; nothing is written, and the next step is named."""
    without = {"SSH_AUTH_SOCK": ""}
    done = cli("build", "--ssh", f"default={remote.stranger}", "-q", "-o", tmp_path / "out", remote.url, env=without)
    assert done.code == 1
    assert "Permission denied (publickey)" in done.stderr
    for flags, why in (
        ((), 'no SSH key "default" forwarded from the client'),
        ((), "forward an agent (--ssh default) or a key (--ssh default=FILE)"),
        (("--ssh", f"other={remote.key}"), "no ssh agent or key was given for id default (--ssh)"),
    ):
        done = cli("build", *flags, "-q", "-o", tmp_path / "out", remote.url, env=without)
        assert done.code == 1
        assert why in done.stderr
    assert remote.server.logins() == 0
    assert not (tmp_path / "out").exists()


async def test_known_hosts_are_heeded(daemon_address: str, remote: Remote, tmp_path: Path) -> None:
    """A graph says which key the server has; another one ends the build before anybody logs in."""

    async def fetch(known_host: str) -> None:
        source = llb.git(remote.url, ref="main", known_ssh_hosts=[known_host])
        request = GraphRequest(
            graph=lambda platform: llb.scratch().copy(source, "/file", "/file"),
            outputs=[ExporterSpec(type="local", dest=str(tmp_path / "out"))],
            ssh=[SSHSpec(paths=[remote.key])],
            attestations={},
        )
        async with connect(daemon_address) as client:
            await build(client, request)

    with pytest.raises(SolveError, match="Host key verification failed"):
        await fetch(f"[127.0.0.1]:{remote.server.port} {new_key(tmp_path / 'other')}")
    assert remote.server.logins() == 0
    await fetch(remote.server.known_host)
    assert (tmp_path / "out" / "file").read_text() == "main"
    assert remote.server.logins() > 0


def _with_libraries(programs: list[str], root: Path) -> None:
    """Copy programs of this machine and the libraries that they need."""
    paths = [path for program in programs if (path := shutil.which(program)) is not None]
    if len(paths) < len(programs) or shutil.which("ldd") is None:
        pytest.skip(f"no ldd, or not all of {', '.join(programs)}, on this machine")
    for path in list(paths):
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        paths += re.findall(r"(/\S+) \(0x", listed)
    for path in set(paths):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


@pytest.mark.parametrize("agent", [True, False])
def test_a_step_clones(
    cli: CommandLine, daemon_address: str, busybox: Path, remote: Remote, tmp_path: Path, agent: bool
) -> None:
    """With git and ssh in the step, which has the socket and no key; it knows the host that it talks to."""
    context = tmp_path / "context"
    _with_libraries(["git", "ssh"], context / "tools")
    core = context / "tools" / "usr" / "lib" / "git-core"
    core.mkdir(parents=True)
    (core / "git").symlink_to("/usr/bin/git")
    (context / "known_hosts").write_text(f"{remote.server.known_host}\n")
    (context / "Dockerfile").write_text(
        "FROM busybox AS build\nCOPY tools /\nCOPY known_hosts /\n"
        "RUN mkdir -p /etc /tmp && echo root:x:0:0::/:/bin/sh > /etc/passwd\n"
        "ENV HOME=/tmp GIT_EXEC_PATH=/usr/lib/git-core "
        'GIT_SSH_COMMAND="ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=/known_hosts"\n'
        "RUN if git clone -q --no-tags $URL /none; then exit 1; fi\n".replace("$URL", remote.url)
        + f"RUN --mount=type=ssh git clone -q --no-tags {remote.url} /clone\n"
        "FROM scratch\nCOPY --from=build /clone/file /\n"
    )
    arguments: list[str | Path] = [
        "build",
        context,
        "--no-cache",
        "-o",
        tmp_path / "out",
        "--build-context",
        f"busybox={busybox}",
    ]
    if daemon_address.startswith("docker://"):
        # An engine's steps have a loopback of their own.
        arguments += ["--network", "host", "--allow", "network.host"]
    if agent:
        with run_agent(tmp_path / "agent.sock", remote.key) as environ:
            done = cli(*arguments, "--ssh", "default", env=environ)
    else:
        done = cli(*arguments, "--ssh", f"default={remote.key}", env={"SSH_AUTH_SOCK": ""})
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "file").read_text() == "main"
    assert remote.server.logins() == 1
