"""Copies of indexes: what a registry says of them is not believed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_py.errors import ProtocolError
from buildkit_py.oci import OCI_INDEX
from buildkit_py.registry import Registry, RegistryConfig, StaticCredentials
from tests.support.contents import Document, described, encode, image
from tests.support.memory_registry import MemoryRegistry


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as server:
        yield server


def listing(child: Document, **fields: object) -> Document:
    """An index of one child, with other fields in its entry."""
    raw = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**child.entry, **fields}]})
    return Document(raw=raw, media_type=OCI_INDEX, entry=described(OCI_INDEX, raw), below=(child,))


async def copy(memory: MemoryRegistry, document: Document) -> None:
    memory.put("a", document, "v1")
    async with Registry(credentials=StaticCredentials({}), config=RegistryConfig()) as registry:
        await registry.copy_manifest(f"{memory.host}/a:v1", f"{memory.host}/b", tags=["v1"])


async def test_a_child_of_another_size_than_its_entry_says(memory: MemoryRegistry) -> None:
    """Its digest is right; the index would lead to what clients refuse."""
    child = image()
    with pytest.raises(ProtocolError, match="bytes"):
        await copy(memory, listing(child, size=len(child.raw) + 1))
    assert memory.tag("b", "v1") is None


@pytest.mark.parametrize(("depth", "taken"), [(2, True), (40, False)])
async def test_indexes_within_indexes(memory: MemoryRegistry, depth: int, taken: bool) -> None:
    """Some are of use; a registry that nests them for ever does not keep us for as long."""
    document = image()
    for _ in range(depth):
        document = listing(document)
    if taken:
        await copy(memory, document)
    else:
        with pytest.raises(ProtocolError, match="nested too deeply"):
            await copy(memory, document)
    assert (memory.tag("b", "v1") == document.raw) is taken
