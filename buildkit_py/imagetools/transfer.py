"""Content on its way into a repository: below before above, by mount where it can be, never a tag."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError
from buildkit_py.imagetools.store import LayoutStore, RepositoryStore
from buildkit_py.imagetools.tasks import gather
from buildkit_py.imagetools.tree import Node
from buildkit_py.oci import Descriptor, Index
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry


@dataclass(slots=True)
class Transfer:
    """What was done so far."""

    manifests: int = 0
    """Manifests that were written."""
    present: int = 0
    """Manifests that were there already."""
    sent: int = 0
    """Blobs whose bytes were sent."""
    sent_bytes: int = 0
    spared: int = 0
    """Blobs that were mounted from another repository, or there already."""

    def __str__(self) -> str:
        blobs = f"{self.spared} blobs mounted or present, {self.sent} sent ({self.sent_bytes} bytes)"
        return f"{self.manifests} manifests written, {self.present} present; {blobs}"


Source = RepositoryStore | LayoutStore


async def push_nodes(
    registry: Registry, source: Source, nodes: Sequence[Node], target: Reference, transfer: Transfer
) -> None:
    """Write manifests, and what they need, by digest. A manifest that is there is taken to have its blobs there.

    nodes are in the order of Node.walk. After a failure whatever was written is complete in itself.
    """
    found = await gather(registry.exists(target.name, node.descriptor.digest) for node in nodes)
    missing = [node for node, there in zip(nodes, found, strict=True) if not there]
    transfer.present += len(nodes) - len(missing)
    blobs: dict[Digest, Descriptor] = {blob.digest: blob for node in missing for blob in node.blobs}
    await gather(_push_blob(registry, source, blob, target, transfer) for blob in blobs.values())
    # An index after what it lists, a manifest with a subject after that: some registries insist on either.
    images = [node for node in missing if not isinstance(node.content, Index) and not _subject(node)]
    await gather(_put(registry, node, target, transfer) for node in images)
    for node in missing:
        if node not in images:
            await _put(registry, node, target, transfer)


def _subject(node: Node) -> Descriptor | None:
    return None if node.content is None else node.content.subject


async def _put(registry: Registry, node: Node, target: Reference, transfer: Transfer) -> None:
    media_type = node.content.media_type if node.content else node.descriptor.media_type
    await registry.push_manifest(target.name, node.raw, media_type)
    transfer.manifests += 1


async def _push_blob(
    registry: Registry, source: Source, blob: Descriptor, target: Reference, transfer: Transfer
) -> None:
    if blob.urls and not await source.has_blob(blob):
        return  # a layer that may not be distributed is fetched from elsewhere
    if isinstance(source, LayoutStore):
        sent = await registry.push_blob(target.name, blob, source.opener(blob))
    else:
        sent = await _copy_blob(registry, source, blob, target)
    if sent:
        transfer.sent += 1
        transfer.sent_bytes += blob.size
    else:
        transfer.spared += 1


class _NotMounted(BuildKitError):
    """The registry did not take a blob from its other repository."""


def _not_mounted() -> BinaryIO:
    raise _NotMounted("not mounted")


async def _copy_blob(registry: Registry, source: RepositoryStore, blob: Descriptor, target: Reference) -> bool:
    """Whether bytes had to be sent."""
    if source.reference.domain == target.domain:
        try:
            return await registry.push_blob(target.name, blob, _not_mounted, mount_from=source.name)
        except _NotMounted:
            pass
    with tempfile.TemporaryDirectory(prefix="buildkit-py-") as folder:
        path = Path(folder) / "blob"
        with path.open("wb") as stream:
            await source.pull(blob, stream)
        return await registry.push_blob(target.name, blob, lambda: path.open("rb"))


__all__ = ["Source", "Transfer", "push_nodes"]
