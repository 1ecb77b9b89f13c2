"""The command as a process, with a real daemon and a real registry: exit code, stdout and stderr together."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from buildkit_py import features
from buildkit_py.engine import Engine
from buildkit_py.pb import control_pb2
from buildkit_py.rpc import open_connection
from tests.integration.test_connections import Certificates, Control, serving
from tests.support import servers
from tests.support.cli import SECONDS, CommandLine, Done, refused

pytestmark = pytest.mark.daemon

TWO_PLATFORMS = ("--platform", "linux/amd64,linux/arm64")
CANCELLED = 1
"""Number of the status in a history record. Source: grpc, statuscodes.md."""


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


@pytest.fixture
def name(registry: servers.Registry, request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    test = "".join(char if char.isalnum() else "-" for char in request.node.name.lower())
    return f"{registry.host}/cli/{test.strip('-')}"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def alpine(base_images: Mapping[str, str]) -> str:
    """What --build-context takes for a base image with a shell."""
    return f"alpine={base_images['alpine']}"


def dockerfile(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text("\n".join((*lines, "")))
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A context whose one step differs from platform to platform; it runs nothing."""
    folder = dockerfile(tmp_path / "context", "FROM scratch", "ARG TARGETARCH", "COPY file /$TARGETARCH")
    (folder / "file").write_text("content")
    return folder


# Results


def test_a_build_and_what_imagetools_makes_of_it(cli: CommandLine, context: Path, name: str, tmp_path: Path) -> None:
    """The digest alone on stdout; the same one in both files, in the registry and in what inspect prints."""
    metadata, iid = tmp_path / "meta.json", tmp_path / "iid"
    built = cli(
        "build", context, "-t", f"{name}:1", "--push", *TWO_PLATFORMS, "--metadata-file", metadata, "--iidfile", iid
    )
    assert built.code == 0, built.stderr
    digest = built.stdout.removesuffix("\n")
    assert digest.startswith("sha256:")
    assert len(digest) == 71
    assert "[linux/arm64 1/1] COPY file /arm64" in built.stderr
    assert "warning" not in built.stderr

    assert iid.read_text() == digest
    fields = json.loads(metadata.read_text())
    assert fields["containerimage.digest"] == fields["containerimage.descriptor"]["digest"] == digest
    assert fields["image.name"] == f"{name}:1"
    assert list(fields["buildkit_py.platforms"]) == ["linux/amd64", "linux/arm64"]
    for entry in fields["buildkit_py.platforms"].values():
        assert set(entry) == {
            "manifest.digest", "config.digest", "size", "node", "ref", "seconds", "vertexes.cached", "vertexes.total",
        }  # fmt: skip
        assert entry["node"] == cli.address
    assert sorted(path.name for path in tmp_path.iterdir()) == ["context", "iid", "meta.json"]

    raw = cli("imagetools", "inspect", "--raw", f"{name}:1")
    assert (raw.code, raw.stderr) == (0, "")
    assert f"sha256:{hashlib.sha256(raw.out).hexdigest()}" == digest
    entries = [entry["digest"] for entry in json.loads(raw.out)["manifests"]]
    text = cli("imagetools", "inspect", f"{name}@{digest}")
    assert (text.code, text.stderr) == (0, "")
    assert text.stdout.splitlines()[0] == f"Name:      {name}@{digest}"
    assert f"Digest:    {digest}" in text.stdout
    assert [line.split("@")[1] for line in text.stdout.splitlines() if line.startswith("  Name:")] == entries
    assert [line.split()[1] for line in text.stdout.splitlines() if "Platform:" in line][:2] == [
        "linux/amd64",
        "linux/arm64",
    ]


def test_quiet(cli: CommandLine, scratch: Path, name: str) -> None:
    """Nothing but the digest."""
    done = cli("build", scratch, "-q", "-t", name, "--push")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("sha256:")
    assert done.stdout.count("\n") == 1


def test_a_build_without_an_output(cli: CommandLine, scratch: Path, daemon_address: str) -> None:
    """An engine gets the image, as with docker buildx; any other daemon has nowhere to put it, which is said."""
    name, flags = "example.com/unsaid:1", ("--progress", "quiet", "-t", "example.com/unsaid:1")
    stays = cli("build", scratch, *flags, env={"BUILDX_NO_DEFAULT_LOAD": "1"})
    assert (stays.code, stays.stdout) == (0, "")
    said = "warning: no output was asked for: the result stays in the build cache"
    assert stays.stderr.startswith(said)
    done = cli("build", scratch, *flags)
    assert done.code == 0, done.stderr
    if not daemon_address.startswith("docker://"):
        assert done.stderr.startswith(said)
        return
    assert (done.stderr, done.stdout.startswith("sha256:")) == ("", True)
    engine = Engine(f"unix://{daemon_address.removeprefix('docker://')}")
    assert asyncio.run(engine.image_digest(name)) == done.stdout.strip()
    (scratch / "other").write_text("x")
    left = cli("build", scratch, *flags, "-o", "type=cacheonly")
    assert (left.code, left.stdout, left.stderr) == (0, "", "")
    assert asyncio.run(engine.image_digest(name)) == done.stdout.strip()


def test_a_build_without_an_output_on_a_classic_engine(
    classic_engine_address: str, scratch: Path, tmp_path: Path
) -> None:
    """Its store takes the image as well, with all that is on by default."""
    cli = CommandLine(address=classic_engine_address, docker_config=tmp_path / "docker")
    done = cli("build", scratch, "-q", "-t", "example.com/unsaid:1")
    assert (done.code, done.stderr) == (0, "")
    engine = Engine(f"unix://{classic_engine_address.removeprefix('docker://')}")
    assert asyncio.run(engine.image_digest("example.com/unsaid:1")) == done.stdout.strip()


@pytest.mark.parametrize(("output", "member"), [("-", "file"), ("type=oci,dest=-", "index.json")])
def test_an_archive_on_stdout_is_all_that_is_there(cli: CommandLine, scratch: Path, output: str, member: str) -> None:
    """No digest after it: its bytes end as an archive ends."""
    done = cli("build", scratch, "-q", "-o", output)
    assert (done.code, done.stderr) == (0, "")
    with tarfile.open(fileobj=io.BytesIO(done.out)) as archive:
        assert member in archive.getnames()
    assert len(done.out) % 512 == 0
    assert done.out.endswith(bytes(1024))


def test_the_daemons_own_state(cli: CommandLine, alpine: str, tmp_path: Path, capabilities: frozenset[str]) -> None:
    """info, workers, du and prune: text for people, one JSON document for programs."""
    info = cli("info", "--format", "json")
    assert (info.code, info.stderr) == (0, "")
    assert set(json.loads(info.stdout)) == {"address", "package", "version", "revision"}
    assert json.loads(info.stdout)["address"] == cli.address
    assert f"address:  {cli.address}\n" in cli("info").stdout

    (first, *_) = json.loads(cli("workers", "--format", "json").stdout)
    assert "linux/amd64" in first["platforms"]
    assert cli("workers").stdout.splitlines()[0].split() == ["ID", "PLATFORMS"]

    marker = f"marker-{uuid.uuid4().hex}"
    context = dockerfile(tmp_path / "context", "FROM alpine", f"RUN echo {marker}")
    assert cli("build", context, "-q", "-o", "type=cacheonly", "--build-context", alpine).code == 0
    ours = ("--filter", f"description~={marker}")
    (record,) = json.loads(cli("du", "--format", "json", *ours).stdout)
    assert marker in record["description"]
    assert record["in_use"] is False
    assert marker in cli("du", *ours).stdout
    pruned = cli("prune", "--format", "json", *ours)
    if features.PRUNE_BY_DESCRIPTION.capability not in capabilities:
        assert pruned.code == 1
        assert "pruning by description: the daemon at" in pruned.stderr
        ours = ("--filter", f"id=={record['id']}")
        pruned = cli("prune", "--format", "json", *ours)
    assert [entry["id"] for entry in json.loads(pruned.stdout)] == [record["id"]]
    assert json.loads(cli("du", "--format", "json", *ours).stdout) == []
    assert cli("prune", *ours).stdout.splitlines()[-1] == "Total: 0B"


# Progress


def test_rawjson(cli: CommandLine, context: Path) -> None:
    """Every line is an object as buildctl writes it, and says of which platform the step is."""
    left = {"BUILDX_NO_DEFAULT_LOAD": "1"}
    done = cli("build", context, "--progress", "rawjson", *TWO_PLATFORMS, env=left)
    assert (done.code, done.stdout) == (0, "")
    *lines, warning = done.stderr.splitlines()
    assert warning.startswith("warning: ")
    updates = [json.loads(line) for line in lines]
    assert {key for update in updates for key in update} <= {"vertexes", "statuses", "logs", "warnings"}
    names = {vertex["name"] for update in updates for vertex in update.get("vertexes", ())}
    assert {"[linux/amd64 1/1] COPY file /amd64", "[linux/arm64 1/1] COPY file /arm64"} <= names


def in_terminal(cli: CommandLine, *args: str | Path, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout, and all that was written to stderr, which is a terminal of 100 columns and 30 rows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    try:
        process = cli.start(*args, stderr=slave, env={"TERM": "xterm", **(env or {})})
    finally:
        os.close(slave)
    written = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while data := os.read(master, 1 << 16):
            written += data
    os.close(master)
    out, _ = process.communicate(timeout=SECONDS)
    return process.returncode, out.decode(), written.decode()


def test_a_terminal_gets_the_live_display(cli: CommandLine, context: Path, name: str) -> None:
    """A header with the count of steps; colours unless NO_COLOR is set; a plain stdout even so."""
    command = ("build", context, "--no-cache", "-t", name, "--push", *TWO_PLATFORMS)
    for env, colors in (({}, True), ({"NO_COLOR": "1"}, False)):
        code, out, shown = in_terminal(cli, *command, env=env)
        assert code == 0, shown
        assert out.startswith("sha256:")
        assert out.count("\n") == 1
        assert "[+] Building " in shown
        assert " FINISHED" in shown
        assert "[linux/arm64 1/1] COPY file /arm64" in shown
        assert ("\x1b[34m" in shown) is colors
        assert "Traceback" not in shown


def test_a_failure_in_a_terminal(cli: CommandLine, alpine: str, tmp_path: Path) -> None:
    """The display stays, then the log, the lines of the Dockerfile and the error."""
    context = dockerfile(tmp_path / "context", "FROM alpine", "RUN echo said before; exit 5")
    code, out, shown = in_terminal(cli, "build", context, "--build-context", alpine)
    assert (code, out) == (1, ""), shown
    assert "ERROR" in shown
    assert "said before" in shown
    assert ">>> RUN echo said before; exit 5" in shown
    assert shown.splitlines()[-1].startswith("error: process ")
    assert "Traceback" not in shown


def test_readers_that_go_away(cli: CommandLine, scratch: Path) -> None:
    """Neither a traceback nor a hang, whichever stream is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = cli.start("build", scratch, "--progress", "plain", stderr=writer)
    finally:
        os.close(writer)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, b"")

    process = cli.start("info")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(20) == 1


_FORKING = """
import asyncio, subprocess, sys
from buildkit_py.cli import main

async def execute(self, args):
    from buildkit_py import connect

    async def ask():
        while True:
            await client.info()

    async with connect() as client:
        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for _ in range(80):
            child = await asyncio.to_thread(subprocess.run, ["true"], preexec_fn=int)
            if child.returncode:
                return 50
        for task in asking:
            task.cancel()
    return 0

Info = type("Info", (), {"configure": lambda self, name, parser: None, "execute": execute})
main.importlib = type("Modules", (), {"import_module": staticmethod(lambda name: Info())})
sys.argv = ["buildkit-py", "info"]
main.entry()
"""


def test_what_the_command_starts_survives_a_fork(cli: CommandLine) -> None:
    """As systems without vfork() start credential helpers; gRPC's own care for forks would abort one in ten."""
    done = subprocess.run(
        [sys.executable, "-c", _FORKING], env=cli.environment(), capture_output=True, check=False, timeout=SECONDS
    )
    assert (done.returncode, done.stderr) == (0, b"")


# Signals


@contextlib.contextmanager
def running_step(
    cli: CommandLine, alpine: str, tmp_path: Path, *args: str | Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A build whose RUN has begun and would take ten minutes, and the marker by which to find it."""
    marker = f"marker-{uuid.uuid4().hex}"
    context = dockerfile(tmp_path / "context", "FROM alpine", "ARG MARKER", "RUN echo it has be''gun; sleep 600")
    process = cli.start(
        "build", context, "--build-context", alpine, "--build-arg", f"MARKER={marker}", "--progress", "plain", *args
    )
    assert process.stderr is not None
    try:
        seen: list[bytes] = []
        for line in process.stderr:
            seen.append(line)
            if line.endswith(b"it has begun\n"):
                break
        else:
            pytest.fail(b"".join(seen).decode())
        yield process, marker
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def processes_with(marker: str) -> list[str]:
    """Processes of this machine that have marker in their environment, but for our own commands."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"MARKER={marker}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


async def history_of(address: str, marker: str) -> list[control_pb2.BuildHistoryEvent]:
    async with open_connection(address) as connection:
        call = connection.control.ListenBuildHistory(control_pb2.BuildHistoryRequest(EarlyExit=True))
        return [event async for event in call if event.record.FrontendAttrs.get("build-arg:MARKER") == marker]


def wait_until_cancelled(address: str, marker: str) -> None:
    """Until the daemon's history has the one solve as cancelled, and nothing of it runs."""
    deadline = time.monotonic() + 10
    while True:
        events = asyncio.run(history_of(address, marker))
        running = processes_with(marker)
        # Not the record's time of completion: it is written into a record that is still active, before the error.
        if events and all(event.type == control_pb2.COMPLETE for event in events) and not running:
            break
        assert time.monotonic() < deadline, (events, running)
        time.sleep(0.1)
    (event,) = events
    assert event.record.error.code == CANCELLED


@pytest.mark.parametrize(
    ("signals", "code", "said"),
    [
        ([signal.SIGINT], 130, "interrupted"),
        ([signal.SIGTERM], 143, "terminated"),
        ([signal.SIGHUP], 129, "hung up"),
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], 130, "interrupted"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP", "SIGINT-thrice"],
)
def test_a_signal_ends_the_build_everywhere(
    cli: CommandLine, alpine: str, tmp_path: Path, signals: list[signal.Signals], code: int, said: str
) -> None:
    """Here within seconds, by its exit code; on the daemon the solve is cancelled and the process ended."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    args = ("-o", f"type=oci,dest={outputs}/layout.tar", "--metadata-file", outputs / "meta", "-o", f"{outputs}/dir")
    with running_step(cli, alpine, tmp_path, *args) as (process, marker):
        began = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.02)
        out, err = process.communicate(timeout=SECONDS)
        assert time.monotonic() - began < 5
    assert (process.returncode, out) == (code, b"")
    *_, last = err.decode().splitlines()
    assert last == said
    assert "Traceback" not in err.decode()
    assert list(outputs.iterdir()) == []
    assert cli.address is not None
    wait_until_cancelled(cli.address, marker)


def test_a_command_that_is_killed_ends_on_the_daemon_too(cli: CommandLine, alpine: str, tmp_path: Path) -> None:
    """It had no time to say goodbye; the daemon sees the connection close."""
    with running_step(cli, alpine, tmp_path) as (process, marker):
        process.kill()
    assert cli.address is not None
    wait_until_cancelled(cli.address, marker)


# Bad input of every kind is in test_bad_input.py; what follows needs more than one command, or compares all of it.


def test_a_failing_run(cli: CommandLine, alpine: str, tmp_path: Path) -> None:
    """What it printed, where it stands in the Dockerfile, the command and its exit code; --debug adds the traceback."""
    context = dockerfile(tmp_path / "context", "FROM alpine", "RUN echo one; echo two; exit 7")
    command = ("build", context, "--build-context", alpine, "--progress", "quiet", "--platform", "linux/amd64")
    done = cli(*command)
    refused(done, 1, "linux/amd64: process ", "exit code: 7")
    assert re.sub(r"\[\d/\d]", "[n/n]", done.stderr) == (
        "------\n"
        " > [n/n] RUN echo one; echo two; exit 7:\n"
        "one\ntwo\n"
        "------\n"
        "Dockerfile:2\n"
        "--------------------\n"
        "   1 |     FROM alpine\n"
        "   2 | >>> RUN echo one; echo two; exit 7\n"
        "   3 |\n"
        "--------------------\n"
        'error: linux/amd64: process "/bin/sh -c echo one; echo two; exit 7" did not complete successfully: '
        "exit code: 7\n"
    )
    debug = cli(*command, "--debug")
    assert (debug.code, debug.stdout) == (1, "")
    assert "Traceback (most recent call last)" in debug.stderr
    assert debug.stderr.splitlines()[-1] == done.stderr.splitlines()[-1]


def test_the_log_of_a_failing_run_is_shown_once(cli: CommandLine, alpine: str, tmp_path: Path) -> None:
    """The plain display ends with it; the error does not repeat it."""
    context = dockerfile(tmp_path / "context", "FROM alpine", "RUN echo said-$((40+2)); exit 7")
    done = cli("build", context, "--build-context", alpine, "--progress", "plain")
    refused(done, 1, "exit code: 7")
    assert done.stderr.count("said-42") == 2  # when it was said, and in the summary of what failed


def test_no_daemon(cli: CommandLine, scratch: Path, tmp_path: Path) -> None:
    """Each place looked at, and why it was not there."""
    if any(Path(path).exists() for path in ("/run/buildkit/buildkitd.sock", "/var/run/docker.sock")):
        pytest.skip("a daemon is in one of the usual places")
    nobody = CommandLine(address=None, docker_config=cli.docker_config)
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    done = nobody("build", scratch, env=env)
    refused(done, 1, "no BuildKit daemon found; looked at:")
    _, *places = done.stderr.splitlines()
    assert "  unix:///run/buildkit/buildkitd.sock: there is no such socket" in places
    assert f"  unix://{tmp_path}/buildkit/buildkitd.sock: there is no such socket" in places
    assert f"  docker://{tmp_path}/docker.sock: there is no such socket" in places
    assert "`buildkit-py daemon start`" in places[-1]


def test_a_disk_that_is_full(cli: CommandLine, tmp_path: Path) -> None:
    """Said of every kind of file, with the place; whatever the daemon makes of it. Nothing is left."""
    context = dockerfile(tmp_path / "context", "FROM scratch", "COPY big /")
    (context / "big").write_bytes(os.urandom(4 << 20))
    full = tmp_path / "full"
    full.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount a small file system")
    try:
        for output in (
            "type=oci,dest={}/layout.tar",
            "type=oci,dest={}/layout/",
            "type=tar,dest={}/tree.tar",
            "{}/tree",
        ):
            done = cli("build", context, "--progress", "quiet", "-o", output.format(full))
            refused(done, 1, f"{full}/", "No space left on device")
            assert list(full.iterdir()) == []
    finally:
        subprocess.run(["umount", full], check=True)


async def test_certificates(cli: CommandLine, scratch: Path, free_port: int, tmp_path: Path) -> None:
    """The right authority; a wrong one, one for another name, an expired certificate, and none where one is needed."""
    certificates = Certificates()
    right, wrong = tmp_path / "right.pem", tmp_path / "wrong.pem"
    certificates.ca.cert_pem.write_to_path(right)
    certificates.other_ca.cert_pem.write_to_path(wrong)
    address = ("--addr", f"tcp://localhost:{free_port}")

    async def asked(*words: str | Path) -> Done:
        return await asyncio.to_thread(cli, *words)

    async with serving(f"127.0.0.1:{free_port}", certificates.credentials(certificates.server), Control()):
        done = await asked("info", *address, "--tlscacert", right)
        assert (done.code, done.stderr) == (0, "")
        done = await asked("build", scratch, *address, "--tlscacert", wrong)
        assert done.stderr == refused(done, 1, "certificate is not signed by a trusted CA") + "\n"
        done = await asked("info", *address, "--tlscacert", right, "--tlsservername", "other.test")
        refused(done, 1, "certificate is not for 'other.test'")
        refused(await asked("info", *address), 1, "the daemon expects TLS")
    async with serving(f"127.0.0.1:{free_port}", certificates.credentials(certificates.expired), Control()):
        done = await asked("build", scratch, *address, "--tlscacert", right)
        assert done.stderr == refused(done, 1, "certificate has expired") + "\n"
    credentials = certificates.credentials(certificates.server, mutual=True)
    async with serving(f"127.0.0.1:{free_port}", credentials, Control()):
        refused(await asked("info", *address, "--tlscacert", right), 1, "client certificate")
        folder = tmp_path / "tls"
        folder.mkdir()
        right.rename(folder / "ca.pem")
        write_pair(certificates.client, folder)
        assert (await asked("info", *address, "--tlsdir", folder)).code == 0


def write_pair(leaf: trustme.LeafCert, folder: Path) -> None:
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")


def test_registry_credentials(cli: CommandLine, scratch: Path, auth_registry: servers.Registry, tmp_path: Path) -> None:
    """Right ones do; missing and wrong ones are refused by a line that names the registry, and no secret in it."""
    image = f"{auth_registry.host}/cli/private:1"
    build = ("build", scratch, "--progress", "quiet", "-t", image, "--push")
    inspect = ("imagetools", "inspect", image)
    refused(cli(*build), 1, auth_registry.host)
    missing = refused(cli(*inspect), 1, auth_registry.host)
    assert "401" in missing

    wrong = cli.logged_in(auth_registry, "a wrong guess")
    for command in (build, inspect, ("run", image)):
        done = wrong(*command)
        refused(done, 1, auth_registry.host)
        assert "a wrong guess" not in done.stderr

    right = cli.logged_in(auth_registry)
    done = right(*build)
    assert (done.code, done.stderr) == (0, "")
    assert right(*inspect).code == 0
    # The refused builds have left nothing behind: this one is the first.
    assert f"Digest:    {done.stdout.strip()}" in right(*inspect).stdout
    for done in (right(*build, "--debug"), right(*inspect, "--debug")):
        assert auth_registry.password not in done.stdout + done.stderr


def test_a_registry_that_is_not_there(cli: CommandLine, scratch: Path, name: str, free_port: int) -> None:
    """Within seconds; the tag in the registry that is there does not move."""
    (scratch / "file").write_text("first")
    before = cli("build", scratch, "-q", "-t", f"{name}:1", "--push").stdout
    (scratch / "file").write_text("second")
    began = time.monotonic()
    gone = f"localhost:{free_port}/gone"
    done = cli("build", scratch, "--progress", "quiet", "-t", f"{name}:1", "-t", gone, "--push", *TWO_PLATFORMS)
    assert (done.code, done.stdout) == (1, "")
    assert f"localhost:{free_port}" in done.stderr
    assert "Traceback" not in done.stderr
    refused(cli("imagetools", "inspect", gone), 1, f"localhost:{free_port}")
    refused(cli("run", gone), 1, f"localhost:{free_port}")
    assert time.monotonic() - began < 25
    assert f"Digest:    {before}" in cli("imagetools", "inspect", f"{name}:1").stdout


def test_a_failed_platform_moves_no_tag_and_writes_no_file(
    cli: CommandLine, alpine: str, tmp_path: Path, name: str
) -> None:
    """One of two platforms fails, after the other one has been built."""
    context = dockerfile(
        tmp_path / "context", "FROM alpine", "ARG FAIL", "ARG TARGETARCH", "RUN test $TARGETARCH != $FAIL"
    )
    command = ("build", context, "--build-context", alpine, "--progress", "quiet", "-t", name, "--push", *TWO_PLATFORMS)
    before = cli(*command, "--build-arg", "FAIL=none")
    assert before.code == 0, before.stderr
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "layout.tar").write_text("of an earlier build")
    done = cli(
        *command, "--build-arg", "FAIL=arm64",
        "-o", f"type=oci,dest={outputs}/layout.tar", "-o", f"type=local,dest={outputs}/files",
        "--metadata-file", outputs / "meta",
    )  # fmt: skip
    refused(done, 1, "linux/arm64: process", "exit code: 1")
    assert [path.name for path in outputs.iterdir()] == ["layout.tar"]
    assert (outputs / "layout.tar").read_text() == "of an earlier build"
    assert f"Digest:    {before.stdout}" in cli("imagetools", "inspect", name).stdout


def test_filters_that_the_daemon_cannot_read(cli: CommandLine) -> None:
    refused(cli("du", "--filter", "bogus["), 1, "bogus[")
