"""The same Dockerfile and flags through docker-buildx and through us, on one daemon: the same image.

With an epoch and without attestations, whose times and ids differ from build to build, whole indexes are equal byte
for byte; with attestations, the images that they are about.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from buildkit_py.oci import Index
from buildkit_py.registry import Registry
from tests.support import servers
from tests.support.buildx import Buildx
from tests.support.cli import CommandLine, Done

pytestmark = pytest.mark.daemon

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
OUTPUT = "type=image,push=true,oci-mediatypes=true"
THREE = ("--platform", "linux/amd64,linux/arm64,linux/arm/v7")
TWO = ("--platform", "linux/amd64,linux/arm64")
SHELL = "FROM alpine\n"
CONFIGURED = (
    'FROM scratch\nENV A=1 B="two words"\nWORKDIR /work\nUSER 1000:1000\nEXPOSE 80/tcp 53/udp\nVOLUME /data\n'
    'STOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s CMD ["/probe"]\nLABEL one=1 two="2 3"\nONBUILD COPY . /\n'
    'ENTRYPOINT ["/entry"]\nCMD ["a", "b"]\nCOPY file /\n'
)
STAGES = (
    "ARG VERSION=1\nFROM alpine AS build\nARG VERSION\nARG TARGETARCH\nRUN echo $VERSION $TARGETARCH > /out\n"
    "FROM scratch AS other\nCOPY missing /\nFROM scratch\nCOPY --from=build /out /out\n"
)
HEREDOC = "FROM scratch\nCOPY <<one <<two /dir/\n1\none\n2\ntwo\n"
ARCHITECTURES = "FROM scratch\nARG TARGETARCH\nARG TARGETVARIANT\nCOPY file /$TARGETARCH$TARGETVARIANT\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A build, in words that both know."""

    dockerfile: str = "FROM scratch\nCOPY file /\n"
    flags: tuple[str, ...] = ()
    output: str = OUTPUT
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    stdin: str = ""
    """What comes through standard input: the ``Dockerfile``, or the whole ``context``, maybe a ``packed context``."""
    buildkitd_only: str = ""
    """Why an engine cannot do it, if it cannot."""


CASES: Mapping[str, Case] = {
    "plain": Case(),
    "two platforms": Case(dockerfile=ARCHITECTURES, flags=TWO),
    "three platforms": Case(dockerfile=ARCHITECTURES, flags=THREE),
    "the other order": Case(dockerfile=ARCHITECTURES, flags=("--platform", "linux/arm64", "--platform", "linux/amd64")),
    "another platform": Case(dockerfile=ARCHITECTURES, flags=("--platform", "linux/arm/v7")),
    "all of a config": Case(dockerfile=CONFIGURED),
    "build arguments": Case(dockerfile=STAGES, flags=("--build-arg", "VERSION=2", "--build-arg", "UNSET")),
    "argument of the environment": Case(dockerfile=STAGES, flags=("--build-arg", "VERSION"), env={"VERSION": "3"}),
    "target": Case(dockerfile=STAGES, flags=("--target", "build")),
    "stages on two platforms": Case(dockerfile=STAGES, flags=TWO),
    "heredocs": Case(dockerfile=HEREDOC),
    "labels": Case(flags=("--label", "a=b", "--label", "empty", "--label", "url=http://x/?a=b")),
    "annotations": Case(flags=(*TWO, "--annotation", "a=b", "--annotation", "index:c=<d>")),
    "annotations everywhere": Case(
        flags=(
            *TWO,
            *("--annotation", "index,manifest:both=1"),
            *("--annotation", "manifest[linux/arm64]:arm=2"),
            *("--annotation", "manifest-descriptor[linux/amd64]:entry=3"),
            *("--annotation", "index-descriptor:root=4"),
        )
    ),
    "annotation of one image": Case(flags=("--annotation", "manifest:a=b", "--annotation", "manifest-descriptor:c=d")),
    "zstd": Case(output=f"{OUTPUT},compression=zstd,force-compression=true", flags=TWO),
    "a level of gzip": Case(output=f"{OUTPUT},compression=gzip,compression-level=9,force-compression=true"),
    "uncompressed": Case(output=f"{OUTPUT},compression=uncompressed,force-compression=true", flags=TWO),
    "estargz": Case(output=f"{OUTPUT},compression=estargz,force-compression=true"),
    "rewritten times": Case(
        dockerfile=STAGES,
        output=f"{OUTPUT},rewrite-timestamp=true",
        flags=("--no-cache",),
        buildkitd_only="docker-buildx unpacks what it pushes from an engine, which excludes rewritten times",
    ),
    "Docker's media types": Case(output="type=image,push=true,oci-mediatypes=false", flags=TWO),
    "an index of one": Case(flags=("--build-arg", "BUILDKIT_MULTI_PLATFORM=1")),
    "an epoch as argument": Case(flags=("--build-arg", "SOURCE_DATE_EPOCH=1600000000")),
    "a named directory": Case(
        dockerfile="FROM scratch\nCOPY --from=more . /\n", flags=("--build-context", "more={folder}/more")
    ),
    "a named image": Case(dockerfile=SHELL + "COPY file /\n"),
    "another Dockerfile": Case(dockerfile="FROM nowhere\n", flags=("-f", "{folder}/Other")),
    "a Dockerfile on stdin": Case(flags=("-f", "-"), stdin="Dockerfile"),
    "a context on stdin": Case(stdin="context"),
    "ignored files": Case(dockerfile="FROM scratch\nCOPY . /\n"),
    "a secret": Case(
        dockerfile=SHELL + "RUN --mount=type=secret,id=s sha256sum /run/secrets/s > /sum\n",
        flags=("--secret", "id=s,src={folder}/secret"),
    ),
    "hosts": Case(
        dockerfile=SHELL + "RUN grep -E 'one|two' /etc/hosts > /hosts\n",
        flags=("--add-host", "one:10.0.0.1", "--add-host", "two=[::1]"),
    ),
    "no network": Case(dockerfile=SHELL + "RUN ls /sys/class/net > /net\n", flags=("--network", "none")),
    "shared memory": Case(
        dockerfile=SHELL + "RUN df -k /dev/shm | tail -1 | awk '{print $2}' > /size\n", flags=("--shm-size", "32m")
    ),
    "limits": Case(dockerfile=SHELL + "RUN ulimit -n > /n\n", flags=("--ulimit", "nofile=123:456")),
    "a control group": Case(dockerfile=SHELL + "RUN echo x > /x\n", flags=("--cgroup-parent", "parity")),
    "pull": Case(dockerfile=SHELL + "RUN echo y > /y\n", flags=("--pull",)),
    "no cache of a stage": Case(
        dockerfile=STAGES,
        output=f"{OUTPUT},rewrite-timestamp=true",
        flags=("--no-cache-filter", "build"),
        buildkitd_only="docker-buildx unpacks what it pushes from an engine, which excludes rewritten times",
    ),
    "inline cache": Case(flags=("--cache-to", "type=inline")),
    "a proxy": Case(
        dockerfile=SHELL + "RUN echo $http_proxy > /proxy\n", flags=("--build-arg", "http_proxy=http://proxy:1")
    ),
    "emulated": Case(dockerfile=SHELL + "RUN uname -m > /machine\n", flags=TWO),
    # The odd ones
    "annotations of an output": Case(
        dockerfile=ARCHITECTURES,
        flags=(*TWO, "--annotation", "manifest:z=flag"),
        output=f"{OUTPUT},annotation.a=b,annotation-manifest.z=attribute,annotation-index.e=f,annotation-manifest[linux/arm64].g=h"
        ",annotation-manifest-descriptor.i=j",
    ),
    "an annotation of one platform before that of all": Case(
        dockerfile=ARCHITECTURES,
        flags=(*TWO, "--annotation", "manifest[linux/amd64]:z=own", "--annotation", "manifest:z=all"),
    ),
    "annotations that are no words": Case(
        flags=("--annotation", "org.x/y=1,2=ü", "--annotation", "empty=", "--annotation", "a=1", "--annotation", "a=2")
    ),
    "another escape": Case(dockerfile="# escape=`\nFROM scratch\nCOPY file `\n  /\n"),
    "checks that are skipped": Case(dockerfile="# check=skip=all;error=true\nfrom scratch as A\nCOPY file /\n"),
    "a mark and long line ends": Case(dockerfile="\ufeffFROM scratch\r\nCOPY file /\r\n"),
    "a platform as argument": Case(dockerfile="ARG P=linux/arm64\nFROM --platform=$P scratch\nCOPY file /\n"),
    "built here for elsewhere": Case(
        dockerfile="FROM --platform=$BUILDPLATFORM alpine AS b\nARG TARGETPLATFORM\nARG BUILDPLATFORM\n"
        "RUN echo $BUILDPLATFORM $TARGETPLATFORM > /o\nFROM scratch\nCOPY --from=b /o /\n",
        flags=THREE,
    ),
    "steps for later": Case(
        dockerfile="FROM scratch AS a\nONBUILD COPY file /later\nONBUILD LABEL x=y\nFROM a\nCOPY file /now\n", flags=TWO
    ),
    "a target in capitals": Case(
        dockerfile="FROM scratch AS one\nCOPY file /a\nFROM scratch AS two\nCOPY file /b\n", flags=("--target", "ONE")
    ),
    "arguments that are no words": Case(
        dockerfile="FROM scratch\nARG A\nARG B\nARG C=c\nARG D\nLABEL a=$A b=$B c=$C d=$D\n",
        flags=(
            *("--build-arg", "A=x=y=z", "--build-arg", "B=ünï 日本", "--build-arg", "C="),
            *("--build-arg", "D=1", "--build-arg", 'D=two\nlines "quoted" $HOME \\x'),
        ),
    ),
    "an argument that platforms set": Case(dockerfile=ARCHITECTURES, flags=("--build-arg", "TARGETARCH=other")),
    "labels over labels": Case(
        dockerfile="FROM scratch\nLABEL a=file b=file\nCOPY file /\n",
        flags=("--label", "a=flag", "--label", "c=ü", "--label", 'd="q"', "--label", "a=last"),
    ),
    "several stages again": Case(
        dockerfile="FROM scratch AS a\nCOPY file /\nFROM scratch AS B\nCOPY file /b\nFROM a\nCOPY --from=B / /\n",
        flags=("--no-cache-filter", "a", "--no-cache-filter", "B,nope"),
    ),
    "other spellings of platforms": Case(dockerfile=ARCHITECTURES, flags=("--platform", "aarch64,x86_64")),
    "variants": Case(dockerfile=ARCHITECTURES, flags=("--platform", "linux/arm64/v8,linux/amd64/v2,linux/arm/v6")),
    "scripts": Case(
        dockerfile=SHELL + "RUN <<EOF\nset -e\necho one > /o\nEOF\nCOPY <<-EOT /t\n\ttabbed $HOME\n\tEOT\n"
    ),
    "all that COPY can": Case(
        dockerfile="FROM scratch\nCOPY --link --chmod=751 --chown=7:8 file /x/\nADD --chmod=600 file /s/\n"
    ),
    "mounts": Case(
        dockerfile=SHELL + "RUN --mount=type=bind,target=/c --mount=type=tmpfs,target=/t "
        "--mount=type=cache,id=parity,target=/k cat /c/file > /o\n"
    ),
    "a secret of the environment": Case(
        dockerfile=SHELL + "RUN --mount=type=secret,id=s sha256sum /run/secrets/s > /o\n",
        flags=("--secret", "id=s,env=HUSHED"),
        env={"HUSHED": "hush"},
    ),
    "a stage that is a context": Case(
        dockerfile="FROM scratch AS base\nCOPY missing /\nFROM scratch\nCOPY --from=base inner /\n",
        flags=("--build-context", "base={folder}/more"),
    ),
    "ignored but for some": Case(dockerfile="FROM scratch\nCOPY . /\n", flags=("-f", "{folder}/Picky")),
    "a packed context on stdin": Case(stdin="packed context"),
    "an epoch of nothing": Case(env={"SOURCE_DATE_EPOCH": "0"}, flags=TWO),
    "inline caches": Case(dockerfile=ARCHITECTURES, flags=(*TWO, "--cache-to", "type=inline")),
    "zstd with all around it": Case(
        dockerfile=ARCHITECTURES,
        output=f"{OUTPUT},compression=zstd,compression-level=3,force-compression=true",
        flags=(*THREE, "--annotation", "index:a=b", "--label", "c=d", "--cache-to", "type=inline"),
    ),
}


@pytest.fixture(scope="module")
def peer(daemon_address: str, tmp_path_factory: pytest.TempPathFactory) -> Buildx:
    try:
        return Buildx(daemon_address, tmp_path_factory.mktemp("buildx"))
    except servers.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def cli(daemon_address: str, tmp_path: Path) -> CommandLine:
    return CommandLine(address=daemon_address, docker_config=tmp_path / "docker")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A context, and beside it what flags may name."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("content")
    (context / ".dockerignore").write_text("ignored\n.dockerignore\nDockerfile\n")
    (context / "ignored").write_text("x")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "inner").write_text("more")
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "Other").write_text("FROM scratch\nCOPY file /other\n")
    (tmp_path / "Picky").write_text("FROM scratch\nCOPY . /\n")
    (tmp_path / "Picky.dockerignore").write_text("**\n!fi*\n!ign?red\n")
    return tmp_path


def archive(context: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(context.iterdir()):
            tar.add(path, path.name)
    return packed.getvalue()


def arguments(case: Case, folder: Path, alpine: str, tag: str) -> list[str]:
    flags = [flag.replace("{folder}", str(folder)) for flag in case.flags]
    context = "-" if "context" in case.stdin else str(folder / "context")
    named = ["--build-context", f"alpine={alpine}"] if " alpine" in case.dockerfile else []
    return ["--provenance=false", "-t", tag, "-o", case.output, *named, *flags, context]


def run_both(case: Case, folder: Path, alpine: str, tag: str, peer: Buildx, cli: CommandLine) -> tuple[Done, Done]:
    """docker-buildx first; what follows finds its steps in the cache."""
    stdin = b""
    if case.stdin == "Dockerfile":
        stdin = case.dockerfile.encode()
    else:
        (folder / "context" / "Dockerfile").write_text(case.dockerfile)
    if "context" in case.stdin:
        stdin = archive(folder / "context")
    if "packed" in case.stdin:
        stdin = gzip.compress(stdin)
    env = EPOCH | dict(case.env)
    theirs = peer.build(*arguments(case, folder, alpine, f"{tag}-theirs"), env=env, stdin=stdin)
    assert theirs.code == 0, theirs.stderr
    ours = cli("build", *arguments(case, folder, alpine, f"{tag}-ours"), env=env, stdin=stdin)
    assert ours.code == 0, ours.stderr
    return theirs, ours


def both(peer: Buildx, cli: CommandLine) -> tuple[Callable[..., Done], Callable[..., Done]]:
    """What runs a build, docker-buildx first."""
    return peer.build, functools.partial(cli, "build")


def fetched(reference: str) -> bytes:
    async def fetch() -> bytes:
        async with Registry() as client:
            raw, _ = await client.fetch_manifest(reference)
        return raw

    return asyncio.run(fetch())


@pytest.mark.parametrize("name", CASES)
def test_the_same_image(
    name: str,
    daemon_address: str,
    base_images: Mapping[str, str],
    registry: servers.Registry,
    peer: Buildx,
    cli: CommandLine,
    folder: Path,
    estargz: bool,
) -> None:
    """Byte for byte, from the root down: equal roots name equal children."""
    case = CASES[name]
    if "estargz" in case.output and not estargz:
        pytest.skip("Debian's engine 28 dies when it writes estargz: panic: footer buffer = 48, not 51")
    if case.buildkitd_only and daemon_address.startswith("docker:"):
        pytest.skip(case.buildkitd_only)
    tag = f"{registry.host}/parity/{''.join(char if char.isalnum() else '-' for char in name.lower())}:1"
    _, ours = run_both(case, folder, base_images["alpine"], tag, peer, cli)
    theirs = fetched(f"{tag}-theirs")
    assert fetched(f"{tag}-ours") == theirs
    assert ours.stdout.startswith("sha256:")


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 25


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.parametrize("platforms", [(), TWO], ids=["one", "two"])
def test_the_same_layout(
    kind: str, platforms: Sequence[str], daemon_address: str, peer: Buildx, cli: CommandLine, folder: Path
) -> None:
    """The root of an archive, and all of its blobs; docker-buildx makes no docker archive of two platforms."""
    if kind == "docker" and platforms:
        kind_of_peer = "oci"
    else:
        kind_of_peer = kind
    (folder / "context" / "Dockerfile").write_text(ARCHITECTURES)
    common = ["--provenance=false", "-t", "example.com/x:1", *platforms, str(folder / "context")]
    attrs = "oci-mediatypes=true"
    theirs = peer.build("-o", f"type={kind_of_peer},dest={folder}/theirs.tar,{attrs}", *common, env=EPOCH)
    assert theirs.code == 0, theirs.stderr
    ours = cli("build", "-o", f"type={kind},dest={folder}/ours.tar,{attrs}", *common, env=EPOCH)
    assert ours.code == 0, ours.stderr
    contents = [_files(folder / name) for name in ("theirs.tar", "ours.tar")]
    roots = [[entry.digest for entry in Index.parse(files["index.json"]).manifests] for files in contents]
    assert roots[0] == roots[1]
    blobs = [{name for name in files if name.startswith("blobs/")} for files in contents]
    assert blobs[0] == blobs[1]


def _files(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


@pytest.mark.parametrize("flags", [(), ("--provenance=mode=max",)], ids=["default", "max"])
def test_the_same_images_with_attestations(
    flags: Sequence[str],
    registry: servers.Registry,
    peer: Buildx,
    cli: CommandLine,
    folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    """What is attested is equal, and as many attestations are paired with it."""
    tag = f"{registry.host}/parity/attested-{request.node.callspec.id}:1"
    (folder / "context" / "Dockerfile").write_text(ARCHITECTURES)
    common = [*TWO, *flags, "-o", OUTPUT, str(folder / "context")]
    theirs = peer.build("-t", f"{tag}-theirs", *common, env=EPOCH)
    assert theirs.code == 0, theirs.stderr
    ours = cli("build", "-t", f"{tag}-ours", *common, env=EPOCH)
    assert ours.code == 0, ours.stderr
    first, second = (Index.parse(fetched(f"{tag}-{whose}")) for whose in ("theirs", "ours"))
    assert first.images == second.images
    assert [entry.attests for entry in first.attestations] == [entry.attests for entry in second.attestations]
    assert len(first.attestations) == 2


METADATA: Mapping[str, tuple[str, ...]] = {
    "pushed": ("-o", OUTPUT, "--provenance=false"),
    "attested": ("-o", OUTPUT),
    "kept": ("-o", "type=image,oci-mediatypes=true", "--provenance=false", *TWO),
    "layouts": ("-o", "type=oci,dest={folder}/out.tar,oci-mediatypes=true", "--provenance=false", *TWO),
    "two platforms": ("-o", OUTPUT, "--provenance=false", *TWO),
    "two attested": ("-o", OUTPUT, *TWO),
    "a layout": ("-o", "type=oci,dest={folder}/out.tar", "--provenance=false"),
    "files": ("-o", "type=local,dest={folder}/out"),
    "arguments": ("-o", "type=cacheonly", "--build-arg", "A=b", "--label", "c=d", "--target", "last"),
}


@pytest.mark.parametrize("name", METADATA)
def test_the_same_metadata(name: str, registry: servers.Registry, peer: Buildx, cli: CommandLine, folder: Path) -> None:
    """The keys of --metadata-file and their values, but for ids and what is of each run alone."""
    (folder / "context" / "Dockerfile").write_text("FROM scratch AS last\nCOPY file /\n")
    flags = [flag.replace("{folder}", str(folder)) for flag in METADATA[name]]
    tag = f"{registry.host}/parity/metadata-{name.replace(' ', '-')}:1"
    files = {whose: folder / f"{whose}.json" for whose in ("theirs", "ours")}
    theirs = peer.build("-t", tag, *flags, "--metadata-file", files["theirs"], folder / "context", env=EPOCH)
    assert theirs.code == 0, theirs.stderr
    ours = cli("build", "-t", tag, *flags, "--metadata-file", files["ours"], folder / "context", env=EPOCH)
    assert ours.code == 0, ours.stderr
    first, second = (json.loads(files[whose].read_text()) for whose in ("theirs", "ours"))
    assert second.pop("buildkit_py.platforms")
    assert sorted(second) == sorted(first)
    assert second["buildx.build.ref"].count("/") == first["buildx.build.ref"].count("/") == 2
    for fields in (first, second):
        fields.pop("buildx.build.ref")
        if "attested" in name:  # the attestation has times, and so has the index a digest of its own
            fields.pop("containerimage.digest")
            fields["containerimage.descriptor"].pop("digest")
    if provenance := second.get("buildx.build.provenance"):
        # Said by daemons that are newer than this docker-buildx, which drops it.
        provenance["invocation"]["parameters"].pop("compatibilityVersion", None)
    assert second == first


@pytest.mark.parametrize("mode", ["max", "min", "disabled", "0", "x"])
def test_the_same_recorded_provenance(
    mode: str, registry: servers.Registry, peer: Buildx, cli: CommandLine, folder: Path
) -> None:
    """BUILDX_METADATA_PROVENANCE: with max all but what is of each run alone."""
    (folder / "context" / "Dockerfile").write_text("FROM scratch AS last\nCOPY file /\n")
    found: list[dict[str, Any]] = []
    for number, run in enumerate(both(peer, cli)):
        tag, file = f"{registry.host}/parity/full-provenance:{number}", folder / f"{number}.json"
        flags = ["-t", tag, "--push", "--provenance=mode=max", "--metadata-file", file]
        done = run(*flags, folder / "context", env=EPOCH | {"BUILDX_METADATA_PROVENANCE": mode})
        assert done.code == 0, done.stderr
        found.append(json.loads(file.read_text()).get("buildx.build.provenance", {}))
    first, second = found
    assert (first != {}) == (mode in {"max", "min", "x"})
    for provenance in found if first else []:
        provenance["invocation"]["parameters"].pop("compatibilityVersion", None)
        assert ("metadata" in provenance) == ("buildConfig" in provenance) == (mode == "max")
    for provenance in found if mode == "max" else []:
        for key in ("buildInvocationID", "buildStartedOn", "buildFinishedOn"):
            assert provenance["metadata"].pop(key)
        daemon = provenance["metadata"]["https://mobyproject.org/buildkit@v1#metadata"]
        daemon.pop("sysUsage", None)
        for graph in (provenance["buildConfig"], *daemon["source"]["infos"]):
            # Digests of local sources have an id of the client in them.
            graph["digestMapping"] = sorted(graph["digestMapping"].values())
    assert second == first


def test_the_same_warnings(registry: servers.Registry, peer: Buildx, cli: CommandLine, folder: Path) -> None:
    """BUILDX_METADATA_WARNINGS: as they came, each once; not unless it is asked for."""
    (folder / "context" / "Dockerfile").write_text("from scratch AS One\nCOPY file /\nENV a b\nMAINTAINER x\n")
    for wanted in ("1", "0"):
        found: list[list[dict[str, Any]]] = []
        for number, run in enumerate(both(peer, cli)):
            file = folder / f"{number}.json"
            flags = ["-o", "type=cacheonly", *TWO, "--metadata-file", file]
            done = run(*flags, folder / "context", env={"BUILDX_METADATA_WARNINGS": wanted})
            assert done.code == 0, done.stderr
            fields = json.loads(file.read_text())
            assert ("buildx.build.warnings" in fields) == (wanted == "1")
            found.append(fields.get("buildx.build.warnings", []))
        for warnings in found:
            for warning in warnings:
                assert warning.pop("vertex")
        first, second = (sorted(warnings, key=json.dumps) for warnings in found)
        assert second == first
        assert len(first) >= (3 if wanted == "1" else 0)


def test_the_same_image_id(registry: servers.Registry, peer: Buildx, cli: CommandLine, folder: Path) -> None:
    """--iidfile and -q: of one image its config, of an index the index."""
    (folder / "context" / "Dockerfile").write_text(ARCHITECTURES)
    for platforms in ((), TWO):
        common = [*platforms, "--provenance=false", "-q", "-t", f"{registry.host}/parity/iid:1", "-o", OUTPUT]
        theirs = peer.build(*common, "--iidfile", folder / "theirs", folder / "context", env=EPOCH)
        ours = cli("build", *common, "--iidfile", folder / "ours", folder / "context", env=EPOCH)
        assert (theirs.code, ours.code) == (0, 0), theirs.stderr + ours.stderr
        assert (folder / "ours").read_text() == (folder / "theirs").read_text()
        assert ours.stdout == theirs.stdout


def test_the_same_rules_about_sources(
    registry: servers.Registry, peer: Buildx, cli: CommandLine, folder: Path, base_images: Mapping[str, str]
) -> None:
    """EXPERIMENTAL_BUILDKIT_SOURCE_POLICY: another image in place of one, none at all, and what is no policy."""
    (folder / "context" / "Dockerfile").write_text("FROM example.com/nowhere:1\nCOPY file /\n")
    rules = folder / "rules.json"
    env = EPOCH | {"EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(rules)}
    flags: list[str | Path] = ["--provenance=false", "-o", OUTPUT, folder / "context", "-t"]

    def decide(action: object, **more: object) -> None:
        rule = {"action": action, "selector": {"identifier": "docker-image://example.com/nowhere:*"}, **more}
        rules.write_text(json.dumps({"version": 1, "rules": [rule]}))

    image = base_images["alpine"].partition("@")[0]
    decide("CONVERT", updates={"identifier": image})
    roots: list[bytes] = []
    for number, run in enumerate(both(peer, cli)):
        tag = f"{registry.host}/parity/rules:{number}"
        done = run(*flags, tag, env=env)
        assert done.code == 0, done.stderr
        roots.append(fetched(tag))
    assert roots[1] == roots[0]
    for action in ("DENY", 1):
        decide(action)
        for run in both(peer, cli):
            done = run(*flags, f"{registry.host}/parity/rules:no", env=env)
            assert done.code == 1
            assert "denied by policy" in done.stderr
    decide("DENY", updatse={})
    done = cli("build", *flags, f"{registry.host}/parity/rules:no", env=env)
    assert (done.code, "updatse" in done.stderr, str(rules) in done.stderr) == (2, True, True)
    rules.unlink()
    done = cli("build", *flags, f"{registry.host}/parity/rules:no", env=env)
    assert (done.code, "No such file" in done.stderr) == (2, True)


def test_the_same_answers(peer: Buildx, cli: CommandLine, folder: Path, capabilities: frozenset[str]) -> None:
    """--call: the JSON that frontends give, and the exit code of a check; one that makes no checks is named."""
    checks = "file.copy.alwaysreplaceexistingdestpaths" in capabilities  # of v0.14, as the checks are
    (folder / "context" / "Dockerfile").write_text("from scratch AS one\nARG A=1\nCOPY file /\nENV a b\n")
    for method in ("check", "outline", "targets"):
        words = ["--call", f"{method},format=json", str(folder / "context")]
        theirs, ours = peer.build(*words), cli("build", *words)
        if method == "check" and not checks:
            assert ours.code == 1
            assert ours.stderr == "error: call lint: the frontend does not answer this\n"
            continue
        first, second = json.loads(theirs.stdout), json.loads(ours.stdout)
        for answer in (first, second):
            for source in answer.get("sources") or []:
                if isinstance(source, dict):  # digests of the definition have the session's id in them
                    source.pop("definition", None)
        assert second == first
        assert ours.code == theirs.code == (1 if method == "check" else 0)
    if not checks:
        return
    theirs, ours = peer.build("--check", str(folder / "context")), cli("build", "--check", str(folder / "context"))
    assert ours.code == theirs.code == 1


ASKED: Mapping[str, str] = {
    "much": (
        "# first\nARG GLOBAL=1\n# base is where it begins\nFROM scratch AS base\n"
        "# VERSION is what is built\nARG VERSION=2\n"
        "ARG EMPTY\nRUN --mount=type=secret,id=key,required=true --mount=type=ssh --mount=type=cache,target=/c x\n"
        "FROM base as Final\nCOPY file /\nMAINTAINER x\nENV a b\n"
    ),
    "little": "FROM scratch\nCOPY file /\n",
    "two stages": "FROM scratch AS one\nFROM one\n",
    "wrong": "from scratch\nno such\n",
    "wrong and warned of": "from scratch\nCOPY --from=Nope:x y /\nCMD a\nCMD b\n",
}


@pytest.mark.parametrize("name", ASKED)
def test_the_same_text(name: str, peer: Buildx, cli: CommandLine, folder: Path, capabilities: frozenset[str]) -> None:
    """--call: every line for people, but for blanks at their ends; what cannot be built is told on standard error."""
    checks = "file.copy.alwaysreplaceexistingdestpaths" in capabilities  # of v0.14, as the checks are
    (folder / "context" / "Dockerfile").write_text(ASKED[name])
    for words in (("--check",), ("--call=outline",), ("--call=outline", "--target=base"), ("--call=targets",)):
        context = folder / "context"
        theirs, ours = peer.build(*words, ".", cwd=context), cli("build", *words, ".", cwd=context)
        assert _lines(ours.stdout) == _lines(theirs.stdout), (words, ours.stderr)
        assert ours.code == theirs.code
        if words == ("--check",) and not checks:
            assert ours.stderr == "error: call lint: the frontend does not answer this\n"
        elif words == ("--check",) and ours.stderr:
            first, *_ = ours.stderr.splitlines()
            assert first in theirs.stderr


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]
