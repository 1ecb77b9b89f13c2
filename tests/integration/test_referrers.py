"""Lists of referrers at tags, since Distribution 2.8 keeps none; and deleting, with what that leaves in the lists."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from buildkit_py.digest import Digest
from buildkit_py.errors import NotFound, Unsupported
from buildkit_py.oci import OCI_INDEX, Descriptor, Index
from buildkit_py.registry import Registry, StaticCredentials
from tests.support import peers, servers
from tests.support.contents import Document, artifact, image

pytestmark = pytest.mark.daemon

NOBODY = StaticCredentials({})
SIGNATURE, SBOM = "application/vnd.example.signature", "application/vnd.example.sbom"


async def push_tracked(registry: Registry, repository: str, document: Document) -> None:
    await document.push(registry, repository)
    await registry.push_manifest(repository, document.raw, document.media_type)


def delete(url: str) -> int:
    """As somebody does who knows nothing of lists of referrers."""
    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10) as answer:
        return int(answer.status)


def digests(found: tuple[Descriptor, ...]) -> set[Digest]:
    return {entry.digest for entry in found}


async def test_a_list_is_kept_where_the_registry_keeps_none(registry: servers.Registry) -> None:
    """Its entries have type and annotations; a type can be asked for; nothing is listed twice."""
    repository, subject = f"{registry.host}/referrers/kept", image(text="a subject")
    signature, sbom = artifact(SIGNATURE, subject=subject), artifact(SBOM, subject=subject)
    async with Registry(credentials=NOBODY) as client:
        await subject.push(client, repository, "v1")
        assert await client.referrers(repository, subject.digest) == ()
        for document in (signature, sbom, signature):
            await push_tracked(client, repository, document)
        assert digests(await client.referrers(repository, subject.digest)) == {signature.digest, sbom.digest}
        (found,) = await client.referrers(repository, subject.digest, SBOM)
        assert (found.digest, found.artifact_type, found.size) == (sbom.digest, SBOM, len(sbom.raw))
        tag = f"sha256-{subject.digest.hex}"
        raw, listed = await client.fetch_manifest(f"{repository}:{tag}")
        assert listed.media_type == OCI_INDEX
        assert len(Index.parse(raw).manifests) == 2


async def test_many_referrers_at_once(registry: servers.Registry) -> None:
    """One client takes turns with itself, and makes changes that wait together."""
    repository, subject = f"{registry.host}/referrers/many", image(text="a popular subject")
    documents = [artifact(f"application/vnd.example.{number}", subject=subject) for number in range(20)]
    async with Registry(credentials=NOBODY) as client:
        await subject.push(client, repository, "v1")
        await asyncio.gather(*(push_tracked(client, repository, document) for document in documents))
        found = digests(await client.referrers(repository, subject.digest))
    assert found == {document.digest for document in documents}


@pytest.mark.parametrize("count", [2, 20])
async def test_many_clients_change_one_list(registry: servers.Registry, count: int) -> None:
    """Registries have no locks, so one client undoes what another did; each looks again and puts it right. Half of
    them take entries off at the same time, and none of those comes back."""
    repository, subject = f"{registry.host}/referrers/clients-{count}", image(text="a contested subject")
    added = [artifact(f"application/vnd.example.{number}", subject=subject) for number in range(count)]
    removed = [artifact(f"application/vnd.example.old.{number}", subject=subject) for number in range(count // 2)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Registry(credentials=NOBODY)) for _ in (*added, *removed)]
        await subject.push(clients[0], repository, "v1")
        await asyncio.gather(*(document.push(clients[0], repository) for document in added))
        await asyncio.gather(*(push_tracked(clients[0], repository, document) for document in removed))
        await asyncio.gather(
            *(
                client.push_manifest(repository, document.raw, document.media_type)
                for client, document in zip(clients, added, strict=False)
            ),
            *(
                client.delete_manifest(f"{repository}@{document.digest}")
                for client, document in zip(clients[count:], removed, strict=True)
            ),
        )
        found = digests(await clients[0].referrers(repository, subject.digest))
    assert found == {document.digest for document in added}


async def test_a_list_with_an_entry_that_is_gone(registry: servers.Registry) -> None:
    """Distribution takes no index of which a child is missing: an entry that another tool left behind when it deleted
    the manifest makes way for the next one."""
    repository, subject = f"{registry.host}/referrers/gone", image(text="a subject with a past")
    first, second, third = (artifact(f"application/vnd.example.{word}", subject=subject) for word in "abc")
    async with Registry(credentials=NOBODY) as client:
        await subject.push(client, repository, "v1")
        for document in (first, second):
            await push_tracked(client, repository, document)
        assert delete(f"{registry.url}/v2/referrers/gone/manifests/{first.digest}") == 202
        await push_tracked(client, repository, third)
        found = digests(await client.referrers(repository, subject.digest))
    assert found == {second.digest, third.digest}


async def test_oras_and_we_write_one_list(registry: servers.Registry, tmp_path: Path) -> None:
    """What oras attaches is found here, what we push is found by oras, in the same list."""
    oras = peers.oras()
    if oras is None:
        pytest.skip("no oras found (make servers)")
    repository, subject = f"{registry.host}/referrers/oras", image(text="a subject of two")
    (tmp_path / "sbom.json").write_text("{}")
    async with Registry(credentials=NOBODY) as client:
        await subject.push(client, repository, "v1")
        await push_tracked(client, repository, artifact(SIGNATURE, subject=subject))
        words = ["--plain-http", "--artifact-type", SBOM, f"{repository}:v1", "sbom.json"]
        subprocess.run([oras, "attach", *words], check=True, capture_output=True, cwd=tmp_path, timeout=60)
        found = await client.referrers(repository, subject.digest)
        assert {entry.artifact_type for entry in found} == {SIGNATURE, SBOM}
        discover = [oras, "discover", "--plain-http", "--format", "json", f"{repository}:v1"]
        done = await asyncio.to_thread(subprocess.run, discover, check=True, capture_output=True, timeout=60)
        assert {item["artifactType"] for item in json.loads(done.stdout)["referrers"]} == {SIGNATURE, SBOM}


async def test_deleting(registry: servers.Registry) -> None:
    """By digest, with all tags; a referrer leaves the list; a tag alone is more than this registry can do."""
    repository, subject = f"{registry.host}/referrers/deleted", image(text="a subject that goes")
    signature, sbom = artifact(SIGNATURE, subject=subject), artifact(SBOM, subject=subject)
    async with Registry(credentials=NOBODY) as client:
        await subject.push(client, repository, "v1", "v2")
        for document in (signature, sbom):
            await push_tracked(client, repository, document)
        await client.delete_manifest(f"{repository}@{signature.digest}")
        assert digests(await client.referrers(repository, subject.digest)) == {sbom.digest}
        with pytest.raises(NotFound):
            await client.delete_manifest(f"{repository}@{signature.digest}")
        with pytest.raises(Unsupported, match="does not delete a tag alone"):
            await client.delete_manifest(f"{repository}:v1")
        assert (await client.resolve(f"{repository}:v1")).digest == subject.digest
        await client.delete_manifest(f"{repository}@{subject.digest}")
        for tag in ("v1", "v2"):
            with pytest.raises(NotFound):
                await client.resolve(f"{repository}:{tag}")


async def test_a_registry_that_deletes_nothing(tmp_path: Path, registry: servers.Registry) -> None:
    """As Distribution is unless it is told otherwise: an error that says so, and all is as it was."""
    with servers.run_registry(tmp_path / "keeps", deletes=False) as server:
        repository, document = f"{server.host}/a", image(text="stays")
        async with Registry(credentials=NOBODY) as client:
            await document.push(client, repository, "v1")
            with pytest.raises(Unsupported, match=r"storage\.delete\.enabled"):
                await client.delete_manifest(f"{repository}@{document.digest}")
            assert (await client.resolve(f"{repository}:v1")).digest == document.digest
