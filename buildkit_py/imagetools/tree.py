"""An image with all that belongs to it: an index, its manifests, and what these need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from buildkit_py.digest import Digest
from buildkit_py.errors import ImageError
from buildkit_py.imagetools.store import Document, Store, parse_document
from buildkit_py.imagetools.tasks import gather
from buildkit_py.oci import Descriptor, Index, Manifest

MAX_DEPTH = 4
"""Indexes within indexes; nobody has more than two."""
MAX_MANIFESTS = 2000
MAX_BYTES = 64 << 20
"""Of all manifests of one image, which are held in memory together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A manifest or index, and the manifests below it."""

    descriptor: Descriptor
    """As its holder has it: with platform and annotations."""
    raw: bytes = field(repr=False)
    content: Document | None
    """None where its media type is not one of those known."""
    children: tuple[Node, ...] = ()

    def walk(self) -> Iterator[Node]:
        """All nodes, each digest once, those below before those above: the order to write them in."""
        seen: set[Digest] = set()
        yield from self._walk(seen)

    def _walk(self, seen: set[Digest]) -> Iterator[Node]:
        if self.descriptor.digest in seen:
            return
        seen.add(self.descriptor.digest)
        for child in self.children:
            yield from child._walk(seen)
        yield self

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """What this very manifest needs that is not a manifest; each digest once."""
        if not isinstance(self.content, Manifest):
            return ()
        return tuple({blob.digest: blob for blob in self.content.blobs}.values())

    @property
    def size(self) -> int:
        """Bytes of this manifest and its blobs."""
        return len(self.raw) + sum(blob.size for blob in self.blobs)


class _Budget:
    def __init__(self, what: str) -> None:
        self._what = what
        self._manifests = 0
        self._bytes = 0

    def take(self, size: int) -> None:
        self._manifests += 1
        self._bytes += size
        if self._manifests > MAX_MANIFESTS or self._bytes > MAX_BYTES:
            raise ImageError(f"{self._what}: more than {MAX_MANIFESTS} manifests, or {MAX_BYTES} bytes of them")


async def read_tree(store: Store, descriptor: Descriptor, raw: bytes | None = None) -> Node:
    """Read a manifest or index and all manifests below it, checked against their descriptors.

    raw are the bytes of descriptor, where they are known. ImageError for what is missing or wrong.
    """
    return await _read(store, descriptor, raw, 0, _Budget(f"{store.name}@{descriptor.digest}"))


async def _read(store: Store, descriptor: Descriptor, raw: bytes | None, depth: int, budget: _Budget) -> Node:
    if depth > MAX_DEPTH:
        raise ImageError(f"{store.name}@{descriptor.digest}: indexes are nested more than {MAX_DEPTH} deep")
    budget.take(descriptor.size)
    if raw is None:
        raw = await store.manifest(descriptor)
    content = parse_document(raw, descriptor)
    children: list[Node] = []
    if isinstance(content, Index):
        children = await gather(_read(store, entry, None, depth + 1, budget) for entry in content.manifests)
    return Node(descriptor=descriptor, raw=raw, content=content, children=tuple(children))


__all__ = ["MAX_DEPTH", "MAX_MANIFESTS", "Node", "read_tree"]
