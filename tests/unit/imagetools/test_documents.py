"""Indexes and manifests of a shape that no tool should have made: what is said of them, and that there is an end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from buildkit_py import imagetools
from buildkit_py.errors import ImageError
from buildkit_py.imagetools import CopyRequest, Verified, VerifyRequest
from buildkit_py.registry import Registry, StaticCredentials
from tests.support.contents import Document, artifact, attestation, image, listing
from tests.support.memory_registry import MemoryRegistry

AMD64, ARM64 = image(), image("linux/arm64")


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as server:
        yield server


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(credentials=StaticCredentials({})) as client:
        yield client


async def verified(memory: MemoryRegistry, registry: Registry, document: Document) -> Verified:
    memory.put("a", document, "v1")
    return await imagetools.verify(registry, VerifyRequest(location=f"{memory.host}/a:v1"))


def said(found: Verified) -> list[str]:
    return [finding.message for finding in found.findings]


async def test_what_is_whole(memory: MemoryRegistry, registry: Registry) -> None:
    found = await verified(memory, registry, listing(AMD64, ARM64, attestation(AMD64)))
    assert (found.ok, said(found)) == (True, [])


async def test_an_attestation_of_an_image_that_is_not_there(memory: MemoryRegistry, registry: Registry) -> None:
    found = await verified(memory, registry, listing(AMD64, attestation(ARM64)))
    assert not found.ok
    assert said(found) == [f"is about {ARM64.digest}, which is not in the index"]


async def test_two_images_for_one_platform_and_one_image_twice(memory: MemoryRegistry, registry: Registry) -> None:
    """Clients pull one of them: no error, and worth a word."""
    found = await verified(memory, registry, listing(AMD64, image(text="other")))
    assert (found.ok, said(found)) == (True, ["2 images are for linux/amd64; clients pull the first"])
    found = await verified(memory, registry, listing(AMD64, AMD64))
    assert f"{AMD64.digest} is listed 2 times" in said(found)


async def test_an_entry_that_says_another_size(memory: MemoryRegistry, registry: Registry) -> None:
    found = await verified(memory, registry, listing(AMD64, size=len(AMD64.raw) + 1))
    assert not found.ok
    (message,) = said(found)
    assert message.endswith(f"is {len(AMD64.raw)} bytes, expected {len(AMD64.raw) + 1}")


async def test_indexes_are_not_followed_for_ever(memory: MemoryRegistry, registry: Registry) -> None:
    document = AMD64
    for _ in range(12):
        document = listing(document)
    memory.put("a", document, "v1")
    with pytest.raises(ImageError, match="nested more than"):
        await imagetools.copy(registry, CopyRequest(source=f"{memory.host}/a:v1", destination=f"{memory.host}/b:v1"))
    assert memory.tag("b", "v1") is None


async def test_referrers_are_not_followed_for_ever(
    memory: MemoryRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody who may push to a repository may name an image as a subject."""
    monkeypatch.setattr("buildkit_py.imagetools.copying.MAX_REFERRERS", 2)
    memory.put("a", AMD64, "v1")
    request = CopyRequest(source=f"{memory.host}/a:v1", destination=f"{memory.host}/b:v1")
    for number in range(3):
        signature = memory.put("a", artifact(f"application/x.{number}", subject=AMD64))
        await registry.push_manifest(f"{memory.host}/a", signature.raw, signature.media_type)
        if number == 1:
            await imagetools.copy(registry, request)
    with pytest.raises(ImageError, match="more than 2 manifests refer to"):
        await imagetools.copy(registry, request)


async def test_annotations_that_make_a_manifest_too_large(memory: MemoryRegistry, registry: Registry) -> None:
    """It is refused here, with the reason; registries answer whatever they like."""
    memory.put("a", listing(AMD64, ARM64), "v1")
    before = memory.tag("a", "v1")
    with pytest.raises(ImageError, match=r"would be .* bytes; registries take"):
        await imagetools.annotate(registry, f"{memory.host}/a:v1", [f"index:a={'x' * (4 << 20)}"])
    assert memory.tag("a", "v1") == before
