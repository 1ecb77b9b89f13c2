"""What ``buildkit-py build`` takes from standard input, secrets, agents and caches, as a process."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CommandLine, refused
from tests.support.git_server import Server, find_git_server, git, serve_directory

pytestmark = pytest.mark.daemon


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_dockerfile_on_standard_input(cli: CommandLine, tmp_path: Path) -> None:
    """Alone, and beside a directory."""
    done = cli("build", "-", "-q", "-o", tmp_path / "out", stdin=b"FROM scratch\nCOPY <<EOF /made\nx\nEOF\n")
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "made").read_text() == "x\n"
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("content")
    done = cli("build", context, "-q", "-f", "-", "-o", tmp_path / "out", stdin=b"FROM scratch\nCOPY file /\n")
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "file").read_text() == "content"


def test_an_archive_on_standard_input(cli: CommandLine, tmp_path: Path) -> None:
    """Through a pipe, and from a file, which is read in place."""
    content = archive(Dockerfile=b"FROM scratch\nCOPY file /\n", file=b"content", Other=b"FROM scratch\nCOPY O* /\n")
    done = cli("build", "-", "-q", "-o", tmp_path / "out", stdin=content)
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "file").read_text() == "content"
    (tmp_path / "context.tar.gz").write_bytes(content)
    command = [sys.executable, "-m", "buildkit_py", "build", "-", "-q", "-f", "Other", "-o", str(tmp_path / "other")]
    with (tmp_path / "context.tar.gz").open("rb") as stdin:
        subprocess.run(command, env=cli.environment(), stdin=stdin, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "other" / "Other").exists()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    """A server of files on loopback, with a Dockerfile, an archive and a repository as contexts."""
    root = tmp_path / "web"
    (root / "work").mkdir(parents=True)
    own = {"Dockerfile": b"FROM scratch\nCOPY file /own\n", "file": b"content"}
    for name, content in own.items():
        (root / "work" / name).write_bytes(content)
    (root / "context.tar.gz").write_bytes(archive(**own))
    (root / "My.Dockerfile").write_bytes(FROM_ELSEWHERE)
    if find_git_server() is not None:
        git(root / "work", "init", "-q", "-b", "main")
        git(root / "work", "add", "-A")
        git(root / "work", "commit", "-q", "-m", "one")
        git(root / "work", "clone", "-q", "--bare", str(root / "work"), str(root / "repo.git"))
    with serve_directory(root) as server:
        yield server


FROM_ELSEWHERE = b"FROM scratch\nCOPY f* /elsewhere\n"
CONTEXTS = ("directory", "archive", "git", "http")


def context_of(kind: str, web: Server) -> tuple[str, bytes]:
    """The context's argument, and what standard input has to be."""
    if kind == "git" and find_git_server() is None:
        pytest.skip("git cannot serve repositories here")
    if kind == "archive":
        return "-", (web.root / "context.tar.gz").read_bytes()
    where = {"directory": str(web.root / "work"), "git": f"{web.url}/repo.git", "http": f"{web.url}/context.tar.gz"}
    return where[kind], b""


@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("place", ["url", "stdin", "absolute"])
def test_a_dockerfile_from_elsewhere_for_every_context(
    cli: CommandLine, web: Server, tmp_path: Path, kind: str, place: str
) -> None:
    """In place of the one that the context has."""
    context, stdin = context_of(kind, web)
    if place == "stdin":
        if stdin:
            refused(cli("build", "-", "-f", "-", stdin=stdin), 2, "both the context and the Dockerfile")
            return
        stdin = FROM_ELSEWHERE
    file = {"url": f"{web.url}/My.Dockerfile", "stdin": "-", "absolute": str(web.root / "My.Dockerfile")}[place]
    done = cli("build", context, "-q", "-f", file, "-o", tmp_path / "out", stdin=stdin)
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "elsewhere").read_text() == "content"


def test_a_dockerfile_by_url_is_fetched_as_it_is_now(cli: CommandLine, web: Server, tmp_path: Path) -> None:
    """Once for all platforms, again for each build, and asked about too; what it may not say is not shown."""
    url = f"{web.url}/My.Dockerfile?token=hunter2"
    build = ("build", web.root / "work", "-f", url, "--platform", "linux/amd64,linux/arm64", "--progress", "plain")
    done = cli(*build, "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    assert f"[internal] load {web.url}/My.Dockerfile" in done.stderr
    assert "hunter2" not in done.stderr
    assert len([line for line in web.requests if "My.Dockerfile" in line and "GET" in line]) == 1
    assert (tmp_path / "out" / "linux_arm64" / "elsewhere").exists()
    (web.root / "My.Dockerfile").write_text("FROM scratch AS changed\nCOPY file /changed\n")
    assert "changed" in cli("build", web.root / "work", "-f", url, "--call", "targets").stdout
    done = cli(*build, "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "linux_amd64" / "changed").exists()


@pytest.mark.parametrize("kind", CONTEXTS)
def test_a_dockerfile_that_is_not_there(cli: CommandLine, web: Server, tmp_path: Path, kind: str) -> None:
    """In any context, at a path of this machine, and at a URL; it is named, and nothing is written."""
    context, stdin = context_of(kind, web)
    in_context = str(web.root / "work" / "None") if kind == "directory" else "None"
    out = tmp_path / "out"
    refused(
        cli("build", context, "-q", "-f", in_context, "-o", out, stdin=stdin), 2 if kind == "directory" else 1, "None"
    )
    absent = tmp_path / "absent"
    refused(cli("build", context, "-f", absent, "-o", out, stdin=stdin), 2, f"{absent} does not exist")
    done = cli("build", context, "-q", "-f", f"{web.url}/none", "-o", out, stdin=stdin)
    refused(done, 1, "404")
    assert f"the daemon cannot fetch the Dockerfile {web.url}/none" in done.stderr
    assert not out.exists()


def test_a_dockerfile_by_url_that_cannot_be_one(cli: CommandLine, web: Server, tmp_path: Path) -> None:
    """Empty or too large; and nothing is fetched for a build whose other words are wrong."""
    (web.root / "empty").write_bytes(b"\n")
    with (web.root / "large").open("wb") as file:
        file.truncate(64 << 20)
    for name, why in (("empty", "is empty"), ("large", "is more than 2097152 bytes")):
        refused(cli("build", web.root / "work", "-q", "-f", f"{web.url}/{name}"), 2, f"/{name} {why}")
    web.requests.clear()
    refused(cli("build", tmp_path / "none", "-f", f"{web.url}/My.Dockerfile"), 2, "none does not exist")
    assert web.requests == []


@pytest.mark.parametrize(
    ("args", "stdin", "why"),
    [
        (["-"], b"", "standard input is empty"),
        (["-", "-f", "-"], b"x", "both the context and the Dockerfile"),
        (["-", "-f", "Other"], b"FROM scratch\n", "no tar archive but a Dockerfile too"),
    ],
)
def test_bad_standard_input(cli: CommandLine, args: list[str], stdin: bytes, why: str) -> None:
    done = cli("build", *args, stdin=stdin)
    assert done.code == 2
    assert why in done.stderr


def test_an_interrupt_ends_a_wait_for_standard_input(cli: CommandLine) -> None:
    """Nobody writes, and nobody closes the pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", "buildkit_py", "build", "-"],
        env=cli.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"FROM scratch\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_secrets_and_their_absence_everywhere_else(
    cli: CommandLine, busybox: Path, tmp_path: Path, secrets_as_variables: bool
) -> None:
    """From a file, a variable and a shell's <(command); the values show neither in the output nor in the image."""
    (tmp_path / "file").write_text("hunter2-file")
    digest = hashlib.sha256(b"hunter2-file hunter2-env hunter2-pipe\n").hexdigest()
    place, read = ("env=TOKEN", "true") if secrets_as_variables else ("target=/t", "TOKEN=$(cat /t)")
    dockerfile = (
        "FROM busybox\n"
        f"RUN --mount=type=secret,id=file --mount=type=secret,id=NAME,{place} --mount=type=secret,id=piped {read} && "
        f'echo "$(cat /run/secrets/file) $TOKEN $(cat /run/secrets/piped)" | sha256sum | grep {digest}\n'
    ).encode()
    reading, writing = os.pipe()
    os.write(writing, b"hunter2-pipe")
    os.close(writing)
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "buildkit_py", "build", "-", "--no-cache", "--progress", "plain", "--debug"),
                *("--build-context", f"busybox={busybox}", "--secret", "id=NAME"),
                *("--secret", f"id=file,src={tmp_path / 'file'}", "--secret", f"id=piped,src=/dev/fd/{reading}"),
                *("-o", f"type=docker,dest={tmp_path / 'image.tar'}", "--metadata-file", str(tmp_path / "metadata")),
            ],
            env=cli.environment({"NAME": "hunter2-env"}),
            input=dockerfile,
            capture_output=True,
            pass_fds=[reading],
            timeout=60,
            check=False,
        )
    finally:
        os.close(reading)
    assert done.returncode == 0, done.stderr.decode()
    assert digest.encode() in done.stderr
    for shown in (
        done.stdout,
        done.stderr,
        (tmp_path / "metadata").read_bytes(),
        (tmp_path / "image.tar").read_bytes(),
    ):
        assert b"hunter2" not in shown


def test_ssh_keys(cli: CommandLine, busybox: Path, tmp_path: Path) -> None:
    """The step finds a socket; a key under a passphrase is refused with what to do."""
    key, protected = tmp_path / "key", tmp_path / "protected"
    for path, passphrase in ((key, ""), (protected, "open sesame")):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    dockerfile = b'FROM busybox\nRUN --mount=type=ssh,id=k,required test -S "$SSH_AUTH_SOCK"\n'
    command = ("build", "-", "--no-cache", "-q", "--build-context", f"busybox={busybox}")
    done = cli(*command, "--ssh", f"k={key}", stdin=dockerfile)
    assert done.code == 0, done.stderr
    done = cli(*command, stdin=dockerfile)
    assert done.code == 1
    done = cli(*command, "--ssh", f"k={protected}", stdin=dockerfile)
    assert done.code == 2
    assert "protected by a passphrase: add it to an agent (ssh-add)" in done.stderr


def test_a_local_cache(cli: CommandLine, tmp_path: Path) -> None:
    """Written and read by two commands; one that is not there yet is a warning."""
    cache, dockerfile = tmp_path / "cache", b"FROM scratch\nCOPY <<EOF /made\nx\nEOF\n"
    args = ("--cache-from", f"type=local,src={cache}", "--cache-to", f"type=local,dest={cache},mode=max")
    done = cli("build", "-", *args, "-o", f"type=tar,dest={tmp_path / 'out.tar'}", stdin=dockerfile)
    assert done.code == 0, done.stderr
    assert f"cache from {cache}: nothing is imported" in done.stderr
    assert (cache / "index.json").exists()
    done = cli("build", "-", *args, "-o", f"type=tar,dest={tmp_path / 'out.tar'}", stdin=dockerfile)
    assert done.code == 0, done.stderr
    assert "nothing is imported" not in done.stderr
    assert "importing cache manifest from local" in done.stderr
