"""Attestations in every mode, from the daemon to our index; and builds that come out the same wherever they run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, ExporterSpec, build, connect, features
from buildkit_py.errors import UnsupportedByDaemon
from buildkit_py.oci import Index, Manifest, parse_manifest_or_index
from buildkit_py.registry import Registry
from tests.support import servers

pytestmark = pytest.mark.daemon

TWO = ("linux/amd64", "linux/arm64")
HELLO_ARCH = Path(__file__).parents[2] / "examples" / "hello-arch"
SCANNER = """\
FROM alpine
COPY <<"EOT" /scan.sh
for destination in $BUILDKIT_SCAN_DESTINATION; do
  printf '%s' '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document",' \\
    '"predicate":{"spdxVersion":"SPDX-2.3","name":"'"$BUILDKIT_SCAN_LABEL"'"}}' > $destination/found.spdx.json
done
EOT
ENTRYPOINT ["/bin/sh", "/scan.sh"]
"""
SLSA = "https://slsa.dev/provenance/"


async def fetch(name: str) -> Manifest | Index:
    async with Registry() as client:
        raw, descriptor = await client.fetch_manifest(name)
    return parse_manifest_or_index(raw, descriptor.media_type)


async def statements(name: str) -> list[list[dict[str, object]]]:
    """The statements about each image of an index, in the order of the images; each attestation is about one."""
    index = await fetch(name)
    assert isinstance(index, Index)
    assert [entry.attests for entry in index.attestations] == [str(entry.digest) for entry in index.images]
    repository = name.rpartition(":")[0]
    found: list[list[dict[str, object]]] = []
    async with Registry() as client:
        for entry in index.attestations:
            manifest = await fetch(f"{repository}@{entry.digest}")
            assert isinstance(manifest, Manifest)
            blobs = [await client.fetch_blob_bytes(repository, layer, 4 << 20) for layer in manifest.layers]
            found.append([json.loads(blob) for blob in blobs])
    return found


@pytest.mark.parametrize(
    ("parameters", "version"),
    [
        ("mode=min", ""),
        ("mode=max", ""),
        ("mode=max,version=v0.2", "v0.2"),
        ("mode=min,reproducible=true,builder-id=http://me", ""),
    ],
)
async def test_provenance_in_every_mode(
    daemon_address: str, registry: servers.Registry, scratch: Path, parameters: str, version: str
) -> None:
    """Each platform's image has one, in the version and with the builder that were asked for."""
    name = f"{registry.host}/attested/{''.join(c if c.isalnum() else '-' for c in parameters)}:1"
    async with connect(daemon_address) as client:
        request = BuildRequest(
            context=scratch, platforms=TWO, tags=[name], push=True, attestations={"provenance": parameters}
        )
        result = await build(client, request)
    assert [len(entry.attestations) for entry in result.platforms] == [1, 1]
    for (statement,) in await statements(name):
        assert str(statement["predicateType"]).startswith(f"{SLSA}{version}")
        text = json.dumps(statement["predicate"])
        assert ("llbDefinition" in text) == ("max" in parameters)
        assert ("http://me" in text) == ("builder-id" in parameters)


async def test_an_sbom_by_a_scanner_of_ones_own(
    daemon_address: str,
    registry: servers.Registry,
    scratch: Path,
    base_images: Mapping[str, str],
    tmp_path: Path,
    capabilities: frozenset[str],
) -> None:
    """generator= names it; its documents are paired with both platforms beside the provenance.

    Where its parameters would not reach it they are refused.
    """
    folder = tmp_path / "scanner"
    folder.mkdir()
    (folder / "Dockerfile").write_text(SCANNER)
    scanner, name = f"{registry.host}/attested/scanner:1", f"{registry.host}/attested/sbom:1"
    async with connect(daemon_address) as client:
        await build(
            client,
            BuildRequest(
                context=folder,
                build_contexts={"alpine": base_images["alpine"]},
                tags=[scanner],
                push=True,
                attestations={},
            ),
        )
        attestations = {"sbom": f"generator={scanner},LABEL=mine", "provenance": "mode=max"}
        request = BuildRequest(context=scratch, platforms=TWO, tags=[name], push=True, attestations=attestations)
        label = "mine"
        if features.SBOM_PARAMETERS.capability not in capabilities:
            with pytest.raises(UnsupportedByDaemon, match="sbom parameters"):
                await build(client, request)
            label = ""
            request = replace(request, attestations={**attestations, "sbom": f"generator={scanner}"})
        await build(client, request)
    for found in await statements(name):
        by_type = {str(statement["predicateType"]): statement["predicate"] for statement in found}
        assert any(kind.startswith(SLSA) for kind in by_type)
        assert by_type["https://spdx.dev/Document"] == {"spdxVersion": "SPDX-2.3", "name": label}


async def test_a_version_of_provenance(daemon_address: str, registry: servers.Registry, scratch: Path) -> None:
    """v1 where the daemon makes it; others, which would make v0.2 all the same, are refused."""
    name = f"{registry.host}/attested/v1:1"
    request = BuildRequest(context=scratch, tags=[name], push=True, attestations={"provenance": "version=v1"})
    async with connect(daemon_address) as client:
        if not await client.supports("source.git.skipsubmodules"):
            with pytest.raises(UnsupportedByDaemon, match=r"provenance version=v1: .*BuildKit v0\.23"):
                await build(client, request)
            return
        await build(client, request)
    ((statement,),) = await statements(name)
    assert statement["predicateType"] == f"{SLSA}v1"


async def test_provenance_off(daemon_address: str, registry: servers.Registry, scratch: Path) -> None:
    """Nothing but images in the index."""
    name = f"{registry.host}/attested/off:1"
    async with connect(daemon_address) as client:
        await build(client, BuildRequest(context=scratch, platforms=TWO, tags=[name], push=True, attestations={}))
    index = await fetch(name)
    assert isinstance(index, Index)
    assert (len(index.images), len(index.attestations)) == (2, 0)


@pytest.mark.timeout(300)
async def test_hello_arch_is_the_same_on_two_daemons(
    daemon_address: str, engine_address: str, registry: servers.Registry, base_images: Mapping[str, str]
) -> None:
    """With an epoch, and times rewritten to it: one index digest, built twice from nothing.

    Uncompressed: what gzip makes of the same bytes differs from one release of Go to the next, and so between daemons.
    """
    kind = "rewrite-timestamp=true,compression=uncompressed,force-compression=true"
    digests: set[str] = set()
    for address, cached in ((daemon_address, False), (engine_address, True)):
        request = BuildRequest(
            context=HELLO_ARCH,
            platforms=("linux/amd64", "linux/arm64", "linux/arm/v7"),
            build_contexts=base_images,
            build_args={"SOURCE_DATE_EPOCH": "1700000000"},
            outputs=[ExporterSpec.parse(f"type=image,name={registry.host}/same:1,push=true,{kind}")],
            attestations={},
            no_cache=not cached,
        )
        async with connect(address) as client:
            result = await build(client, request)
        assert result.descriptor is not None
        digests.add(str(result.descriptor.digest))
    assert len(digests) == 1


@pytest.mark.timeout(300)
async def test_hello_arch_is_the_same_twice(
    daemon_address: str, registry: servers.Registry, base_images: Mapping[str, str]
) -> None:
    """On one daemon, where every step runs again, with layers compressed as they are by default."""
    digests: list[str] = []
    for _ in range(2):
        request = BuildRequest(
            context=HELLO_ARCH,
            platforms=("linux/amd64", "linux/arm64", "linux/arm/v7"),
            build_contexts=base_images,
            build_args={"SOURCE_DATE_EPOCH": "1700000000"},
            outputs=[ExporterSpec.parse(f"type=image,name={registry.host}/twice:1,push=true,rewrite-timestamp=true")],
            attestations={},
            no_cache=True,
        )
        async with connect(daemon_address) as client:
            result = await build(client, request)
        assert all(entry.cached < entry.total for entry in result.platforms)
        assert result.descriptor is not None
        digests.append(str(result.descriptor.digest))
    assert digests[0] == digests[1]
