"""Every kind of output, for one platform and for several, as registries, other tools and the disk see it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, CacheSpec, ExporterSpec, build, connect
from buildkit_py.builder import BuildResult
from buildkit_py.errors import NotFound, RegistryError, SolveError
from buildkit_py.oci import Descriptor, Index, Manifest, parse_manifest_or_index
from buildkit_py.registry import HostConfig, Registry, RegistryConfig
from tests.support.servers import Registry as RegistryServer

pytestmark = pytest.mark.daemon

TWO = ("linux/amd64", "linux/arm64")


@pytest.fixture
def name(registry: RegistryServer, request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    return f"{registry.host}/outputs/{request.node.name.lower().translate(str.maketrans('[]=,', '----')).strip('-')}"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A file of each platform's own, a link to it, and a directory."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        "FROM scratch\nARG TARGETARCH\nCOPY file /etc/$TARGETARCH\nCOPY tree /\nLABEL a=b\n"
    )
    (folder / "file").write_text("content " * 512)
    (folder / "tree").mkdir()
    (folder / "tree" / "link").symlink_to("/etc/amd64")
    return folder


async def built(address: str, context: Path, *outputs: str, **fields: object) -> BuildResult:
    request = BuildRequest(
        context=context,
        outputs=[ExporterSpec.parse(text) for text in outputs],
        **{"attestations": {}, **fields},  # type: ignore[arg-type]
    )
    async with connect(address) as client:
        return await build(client, request)


async def fetch(reference: str, config: RegistryConfig | None = None) -> Manifest | Index:
    async with Registry(config=config) as client:
        raw, descriptor = await client.fetch_manifest(reference)
    return parse_manifest_or_index(raw, descriptor.media_type)


async def images(reference: str) -> list[Manifest]:
    """The image manifests behind a reference."""
    found = await fetch(reference)
    if isinstance(found, Manifest):
        return [found]
    repository = reference.rpartition(":")[0]
    children = [await fetch(f"{repository}@{entry.digest}") for entry in found.images]
    return [child for child in children if isinstance(child, Manifest)]


# Images that are pushed


@pytest.mark.parametrize("others", [(), ("linux/amd64",)], ids=["alone", "with-another"])
async def test_a_release_of_windows(daemon_address: str, context: Path, name: str, others: tuple[str, ...]) -> None:
    """Stands in the config and in the index; docker-buildx drops it on the way to the daemon."""
    windows = "windows(10.0.17763)/amd64"
    (context / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    await built(daemon_address, context, f"type=image,push=true,name={name}:1", platforms=[windows, *others])
    found = await fetch(f"{name}:1")
    if isinstance(found, Index):
        assert [str(entry.platform) for entry in found.images] == [windows, *others]
    else:
        assert not others
    async with Registry() as client:
        manifest, *_ = await images(f"{name}:1")
        config = json.loads(await client.fetch_blob_bytes(name, manifest.config, 1 << 20))
    assert (config["os"], config["os.version"]) == ("windows", "10.0.17763")


COMPRESSED = {
    "compression=uncompressed,force-compression=true": "application/vnd.oci.image.layer.v1.tar",
    "compression=gzip,compression-level=9,force-compression=true": "application/vnd.oci.image.layer.v1.tar+gzip",
    "compression=zstd,compression-level=19,force-compression=true": "application/vnd.oci.image.layer.v1.tar+zstd",
    "compression=estargz,force-compression=true": "application/vnd.oci.image.layer.v1.tar+gzip",
}


@pytest.mark.parametrize("attrs", COMPRESSED)
async def test_compressions(daemon_address: str, context: Path, name: str, attrs: str, estargz: bool) -> None:
    """Each reaches the layers of every platform."""
    if "estargz" in attrs and not estargz:
        pytest.skip("Debian's engine 28 dies when it writes estargz: panic: footer buffer = 48, not 51")
    await built(daemon_address, context, f"type=image,name={name}:1,push=true,{attrs}", platforms=TWO)
    found = await images(f"{name}:1")
    assert len(found) == 2
    assert {layer.media_type for image in found for layer in image.layers} == {COMPRESSED[attrs]}
    if "estargz" in attrs:
        assert all("containerd.io/snapshot/stargz/toc.digest" in layer.annotations for layer in found[0].layers)


async def test_docker_media_types(daemon_address: str, context: Path, name: str) -> None:
    """oci-mediatypes=false gives Docker's manifests, and its list over them."""
    await built(daemon_address, context, f"type=image,name={name}:1,push=true,oci-mediatypes=false", platforms=TWO)
    index = await fetch(f"{name}:1")
    assert index.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    assert {image.media_type for image in await images(f"{name}:1")} == {
        "application/vnd.docker.distribution.manifest.v2+json"
    }


async def test_push_by_digest_writes_no_tag(daemon_address: str, context: Path, name: str) -> None:
    """Two platforms, their index among them, and no name."""
    output = f"type=image,name={name},push=true,push-by-digest=true"
    result = await built(daemon_address, context, output, platforms=TWO)
    assert result.descriptor is not None
    assert isinstance(await fetch(f"{name}@{result.descriptor.digest}"), Index)
    async with Registry() as client:
        with pytest.raises(NotFound):
            await client.resolve(f"{name}:latest")


async def test_images_that_differ_in_one_build(daemon_address: str, context: Path, name: str) -> None:
    """gzip to two names and zstd to a third, for two platforms: what each tag has is what was asked for it."""
    await built(
        daemon_address,
        context,
        f"type=image,name={name}:gzip,push=true,force-compression=true",
        f'type=image,"name={name}:zstd,{name}-b:zstd",push=true,compression=zstd,force-compression=true',
        f"type=registry,name={name}-b:gzip,force-compression=true",
        platforms=TWO,
    )
    for tag, kind in ((":gzip", "gzip"), (":zstd", "zstd"), ("-b:zstd", "zstd"), ("-b:gzip", "gzip")):
        found = await images(f"{name}{tag}")
        assert len(found) == 2
        assert {layer.media_type.rpartition("+")[2] for image in found for layer in image.layers} == {kind}


async def test_an_insecure_registry(daemon_address: str, context: Path, tls_registry: RegistryServer) -> None:
    """Nobody knows who signed its certificate: without the attribute the daemon refuses, or we, where the daemon takes
    any registry on loopback; with it all goes through."""
    name = f"{tls_registry.host}/insecure"
    with pytest.raises((SolveError, RegistryError)):
        await built(daemon_address, context, f"type=image,name={name}:1,push=true", platforms=TWO)
    await built(daemon_address, context, f"type=image,name={name}:1,push=true,registry.insecure=true", platforms=TWO)
    trusting = RegistryConfig(hosts={tls_registry.host: HostConfig(skip_verify=True)})
    assert isinstance(await fetch(f"{name}:1", trusting), Index)


async def test_rewritten_times(daemon_address: str, context: Path, name: str) -> None:
    """rewrite-timestamp with an epoch: files are as old as that."""
    output = (
        f"type=image,name={name}:1,push=true,rewrite-timestamp=true,compression=uncompressed,force-compression=true"
    )
    await built(daemon_address, context, output, build_args={"SOURCE_DATE_EPOCH": "1700000000"})
    (image,) = await images(f"{name}:1")
    async with Registry() as client:
        layer = await client.fetch_blob_bytes(name, image.layers[0], 1 << 20)
    (Path(context) / "layer").write_bytes(layer)
    with tarfile.open(context / "layer") as archive:
        assert {int(entry.mtime) for entry in archive} == {1700000000}


async def test_annotations_at_all_four_levels(daemon_address: str, context: Path, name: str, tmp_path: Path) -> None:
    """In manifests, in one platform's alone, in the index, in its entries, and in what describes it."""
    result = await built(
        daemon_address,
        context,
        f"type=oci,dest={tmp_path / 'layout'},tar=false",
        platforms=TWO,
        tags=[f"{name}:1"],
        push=True,
        annotations={
            "plain": "m",
            "manifest[linux/arm64]:arm": "a",
            "index:top": "i",
            "manifest-descriptor:entry": "e",
            "manifest-descriptor[linux/amd64]:amd": "d",
            "index-descriptor:root": "r",
        },
    )
    index = await fetch(f"{name}:1")
    assert isinstance(index, Index)
    assert index.annotations == {"top": "i"}
    assert [dict(entry.annotations) for entry in index.images] == [{"entry": "e", "amd": "d"}, {"entry": "e"}]
    assert [dict(image.annotations) for image in await images(f"{name}:1")] == [
        {"plain": "m"},
        {"plain": "m", "arm": "a"},
    ]
    assert result.descriptor is not None
    assert dict(result.descriptor.annotations) == {"root": "r"}
    (entry,) = Index.parse((tmp_path / "layout" / "index.json").read_bytes()).manifests
    assert entry.digest == index.digest
    assert entry.annotations["root"] == "r"


async def test_one_platform_with_an_annotated_index(daemon_address: str, context: Path, name: str) -> None:
    """A lone manifest has no index; asked to annotate it, there is one."""
    await built(daemon_address, context, tags=[f"{name}:1"], push=True, annotations={"index:top": "i"})
    index = await fetch(f"{name}:1")
    assert isinstance(index, Index)
    assert (index.annotations, len(index.images)) == ({"top": "i"}, 1)


async def test_an_image_that_stays_with_the_daemon(daemon_address: str, context: Path) -> None:
    """Without push, one platform and two: all of it is built and exported, and the result says what it is."""
    for platforms in (("linux/amd64",), TWO):
        result = await built(daemon_address, context, "type=image,name=example.com/kept:1", platforms=platforms)
        assert all(entry.total > 0 for entry in result.platforms)
        assert result.references == ()
        assert result.descriptor is not None
        async with connect(daemon_address) as client:
            root = parse_manifest_or_index(await client.read_blob(result.descriptor.digest, 1 << 20))
        images = root.images if isinstance(root, Index) else (root.descriptor,)
        assert [entry.manifest.digest for entry in result.platforms if entry.manifest] == [
            image.digest for image in images
        ]


async def test_without_cache_what_stays_with_the_daemon_is_built_once(
    daemon_address: str, context: Path, tmp_path: Path, base_images: Mapping[str, str]
) -> None:
    """The image that it joins of several platforms has the layers that the other outputs have."""
    (context / "Dockerfile").write_text("FROM alpine\nRUN cat /proc/sys/kernel/random/uuid > /id\n")
    result = await built(
        daemon_address,
        context,
        "type=image,name=example.com/once:1",
        f"type=oci,dest={tmp_path}/layout/",
        platforms=TWO,
        build_contexts={"alpine": base_images["alpine"]},
        cache_to=[CacheSpec(type="inline")],
        no_cache=True,
    )
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    assert len(result.platforms) == 2
    for entry in result.platforms:
        assert entry.manifest is not None
        async with connect(daemon_address) as client:
            manifest = parse_manifest_or_index(await client.read_blob(entry.manifest.digest, 1 << 20))
            assert isinstance(manifest, Manifest)
            assert "moby.buildkit.cache.v0" in json.loads(await client.read_blob(manifest.config.digest, 1 << 20))
        assert all((blobs / layer.digest.hex).exists() for layer in manifest.layers)


# Files of this machine


def names_in(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        return {entry.name.rstrip("/") for entry in archive}


async def test_a_tar_of_two_platforms(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """Each below a directory of its own, with links as they were."""
    await built(daemon_address, context, f"type=tar,dest={tmp_path / 'out.tar'}", platforms=TWO)
    found = names_in(tmp_path / "out.tar")
    assert {"linux_amd64/etc/amd64", "linux_arm64/etc/arm64", "linux_amd64/link", "linux_arm64/link"} <= found
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getmember("linux_arm64/link").linkname == "/etc/amd64"
        member = archive.extractfile("linux_arm64/etc/arm64")
        assert member is not None
        assert member.read() == (context / "file").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["context", "out.tar"]


async def test_a_docker_archive_of_two_platforms(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """A layout of both, and the manifest.json of one for engines that know nothing else."""
    dest = tmp_path / "out.tar"
    result = await built(
        daemon_address, context, f"type=docker,dest={dest}", platforms=TWO, tags=["example.com/x:1", "y"]
    )
    with tarfile.open(dest) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isfile()}
        parts = {name: file.read() for name, file in files.items() if file is not None}
    assert result.descriptor is not None
    roots = Index.parse(parts["index.json"]).manifests
    assert {entry.digest for entry in roots} == {result.descriptor.digest}
    (image,) = json.loads(parts["manifest.json"])
    assert image["RepoTags"] == ["example.com/x:1", "y:latest"]
    assert json.loads(parts[image["Config"]])["architecture"] == "amd64"
    assert all(layer in parts for layer in image["Layers"])


async def test_directories_merged_or_split(daemon_address: str, context: Path, tmp_path: Path) -> None:
    """platform-split, both ways round; two platforms with the same path cannot be one directory."""
    await built(daemon_address, context, f"type=local,dest={tmp_path / 'one'},platform-split=true", platforms=["arm64"])
    assert (tmp_path / "one" / "linux_arm64" / "etc" / "arm64").is_file()
    (context / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY file /etc/$TARGETARCH\n")
    await built(daemon_address, context, f"type=local,dest={tmp_path / 'all'},platform-split=false", platforms=TWO)
    assert sorted(path.name for path in (tmp_path / "all" / "etc").iterdir()) == ["amd64", "arm64"]
    (context / "Dockerfile").write_text("FROM scratch\nCOPY file /etc/same\n")
    with pytest.raises(SolveError, match="etc/same"):
        await built(daemon_address, context, f"type=local,dest={tmp_path / 'no'},platform-split=false", platforms=TWO)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("platforms", [("linux/amd64",), TWO])
async def test_a_directory_that_mirrors_the_result(
    daemon_address: str, context: Path, tmp_path: Path, platforms: Sequence[str]
) -> None:
    """mode=delete removes what is not part of it; without it, it stays."""
    dest = tmp_path / "out"
    inner = dest / "linux_amd64" if len(platforms) > 1 else dest
    await built(daemon_address, context, f"type=local,dest={dest}", platforms=platforms)
    (inner / "etc" / "stale").write_text("x")
    (dest / "mine").write_text("x")
    await built(daemon_address, context, f"type=local,dest={dest}", platforms=platforms)
    assert (inner / "etc" / "stale").exists()
    assert (dest / "mine").exists()
    await built(daemon_address, context, f"type=local,dest={dest},mode=delete", platforms=platforms)
    assert sorted(path.name for path in (inner / "etc").iterdir()) == ["amd64"]
    assert not (dest / "mine").exists()


async def test_all_kinds_in_one_build(daemon_address: str, context: Path, tmp_path: Path, name: str) -> None:
    """Two platforms pushed, and as oci, docker, tar and local: one root everywhere."""
    result = await built(
        daemon_address,
        context,
        f"type=oci,dest={tmp_path / 'oci.tar'},oci-mediatypes=true",
        f"type=docker,dest={tmp_path / 'docker.tar'},oci-mediatypes=true",
        f"type=tar,dest={tmp_path / 'files.tar'}",
        f"type=local,dest={tmp_path / 'files'}",
        platforms=TWO,
        tags=[f"{name}:1"],
        push=True,
    )
    assert result.descriptor is not None
    roots: list[Descriptor] = []
    for archive_name in ("oci.tar", "docker.tar"):
        with tarfile.open(tmp_path / archive_name) as archive:
            index = archive.extractfile("index.json")
            assert index is not None
            roots += Index.parse(index.read()).manifests
    assert {root.digest for root in roots} == {result.descriptor.digest, (await fetch(f"{name}:1")).digest}
    assert "linux_arm64/etc/arm64" in names_in(tmp_path / "files.tar")
    assert (tmp_path / "files" / "linux_amd64" / "etc" / "amd64").is_file()
