"""Images for the store of a daemon or an engine: by whom, and in how many steps.

A daemon that has a store can be told to keep one platform's image as it is exported. Several platforms need an
index over them, and how that gets there differs: an engine is given it, without what it has already; any other
daemon makes it itself, in one more solve.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from buildkit_py import tarstream
from buildkit_py.builder.destinations import LayoutTarget, MergedLayout, image_exporter
from buildkit_py.builder.exports import FileExport, Keep, is_true
from buildkit_py.client import connect
from buildkit_py.digest import Digest
from buildkit_py.engine import Engine, EngineInfo, find_engine
from buildkit_py.errors import BuildKitError, InvalidOption, ProtocolError, RPCError
from buildkit_py.layout.entries import layout_files
from buildkit_py.layout.merging import LayoutMerger
from buildkit_py.oci import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    ImageConfig,
    Index,
    PlatformRoot,
    assemble,
    encode_index,
    parse_manifest_or_index,
)
from buildkit_py.options import ExporterSpec
from buildkit_py.platforms import Platform

if TYPE_CHECKING:
    from buildkit_py.builder.outputs import ClientOutputs
    from buildkit_py.builder.request import Plan
    from buildkit_py.client import Client
    from buildkit_py.session.filesend import StreamTarget

_DOCKER = "docker://"
_MANIFEST_ATTRS = frozenset(
    {"compression", "compression-level", "force-compression", "oci-mediatypes", "oci-artifact", "prefer-nondist-layers"}
)
"""What makes a manifest or the blobs that it lists."""
_DANGLING = "moby-dangling"
"""What engines call what has no name."""


class Keeping:
    """What the daemon that builds keeps. What another engine gets is among the client's outputs."""

    def __init__(self, client: Client, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._stored: list[Keep] = []
        self._loaded: list[_EngineKeep] = []
        self.notes: list[str] = []

    async def open(self, outputs: ClientOutputs) -> None:
        """Ask the engines what they can hold; InvalidOption for what they cannot, before any solve."""
        own = _own_engine(self._client.address)
        for keep in self._plan.exports.keeps:
            engine = own if own is not None and not keep.context else None
            if engine is None and keep.engine:
                engine = await asyncio.to_thread(find_engine, keep.context)
            if engine is None:
                self._stored.append(keep)
                continue
            info = await engine.info()
            chosen = self._chosen(info)
            if not info.containerd_store:
                self._note_loss(keep)
            if own is not None and engine.address == own.address:
                self._loaded.append(_EngineKeep(self._client, keep, engine, chosen))
            else:
                outputs.add(_LoadOutput(keep, engine, info, chosen))

    def exporters(self, platform: Platform | None) -> tuple[ExporterSpec, ...]:
        """What the solve of one platform is asked for."""
        stored = () if self._joint else tuple(self._image(keep, platform) for keep in self._stored)
        return (*stored, *(keep.exporter(platform) for keep in self._loaded if platform in keep.platforms))

    def joint_exporters(self) -> tuple[ExporterSpec, ...]:
        """What a solve of all platforms is asked for, where the daemon has to join them."""
        return tuple(self._image(keep, None) for keep in self._stored) if self._joint else ()

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        """Give the indexes to the engine; the root of the first, where it was made here."""
        roots = [await keep.publish(order) for keep in self._loaded]
        return next((root for root in roots if root is not None), None)

    async def index(self, root: Descriptor | None) -> Index | None:
        """The index that the daemon keeps, for several platforms; None where there is none, or it does not show it."""
        if root is None or not root.is_index or not self._joint:
            return None
        try:
            return Index.parse(await self._client.read_blob(root.digest, MAX_MANIFEST_BYTES))
        except RPCError:  # a daemon before v0.11, or an engine's that is not the one that builds
            return None

    async def discard(self) -> None:
        """Take back what was stored under names that only serve the way there."""
        for keep in self._loaded:
            await keep.discard()

    @property
    def _joint(self) -> bool:
        return len(self._plan.platforms) > 1

    def _image(self, keep: Keep, platform: Platform | None) -> ExporterSpec:
        annotations = keep.annotations
        of_images = annotations.of_images() if self._joint else annotations.of_image(platform)
        attrs = {**keep.attrs, **of_images, **annotations.of_index()}
        if keep.references:
            attrs["name"] = ",".join(map(str, keep.references))
        return ExporterSpec(type="image", attrs=attrs)

    def _note_loss(self, keep: Keep) -> None:
        """A classic store keeps file systems and a config: what else an image was to be is told of, not passed over."""
        lost = sorted(keep.attrs.keys() & _MANIFEST_ATTRS)
        if keep.annotations.items:
            lost.insert(0, "annotations")
        if lost:
            self.notes.append(
                f"the engine's classic image store keeps no {', '.join(lost)}; its containerd image store does"
            )

    def _chosen(self, info: EngineInfo) -> tuple[Platform | None, ...]:
        """The platforms that an engine has room for."""
        platforms = self._plan.platforms
        if info.containerd_store or len(platforms) < 2:
            return platforms or (None,)
        own = Platform.host(info.os, info.architecture)
        fits = [platform for platform in platforms if own.matches(platform)]
        if not fits:
            raise InvalidOption(
                f"load: the engine's classic image store holds {own} alone, which is not among the platforms; "
                "turn on its containerd image store"
            )
        self.notes.append(
            f"the engine's classic image store holds one platform: {fits[0]} is loaded, "
            f"{len(platforms) - 1} more are not; its containerd image store holds all"
        )
        return (fits[0],)


async def open_keeping(client: Client, plan: Plan, outputs: ClientOutputs) -> Keeping:
    """Sort out who keeps what; raise InvalidOption for what an engine cannot hold."""
    keeping = Keeping(client, plan)
    await keeping.open(outputs)
    return keeping


def _own_engine(address: str) -> Engine | None:
    """The engine whose BuildKit this is."""
    if not address.startswith(_DOCKER):
        return None
    place = address.removeprefix(_DOCKER)
    return Engine(f"unix://{place}" if place.startswith("/") else f"tcp://{place}")


class _EngineKeep:
    """An image for the engine whose own BuildKit builds it, so that no layer leaves it.

    One platform is kept under the names that it is to have. Several are kept under names of their own until the
    engine has been given the index, which then holds them.
    """

    def __init__(self, client: Client, keep: Keep, engine: Engine, platforms: tuple[Platform | None, ...]) -> None:
        self._client = client
        self._keep = keep
        self._engine = engine
        self.platforms = platforms
        token = secrets.token_hex(8)
        self._names = {
            platform: f"localhost/buildkit-py-{token}:{platform.local_name}"
            for platform in platforms
            if platform is not None and len(platforms) > 1
        }
        self._asked = False

    def exporter(self, platform: Platform | None) -> ExporterSpec:
        self._asked = True
        annotations = self._keep.annotations
        # As images that are pushed, so that the same build is the same image here and there.
        attrs = {"oci-mediatypes": "true", **self._keep.attrs, **annotations.of_image(platform)}
        if platform in self._names:
            attrs["name"] = self._names[platform]
        else:
            attrs |= annotations.of_index()
            if self._keep.references:
                attrs["name"] = ",".join(map(str, self._keep.references))
        return ExporterSpec(type="moby", attrs=attrs)

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        if not self._names:
            return None
        annotations = self._keep.annotations
        roots = [await self._root(platform) for platform in order if platform is not None]
        raw = encode_index(assemble(roots), annotations=annotations.index)
        index = Index.parse(raw)
        files = layout_files(index.descriptor, raw, self._image_names(index.digest))
        await self._engine.load(_archive(files))
        for reference in self._keep.references:
            found = await self._engine.image_digest(reference.familiar)
            if found != str(index.descriptor.digest):
                raise ProtocolError(f"docker engine: {reference.familiar} is {found}, not {index.descriptor.digest}")
        await self.discard()
        return index.descriptor.with_annotations(annotations.index_descriptor)

    def _image_names(self, digest: Digest) -> list[str]:
        """As the daemon names an image. Source: buildkit, exporter/containerimage/export.go."""
        attrs = self._keep.attrs
        names = [str(reference) for reference in self._keep.references]
        prefix = attrs.get("dangling-name-prefix", "" if names else _DANGLING)
        by_digest = [prefix] if prefix and not (names and is_true(attrs.get("danging-name-empty-only"))) else []
        if is_true(attrs.get("name-canonical")):
            by_digest += names
        return [*names, *(f"{name}@{digest}" for name in by_digest)]

    async def discard(self) -> None:
        if not self._asked:
            return
        self._asked = False
        for name in self._names.values():
            with contextlib.suppress(BuildKitError):  # a solve that failed has not made it
                await self._engine.remove_name(name)

    async def _root(self, platform: Platform) -> PlatformRoot:
        """What the engine has of one platform, as the index is to list it."""
        digest = Digest.parse(await self._engine.image_digest(self._names[platform]))
        raw = await self._client.read_blob(digest, MAX_MANIFEST_BYTES)
        content = parse_manifest_or_index(raw)
        if isinstance(content, Index):
            return PlatformRoot(descriptor=content.descriptor, index=content)
        config = ImageConfig.parse(await self._client.read_blob(content.config.digest, MAX_CONFIG_BYTES))
        descriptor = content.descriptor.with_platform(config.platform)
        return PlatformRoot(descriptor=descriptor.with_annotations(self._keep.annotations.of_descriptor(platform)))


class _LoadOutput:
    """An image for an engine other than the one that builds: a layout, loaded without what is there already."""

    def __init__(self, keep: Keep, engine: Engine, info: EngineInfo, platforms: tuple[Platform | None, ...]) -> None:
        self._keep = keep
        self._engine = engine
        self._info = info
        self._platforms = platforms
        self._export = FileExport(
            spec=ExporterSpec(type="oci", attrs=keep.attrs),
            dest="-",
            references=keep.references,
            annotations=keep.annotations,
        )
        self._layout = MergedLayout(None)

    def exporter(self, platform: Platform | None) -> ExporterSpec:
        return image_exporter(self._export, platform)

    def target(self, platform: Platform | None) -> StreamTarget | None:
        return LayoutTarget(self._layout, platform) if platform in self._platforms else None

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        merger, root = await asyncio.to_thread(
            self._layout.finish, self._platforms, self._keep.references, self._keep.annotations
        )
        await asyncio.to_thread(merger.add_docker_manifest, self._keep.references)
        if self._info.containerd_store:
            await self._load_missing(merger)
        else:
            await self._load_layers(merger)
        await self.discard()
        return root

    async def discard(self) -> None:
        await asyncio.to_thread(self._layout.discard)

    async def _load_missing(self, merger: LayoutMerger) -> None:
        """An engine with containerd's store takes an archive without blobs that it has."""
        if self._engine.socket is None:
            await self._engine.load(merger.tar_chunks())
            return
        digests = await asyncio.to_thread(merger.digests)
        async with connect(f"{_DOCKER}{self._engine.socket}") as other:
            present = [digest for digest in digests if await other.has_blob(digest)]
            await self._engine.load(merger.tar_chunks(without=present))
            for digest in present:
                if not await other.has_blob(digest):
                    # Nothing held it, and the engine has cleared it away meanwhile.
                    await self._engine.load(merger.tar_chunks())
                    return

    async def _load_layers(self, merger: LayoutMerger) -> None:
        """An engine with the classic store reads no layer that it has on top of the same ones."""
        layers = await asyncio.to_thread(merger.docker_layers)
        chains = await self._engine.layer_chains()
        ids = [diff_id for diff_id, _ in layers]
        known = [digest for depth, (_, digest) in enumerate(layers, 1) if tuple(ids[:depth]) in chains]
        try:
            await self._engine.load(merger.tar_chunks(without=known))
        except BuildKitError:
            if not known:
                raise
            await self._engine.load(merger.tar_chunks())


def _archive(files: Sequence[tuple[str, bytes]]) -> Iterator[bytes]:
    for name, content in files:
        yield tarstream.header(name, len(content)) + content + tarstream.padding(len(content))
    yield tarstream.END


__all__ = ["Keeping", "open_keeping"]
