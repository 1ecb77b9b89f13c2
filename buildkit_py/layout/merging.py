"""The exports of several platforms merged into one layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from buildkit_py.digest import Digest
from buildkit_py.errors import ProtocolError
from buildkit_py.layout.disk import read_bounded, writing
from buildkit_py.layout.entries import (
    DOCKER_FILE,
    IMAGE_NAME,
    blob_name,
    index_of,
    without_names,
)
from buildkit_py.layout.staging import StagedLayout
from buildkit_py.layout.stream import LayoutStream
from buildkit_py.oci import (
    DOCKER_CONFIG,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    PlatformRoot,
    assemble,
    check_entry,
    encode_index,
    parse_json,
)
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference

_CREATED = "org.opencontainers.image.created"


class LayoutMerger(StagedLayout):
    """Collects the layouts of several platforms and makes one of them.

    ``open_stream`` for each platform, ``finish`` once all of them are closed, then one of ``publish_file``,
    ``publish_directory`` and ``write_tar``.
    Streams may be written from several threads at once, each stream by one; nothing else may be shared.
    """

    def __init__(self, staging: Path, *, mode: int = 0o777) -> None:
        super().__init__(staging, mode=mode)
        self._streams: dict[Platform | None, LayoutStream] = {}
        self._images: dict[Platform, Digest] = {}

    def discard(self) -> None:
        """Close the streams and remove everything that was staged; again and again does no harm."""
        for stream in self._streams.values():
            stream.abort()
        super().discard()

    def open_stream(self, platform: Platform | None) -> LayoutStream:
        """Where the export of one platform is written; each may be opened once. Does not block."""
        if platform in self._streams:
            raise ProtocolError(f"the daemon sent the layout of {platform or 'the platform'} twice")
        stream = LayoutStream(self, "layout" if platform is None else f"layout of {platform}")
        self._streams[platform] = stream
        return stream

    def finish(
        self,
        order: Sequence[Platform | None],
        *,
        annotations: Mapping[str, str] | None = None,
        descriptor_annotations: Mapping[str, str] | None = None,
        names: Sequence[Reference] = (),
    ) -> Descriptor:
        """Check what came, join it in this order and return the descriptor of the root.

        The root of several platforms, and of one with annotations, is an index of all their images and
        attestations; that of one platform alone is what the daemon made. Every name becomes an entry of
        ``index.json``, with descriptor_annotations.
        Raises ProtocolError when a platform is missing or incomplete, or not the one that it should be.
        """
        exports = [self._export(platform) for platform in order]
        platforms = {digest: platform for export in exports for digest, platform in export.platforms.items()}
        reachable = {digest for export in exports for digest in export.reachable}
        if len(exports) == 1 and not annotations:
            root = exports[0].root.descriptor
            reachable.add(root.digest)
        else:
            children = assemble([export.root for export in exports], platforms)
            raw = encode_index([_without_time(child) for child in children], annotations=annotations)
            root = Index.parse(raw).descriptor
            if times := [child.annotations[_CREATED] for child in children if _CREATED in child.annotations]:
                # As the daemon stamps the index that it makes itself.
                root = root.with_annotations({_CREATED: max(times)})
            reachable.add(root.digest)
            self._put(root.digest, raw)
        if descriptor_annotations:
            root = root.with_annotations({**root.annotations, **descriptor_annotations})
        self._images = {platform: digest for digest, platform in platforms.items()}
        self._drop_unreachable(reachable)
        self._finish(self._index_json(order, root, names))
        return root

    def add_docker_manifest(self, names: Sequence[Reference]) -> None:
        """Add the ``manifest.json`` that docker's classic image store reads, which has room for one platform.

        It is this machine's own where that was built, else the first. Comes after finish().
        """
        self._check_finished()
        manifest = self._docker_image()
        entry = {
            "Config": blob_name(manifest.config.digest),
            "RepoTags": [name.with_default_tag().familiar for name in names],
            "Layers": [blob_name(layer.digest) for layer in manifest.layers],
        }
        with writing(self.staging):
            (self.staging / DOCKER_FILE).write_bytes(json.dumps([entry]).encode())

    def docker_layers(self) -> tuple[tuple[str, Digest], ...]:
        """Diff id and blob of each layer that ``manifest.json`` lists, from the lowest up."""
        manifest = self._docker_image()
        config = parse_json(read_bounded(self.blob_path(manifest.config.digest), MAX_CONFIG_BYTES), "image config")
        rootfs = config.get("rootfs")
        ids = cast("dict[str, object]", rootfs).get("diff_ids") if isinstance(rootfs, dict) else None
        diff_ids = [str(item) for item in cast("list[object]", ids)] if isinstance(ids, list) else []
        return tuple(zip(diff_ids, (layer.digest for layer in manifest.layers), strict=False))

    def _docker_image(self) -> Manifest:
        """The image that is for this machine, else the first."""
        own = Platform.host()
        platform = next((platform for platform in self._images if own.matches(platform)), next(iter(self._images)))
        return Manifest.parse(read_bounded(self.blob_path(self._images[platform]), MAX_MANIFEST_BYTES))

    def _put(self, digest: Digest, raw: bytes) -> None:
        temporary = self.temporary_path()
        with writing(self.staging):
            temporary.write_bytes(raw)
            path = self.blob_path(digest)
            path.parent.mkdir(exist_ok=True)
            temporary.replace(path)

    def _read(self, descriptor: Descriptor, max_bytes: int) -> bytes:
        self._check_blob(descriptor)
        if descriptor.size > max_bytes:
            raise ProtocolError(f"{descriptor.digest}: {descriptor.size} bytes are too many for what it is")
        raw = self.blob_path(descriptor.digest).read_bytes()
        descriptor.verify(raw, str(descriptor.digest))
        return raw

    def _export(self, platform: Platform | None) -> _Export:
        """Check one platform's layout from its index down."""
        stream = self._streams.get(platform)
        if stream is None:
            raise ProtocolError(f"the daemon sent no layout of {platform or 'the platform'}")
        entries = stream.index.manifests
        if not entries or any(entry.digest != entries[0].digest for entry in entries):
            raise ProtocolError(f"{stream.what}: expected one image, found {len(entries)} entries")
        root = entries[0].with_annotations(without_names(entries[0]))
        index = Index.parse(self._read(root, MAX_MANIFEST_BYTES), root.media_type) if root.is_index else None
        export = _Export(PlatformRoot(descriptor=root, index=index), {}, set())
        for entry in index.manifests if index else (root,):
            self._check_manifest(entry, platform, export)
        if not export.platforms:
            raise ProtocolError(f"{stream.what}: holds no image")
        return export

    def _check_manifest(self, entry: Descriptor, platform: Platform | None, export: _Export) -> None:
        manifest = Manifest.parse(self._read(entry, MAX_MANIFEST_BYTES), entry.media_type)
        export.reachable.add(entry.digest)
        for blob in manifest.blobs:
            if blob.urls and not self.blob_path(blob.digest).exists():
                continue  # a layer that may not be distributed is fetched from elsewhere
            self._check_blob(blob)
            export.reachable.add(blob.digest)
        if entry.is_attestation:
            return
        if manifest.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
            raise ProtocolError(f"{entry.digest}: its config is no image config")
        config = ImageConfig.parse(self._read(manifest.config, MAX_CONFIG_BYTES))
        if entry.platform is not None:
            check_entry(entry, config)
        if platform is not None and not platform.matches(config.platform):
            raise ProtocolError(f"{entry.digest}: is for {config.platform}, the solve was for {platform}")
        export.platforms[entry.digest] = config.platform

    def _drop_unreachable(self, reachable: set[Digest]) -> None:
        """Remove blobs that nothing needs: the indexes that were joined, and what a daemon sent besides."""
        keep = {self.blob_path(digest) for digest in reachable}
        for path in (self.staging / "blobs").glob("*/*"):
            if path not in keep:
                path.unlink()

    def _index_json(self, order: Sequence[Platform | None], root: Descriptor, names: Sequence[Reference]) -> bytes:
        if len(order) == 1 and root == self._received_root(order[0]):
            received = self._streams[order[0]].index
            said = [entry.annotations.get(IMAGE_NAME, "") for entry in received.manifests]
            if names and said == [str(name.with_default_tag()) for name in names]:
                return received.raw
        return index_of(root, names)

    def _received_root(self, platform: Platform | None) -> Descriptor:
        entry = self._streams[platform].index.manifests[0]
        return entry.with_annotations(without_names(entry))


@dataclass(frozen=True, slots=True)
class _Export:
    """What one platform's layout holds."""

    root: PlatformRoot
    platforms: dict[Digest, Platform]
    """Of the images, from their configs."""
    reachable: set[Digest]


def _without_time(entry: Descriptor) -> Descriptor:
    """The daemon stamps the root of an export with the time; as part of an index it has no such stamp."""
    return entry.with_annotations({key: value for key, value in entry.annotations.items() if key != _CREATED})
