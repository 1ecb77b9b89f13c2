"""Caches of a build: written by one daemon's state, of use to a daemon that has lost it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, CacheSpec, ExporterSpec, StatusUpdate, build, connect
from buildkit_py.errors import SolveError
from buildkit_py.registry import Registry
from tests.support.servers import PrivateDaemon
from tests.support.servers import Registry as RegistryServer

pytestmark = pytest.mark.daemon

PLATFORMS = ("linux/amd64", "linux/arm64")


class Project:
    """A build whose steps cost something: a file is copied and copied again in a stage that the result drops."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.context = folder / "project"
        self.context.mkdir()
        (self.context / "Dockerfile").write_text(
            "FROM scratch AS early\nARG TARGETARCH\nCOPY file /${TARGETARCH}\n"
            "FROM scratch\nCOPY --from=early / /\nCOPY file /last\n"
        )
        (self.context / "file").write_text("content")

    async def build(self, platforms: Sequence[str] = (), **fields: object) -> Mapping[str, bool]:
        """Whether each COPY came from the cache, by platform and step."""
        cached: dict[str, bool] = {}

        def note(label: str, update: StatusUpdate) -> None:
            for vertex in update.vertexes:
                if "COPY" in vertex.name and vertex.completed_ns is not None:
                    cached[f"{label} {vertex.name}"] = cached.get(f"{label} {vertex.name}", False) or vertex.cached

        request = BuildRequest(context=self.context, platforms=platforms, attestations={}, **fields)  # type: ignore[arg-type]
        async with connect(self.address) as client:
            await build(client, request, on_status=note)
        assert cached, "a build whose steps are not seen shows nothing of caches"
        return cached

    async def forget(self) -> None:
        """Remove all that the daemon knows of earlier builds."""
        async with connect(self.address) as client:
            async for _ in client.prune(all=True):
                pass
            assert not [record for record in await client.disk_usage() if record.in_use]


@pytest.fixture
def project(fresh_daemon: PrivateDaemon, tmp_path: Path) -> Project:
    """A project and a daemon that may forget what it knows."""
    return Project(fresh_daemon.address, tmp_path)


def image(name: str) -> ExporterSpec:
    """Makes the daemon produce the result."""
    return ExporterSpec(type="image", attrs={"name": name, "push": "true"})


async def tags(registry: RegistryServer, repository: str) -> list[str]:
    async with Registry() as client:
        return sorted(await client.tags(f"{registry.host}/{repository}"))


def local_tags(folder: Path) -> list[str]:
    entries = json.loads((folder / "index.json").read_text())["manifests"]
    return sorted(entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries)


async def test_a_cache_in_a_directory(project: Project, tmp_path: Path) -> None:
    """Written with mode=max, read after the daemon has forgotten everything; all steps come from it."""
    folder = tmp_path / "cache"
    out = [ExporterSpec(type="tar", dest=str(tmp_path / "out.tar"))]
    to = CacheSpec.parse(f"type=local,dest={folder},mode=max")
    assert not any((await project.build(cache_to=[to], outputs=out)).values())
    assert local_tags(folder) == ["latest"]
    assert not (folder / "ingest").exists()
    await project.forget()
    cached = await project.build(cache_from=[CacheSpec.parse(f"type=local,src={folder}")], outputs=out)
    assert len(cached) == 3
    assert all(cached.values()), cached


async def test_a_cache_of_two_platforms_in_a_directory(project: Project, tmp_path: Path) -> None:
    """One tag each, from one spec; an import brings both, and one that names a platform's tag brings that one."""
    folder = tmp_path / "cache"
    out = [ExporterSpec(type="local", dest=str(tmp_path / "out"))]
    to = CacheSpec.parse(f"type=local,dest={folder},tag=main,mode=max")
    await project.build(PLATFORMS, cache_to=[to], outputs=out)
    assert local_tags(folder) == ["main-linux-amd64", "main-linux-arm64"]
    await project.forget()
    cached = await project.build(
        PLATFORMS, cache_from=[CacheSpec.parse(f"type=local,src={folder},tag=main")], outputs=out
    )
    assert len(cached) == 6
    assert all(cached.values()), cached
    await project.forget()
    only = CacheSpec.parse(f"type=local,src={folder},tag=main-linux-arm64")
    cached = await project.build(PLATFORMS[1:], cache_from=[only], outputs=out)
    assert all(cached.values()), cached


async def test_caches_of_two_platforms_in_a_registry(project: Project, registry: RegistryServer) -> None:
    """With the platform in the tag; the build goes on where one of them is missing."""
    to = CacheSpec.parse(f"type=registry,ref={registry.host}/caches/two:c,mode=max")
    outputs = [image(f"{registry.host}/caches/app:1")]
    await project.build(PLATFORMS, cache_to=[to], outputs=outputs)
    assert await tags(registry, "caches/two") == ["c-linux-amd64", "c-linux-arm64"]
    await project.forget()
    cached = await project.build(PLATFORMS, cache_from=[CacheSpec.parse(f"{registry.host}/caches/two:c")])
    assert len(cached) == 6
    assert all(cached.values()), cached


async def test_the_cache_of_one_platform_has_the_name_that_was_given(
    project: Project, registry: RegistryServer
) -> None:
    """As docker buildx has it, so that both can use it."""
    reference = f"{registry.host}/caches/one:c"
    outputs = [image(f"{registry.host}/caches/app:2")]
    to = CacheSpec.parse(f"type=registry,ref={reference},mode=max")
    await project.build(PLATFORMS[:1], cache_to=[to], outputs=outputs)
    assert await tags(registry, "caches/one") == ["c"]
    await project.forget()
    cached = await project.build(PLATFORMS, cache_from=[CacheSpec.parse(reference)])
    assert all(value for name, value in cached.items() if name.startswith("linux/amd64")), cached
    assert not all(cached.values())


async def test_an_inline_cache_is_imported_from_the_index(project: Project, registry: RegistryServer) -> None:
    """That of each platform stands in its image; the name of the index brings all. Early stages are not in it."""
    reference = f"{registry.host}/caches/inline:1"
    await project.build(PLATFORMS, cache_to=[CacheSpec(type="inline")], tags=[reference], push=True)
    await project.forget()
    cached = await project.build(PLATFORMS, cache_from=[CacheSpec.parse(reference)])
    last = {name: value for name, value in cached.items() if "/last" in name}
    assert len(last) == 2
    assert all(last.values()), cached


async def test_every_image_of_a_build_holds_its_inline_cache(project: Project, registry: RegistryServer) -> None:
    """Also those that are pushed by further solves, since they differ from the first."""
    names = [f"{registry.host}/caches/inline-{kind}:1" for kind in ("gzip", "zstd")]
    outputs = [
        ExporterSpec.parse(f"type=image,name={name},push=true,compression={kind},force-compression=true")
        for name, kind in zip(names, ("gzip", "zstd"), strict=True)
    ]
    await project.build(PLATFORMS, cache_to=[CacheSpec(type="inline")], outputs=outputs)
    for name in names:
        await project.forget()
        cached = await project.build(PLATFORMS, cache_from=[CacheSpec.parse(name)])
        last = {step: value for step, value in cached.items() if "/last" in step}
        assert len(last) == 2
        assert all(last.values()), (name, cached)


async def test_several_caches_in_and_out(project: Project, registry: RegistryServer, tmp_path: Path) -> None:
    """Two directories and a registry at once; each alone is enough, and what is missing does no harm."""
    folders = [tmp_path / "one", tmp_path / "two"]
    reference = f"{registry.host}/caches/several:c"
    out = [ExporterSpec(type="tar", dest=str(tmp_path / "out.tar"))]
    exports = [CacheSpec.parse(f"type=local,dest={folder},mode=max") for folder in folders]
    exports[1] = CacheSpec.parse(
        f"type=local,dest={folders[1]},mode=max,compression=uncompressed,force-compression=true"
    )
    exports.append(CacheSpec.parse(f"type=registry,ref={reference},mode=max"))
    await project.build(cache_to=exports, outputs=out)
    roots = [json.loads((folder / "index.json").read_text())["manifests"][0]["digest"] for folder in folders]
    assert roots[0] != roots[1], "each directory has its own cache"
    sources = [f"type=local,src={folder}" for folder in folders] + [reference]
    for source in sources:
        await project.forget()
        imports = [CacheSpec.parse(text) for text in (f"type=local,src={tmp_path / 'none'}", source)]
        cached = await project.build(cache_from=imports, outputs=out)
        assert all(cached.values()), (source, cached)


async def test_a_failed_build_moves_no_tag(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    to = CacheSpec.parse(f"type=local,dest={folder}")
    out = [ExporterSpec(type="tar", dest=str(tmp_path / "out.tar"))]
    await project.build(cache_to=[to], outputs=out)
    before = (folder / "index.json").read_bytes()
    (project.context / "Dockerfile").write_text("FROM scratch\nCOPY missing /\n")
    with pytest.raises(SolveError, match="missing"):
        await project.build(cache_to=[to], outputs=out)
    assert (folder / "index.json").read_bytes() == before


async def test_a_directory_that_buildctl_wrote_is_a_cache_too(project: Project, tmp_path: Path) -> None:
    """And the other way round: what it reads is what we wrote."""
    buildctl = shutil.which("buildctl")
    if buildctl is None or not project.address.startswith("unix://"):
        pytest.skip("no buildctl on the PATH, or a daemon that it cannot reach")
    folder = tmp_path / "cache"
    out = [ExporterSpec(type="tar", dest=str(tmp_path / "out.tar"))]
    command = [
        *(buildctl, "--addr", project.address, "build", "--frontend", "dockerfile.v0", "--progress", "plain"),
        *("--local", f"context={project.context}", "--local", f"dockerfile={project.context}"),
        *("--output", f"type=tar,dest={tmp_path / 'peer.tar'}"),
    ]
    subprocess.run(
        [*command, "--export-cache", f"type=local,dest={folder},mode=max"], check=True, capture_output=True, timeout=60
    )
    await project.forget()
    cached = await project.build(cache_from=[CacheSpec.parse(f"type=local,src={folder}")], outputs=out)
    assert all(cached.values()), cached

    ours = tmp_path / "ours"
    await project.build(cache_to=[CacheSpec.parse(f"type=local,dest={ours},mode=max")], outputs=out)
    await project.forget()
    done = subprocess.run(
        [*command, "--import-cache", f"type=local,src={ours}"], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.count("CACHED") == 3, done.stderr
