"""Copies of manifests with everything below them: what goes where, in which order, and what need not go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from buildkit_py.digest import Digest
from buildkit_py.errors import ProtocolError, leaves
from buildkit_py.oci import Descriptor, Index, Manifest, parse_manifest_or_index
from buildkit_py.reference import Reference
from buildkit_py.registry.transfer import CopyReport, Transfer

if TYPE_CHECKING:
    from buildkit_py.registry.registry import Registry, Repository

_MAX_DEPTH = 4
"""Indexes within indexes; real ones have one level."""
_MAX_INDEXES = 64
_MAX_MANIFESTS = 10_000
_MANIFESTS_AT_ONCE = 8
"""Each may be 4 MiB and is held until its blobs are there."""


async def copy_tree(
    registry: Registry,
    source: Repository,
    target: Repository,
    descriptor: Descriptor | None,
    tags: Sequence[str],
    *,
    track_subject: bool,
) -> CopyReport:
    """See Registry.copy_manifest."""
    origin, destination = _reference(source), _reference(target)
    for tag in tags:
        destination.with_tag(tag)  # checked before anything is asked
    try:
        async with asyncio.TaskGroup() as tasks:
            copy = _Copy(registry, origin, destination, tasks)
            return await copy.top(descriptor, tags, track_subject=track_subject)
    except BaseExceptionGroup as group:
        # Whatever else failed did so because of the first, or along with it.
        raise leaves(group)[0] from None


def _reference(repository: Repository) -> Reference:
    return repository if isinstance(repository, Reference) else Reference.parse_normalized(repository)


def _stays(layer: Descriptor) -> bool:
    """Whether a layer lies somewhere else by its licence, and registries neither have nor want it."""
    return bool(layer.urls) and any(word in layer.media_type for word in ("foreign", "nondistributable"))


class _Copy:
    def __init__(self, registry: Registry, source: Reference, target: Reference, tasks: asyncio.TaskGroup) -> None:
        self._registry = registry
        self._source = source
        self._target = target
        self._tasks = tasks
        self._slots = asyncio.Semaphore(_MANIFESTS_AT_ONCE)
        self._blobs: dict[Digest, tuple[Descriptor, asyncio.Task[Transfer]]] = {}
        self._children: dict[Digest, asyncio.Task[None]] = {}
        self._indexes = 0
        self._written = 0
        self._present = 0

    async def top(self, descriptor: Descriptor | None, tags: Sequence[str], *, track_subject: bool) -> CopyReport:
        """Copy everything, then write the tags."""
        if descriptor is None:
            raw, descriptor = await self._registry.fetch_manifest(self._source)
            present = await self._registry.exists(self._target, descriptor.digest)
        else:
            present = await self._registry.exists(self._target, descriptor.digest)
            raw = b"" if present and not descriptor.is_index and not tags else await self._fetch(descriptor)
        if raw:
            content = parse_manifest_or_index(raw, descriptor.media_type)
            if isinstance(content, Index) or not present:
                await self._below(content, depth=1)
            if tags or not present:
                await self._registry.push_manifest(
                    self._target, raw, descriptor.media_type, tags, track_subject=track_subject
                )
        self._count(present)
        return CopyReport(
            descriptor=descriptor,
            manifests=self._written,
            manifests_present=self._present,
            blobs=tuple((blob, task.result()) for blob, task in self._blobs.values()),
            tags=tuple(tags),
        )

    async def _child(self, descriptor: Descriptor, depth: int, after: Iterable[asyncio.Task[None]]) -> None:
        for task in after:
            await task
        present = await self._registry.exists(self._target, descriptor.digest)
        if descriptor.is_index:
            # No slot: what is below needs them all.
            self._indexes += 1
            if self._indexes > _MAX_INDEXES or depth > _MAX_DEPTH:
                raise ProtocolError(f"{self._source.name}: indexes are nested too deeply or too many")
            await self._one(descriptor, depth, present)
        elif not present:
            async with self._slots:
                await self._one(descriptor, depth, present)
        self._count(present)

    async def _one(self, descriptor: Descriptor, depth: int, present: bool) -> None:
        raw = await self._fetch(descriptor)
        await self._below(parse_manifest_or_index(raw, descriptor.media_type), depth + 1)
        if not present:
            await self._registry.push_manifest(self._target, raw, descriptor.media_type, track_subject=False)

    async def _fetch(self, descriptor: Descriptor) -> bytes:
        raw, _ = await self._registry.fetch_manifest(self._source.with_digest(descriptor.digest))
        descriptor.verify(raw, f"manifest of {self._source.name}")
        return raw

    async def _below(self, content: Manifest | Index, depth: int) -> None:
        """Copy what a manifest names, attestations after the images: some registries want a subject first."""
        if isinstance(content, Manifest):
            blobs = [self._blob(blob) for blob in content.blobs if not _stays(blob)]
            for task in blobs:
                await task
            return
        images = [self._start(entry, depth, ()) for entry in content.images]
        # Not after nested indexes: these may hold the very attestation, and both would wait for ever. A manifest
        # only ever waits for manifests that were begun before it.
        first = [task for entry, task in zip(content.images, images, strict=True) if not entry.is_index]
        attestations = [self._start(entry, depth, first) for entry in content.attestations]
        for child in (*images, *attestations):
            await child

    def _start(self, entry: Descriptor, depth: int, after: Sequence[asyncio.Task[None]]) -> asyncio.Task[None]:
        known = self._children.get(entry.digest)
        if known is None:
            if len(self._children) >= _MAX_MANIFESTS:
                raise ProtocolError(f"{self._source.name}: more than {_MAX_MANIFESTS} manifests")
            known = self._children[entry.digest] = self._tasks.create_task(self._child(entry, depth, after))
        return known

    def _blob(self, blob: Descriptor) -> asyncio.Task[Transfer]:
        known = self._blobs.get(blob.digest)
        if known is None:
            task = self._tasks.create_task(self._registry.copy_blob(self._source, self._target, blob))
            known = self._blobs[blob.digest] = (blob, task)
        return known[1]

    def _count(self, present: bool) -> None:
        self._present += present
        self._written += not present
