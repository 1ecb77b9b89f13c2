"""Content on its way into a repository: below before above, by mount where it can be, never a tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from buildkit_py.imagetools.store import LayoutStore, RepositoryStore
from buildkit_py.imagetools.tasks import gather
from buildkit_py.imagetools.tree import Node
from buildkit_py.oci import Descriptor, Index
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry
from buildkit_py.registry.transfer import Transfer


@dataclass(slots=True)
class Traffic:
    """What was moved so far."""

    manifests: int = 0
    """Manifests that were written."""
    manifests_present: int = 0
    """Manifests that were there already."""
    mounted: int = 0
    """Blobs that the registry took from another of its repositories."""
    present: int = 0
    """Blobs that were there already."""
    sent: int = 0
    """Blobs whose bytes were sent."""
    sent_bytes: int = 0

    def count(self, blob: Descriptor, how: Transfer) -> None:
        """One more blob."""
        match how:
            case Transfer.MOUNTED:
                self.mounted += 1
            case Transfer.PRESENT:
                self.present += 1
            case Transfer.SENT:
                self.sent += 1
                self.sent_bytes += blob.size

    def __str__(self) -> str:
        manifests = f"manifests: {self.manifests} written, {self.manifests_present} present"
        blobs = f"{self.mounted} mounted, {self.present} present, {self.sent} sent ({self.sent_bytes} bytes)"
        return f"{manifests}; blobs: {blobs}"


Source = RepositoryStore | LayoutStore


async def push_nodes(
    registry: Registry,
    source: Source,
    nodes: Sequence[Node],
    target: Reference,
    traffic: Traffic,
    *,
    track_subjects: bool = False,
) -> None:
    """Write manifests, and what they need, by digest. A manifest that is there is taken to have its blobs there.

    nodes are in the order of Node.walk. After a failure whatever was written is complete in itself. track_subjects
    lets those with a subject be found by it; the attestations in an index are found by the index.
    """
    found = await gather(registry.exists(target.name, node.descriptor.digest) for node in nodes)
    missing = [node for node, there in zip(nodes, found, strict=True) if not there]
    traffic.manifests_present += len(nodes) - len(missing)
    blobs = {blob.digest: blob for node in missing for blob in node.blobs}
    await gather(_push_blob(registry, source, blob, target, traffic) for blob in blobs.values())
    # An index after what it lists, a manifest with a subject after that: some registries insist on either.
    free = [node for node in missing if not isinstance(node.content, Index) and _subject(node) is None]
    await gather(_put(registry, node, target, traffic, track_subject=False) for node in free)
    for node in missing:
        if node not in free:
            await _put(registry, node, target, traffic, track_subject=track_subjects)


def _subject(node: Node) -> Descriptor | None:
    return None if node.content is None else node.content.subject


async def _put(registry: Registry, node: Node, target: Reference, traffic: Traffic, *, track_subject: bool) -> None:
    media_type = node.content.media_type if node.content else node.descriptor.media_type
    await registry.push_manifest(target.name, node.raw, media_type, track_subject=track_subject)
    traffic.manifests += 1


async def _push_blob(registry: Registry, source: Source, blob: Descriptor, target: Reference, traffic: Traffic) -> None:
    if blob.urls and not await source.has_blob(blob):
        return  # a layer that may not be distributed is fetched from elsewhere
    if isinstance(source, RepositoryStore):
        how = await registry.copy_blob(source.name, target.name, blob)
    else:
        sent = await registry.push_blob(target.name, blob, source.opener(blob))
        how = Transfer.SENT if sent else Transfer.PRESENT
    traffic.count(blob, how)


__all__ = ["Source", "Traffic", "push_nodes"]
