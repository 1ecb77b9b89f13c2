"""Images from one place to another, byte for byte: between repositories, registries and OCI layouts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from buildkit_py.digest import Digest
from buildkit_py.errors import ImageError, InvalidOption
from buildkit_py.imagetools.creation import tags_before, target_reference, write_tags
from buildkit_py.imagetools.inspection import read_config
from buildkit_py.imagetools.join import Joined, filter_index, without_attestations
from buildkit_py.imagetools.location import LayoutLocation, Location, parse_location
from buildkit_py.imagetools.store import LayoutStore, RepositoryStore, open_store, parse_document
from buildkit_py.imagetools.tasks import both, gather
from buildkit_py.imagetools.transfer import Traffic, push_nodes
from buildkit_py.imagetools.tree import Node, read_tree
from buildkit_py.oci import Descriptor, Index, Manifest
from buildkit_py.platforms import Platform, parse_platforms
from buildkit_py.reference import DEFAULT_TAG, Reference
from buildkit_py.registry import Registry

if TYPE_CHECKING:
    from buildkit_py.layout.writing import LayoutWriter  # loaded for those who write one

MAX_REFERRERS = 500
"""Manifests about one image: signatures, attestations, and signatures of those."""
_MAX_REFERRER_DEPTH = 3
_PULLS = 8
"""Blobs that are written to a layout at once, as many as the registry client asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """A copy to make. Locations are references or ``layout:DIR[:TAG|@DIGEST]``; a DIR in ``.tar`` is an archive."""

    source: Location | str
    destination: Location | str
    platforms: Sequence[Platform | str] = ()
    """Which images of an index; none means all, with the index as it is."""
    attestations: bool = True
    """False leaves the attestations in an index out."""
    referrers: bool = True
    """True brings what names one of the copied manifests as its subject: signatures, SBOMs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What was copied."""

    descriptor: Descriptor
    """The root as it is at the destination."""
    raw: bytes = field(repr=False)
    source: Location
    destination: Location
    unchanged: bool
    """Whether the destination named this very root before."""
    referrers: tuple[Descriptor, ...]
    traffic: Traffic


async def copy(registry: Registry, request: CopyRequest) -> Copied:
    """Copy an image with all that belongs to it; the name at the destination is written last.

    The root keeps its bytes unless something is left out. Blobs come by mount within one registry. A failure leaves
    the destination's name as it was. Raises ImageError for what is missing or broken at the source.
    """
    source, destination = parse_location(request.source), parse_location(request.destination)
    platforms = parse_platforms(request.platforms)
    if isinstance(destination, Reference):
        destination = target_reference(destination)
    elif destination.digest is not None:
        raise InvalidOption(f"{destination}: a digest cannot be chosen, it is that of the content; give a tag")
    else:
        from buildkit_py.layout.destination import check_destination

        await asyncio.to_thread(check_destination, destination.path, directory=_is_directory(destination))
    async with open_store(registry, source) as store:
        raw, found = await store.find()
        if parse_document(raw, found) is None:
            raise ImageError(f"{source}: has media type {found.media_type[:100]}, which is no image, artifact or index")
        bare = Descriptor(media_type=found.media_type, digest=found.digest, size=found.size)
        tags = [destination] if isinstance(destination, Reference) else []
        # Round trips are most of what a small copy takes, so whatever does not need the other goes on at once.
        tree, before = await both(read_tree(store, bare, raw), tags_before(registry, tags))
        root = await _reduced(store, tree, request, platforms)
        finding = _referrers(store, root) if request.referrers else _none()
        traffic = Traffic()
        if isinstance(destination, Reference):
            repository = destination.without_tag()
            pushing = push_nodes(registry, store, list(root.walk()), repository, traffic)
            referrers, _ = await both(finding, pushing)
            await _push_referrers(registry, store, referrers, repository, traffic)
            # A root with a subject is put once more, to be found by that.
            plain = root.content is None or root.content.subject is None
            unchanged = bool(await write_tags(registry, root.raw, root.descriptor.media_type, before, present=plain))
        else:
            unchanged = False
            referrers = await finding
            await _to_layout(store, root, referrers, destination, traffic)
    return Copied(
        descriptor=Descriptor.of(root.raw, root.descriptor.media_type),
        raw=root.raw,
        source=source,
        destination=destination,
        unchanged=unchanged,
        referrers=tuple(node.descriptor for node in referrers),
        traffic=traffic,
    )


def _is_directory(location: LayoutLocation) -> bool:
    return location.path.is_dir() or location.path.suffix != ".tar"


Store = RepositoryStore | LayoutStore


async def _reduced(store: Store, root: Node, request: CopyRequest, platforms: Sequence[Platform]) -> Node:
    """The image without what is not wanted."""
    if isinstance(root.content, Manifest) and platforms:
        config = await read_config(store, root.content)
        if config is None or not any(wanted.matches(config.platform) for wanted in platforms):
            listed = ", ".join(str(platform) for platform in platforms)
            raise ImageError(f"{request.source}: there is no image for {listed}")
    if not isinstance(root.content, Index):
        return root
    joined = filter_index(root.content, platforms)
    if not request.attestations:
        joined = without_attestations(Index.parse(joined.raw))
    return _narrowed(root, joined)


def _narrowed(root: Node, joined: Joined) -> Node:
    if joined.raw == root.raw:
        return root
    kept = {entry.digest for entry in joined.entries}
    return Node(
        descriptor=Descriptor.of(joined.raw, joined.media_type),
        raw=joined.raw,
        content=Index.parse(joined.raw),
        children=tuple(child for child in root.children if child.descriptor.digest in kept),
    )


async def _referrers(store: Store, root: Node) -> list[Node]:
    """What refers to these manifests and is not among them, and what refers to that; subjects first."""
    known = {node.descriptor.digest for node in root.walk()}
    found: list[Node] = []
    # Nobody signs an attestation of an index by itself: the index is signed.
    level = [node.descriptor.digest for node in root.walk() if not node.descriptor.is_attestation]
    for _ in range(_MAX_REFERRER_DEPTH):
        listed = await gather(store.referrers(digest) for digest in level)
        fresh = {entry.digest: entry for entries in listed for entry in entries if entry.digest not in known}
        if len(found) + len(fresh) > MAX_REFERRERS:
            raise ImageError(f"{store.name}: more than {MAX_REFERRERS} manifests refer to {root.descriptor.digest}")
        nodes = await gather(read_tree(store, _bare(entry)) for entry in fresh.values())
        found += nodes
        level = [node.descriptor.digest for node in nodes]
        known |= set(level)
        if not level:
            break
    return found


def _bare(entry: Descriptor) -> Descriptor:
    """What registries copy into a descriptor of a referrer is in its manifest as well."""
    return replace(entry, data=None, urls=()).with_annotations({})


async def _none() -> list[Node]:
    return []


async def _push_referrers(
    registry: Registry, store: Store, referrers: Sequence[Node], repository: Reference, traffic: Traffic
) -> None:
    about = {node.descriptor.digest: node for tree in referrers for node in tree.walk()}
    await push_nodes(registry, store, list(about.values()), repository, traffic, track_subjects=True)


async def _to_layout(
    store: Store, root: Node, referrers: Sequence[Node], destination: LayoutLocation, traffic: Traffic
) -> None:
    from buildkit_py.layout.writing import LayoutWriter

    directory = _is_directory(destination)
    path = destination.path.absolute()
    writer = await asyncio.to_thread(LayoutWriter.create, path)
    try:
        nodes = {node.descriptor.digest: node for tree in (root, *referrers) for node in tree.walk()}
        blobs: dict[Digest, Descriptor] = {}
        for node in nodes.values():
            await asyncio.to_thread(writer.put, node.descriptor.digest, node.raw)
            traffic.manifests += 1
            blobs |= {blob.digest: blob for blob in node.blobs}
        limit = asyncio.Semaphore(_PULLS)
        await gather(_pull(store, writer, blob, limit, traffic) for blob in blobs.values() if blob.digest not in nodes)
        entries = [_named(root, store, destination), *(_about(node) for node in referrers)]
        await asyncio.to_thread(writer.finish_entries, entries)
        await asyncio.to_thread(writer.publish_directory if directory else writer.publish_file, path)
    finally:
        await asyncio.to_thread(writer.discard)


async def _pull(
    store: Store, writer: LayoutWriter, blob: Descriptor, limit: asyncio.Semaphore, traffic: Traffic
) -> None:
    async with limit:
        if blob.urls and not await store.has_blob(blob):
            return
        # The store checks what it gives; hashing it again would double the cost of a pull.
        target = await asyncio.to_thread(writer.open_blob, blob.digest, checked=True)
        try:
            await store.pull(blob, target)
            await asyncio.to_thread(target.close)
        finally:
            await asyncio.to_thread(target.abort)
    traffic.sent += 1
    traffic.sent_bytes += blob.size


def _named(root: Node, store: Store, destination: LayoutLocation) -> Descriptor:
    """The image's entry in ``index.json``, with the names that BuildKit and containerd look for."""
    from buildkit_py.layout.entries import IMAGE_NAME, REF_NAME

    names = {REF_NAME: destination.tag or DEFAULT_TAG}
    if isinstance(store, RepositoryStore):
        tag = destination.tag or store.reference.tag_or_latest
        names = {IMAGE_NAME: f"{store.reference.name}:{tag}", REF_NAME: tag}
    else:
        said = store.entry.annotations
        if destination.tag is None:
            names = {key: said[key] for key in (IMAGE_NAME, REF_NAME) if key in said} or names
    return Descriptor.of(root.raw, root.descriptor.media_type).with_annotations(names)


def _about(node: Node) -> Descriptor:
    """A referrer's entry, which has no name."""
    artifact_type = node.content.artifact_type if node.content else ""
    return replace(Descriptor.of(node.raw, node.descriptor.media_type), artifact_type=artifact_type)


__all__ = ["Copied", "CopyRequest", "copy"]
