"""Every kind of bad input, through the command as a process: one clear line, no traceback, nothing left behind.

What is refused with exit code 2 must not need a daemon, so those rows run without one.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.cli import CommandLine, refused

pytestmark = pytest.mark.daemon

NOWHERE = "unix:///nonexistent/buildkitd.sock"
ZEROS = "0" * 64
ALIEN = (
    b"\x7fELF\x02\x01\x01"
    + bytes(9)
    + struct.pack("<HHIQQQIHHHHHH", 2, 0xFEED, 1, 1 << 22, 64, 0, 0, 64, 56, 0, 0, 0, 0)
)
"""A program for a machine that nobody has built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the rows name."""

    cli: CommandLine
    registry: str
    """host:port, no password."""
    private: servers.Registry
    """Wants a password."""
    image: str
    """Is there, for linux/amd64 and linux/arm64; no row may move it."""
    digest: str
    """What image is."""
    alpine: str
    """A base image with a shell, as --build-context takes it."""
    read_only: Path
    """Even for root."""
    folder: Path
    """The current directory: a context, and some files to trip over."""


Words = Callable[[World], Sequence[str | Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A command, and what becomes of it."""

    words: Words
    code: int
    says: Sequence[str]
    """Parts of the one line; {...} are fields of the world."""
    shows: Sequence[str] = ()
    """Parts of what stands around it: log lines, the lines of the Dockerfile, a hint."""


def build(*words: str) -> Words:
    """A build of the current directory that would push over the image."""
    return lambda world: [
        "build",
        ".",
        "-t",
        world.image,
        "--push",
        *(word.format_map(_fields(world)) for word in words),
    ]


def plain(*words: str) -> Words:
    """Any command."""
    return lambda world: [word.format_map(_fields(world)) for word in words]


def _fields(world: World) -> dict[str, object]:
    return {
        "registry": world.registry,
        "private": world.private.host,
        "image": world.image,
        "digest": world.digest,
        "alpine": world.alpine,
        "read_only": world.read_only,
        "folder": world.folder,
        "zeros": ZEROS,
    }


def usage(words: Words, *says: str) -> Row:
    return Row(words=words, code=2, says=says)


def failure(words: Words, *says: str, shows: Sequence[str] = ()) -> Row:
    return Row(words=words, code=1, says=says, shows=shows)


OUTPUTS = {
    "oci-file": "type=oci,dest={}/x",
    "oci-directory": "type=oci,dest={}/x/",
    "docker": "type=docker,dest={}/x",
    "tar": "type=tar,dest={}/x",
    "local": "type=local,dest={}/x",
}

ROWS: Mapping[str, Row] = {
    # platforms
    "platform-unknown": usage(build("--platform", "linux/arm46"), "platform linux/arm46: unknown architecture 'arm46'"),
    "platform-unknown-os": usage(build("--platform", "plan8/amd64"), "unknown operating system 'plan8'"),
    "platform-malformed": usage(build("--platform", "linux/"), "expected os/architecture[/variant]"),
    "platform-parts": usage(build("--platform", "a/b/c/d"), "at most os/architecture/variant"),
    "platform-empty": usage(build("--platform", ""), "empty platform"),
    "platform-twice": usage(build("--platform", "linux/arm64,linux/arm64/v8"), "linux/arm64", "the same"),
    "run-platform": usage(plain("run", "{image}", "--platform", "linux/arm46"), "unknown architecture 'arm46'"),
    "run-platform-missing": usage(
        plain("run", "{image}", "--platform", "linux/s390x"),
        "{image}: has no linux/s390x; its platforms are linux/amd64, linux/arm64",
    ),
    # tags and digests
    "tag-upper": usage(build("-t", "Upper"), "repository name must be in lower case"),
    "tag-malformed": usage(build("-t", "a:b:c"), "reference 'a:b:c': not valid"),
    "tag-space": usage(build("-t", "a b"), "reference 'a b': has white space in it"),
    "tag-empty": usage(build("-t", ""), "reference '': not valid"),
    "tag-with-digest": usage(build("-t", "a@sha256:{zeros}"), "a name to write cannot have a digest"),
    "digest-short": usage(build("-t", "a@sha256:12"), "reference 'a@sha256:12'"),
    "digest-algorithm": usage(plain("imagetools", "inspect", "a@md5:{zeros}"), "a@md5:", "unknown algorithm"),
    "digest-upper": usage(plain("run", "a@sha256:" + "A" * 64), "a@sha256:AAA"),
    "push-without-tag": usage(plain("build", ".", "--push"), "push: needs at least one tag"),
    # addresses
    "address-scheme": usage(build("--addr", "ftp://host"), "unknown scheme 'ftp' in daemon address"),
    "address-none": usage(build("--addr", "localhost"), "invalid daemon address 'localhost'"),
    "address-port": usage(build("--addr", "tcp://host"), "it has no port"),
    "address-port-large": usage(build("--addr", "tcp://host:99999"), "'99999' is no port"),
    "address-socket": usage(build("--addr", "unix://"), "it names no socket"),
    "tls-file-missing": usage(build("--addr", "tcp://h:1", "--tlscacert", "missing.pem"), "missing.pem"),
    "tls-file-garbage": usage(build("--addr", "tcp://h:1", "--tlscacert", "file"), "no certificate in PEM form"),
    "tls-key-missing": usage(build("--addr", "tcp://h:1", "--tlscert", "file"), "key"),
    # outputs
    "output-type": usage(build("-o", "type=zip"), "unknown type 'zip'; expected one of"),
    "output-no-type": usage(build("-o", "dest=x"), "unknown type ''"),
    "output-no-dest": usage(build("-o", "type=local"), "output type=local: dest is missing"),
    "output-empty-dest": usage(build("-o", "type=local,dest="), "dest is empty"),
    "output-quotes": usage(build("-o", 'type=oci,"dest=x'), "output"),
    "output-twice": usage(build("-o", "x", "-o", "type=oci,dest=x"), "two outputs have the same destination"),
    "output-mode": usage(build("-o", "type=local,dest=x,mode=merge"), "expected copy or delete"),
    "output-terminal-directory": usage(build("-o", "type=local,dest=-"), "dest must be a directory"),
    "output-parent": usage(build("-o", "type=tar,dest=missing/x"), "there is no directory"),
    "output-over-directory": usage(build("-o", "type=tar,dest=folder"), "is a directory"),
    "output-over-file": usage(build("-o", "type=local,dest=file"), "is not a directory"),
    "output-below-file": usage(build("-o", "type=local,dest=file/x"), "is not a directory"),
    "output-foreign-directory": usage(build("-o", "type=oci,dest=folder/"), "neither empty nor an OCI layout"),
    **{
        f"read-only-{name}": usage(build("-o", spec.replace("{}", "{read_only}")), "{read_only}", "cannot be written")
        for name, spec in OUTPUTS.items()
    },
    **{
        f"unwritable-{name}": usage(build("-o", spec.format("/proc")), "/proc", "cannot be written")
        for name, spec in OUTPUTS.items()
    },
    "metadata-read-only": usage(build("--metadata-file", "{read_only}/x"), "{read_only}/x", "not writable"),
    "iidfile-read-only": usage(build("--iidfile", "{read_only}/x"), "{read_only}/x", "not writable"),
    "metadata-no-directory": usage(build("--metadata-file", "missing/x"), "its directory does not exist"),
    # contexts and Dockerfiles
    "context-missing": usage(plain("build", "missing", "-t", "{image}", "--push"), "missing does not exist"),
    "context-file": usage(plain("build", "file", "-t", "{image}", "--push"), "file is not a directory"),
    "context-empty": usage(plain("build", "", "-t", "{image}", "--push"), "context: must not be empty"),
    "context-named-missing": usage(build("--build-context", "a=missing"), "build context a: missing does not exist"),
    "dockerfile-missing": usage(build("-f", "missing"), "Dockerfile: missing does not exist", "--file"),
    "dockerfile-directory": usage(build("-f", "folder"), "Dockerfile: folder is not a file"),
    "words": usage(build("--bogus"), "unrecognized arguments: --bogus"),
    # flags that make no sense
    "flag-add-host": usage(build("--add-host", "x"), "add-host 'x': expected NAME:ADDRESS"),
    "flag-add-host-address": usage(build("--add-host", "x:nowhere"), "'nowhere' is no IP address"),
    "flag-allow": usage(
        build("--allow", "nope"), "allow 'nope': no entitlement of BuildKit; expected one of device, network.host"
    ),
    "flag-annotation-level": usage(build("--annotation", "nope:a=b"), "'nope' is no level; expected KEY or LEVEL:KEY"),
    "flag-annotation-no-value": usage(build("--annotation", "a"), "--annotation 'a': expected NAME=VALUE"),
    "flag-annotation-no-key": usage(build("--annotation", "index:=b"), "has no key"),
    "flag-annotation-platform": usage(
        build("--platform", "linux/amd64", "--annotation", "manifest[linux/s390x]:a=b"),
        "annotation 'a' for linux/s390x: not a platform of this build",
    ),
    "flag-annotation-index-platform": usage(
        build("--annotation", "index[linux/amd64]:a=b"), "an index is for all platforms"
    ),
    "flag-attest-no-type": usage(build("--attest", "mode=max"), "type=... is missing"),
    "flag-attest-type": usage(build("--attest", "type=nope"), "attestation 'nope': expected provenance or sbom"),
    "flag-attest-disabled": usage(build("--attest", "type=sbom,disabled=maybe"), "expected true or false"),
    "flag-provenance-word": usage(build("--provenance", "most"), "'most' is not key=value"),
    "flag-provenance-mode": usage(
        build("--provenance", "mode=huge"), "attestation provenance: mode=huge: expected min or max"
    ),
    "flag-sbom-word": usage(build("--sbom", "perhaps"), "'perhaps' is not key=value"),
    "flag-build-arg-no-name": usage(build("--build-arg", "=x"), "--build-arg '=x': expected NAME=VALUE"),
    "flag-build-arg-syntax": usage(build("--build-arg", "BUILDKIT_SYNTAX="), "BUILDKIT_SYNTAX: is empty"),
    "flag-build-context-no-value": usage(
        build("--build-context", "more"), "--build-context 'more': expected NAME=VALUE"
    ),
    "flag-build-context-empty": usage(build("--build-context", "more="), "build context more: must not be empty"),
    "flag-build-context-name": usage(
        build("--build-context", "a b=folder"), "build context 'a b': not a name that FROM could use"
    ),
    "flag-build-context-scheme": usage(build("--build-context", "more=weird://x"), "unknown scheme in 'weird://x'"),
    "flag-build-context-image": usage(build("--build-context", "more=docker-image://A B"), "build context more"),
    "flag-build-context-layout": usage(build("--build-context", "more=oci-layout://missing"), "build context more"),
    "flag-cache-to-type": usage(build("--cache-to", "type=wat,x=y"), "cache: unknown type 'wat'; expected one of"),
    "flag-cache-to-no-type": usage(build("--cache-to", "ref=x"), "cache: type=... is missing"),
    "flag-cache-to-no-ref": usage(build("--cache-to", "type=registry"), "cache type=registry: ref=... is missing"),
    "flag-cache-to-no-dest": usage(build("--cache-to", "type=local"), "cache-to type=local: dest=DIRECTORY is missing"),
    "flag-cache-to-mode": usage(build("--cache-to", "type=inline,mode=most"), "mode=most: expected min or max"),
    "flag-cache-from-twice": usage(build("--cache-from", "type=local,src=a,src=b"), "src is given twice"),
    "flag-cache-from-no-src": usage(
        build("--cache-from", "type=local"), "cache-from type=local: src=DIRECTORY is missing"
    ),
    "flag-cache-from-word": usage(build("--cache-from", "type=registry,bare"), "cache: field 2 is not key=value"),
    "flag-call-format": usage(build("--call", "check,format=xml"), "expected METHOD[,format=json][,ignorestatus=true]"),
    "flag-label-no-name": usage(build("--label", "=v"), "--label '=v': expected NAME=VALUE"),
    "flag-network": usage(build("--network", "wat"), "network 'wat': expected default, host or none"),
    "flag-no-cache-and-filter": usage(
        build("--no-cache", "--no-cache-filter", "a"), "no-cache and no-cache-filter: cannot be used together"
    ),
    "flag-switch": usage(build("--push=maybe"), "--push: expected true or false, not 'maybe'"),
    "flag-progress": usage(build("--progress", "wat"), "--progress: invalid choice: 'wat'"),
    "flag-quiet-progress": usage(
        build("-q", "--progress", "plain"), "--quiet and --progress=plain: cannot be used together"
    ),
    "flag-output-twice": usage(build("-o", "type=local,dest=a,dest=b"), "'dest' is given twice"),
    "flag-output-compression": usage(build("-o", "type=image,compression=lzma"), "compression=lzma: expected one of"),
    "flag-output-level": usage(
        build("-o", "type=image,compression=zstd,compression-level=99"), "compression-level=99: expected 0 to 22"
    ),
    "flag-output-boolean": usage(build("-o", "type=image,push=maybe"), "push=maybe: expected true or false"),
    "flag-output-dest": usage(build("-o", "type=image,dest=x"), "dest is not used by this type"),
    "flag-output-annotation": usage(build("-o", "type=image,annotation-nope.a=b"), "'nope' is no level"),
    "flag-output-stdout-twice": usage(
        build("-o", "-", "-o", "type=oci,dest=-"), "two outputs have the same destination"
    ),
    "flag-secret-no-id": usage(build("--secret", "src=file"), "secret: id=... is missing"),
    "flag-secret-missing": usage(build("--secret", "id=s,src=missing"), "secret s: missing does not exist"),
    "flag-secret-two-places": usage(build("--secret", "id=s,src=file,env=X"), "expected one place to take it from"),
    "flag-secret-type": usage(build("--secret", "id=s,type=magic"), "secret type=magic: expected file or env"),
    "flag-secret-key": usage(build("--secret", "id=s,size=1"), "secret: field 2: expected id=..."),
    "flag-shm-size": usage(build("--shm-size", "lots"), "--shm-size 'lots': expected a size"),
    "flag-ssh-missing": usage(build("--ssh", "default=missing"), "ssh default: missing"),
    "flag-ssh-no-id": usage(build("--ssh", "=file"), "ssh: the id is missing"),
    "flag-ssh-raw": usage(build("--ssh", "default=file,raw=maybe"), "raw=maybe: expected true or false"),
    "flag-ulimit": usage(build("--ulimit", "nofile=a"), "ulimit 'nofile=a': expected NAME=SOFT[:HARD]"),
    "flag-ulimit-name": usage(build("--ulimit", "zzz=1"), "unknown limit 'zzz'"),
    "flag-ulimit-order": usage(build("--ulimit", "nofile=5:1"), "the soft limit is above the hard one"),
    "flag-iidfile-directory": usage(build("--iidfile", "folder"), "folder: is a directory"),
    "flag-iidfile-files": usage(
        plain("build", ".", "-o", "out", "--iidfile", "iid"), "type local and tar have no image id"
    ),
    "two-contexts": usage(build("folder"), "unrecognized arguments: folder"),
    "progress": usage(build("--progress", "tty"), "not a terminal"),
    "run-env": usage(plain("run", "{image}", "-e", "=x"), "env '=x': expected NAME=VALUE"),
    # what only the frontend knows
    "target-missing": failure(build("--target", "nosuch"), 'target stage "nosuch" could not be found'),
    "dockerfile-instruction": failure(
        build("-f", "Fly"), "unknown instruction: FLY", shows=["Fly:2", "   2 | >>> FLY /\n"]
    ),
    "dockerfile-empty": failure(build("-f", "Empty"), "the Dockerfile cannot be empty"),
    "copy-missing": failure(build("-f", "CopyMissing"), "nosuch", "not found", shows=[">>> COPY nosuch /"]),
    "run-fails": failure(
        build("-f", "Fails", "--build-context", "{alpine}", "--platform", "linux/amd64"),
        'linux/amd64: process "/bin/sh -c echo one; echo two; exit 7" did not complete successfully: exit code: 7',
        shows=[
            "RUN echo one; echo two; exit 7:\none\ntwo\n",
            "Fails:2\n",
            "   2 | >>> RUN echo one; echo two; exit 7\n",
        ],
    ),
    "run-fails-on-one-platform": failure(
        build("-f", "FailsOnArm", "--build-context", "{alpine}", "--platform", "linux/amd64,linux/arm64"),
        "linux/arm64: process ",
        "exit code: 9",
        shows=["on arm64\n", ">>> RUN echo on $TARGETARCH"],
    ),
    # platforms that cannot be built
    "platform-cannot-run": failure(
        build("-f", "Alien", "--platform", "linux/wasm"),
        "linux/wasm",
        shows=[
            "hint: the daemon does not say that it can run linux/wasm; it says linux/amd64",
            "qemu-user-static and binfmt-support",
        ],
    ),
    "platform-not-in-base": failure(
        build("-f", "From", "--build-arg", "BASE={image}", "--platform", "linux/s390x"),
        "linux/s390x: {image}: ",
        "no match for platform",
        shows=[">>> FROM $BASE", "hint: {image} is not made for linux/s390x"],
    ),
    # daemons
    "daemon-gone": failure(build("--addr", "unix://{folder}/none.sock"), "{folder}/none.sock: there is no such socket"),
    "daemon-refuses": failure(build("--addr", "tcp://127.0.0.1:1"), "tcp://127.0.0.1:1: connection refused"),
    "daemon-unknown-host": failure(build("--addr", "tcp://no-such-host.invalid:1"), "cannot be resolved"),
    "docker-gone": failure(build("--addr", "docker://{folder}/none.sock"), "there is no such socket"),
    # registries
    "push-refused": failure(
        plain("build", ".", "-t", "{private}/x", "--push"),
        "{private}",
        "401",
        shows=["hint: log in first (docker login"],
    ),
    "push-some-refused": failure(build("-t", "{private}/x"), "{private}", "401"),
    "base-refused": failure(
        build("-f", "From", "--build-arg", "BASE={private}/x"), "{private}/x", "401", shows=["hint: log in first"]
    ),
    "inspect-refused": failure(plain("imagetools", "inspect", "{private}/x"), "{private}", "401", "docker login"),
    "run-refused": failure(plain("run", "{private}/x"), "{private}", "401", "docker login {private}"),
    "push-nowhere": failure(build("-t", "localhost:1/x"), "localhost:1/x", "connection refused"),
    "push-nowhere-many": failure(
        build("-t", "localhost:1/x", "--platform", "linux/amd64,linux/arm64"), "localhost:1/x"
    ),
    "base-nowhere": failure(build("-f", "From", "--build-arg", "BASE=localhost:1/x"), "localhost:1/x", "refused"),
    "inspect-nowhere": failure(plain("imagetools", "inspect", "localhost:1/x"), "localhost:1: connection refused"),
    "run-nowhere": failure(plain("run", "localhost:1/x"), "localhost:1: connection refused"),
    "base-unknown": failure(build("-f", "From", "--build-arg", "BASE={registry}/none"), "{registry}/none", "not found"),
    "inspect-unknown": failure(plain("imagetools", "inspect", "{registry}/none"), "none/manifests/latest", "404"),
    "run-unknown": failure(plain("run", "{image}@sha256:{zeros}"), "404"),
}
"""The table of issue rows: what is given, the exit code, and what is said."""


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that even root cannot write into."""
    folder = tmp_path_factory.mktemp("read-only")
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


FILES = {
    "Dockerfile": "FROM scratch\nCOPY file /\n",
    "file": "content",
    "Fly": "FROM scratch\nFLY /\n",
    "Empty": "",
    "CopyMissing": "FROM scratch\nCOPY nosuch /\n",
    "Fails": "FROM alpine\nRUN echo one; echo two; exit 7\n",
    "FailsOnArm": "FROM alpine\nARG TARGETARCH\nRUN echo on $TARGETARCH; test $TARGETARCH = amd64 || exit 9\n",
    "Alien": 'FROM scratch\nCOPY alien /\nRUN ["/alien"]\n',
    "From": "ARG BASE\nFROM $BASE\nCOPY file /of-from\n",
}


@pytest.fixture(scope="module")
def world(
    daemon_address: str,
    registry: servers.Registry,
    auth_registry: servers.Registry,
    base_images: Mapping[str, str],
    read_only: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    folder = tmp_path_factory.mktemp("world")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "alien").write_bytes(ALIEN)
    (folder / "alien").chmod(0o755)
    (folder / "folder").mkdir()
    (folder / "folder" / "mine").write_text("mine")
    (folder / "tmp").mkdir()
    cli = CommandLine(address=daemon_address, docker_config=tmp_path_factory.mktemp("docker"))
    image = f"{registry.host}/bad-input:1"
    done = cli("build", folder, "--progress", "quiet", "-t", image, "--push", "--platform", "linux/amd64,linux/arm64")
    assert done.code == 0, done.stderr
    return World(
        cli=cli,
        registry=registry.host,
        private=auth_registry,
        image=image,
        digest=done.stdout.strip(),
        alpine=f"alpine={base_images['alpine']}",
        read_only=read_only,
        folder=folder,
    )


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def tags(world: World) -> tuple[list[str], str]:
    """Tags of the image's repository, and what the one of them names."""
    base = f"http://{world.registry}/v2/bad-input"
    with urllib.request.urlopen(f"{base}/tags/list", timeout=10) as answer:
        names = json.load(answer)["tags"]
    accept = {"Accept": "application/vnd.oci.image.index.v1+json"}
    request = urllib.request.Request(f"{base}/manifests/1", headers=accept, method="HEAD")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return names, answer.headers["Docker-Content-Digest"]


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(world: World, name: str) -> None:
    """Exit code, the one line and what is around it. Nothing is made, no tag moved."""
    row = ROWS[name]
    fields = _fields(world)
    env = {"TMPDIR": str(world.folder / "tmp")}
    needs_images = name.startswith("run-platform-missing")  # which is read from the registry alone
    if row.code == 2 and not needs_images:
        env["BUILDKIT_HOST"] = NOWHERE
    before = snapshot(world.folder)
    words = row.words(world)
    if words[0] == "build" and "--progress" not in words:
        words = [*words, "--progress", "quiet"]

    done = world.cli(*words, env=env, cwd=world.folder)
    line = refused(done, row.code, *(part.format_map(fields) for part in row.says))
    for part in row.shows:
        assert part.format_map(fields) in done.stderr
    if not row.shows and row.code == 2:
        assert done.stderr == f"{line}\n"

    assert snapshot(world.folder) == before
    assert tags(world) == (["1"], world.digest)


@pytest.mark.parametrize("name", ["tag-upper", "output-over-file", "run-fails", "daemon-refuses", "inspect-refused"])
def test_debug_adds_a_traceback(world: World, name: str) -> None:
    """And the same line comes last, but for a hint."""
    row = ROWS[name]
    done = world.cli(*row.words(world), "--debug", cwd=world.folder)
    assert (done.code, done.stdout) == (row.code, "")
    assert "Traceback (most recent call last)" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for part in row.says:
        assert part.format_map(_fields(world)) in line
    assert world.private.password not in done.stderr
