"""What daemons of the table's releases do with its features; others are refused before they build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from buildkit_py import Allow, BuildRequest, CacheSpec, ExporterSpec, StatusUpdate, build, connect, features, llb
from buildkit_py.errors import SolveError, UnsupportedByDaemon
from tests.support.servers import Registry

pytestmark = pytest.mark.daemon

PUSHED = "type=image,name={host}/features/{name}:1,push=true"
REQUESTS: Mapping[str, tuple[features.Feature, tuple[str, ...], Mapping[str, str]]] = {
    "two-outputs": (features.SEVERAL_OUTPUTS, (PUSHED, "type=local,dest={folder}/out"), {}),
    "rewrite-timestamp": (features.REWRITE_TIMESTAMP, (f"{PUSHED},rewrite-timestamp=true",), {}),
    "oci-artifact": (features.OCI_ARTIFACT, (f"{PUSHED},oci-artifact=true",), {"provenance": "mode=min"}),
    "dangling": (
        features.DANGLING_EMPTY_ONLY,
        ("type=image,name=kept,dangling-name-prefix=<none>,danging-name-empty-only=true",),
        {},
    ),
    "complete-materials": (
        features.COMPLETE_MATERIALS,
        (PUSHED,),
        {"provenance": "mode=max,version=v0.2,complete-materials=true"},
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_feature_is_there_or_refused(
    name: str, daemon_address: str, registry: Registry, capabilities: frozenset[str], tmp_path: Path
) -> None:
    """The refusal names the feature and the release that has it, and no step has run."""
    feature, outputs, attestations = REQUESTS[name]
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    texts = [text.format(host=registry.host, name=name, folder=tmp_path) for text in outputs]
    request = BuildRequest(
        context=tmp_path / "context",
        outputs=[ExporterSpec.parse(text) for text in texts],
        attestations=attestations,
    )
    seen: list[StatusUpdate] = []
    async with connect(daemon_address) as client:
        if feature.capability in capabilities:
            # That local directories are no materials is what this one tells.
            fails = feature is features.COMPLETE_MATERIALS
            with pytest.raises(SolveError, match="materials are incomplete") if fails else nullcontext():
                await build(client, request)
            return
        with pytest.raises(UnsupportedByDaemon) as caught:
            await build(client, request, on_status=lambda _, update: seen.append(update))
    assert str(caught.value) == (
        f"{feature.name}: the daemon at {daemon_address} cannot do that; BuildKit {feature.since} or newer can"
    )
    assert seen == []
    assert not (tmp_path / "out").exists()


ANCIENT: Mapping[str, tuple[features.Feature, Mapping[str, Any]]] = {
    "default": (features.ATTESTATIONS, {"attestations": {"provenance": "mode=min"}}),
    "context": (features.NAMED_CONTEXTS, {"build_contexts": {"more": "."}}),
    "annotation": (features.ANNOTATIONS, {"annotations": {"a": "b"}, "load": True, "tags": ["a/b:1"]}),
    "epoch": (features.SOURCE_DATE_EPOCH, {"build_args": {"SOURCE_DATE_EPOCH": "0"}}),
    "ulimit": (features.ULIMIT, {"ulimits": ["nofile=1:1"]}),
    "shm-size": (features.SHM_SIZE, {"shm_size": 1 << 20}),
    "cgroup": (features.CGROUP_PARENT, {"cgroup_parent": "x"}),
    "outputs": (features.SEVERAL_OUTPUTS, {"outputs": ["type=local,dest={folder}/a", "type=tar,dest={folder}/b"]}),
    "cache": (features.CACHE_MANIFEST, {"cache_to": ["type=registry,ref=localhost:1/x,image-manifest=true"]}),
    "cache-error": (features.IGNORED_CACHE_ERROR, {"cache_to": ["type=registry,ref=localhost:1/x,ignore-error=true"]}),
    "cache-compression": (
        features.CACHE_COMPRESSION,
        {"cache_to": ["type=registry,ref=localhost:1/x,compression=zstd"]},
    ),
    "github": (features.GITHUB_REPOSITORY, {"cache_to": ["type=gha,url=http://localhost:1,token=x,ghtoken=y"]}),
    "github-v2": (features.GITHUB_CACHE_V2, {"cache_to": ["type=gha,url_v2=http://localhost:1,token=x,version=2"]}),
    "level": (features.COMPRESSION_LEVEL, {"outputs": ["type=image,name=a,compression=gzip,compression-level=9"]}),
    "force": (features.FORCE_COMPRESSION, {"outputs": ["type=image,name=a,compression=gzip,force-compression=true"]}),
    "foreign": (features.FOREIGN_LAYERS, {"outputs": ["type=image,name=a,prefer-nondist-layers=true"]}),
    "split": (features.PLATFORM_SPLIT, {"outputs": ["type=local,dest={folder}/a,platform-split=true"]}),
    "multi-platform": (features.MULTI_PLATFORM_ARG, {"build_args": {"BUILDKIT_MULTI_PLATFORM": "1"}}),
    "hostname": (features.HOSTNAME_ARG, {"build_args": {"BUILDKIT_SANDBOX_HOSTNAME": "x"}}),
    "epoch-of-times": (features.REWRITE_TIMESTAMP, {"outputs": ["type=image,name=a,rewrite-timestamp=true"]}),
    "artifact": (features.OCI_ARTIFACT, {"outputs": ["type=image,name=a,oci-artifact=true"]}),
    "dangling": (
        features.DANGLING_EMPTY_ONLY,
        {"outputs": ["type=image,name=a,dangling-name-prefix=b,danging-name-empty-only=true"]},
    ),
    "policy": (features.SOURCE_POLICY, {"source_policy": lambda _: Allow()}),
}


@pytest.mark.parametrize("name", ANCIENT)
async def test_a_very_old_daemon_refuses_what_it_would_leave_out(
    name: str, ancient_engine_address: str, tmp_path: Path
) -> None:
    """It cannot even say its version, and does build what it knows."""
    feature, fields = ANCIENT[name]
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /file\n")
    fields = {"context": tmp_path / "context", "attestations": {}, **fields}
    texts = [text.format(folder=tmp_path) for text in fields.get("outputs", ())]
    fields |= {"outputs": [ExporterSpec.parse(text) for text in texts]}
    fields |= {"cache_to": [CacheSpec.parse(text) for text in fields.get("cache_to", ())]}
    async with connect(ancient_engine_address) as client:
        assert await client.info() is None
        with pytest.raises(UnsupportedByDaemon, match=f"{re.escape(feature.name)}: .*BuildKit {feature.since}"):
            await build(client, BuildRequest(**fields))
        out = tmp_path / "out"
        plain = BuildRequest(
            context=tmp_path / "context",
            platforms=["amd64", "arm64"],
            attestations={},
            outputs=[ExporterSpec(type="local", dest=str(out))],
        )
        await build(client, plain)
    assert (out / "linux_arm64" / "file").is_file()
    assert not (tmp_path / "a").exists()


COPIED = llb.scratch().mkfile("/f", "x")
GRAPHS: Mapping[str, tuple[features.Feature, llb.State]] = {
    "patterns": (features.COPY_PATTERNS, llb.scratch().copy(COPIED, "/", "/", include_patterns=["f"])),
    "replaced": (
        features.REPLACED_DESTINATION,
        llb.scratch().copy(COPIED, "/", "/", always_replace_existing_dest_paths=True),
    ),
    "mode": (features.MODE_IN_WORDS, llb.scratch().copy(COPIED, "/", "/", mode="u+x")),
    "required": (
        features.REQUIRED_PATHS,
        llb.scratch().copy(COPIED, "/", "/", include_patterns=["f"], required_paths=["/f"]),
    ),
    "symlink": (features.SYMLINK, llb.scratch().symlink("a", "/b")),
    "cgroup": (
        features.CGROUP_PARENT,
        llb.image("x", platform="linux/amd64").run(["true"], cgroup_parent="x", platform="linux/amd64"),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
async def test_a_very_old_daemon_refuses_what_it_would_leave_out_of_a_graph(
    name: str, ancient_engine_address: str
) -> None:
    """What relies on two features is refused for one of them."""
    feature, state = GRAPHS[name]
    wanted = features.COPY_PATTERNS if feature is features.REQUIRED_PATHS else feature
    async with connect(ancient_engine_address) as client:
        with pytest.raises(UnsupportedByDaemon, match=f"^{re.escape(wanted.name)}: .*BuildKit {wanted.since}"):
            await client.solve(llb.marshal(state))


@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - {"cgroup"}))
async def test_a_feature_of_a_graph_is_there_or_refused(
    name: str, daemon_address: str, capabilities: frozenset[str]
) -> None:
    feature, state = GRAPHS[name]
    there = feature.capability in capabilities
    refused = pytest.raises(UnsupportedByDaemon, match=f"^{re.escape(feature.name)}: .*BuildKit {feature.since}")
    async with connect(daemon_address) as client:
        with nullcontext() if there else refused:
            await client.solve(llb.marshal(state))


async def test_a_very_old_daemon_refuses_to_prune_too_much(ancient_engine_address: str) -> None:
    async with connect(ancient_engine_address) as client:
        with pytest.raises(UnsupportedByDaemon, match=re.escape(features.PRUNE_BY_DESCRIPTION.name)):
            [record async for record in client.prune(["description~=x"])]
        with pytest.raises(UnsupportedByDaemon, match=re.escape(features.PRUNE_BY_SPACE.name)):
            [record async for record in client.prune(max_used_space=1)]
        assert [record async for record in client.prune(["id==none"])] == []


def test_daemons_have_all_that_is_older_than_what_they_have(capabilities: frozenset[str]) -> None:
    """A capability that a release should list and does not would have its feature refused without need."""
    table = [value for value in vars(features).values() if isinstance(value, features.Feature) and value.capability]
    newest = max((at for at, feature in enumerate(table) if feature.capability in capabilities), default=-1)
    assert newest > 0
    reached = {feature.since for feature in table[: newest + 1]}
    assert [
        feature.name for feature in table if feature.since in reached and feature.capability not in capabilities
    ] == []


async def test_capabilities_are_asked_for_once(daemon_address: str) -> None:
    """They are the daemon's own; nothing of the question stays in its history of builds."""
    async with connect(daemon_address) as client:
        found = await client.capabilities()
        assert {"exporter.multiple", "source.image", "exec.mount.cache", "solve.base"} <= found
        assert await client.capabilities() is found
        assert not await client.supports("none.such")
