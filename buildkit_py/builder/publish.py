"""From images pushed by digest to one reference: read the children back, check them, write the tag last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from buildkit_py.digest import Digest
from buildkit_py.errors import ProtocolError
from buildkit_py.oci import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    assemble,
    check_entry,
    encode_index,
    parse_manifest_or_index,
)
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry

_MAX_CONFIG_BYTES = 8 << 20  # real ones are kilobytes; a registry's word is not trusted beyond this


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One image manifest that a platform's solve pushed, checked."""

    descriptor: Descriptor
    """As it stands in an index: with its platform."""
    manifest: Manifest
    config: ImageConfig

    @property
    def size(self) -> int:
        """Bytes of the manifest, its config and its layers."""
        layers = sum(layer.size for layer in self.manifest.layers)
        return self.descriptor.size + self.manifest.config.size + layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What one platform's solve left in the registry."""

    root: Descriptor
    """What the daemon pushed: a manifest, or an index where there are attestations."""
    raw: bytes
    images: tuple[Child, ...]
    attestations: tuple[Descriptor, ...]


async def collect(registry: Registry, repository: str, root: Descriptor, platform: Platform | None) -> Pushed:
    """Read back what a solve pushed and check it, bytes against digests and configs against entries.

    Raises NotFound when a part is missing, ProtocolError when one is not what it says, RegistryError otherwise.
    """
    raw, _ = await registry.fetch_manifest(_at(repository, root.digest))
    content = parse_manifest_or_index(raw, root.media_type)
    if isinstance(content, Manifest):
        child = await _image(registry, repository, root, content, platform)
        return Pushed(root=root, raw=raw, images=(child,), attestations=())
    images = [entry for entry in content.manifests if not entry.is_attestation]
    attestations = tuple(entry for entry in content.manifests if entry.is_attestation)
    if not images:
        raise ProtocolError(f"{repository}@{root.digest}: the index that the daemon pushed holds no image")
    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(_entry(registry, repository, entry, platform)) for entry in images]
        for entry in attestations:
            tasks.create_task(registry.fetch_manifest(_at(repository, entry.digest)))
    children = tuple(task.result() for task in reading)
    return Pushed(root=root, raw=raw, images=children, attestations=attestations)


async def _entry(
    registry: Registry, repository: str, entry: Descriptor, platform: Platform | None
) -> Child:
    raw, _ = await registry.fetch_manifest(_at(repository, entry.digest))
    if len(raw) != entry.size:
        raise ProtocolError(f"{repository}@{entry.digest}: is {len(raw)} bytes, its index says {entry.size}")
    content = parse_manifest_or_index(raw, entry.media_type)
    if not isinstance(content, Manifest):
        raise ProtocolError(f"{repository}@{entry.digest}: expected an image manifest, found an index")
    return await _image(registry, repository, entry, content, platform)


async def _image(
    registry: Registry,
    repository: str,
    descriptor: Descriptor,
    manifest: Manifest,
    platform: Platform | None,
) -> Child:
    raw = await registry.fetch_blob_bytes(repository, manifest.config, max_bytes=_MAX_CONFIG_BYTES)
    config = ImageConfig.parse(raw)
    entry = descriptor
    if entry.platform is None:
        entry = entry.with_platform(config.platform)
    check_entry(entry, config)
    if platform is not None and entry.platform is not None and not entry.platform.matches(platform):
        raise ProtocolError(
            f"{repository}@{descriptor.digest}: is for {entry.platform}, the solve was for {platform}"
        )
    return Child(descriptor=entry, manifest=manifest, config=config)


async def push_root(
    registry: Registry,
    references: Sequence[Reference],
    pushed: Sequence[Pushed],
    *,
    annotations: Mapping[str, str],
) -> Descriptor:
    """Write the root of several platforms, or of one, to every reference; the tags come last.

    One platform keeps the bytes that the daemon pushed; several get an index of all their children.
    Every repository already holds the children. A failure leaves tags of later references unwritten, and
    none that points at something incomplete.
    """
    raw, media_type = root_bytes(pushed, annotations=annotations)
    tags: dict[str, list[str]] = {}
    for reference in references:
        tags.setdefault(reference.name, []).append(reference.tag_or_latest)
    async with asyncio.TaskGroup() as tasks:
        for repository in tags:
            tasks.create_task(_check_children(registry, repository, pushed))
    for repository, names in tags.items():
        await registry.push_manifest(repository, raw, media_type, tags=names)
    return Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))


async def _check_children(registry: Registry, repository: str, pushed: Sequence[Pushed]) -> None:
    """Every entry of the index must exist where the index goes; the first repository has been read already."""
    raise NotImplementedError


def root_bytes(pushed: Sequence[Pushed], *, annotations: Mapping[str, str]) -> tuple[bytes, str]:
    """Bytes and media type of the root: the daemon's own for one platform, an index of all for several."""
    raise NotImplementedError


def _at(repository: str, digest: Digest) -> Reference:
    return Reference.parse_normalized(repository).with_digest(digest)


__all__ = ["Child", "Index", "Pushed", "assemble", "collect", "encode_index", "push_root"]
