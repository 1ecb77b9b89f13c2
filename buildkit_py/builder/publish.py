"""From images pushed by digest to one reference: read the children back, check them, write the tag last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from buildkit_py.builder.exports import Push
from buildkit_py.errors import ProtocolError, sole_error
from buildkit_py.oci import (
    MAX_CONFIG_BYTES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    PlatformRoot,
    assemble,
    check_entry,
    encode_index,
    index_media_type,
    parse_manifest_or_index,
)
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One image manifest that a platform's solve pushed, checked."""

    descriptor: Descriptor
    """As it stands in an index: with its platform."""
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes of the manifest, its config and its layers."""
        layers = sum(layer.size for layer in self.manifest.layers)
        return self.descriptor.size + self.manifest.config.size + layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What one platform's solve left in the registry."""

    root: PlatformRoot
    """What the daemon pushed: a manifest, or an index where there are attestations."""
    raw: bytes
    images: tuple[Child, ...]
    attestations: tuple[Descriptor, ...]


async def collect(
    registry: Registry, repositories: Sequence[str], root: Descriptor, platform: Platform | None
) -> Pushed:
    """Read back what a solve pushed and check it: bytes against digests, sizes and configs against entries.

    Everything is read from the first repository; the others must have the same root. Raises NotFound when
    a part is missing, ProtocolError when one is not what it says, RegistryError for the rest.
    """
    first, *others = (Reference.parse_normalized(name) for name in repositories)
    content = await _fetch(registry, first, root)
    with sole_error():
        async with asyncio.TaskGroup() as tasks:
            if isinstance(content, Manifest):
                attestations: tuple[Descriptor, ...] = ()
                reading = [tasks.create_task(_image(registry, first, root, content, platform))]
            else:
                attestations = content.attestations
                reading = [tasks.create_task(_entry(registry, first, entry, platform)) for entry in content.images]
                for entry in attestations:
                    tasks.create_task(_fetch(registry, first, entry))
            for repository in others:
                tasks.create_task(registry.resolve(repository.with_digest(root.digest)))
    if not reading:
        raise ProtocolError(f"{first.name}@{root.digest}: the index that the daemon pushed holds no image")
    return Pushed(
        root=PlatformRoot(descriptor=root, index=content if isinstance(content, Index) else None),
        raw=content.raw,
        images=tuple(task.result() for task in reading),
        attestations=attestations,
    )


async def push_root(registry: Registry, push: Push, pushed: Sequence[Pushed]) -> Descriptor:
    """Write the root of one platform or of several to every name, by digest first, tags last; its descriptor.

    One platform keeps the bytes that the daemon pushed; several get an index of all their children, which are
    in every repository already. A failure leaves later names unwritten and none incomplete.
    """
    raw, root = _root(pushed, push.annotations.index)
    tags: dict[str, list[str]] = {}
    for reference in push.references:
        tags.setdefault(reference.name, []).append(reference.tag_or_latest)
    for repository, names in tags.items():
        await registry.push_manifest(repository, raw, root.media_type, tags=names if push.tagged else ())
    said = push.annotations.index_descriptor
    return root.with_annotations({**root.annotations, **said}) if said else root


def _root(pushed: Sequence[Pushed], annotations: Mapping[str, str]) -> tuple[bytes, Descriptor]:
    """Bytes and descriptor of what the tags will point at."""
    if len(pushed) == 1 and not annotations:
        return pushed[0].raw, pushed[0].root.descriptor
    known = {
        image.descriptor.digest: image.descriptor.platform
        for part in pushed
        for image in part.images
        if image.descriptor.platform is not None
    }
    entries = assemble([part.root for part in pushed], known)
    media_type = index_media_type(entries, annotations)
    raw = encode_index(entries, annotations=annotations, media_type=media_type)
    return raw, Descriptor.of(raw, media_type)


async def _entry(registry: Registry, repository: Reference, entry: Descriptor, platform: Platform | None) -> Child:
    content = await _fetch(registry, repository, entry)
    if not isinstance(content, Manifest):
        raise ProtocolError(f"{repository.name}@{entry.digest}: expected an image manifest, found an index")
    return await _image(registry, repository, entry, content, platform)


async def _image(
    registry: Registry,
    repository: Reference,
    entry: Descriptor,
    manifest: Manifest,
    platform: Platform | None,
) -> Child:
    raw = await registry.fetch_blob_bytes(repository.name, manifest.config, MAX_CONFIG_BYTES)
    config = ImageConfig.parse(raw)
    wanted = platform or entry.platform or config.platform
    # An image of Windows may be of another release than was asked for: its base image's.
    if _base(config.platform) != _base(wanted):
        raise ProtocolError(
            f"{repository.name}@{entry.digest}: the image for {wanted} says that it is for {config.platform}"
        )
    placed = entry.with_platform(entry.platform or wanted)
    check_entry(placed, config)
    return Child(descriptor=placed, manifest=manifest)


def _base(platform: Platform) -> Platform:
    return replace(platform.normalized(), os_version="", os_features=())


async def _fetch(registry: Registry, repository: Reference, descriptor: Descriptor) -> Manifest | Index:
    """A manifest or index by digest, verified against all that its descriptor says."""
    raw, _ = await registry.fetch_manifest(repository.with_digest(descriptor.digest))
    descriptor.verify(raw, f"{repository.name}@{descriptor.digest}")
    return parse_manifest_or_index(raw, descriptor.media_type)
