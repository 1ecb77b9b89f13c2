"""What a daemon pushed is read back and checked, and only then named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from buildkit_py.builder.exports import Push, tagged
from buildkit_py.builder.publish import collect, push_root
from buildkit_py.errors import NotFound, ProtocolError
from buildkit_py.oci import Descriptor
from buildkit_py.platforms import Platform
from buildkit_py.registry import Registry, StaticCredentials
from tests.support.contents import Document, attestation, image, listing
from tests.support.memory_registry import MemoryRegistry

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
IMAGE = image()


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as server:
        yield server


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(credentials=StaticCredentials({})) as client:
        yield client


def root_of(document: Document) -> Descriptor:
    return Descriptor.from_json(document.entry)


async def test_what_is_right_is_taken(memory: MemoryRegistry, registry: Registry) -> None:
    about = attestation(IMAGE)
    root = memory.put("a", listing(IMAGE, about))
    pushed = await collect(registry, [f"{memory.host}/a"], root_of(root), AMD64)
    assert [child.descriptor.digest for child in pushed.images] == [IMAGE.digest]
    assert [entry.digest for entry in pushed.attestations] == [about.digest]
    assert pushed.raw == root.raw


async def test_an_image_of_another_platform(memory: MemoryRegistry, registry: Registry) -> None:
    """The config says what runs, whatever the solve was for."""
    memory.put("a", IMAGE)
    with pytest.raises(ProtocolError, match="the image for linux/arm64 says that it is for linux/amd64"):
        await collect(registry, [f"{memory.host}/a"], root_of(IMAGE), ARM64)


async def test_every_repository_has_the_root(memory: MemoryRegistry, registry: Registry) -> None:
    memory.put("a", IMAGE)
    with pytest.raises(NotFound):
        await collect(registry, [f"{memory.host}/a", f"{memory.host}/b"], root_of(IMAGE), AMD64)


async def test_attestations_are_there(memory: MemoryRegistry, registry: Registry) -> None:
    about = attestation(IMAGE)
    root = memory.put("a", listing(IMAGE, about))
    del memory.manifests["a", str(about.digest)]
    with pytest.raises(NotFound):
        await collect(registry, [f"{memory.host}/a"], root_of(root), AMD64)


async def test_entries_say_the_right_size(memory: MemoryRegistry, registry: Registry) -> None:
    root = memory.put("a", listing(IMAGE, size=len(IMAGE.raw) + 1))
    with pytest.raises(ProtocolError, match="bytes"):
        await collect(registry, [f"{memory.host}/a"], root_of(root), AMD64)


@pytest.mark.parametrize("named", [True, False])
async def test_a_root_by_its_digest_alone(memory: MemoryRegistry, registry: Registry, named: bool) -> None:
    """``push-by-digest=true`` writes no tag."""
    memory.put("a", IMAGE)
    pushed = await collect(registry, [f"{memory.host}/a"], root_of(IMAGE), AMD64)
    push = Push(references=(tagged(f"{memory.host}/a:v1"),), attrs={}, tagged=named)
    await push_root(registry, push, [pushed])
    assert (memory.tag("a", "v1") == IMAGE.raw) is named
