"""What daemons of the table's releases do with its features; others are refused before they build."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, ExporterSpec, StatusUpdate, build, connect, features
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
