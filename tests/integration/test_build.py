"""The main job on a real daemon and a real registry."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, ExporterSpec, RunRequest, StatusUpdate, build, connect, run
from buildkit_py.builder import BuildResult
from buildkit_py.oci import Index, Manifest, parse_manifest_or_index
from buildkit_py.platforms import Platform
from buildkit_py.registry import Registry
from tests.support.peers import buildx, skopeo
from tests.support.servers import Registry as RegistryServer

pytestmark = pytest.mark.daemon

PLATFORMS = ("linux/arm/v7", "linux/arm64", "linux/amd64")
GREETINGS = {"linux/arm/v7": "Hello, arm!\n", "linux/arm64": "Hello, arm64!\n", "linux/amd64": "Hello, amd64!\n"}
HELLO_ARCH = Path(__file__).parents[2] / "examples" / "hello-arch"


class Recorder:
    """Status updates of a build, by platform."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, StatusUpdate]] = []

    def __call__(self, label: str, update: StatusUpdate) -> None:
        self.updates.append((label, update))

    def digests(self, needle: str) -> set[str]:
        """Digests of the vertexes whose name has needle."""
        return {vertex.digest for _, update in self.updates for vertex in update.vertexes if needle in vertex.name}

    def executed(self, needle: str) -> set[str]:
        """Platforms on which a vertex with needle in its name ran rather than came from the cache."""
        return {
            label
            for label, update in self.updates
            for vertex in update.vertexes
            if needle in vertex.name and vertex.completed_ns is not None and not vertex.cached
        }


@pytest.fixture
def name(registry: RegistryServer, request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    return f"{registry.host}/{request.node.name.lower().replace('[', '-').replace(']', '')}"


async def fetch(reference: str) -> Manifest | Index:
    async with Registry() as client:
        raw, descriptor = await client.fetch_manifest(reference)
    return parse_manifest_or_index(raw, descriptor.media_type)


async def build_hello(
    address: str, contexts: Mapping[str, str], recorder: Recorder | None = None, **fields: object
) -> BuildResult:
    request = BuildRequest(context=HELLO_ARCH, build_contexts=contexts, **fields)  # type: ignore[arg-type]
    async with connect(address) as client:
        return await build(client, request, on_status=recorder)


async def test_hello_arch_runs_on_all_three_platforms(
    daemon_address: str, base_images: Mapping[str, str], name: str
) -> None:
    """One unchanged Dockerfile, one solve a platform, one reference, every platform run by digest."""
    recorder = Recorder()
    fields = {"platforms": PLATFORMS, "tags": [name], "push": True}
    result = await build_hello(daemon_address, base_images, recorder, **fields)

    index = await fetch(name)
    assert isinstance(index, Index)
    assert [str(entry.platform) for entry in index.images] == list(PLATFORMS)
    assert result.descriptor is not None
    assert index.digest == result.descriptor.digest
    assert [entry.manifest.digest for entry in result.platforms if entry.manifest] == [
        entry.digest for entry in index.images
    ]
    assert [entry.attests for entry in index.attestations] == [str(entry.digest) for entry in index.images]
    assert len({entry.ref for entry in result.platforms}) == 3
    # The context crossed once: all three solves read it through one and the same vertex.
    assert len(recorder.digests("load build context")) == 1
    for entry in result.platforms:
        assert entry.size is not None
        assert entry.size > 100_000
        assert 0 <= entry.cached <= entry.total
        assert entry.seconds > 0

    printed: dict[str, bytes] = {}

    def output(platform: Platform, stream: int, data: bytes) -> None:
        assert stream == 1
        printed[str(platform)] = printed.get(str(platform), b"") + data

    async with connect(daemon_address) as client, Registry() as registry:
        ran = await run(client, RunRequest(reference=name), registry=registry, on_output=output)
    assert {platform: data.decode() for platform, data in printed.items()} == GREETINGS
    assert list(printed) == list(PLATFORMS)
    assert [entry.exit_code for entry in ran] == [0, 0, 0]
    assert [entry.digest for entry in ran] == [entry.digest for entry in index.images]

    again = Recorder()
    cached = await build_hello(daemon_address, base_images, again, **fields)
    assert again.executed("RUN go build") == set()
    assert [entry.manifest.digest for entry in cached.platforms if entry.manifest] == [
        entry.digest for entry in index.images
    ]
    assert all(entry.cached > 0 for entry in cached.platforms)


async def test_other_tools_read_the_same_index(daemon_address: str, base_images: Mapping[str, str], name: str) -> None:
    """skopeo and buildx see the digest that we wrote, and its bytes."""
    result = await build_hello(
        daemon_address, base_images, platforms=PLATFORMS, tags=[f"{name}:1"], push=True, attestations={}
    )
    assert result.descriptor is not None
    peer, other = skopeo(), buildx()
    if peer is None or other is None:
        pytest.skip("skopeo or docker-buildx is not here")
    raw = await output_of(peer, "inspect", "--raw", "--tls-verify=false", f"docker://{name}:1")
    assert hashlib.sha256(raw).hexdigest() == result.descriptor.digest.hex
    seen = await output_of(other, "imagetools", "inspect", f"{name}:1", "--raw")
    assert seen == raw
    text = await output_of(other, "imagetools", "inspect", f"{name}:1")
    assert str(result.descriptor.digest) in text.decode()
    for platform in PLATFORMS:
        assert platform in text.decode()


async def output_of(*command: str) -> bytes:
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def test_one_platform_keeps_the_bytes_that_the_daemon_pushed(
    daemon_address: str, scratch: Path, name: str
) -> None:
    """A plain manifest without attestations, an index with them, as docker buildx gives."""
    async with connect(daemon_address) as client:
        plain = await build(client, BuildRequest(context=scratch, tags=[name], push=True, attestations={}))
        assert isinstance(await fetch(name), Manifest)
        attested = await build(client, BuildRequest(context=scratch, tags=[name], push=True))
        index = await fetch(name)
    assert isinstance(index, Index)
    assert attested.descriptor is not None
    assert plain.descriptor is not None
    assert index.digest == attested.descriptor.digest
    assert len(index.images) == len(index.attestations) == 1
    assert plain.platforms[0].platform is not None
    assert plain.metadata()["containerimage.digest"] == str(plain.descriptor.digest)
    assert plain.metadata()["containerimage.config.digest"] == str(plain.platforms[0].config_digest)


async def test_several_names_get_the_same_root(daemon_address: str, scratch: Path, name: str) -> None:
    """Tags of one repository, and a second repository."""
    tags = [f"{name}:1", f"{name}:2", f"{name}-other:3"]
    async with connect(daemon_address) as client:
        request = BuildRequest(context=scratch, platforms=["amd64", "arm64"], tags=tags, push=True)
        result = await build(client, request)
    assert result.descriptor is not None
    assert {(await fetch(tag)).digest for tag in tags} == {result.descriptor.digest}
    assert [str(reference) for reference in result.references] == tags


async def test_annotations_of_the_index(daemon_address: str, scratch: Path, name: str) -> None:
    """They stand on the index that we write."""
    async with connect(daemon_address) as client:
        request = BuildRequest(
            context=scratch,
            platforms=["amd64", "arm64"],
            tags=[name],
            push=True,
            annotations={"index:org.opencontainers.image.title": "<x>"},
        )
        await build(client, request)
    assert (await fetch(name)).annotations == {"org.opencontainers.image.title": "<x>"}


@pytest.mark.parametrize("directory", [False, True])
async def test_an_oci_layout_of_all_platforms(
    daemon_address: str, scratch: Path, tmp_path: Path, directory: bool
) -> None:
    """No registry at hand: one layout, its index of both platforms, every blob there and right."""
    dest = tmp_path / "out"
    spec = ExporterSpec(type="oci", dest=f"{dest}/" if directory else str(dest))
    async with connect(daemon_address) as client:
        request = BuildRequest(context=scratch, platforms=["amd64", "arm64"], outputs=[spec], tags=["example.com/x:1"])
        result = await build(client, request)
    if not directory:
        with tarfile.open(dest) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        dest = tmp_path / "unpacked"
    assert sorted(path.name for path in dest.iterdir()) == ["blobs", "index.json", "oci-layout"]
    (root,) = json.loads((dest / "index.json").read_text())["manifests"]
    assert result.descriptor is not None
    assert root["digest"] == str(result.descriptor.digest)
    assert root["annotations"]["io.containerd.image.name"] == "example.com/x:1"
    seen: list[str] = []
    todo = [root["digest"]]
    while todo:
        digest = todo.pop()
        raw = (dest / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == digest.removeprefix("sha256:")
        seen.append(digest)
        content = parse_manifest_or_index(raw)
        if isinstance(content, Index):
            todo += [str(entry.digest) for entry in content.manifests]
        else:
            for blob in content.blobs:
                data = (dest / "blobs" / "sha256" / blob.digest.hex).read_bytes()
                blob.verify(data)
                seen.append(str(blob.digest))
    assert len(list((dest / "blobs" / "sha256").iterdir())) == len(set(seen))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


async def test_files_of_two_platforms(daemon_address: str, scratch: Path, tmp_path: Path) -> None:
    """Each platform in a directory of its own; a second build replaces what changed and keeps the rest."""
    dest = tmp_path / "out"
    request = BuildRequest(
        context=scratch, platforms=["amd64", "arm64"], outputs=[ExporterSpec(type="local", dest=str(dest))]
    )
    async with connect(daemon_address) as client:
        await build(client, request)
        assert (dest / "linux_amd64" / "file").read_text() == "content"
        assert (dest / "linux_arm64" / "file").read_text() == "content"
        (dest / "kept").write_text("mine")
        await build(client, request)
    assert (dest / "kept").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scratch"]


async def test_several_outputs_at_once(daemon_address: str, scratch: Path, tmp_path: Path, name: str) -> None:
    """A push, a layout and a tar of one build agree."""
    outputs = [
        ExporterSpec(type="oci", dest=str(tmp_path / "layout.tar")),
        ExporterSpec(type="tar", dest=str(tmp_path / "files.tar")),
    ]
    async with connect(daemon_address) as client:
        request = BuildRequest(context=scratch, tags=[name], push=True, outputs=outputs, attestations={})
        result = await build(client, request)
    with tarfile.open(tmp_path / "files.tar") as archive:
        assert "file" in archive.getnames()
    with tarfile.open(tmp_path / "layout.tar") as archive:
        member = archive.extractfile("index.json")
        assert member is not None
        assert result.descriptor is not None
        assert json.loads(member.read())["manifests"][0]["digest"] == str(result.descriptor.digest)


async def test_build_arguments_target_and_labels(daemon_address: str, tmp_path: Path, name: str) -> None:
    """What the request says reaches the frontend."""
    (tmp_path / "Other").write_text(
        "FROM scratch AS wanted\nARG WHAT\nCOPY file /${WHAT}\nFROM scratch\nCOPY missing /\n"
    )
    (tmp_path / "file").write_text("x")
    out = tmp_path / "out.tar"
    async with connect(daemon_address) as client:
        request = BuildRequest(
            context=tmp_path,
            dockerfile=tmp_path / "Other",
            target="wanted",
            build_args={"WHAT": "renamed"},
            labels={"a": "b"},
            tags=[name],
            push=True,
            attestations={},
            outputs=[ExporterSpec(type="tar", dest=str(out))],
        )
        result = await build(client, request)
    with tarfile.open(out) as archive:
        assert "renamed" in archive.getnames()
    manifest = await fetch(name)
    assert isinstance(manifest, Manifest)
    async with Registry() as client_:
        config = json.loads(await client_.fetch_blob_bytes(name, manifest.config, 1 << 20))
    assert config["config"]["Labels"] == {"a": "b"}
    assert result.platforms[0].config_digest == manifest.config.digest


async def test_dockerignore_is_honoured(daemon_address: str, tmp_path: Path) -> None:
    """The daemon reads it; what it drops does not cross."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (tmp_path / ".dockerignore").write_text("*.log\n!keep.log\nsub/**\n")
    for path in ("a.log", "keep.log", "b.txt"):
        (tmp_path / path).write_text(path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c").write_text("c")
    out = tmp_path.parent / f"{tmp_path.name}.tar"
    async with connect(daemon_address) as client:
        await build(client, BuildRequest(context=tmp_path, outputs=[ExporterSpec(type="tar", dest=str(out))]))
    with tarfile.open(out) as archive:
        names = set(archive.getnames())
    assert {"keep.log", "b.txt"} <= names
    assert not names & {"a.log", "sub/c"}
