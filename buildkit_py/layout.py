"""OCI layouts on disk: the exports of several platforms merged into one, and layouts read.

A layout is a directory, or a tar archive of one, with ``oci-layout``, ``index.json`` and ``blobs/``. The
streams that daemons send are tar archives of layouts. Source: OCI image-spec v1.1, image-layout.md.

Nothing here knows an event loop: all of it blocks on the disk, except what is said not to. Memory stays
bounded by the chunks that are passed in and by the limits of manifests and configs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self, cast

from buildkit_py import tarstream
from buildkit_py.digest import Digest, Hash, new_hash
from buildkit_py.errors import BuildKitError, DeadlineExceeded, InvalidDigest, InvalidOption, ProtocolError
from buildkit_py.oci import (
    DOCKER_CONFIG,
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    PlatformRoot,
    assemble,
    check_entry,
    encode_index,
    encode_json,
    parse_json,
)
from buildkit_py.platforms import Platform
from buildkit_py.reference import DEFAULT_TAG, Reference

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

_CREATED = "org.opencontainers.image.created"

_LAYOUT_FILE = "oci-layout"
_INDEX_FILE = "index.json"
_DOCKER_FILE = "manifest.json"
_LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
_MAX_ENTRIES = 100_000  # of one archive; images have some hundreds
_READ_SIZE = 1 << 20
_LOCK_SECONDS = 10.0


class LayoutMerger:
    """Collects the layouts of several platforms and makes one of them.

    ``open_stream`` for each platform, ``finish`` once all of them are closed, then one of ``publish_file``,
    ``publish_directory`` and ``write_tar``. Leaving the ``with`` block removes whatever was not published.
    Streams may be written from several threads at once, each stream by one; nothing else may be shared.
    """

    def __init__(self, staging: Path, *, mode: int = 0o777) -> None:
        """Make the staging directory, which must not exist yet; mode as for mkdir."""
        self.staging = staging
        self._root: Descriptor | None = None
        self._numbers = itertools.count()
        self._streams: dict[Platform | None, LayoutStream] = {}
        self._images: dict[Platform, Digest] = {}
        with _writing(staging):
            staging.mkdir(mode)
            (staging / "tmp").mkdir()
            (staging / "blobs").mkdir()

    @classmethod
    def create(cls, destination: Path | None) -> Self:
        """Stage where publishing to destination takes renames; None is the temporary directory."""
        name = f".buildkit-py-{secrets.token_hex(8)}"
        if destination is None or is_special(destination):
            return cls(Path(tempfile.gettempdir()) / name, mode=0o700)
        if destination.is_dir():
            return cls(destination / name)  # it may be a mount point of its own
        return cls(_existing_parent(destination) / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def discard(self) -> None:
        """Close the streams and remove everything that was staged; again and again does no harm."""
        for stream in self._streams.values():
            stream.abort()
        shutil.rmtree(self.staging, ignore_errors=True)

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
            reachable.add(root.digest)
            self._put(root.digest, raw)
        if descriptor_annotations:
            root = root.with_annotations({**root.annotations, **descriptor_annotations})
        self._images = {platform: digest for digest, platform in platforms.items()}
        self._drop_unreachable(reachable)
        with _writing(self.staging):
            (self.staging / _LAYOUT_FILE).write_bytes(_LAYOUT_CONTENT)
            (self.staging / _INDEX_FILE).write_bytes(self._index_json(order, root, names))
            shutil.rmtree(self.staging / "tmp")
        self._root = root
        return root

    def add_docker_manifest(self, names: Sequence[Reference]) -> None:
        """Add the ``manifest.json`` that docker's classic image store reads, which has room for one platform.

        It is this machine's own where that was built, else the first. Comes after finish().
        """
        self._check_finished()
        manifest = self._docker_image()
        entry = {
            "Config": _blob_name(manifest.config.digest),
            "RepoTags": [name.with_default_tag().familiar for name in names],
            "Layers": [_blob_name(layer.digest) for layer in manifest.layers],
        }
        with _writing(self.staging):
            (self.staging / _DOCKER_FILE).write_bytes(json.dumps([entry]).encode())

    def publish_directory(self, destination: Path) -> None:
        """Put the layout in place: by a rename where nothing is, else blob by blob, ``index.json`` last.

        Entries of other names stay in an existing layout. Raises InvalidOption for a directory that holds
        something else, DeadlineExceeded when another process keeps the layout locked.
        """
        self._check_finished()
        _check_destination(destination, True, ours=self.staging)
        with _writing(destination):
            if not destination.exists():
                destination.parent.mkdir(parents=True, exist_ok=True)
                if _renamed(self.staging, destination):
                    return
            with _locked(destination):
                self._merge_into(destination)
        self.discard()

    def publish_file(self, destination: Path) -> None:
        """Write the layout as a tar archive under a temporary name and rename it; a device is written to."""
        self._check_finished()
        _check_destination(destination, False, ours=None)
        with _writing(destination):
            if is_special(destination):
                with destination.open("wb") as stream:
                    self.write_tar(stream)
            else:
                # Through a symbolic link to what it names, as a plain open would.
                target = Path(os.path.realpath(destination))
                temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
                try:
                    with temporary.open("xb") as stream:
                        self.write_tar(stream)
                    temporary.replace(target)
                finally:
                    temporary.unlink(missing_ok=True)
        self.discard()

    def write_tar(self, stream: BinaryIO) -> None:
        """Write the layout as a tar archive, with the bytes that BuildKit gives one. The stream stays open.

        OSError of the stream goes through as it is.
        """
        stream.writelines(self.tar_chunks())
        stream.flush()

    def tar_chunks(self, *, without: Collection[Digest] = ()) -> Iterator[bytes]:
        """The same archive in pieces, but for the blobs named."""
        self._check_finished()
        left_out = {self.blob_path(digest) for digest in without}
        for path in sorted(self.staging.rglob("*")):
            name = path.relative_to(self.staging).as_posix()
            if path.is_dir():
                yield tarstream.header(f"{name}/", directory=True)
                continue
            if path in left_out:
                continue
            size = path.stat().st_size
            yield tarstream.header(name, size, writable=name == _INDEX_FILE)
            with path.open("rb") as content:
                while chunk := content.read(_READ_SIZE):
                    yield chunk
            yield tarstream.padding(size)
        yield tarstream.END

    def digests(self) -> tuple[Digest, ...]:
        """All blobs, sorted."""
        self._check_finished()
        return tuple(Digest(path.parent.name, path.name) for path in sorted((self.staging / "blobs").glob("*/*")))

    def docker_layers(self) -> tuple[tuple[str, Digest], ...]:
        """Diff id and blob of each layer that ``manifest.json`` lists, from the lowest up."""
        manifest = self._docker_image()
        config = parse_json(_read_bounded(self.blob_path(manifest.config.digest), MAX_CONFIG_BYTES), "image config")
        rootfs = config.get("rootfs")
        ids = cast("dict[str, object]", rootfs).get("diff_ids") if isinstance(rootfs, dict) else None
        diff_ids = [str(item) for item in cast("list[object]", ids)] if isinstance(ids, list) else []
        return tuple(zip(diff_ids, (layer.digest for layer in manifest.layers), strict=False))

    def _docker_image(self) -> Manifest:
        """The image that is for this machine, else the first."""
        own = Platform.host()
        platform = next((platform for platform in self._images if own.matches(platform)), next(iter(self._images)))
        return Manifest.parse(_read_bounded(self.blob_path(self._images[platform]), MAX_MANIFEST_BYTES))

    def _check_finished(self) -> None:
        if self._root is None:
            raise RuntimeError("finish() comes before publishing")

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob of this digest is staged."""
        return self.staging / "blobs" / digest.algorithm / digest.hex

    def temporary_path(self) -> Path:
        """A file name that nobody else uses; safe to call from any thread."""
        return self.staging / "tmp" / str(next(self._numbers))

    def _put(self, digest: Digest, raw: bytes) -> None:
        temporary = self.temporary_path()
        with _writing(self.staging):
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

    def _check_blob(self, descriptor: Descriptor) -> None:
        """Raise ProtocolError unless the blob is there; its digest was checked when it came."""
        try:
            size = self.blob_path(descriptor.digest).stat().st_size
        except FileNotFoundError:
            raise ProtocolError(f"{descriptor.digest}: the daemon did not send this blob") from None
        if size != descriptor.size:
            raise ProtocolError(f"{descriptor.digest} is {size} bytes, its descriptor says {descriptor.size}")

    def _export(self, platform: Platform | None) -> _Export:
        """Check one platform's layout from its index down."""
        stream = self._streams.get(platform)
        if stream is None:
            raise ProtocolError(f"the daemon sent no layout of {platform or 'the platform'}")
        entries = stream.index.manifests
        if not entries or any(entry.digest != entries[0].digest for entry in entries):
            raise ProtocolError(f"{stream.what}: expected one image, found {len(entries)} entries")
        root = entries[0].with_annotations(_without_names(entries[0]))
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
        return _index_of(root, names)

    def _received_root(self, platform: Platform | None) -> Descriptor:
        entry = self._streams[platform].index.manifests[0]
        return entry.with_annotations(_without_names(entry))

    def _merge_into(self, destination: Path) -> None:
        mine = parse_json((self.staging / _INDEX_FILE).read_bytes(), _INDEX_FILE)
        existing = destination / _INDEX_FILE
        if existing.exists():
            raw = _read_bounded(existing, MAX_MANIFEST_BYTES)
            merged = _merged(parse_json(raw, str(existing)), mine)
        else:
            merged = (self.staging / _INDEX_FILE).read_bytes()
        for path in sorted((self.staging / "blobs").glob("*/*")):
            target = destination / "blobs" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        if not (destination / _LAYOUT_FILE).exists():
            (self.staging / _LAYOUT_FILE).replace(destination / _LAYOUT_FILE)
        if (self.staging / _DOCKER_FILE).exists():
            (self.staging / _DOCKER_FILE).replace(destination / _DOCKER_FILE)
        (self.staging / _INDEX_FILE).write_bytes(merged)
        (self.staging / _INDEX_FILE).replace(existing)


class LayoutWriter(LayoutMerger):
    """Makes a layout of content that is known piece by piece, and puts it in place as its base class does.

    ``put`` and ``open_blob`` for every blob, manifests included, then ``finish_entries``, then a publish method.
    Blobs may be written from several threads at once.
    """

    def put(self, digest: Digest, raw: bytes) -> None:
        """Stage a blob that is in memory. Blocks shortly; raises ProtocolError unless it has this digest."""
        blob = self.open_blob(digest)
        try:
            blob.write(raw)
            blob.close()
        finally:
            blob.abort()

    def open_blob(self, digest: Digest, *, checked: bool = False) -> LayoutBlob:
        """Where the content of a blob is written; checked says that the writer looks at its digest before close()."""
        with _writing(self.staging):
            return LayoutBlob(self, digest, checked=checked)

    def finish_entries(self, entries: Sequence[Descriptor]) -> None:
        """Say that all blobs were staged; entries, with their names as annotations, are the ``index.json``.

        Raises ProtocolError when the blob of an entry is missing.
        """
        for entry in entries:
            self._check_blob(entry)
        fields = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json() for entry in entries]}
        with _writing(self.staging):
            (self.staging / _LAYOUT_FILE).write_bytes(_LAYOUT_CONTENT)
            (self.staging / _INDEX_FILE).write_bytes(encode_json(fields))
            shutil.rmtree(self.staging / "tmp")
        self._root = entries[0]


class LayoutBlob:
    """A blob that is written into a LayoutWriter; it is part of the layout once close() returns. Blocks."""

    def __init__(self, writer: LayoutWriter, digest: Digest, *, checked: bool) -> None:
        self._staging = writer.staging
        self._blob = _Blob(writer, digest, checked=checked)

    def write(self, data: bytes, /) -> None:
        """Take the next bytes."""
        with _writing(self._staging):
            self._blob.write(memoryview(data))

    def close(self) -> None:
        """Say that all of it was written; ProtocolError where it is checked here and is not what it should be."""
        with _writing(self._staging):
            self._blob.close()

    def abort(self) -> None:
        """Remove what is not complete; after close() it does nothing."""
        self._blob.abort()


@dataclass(frozen=True, slots=True)
class _Export:
    """What one platform's layout holds."""

    root: PlatformRoot
    platforms: dict[Digest, Platform]
    """Of the images, from their configs."""
    reachable: set[Digest]


class LayoutStream:
    """One platform's layout on its way in: a tar stream, in chunks of any size.

    Blobs go to the staging directory as they come, each under its name only once its digest is right.
    After an error the stream is closed, and says so. Write from one thread at a time; abort from any: a
    cancelled write may still be running in its thread.
    """

    def __init__(self, merger: LayoutMerger, what: str) -> None:
        self.what = what
        """Names the stream in errors."""
        self._merger = merger
        self._reader = tarstream.TarReader()
        self._entries = 0
        self._target: _Blob | _SmallFile | None = None
        self._small: dict[str, bytes] = {}
        self._index: Index | None = None
        self._closed = False
        self._lock = threading.RLock()

    @property
    def index(self) -> Index:
        """Its ``index.json``; ProtocolError until close() has been called."""
        if self._index is None:
            raise ProtocolError(f"{self.what}: did not arrive completely")
        return self._index

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes. Blocks. Raises ProtocolError for what does not belong into a layout."""
        try:
            with self._lock, _writing(self._merger.staging):
                if self._closed:
                    raise ProtocolError("more came after its end")
                for event in self._reader.feed(data):
                    if self._closed:
                        break  # by abort, which now waits
                    self._take(event)
        except BaseException as error:
            self.abort()
            if isinstance(error, ProtocolError):
                raise ProtocolError(f"{self.what}: {error}") from error
            raise

    def close(self) -> None:
        """Say that all of it was written; raises ProtocolError if something is missing. Blocks shortly."""
        if self._index is not None:
            return
        if self._closed:
            raise ProtocolError(f"{self.what}: did not arrive completely")
        self.abort()
        try:
            self._reader.close()
            for name in (_LAYOUT_FILE, _INDEX_FILE):
                if name not in self._small:
                    raise ProtocolError(f"{name} is missing")
            _check_version(self._small[_LAYOUT_FILE])
            self._index = Index.parse(self._small[_INDEX_FILE])
        except ProtocolError as error:
            raise ProtocolError(f"{self.what}: {error}") from error

    def abort(self) -> None:
        """Close it as it is, dropping a blob that is not complete; again and again does no harm.

        Waits for a write that is going on, which ends early; nothing is written afterwards.
        """
        self._closed = True
        with self._lock:
            if isinstance(self._target, _Blob):
                self._target.abort()
            self._target = None

    def _take(self, event: tarstream.Event) -> None:
        match event:
            case tarstream.Entry():
                self._entries += 1
                if self._entries > _MAX_ENTRIES:
                    raise ProtocolError(f"more than {_MAX_ENTRIES} entries")
                self._target = self._begin(event)
            case tarstream.Content(data):
                if self._target is not None:
                    self._target.write(data)
            case tarstream.EntryEnd():
                if isinstance(self._target, _Blob):
                    self._target.close()
                elif isinstance(self._target, _SmallFile):
                    self._small[self._target.name] = self._target.content
                self._target = None

    def _begin(self, entry: tarstream.Entry) -> _Blob | _SmallFile | None:
        """Where the content of this entry goes; None for what has none that matters."""
        name = entry.name.removeprefix("./").rstrip("/")
        parts = name.split("/")
        if entry.kind is tarstream.Kind.DIRECTORY:
            if name in ("", ".", "blobs") or (
                len(parts) == 2 and parts[0] == "blobs" and parts[1].isalnum() and name.isascii()
            ):
                return None
        elif entry.kind is tarstream.Kind.FILE and not entry.name.endswith("/"):
            if name in (_LAYOUT_FILE, _INDEX_FILE, _DOCKER_FILE):
                return self._begin_small(name, entry.size)
            if len(parts) == 3 and parts[0] == "blobs":
                return _Blob(self._merger, _blob_digest(entry.name, parts))
        raise ProtocolError(f"{_show(entry.name)} does not belong into a layout ({entry.kind.value})")

    def _begin_small(self, name: str, size: int) -> _SmallFile:
        if name in self._small:
            raise ProtocolError(f"{name} came twice")
        if size > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"{name} is {size} bytes, more than the {MAX_MANIFEST_BYTES} that are allowed")
        self._small[name] = b""
        return _SmallFile(name)


class _SmallFile:
    """A file that is kept in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._content = bytearray()

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def write(self, data: memoryview) -> None:
        self._content += data


class _Blob:
    """A blob on its way to the disk. One that is there already is only checked."""

    def __init__(self, merger: LayoutMerger, digest: Digest, *, checked: bool = False) -> None:
        self._digest = digest
        self._hash: Hash | None = None if checked else new_hash(digest.algorithm)
        self._path = merger.blob_path(digest)
        self._temporary: Path | None = None
        self._file: BinaryIO | None = None
        if not self._path.exists():
            self._temporary = merger.temporary_path()
            self._file = self._temporary.open("xb")

    def write(self, data: memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)
        if self._file is not None:
            self._file.write(data)

    def close(self) -> None:
        try:
            if self._hash is not None:
                self._digest.verify_hash(self._hash, "blob")
        except InvalidDigest as error:
            raise ProtocolError(str(error)) from error
        if self._file is not None and self._temporary is not None:
            self._file.close()
            self._path.parent.mkdir(exist_ok=True)
            # Another stream may have brought the same blob meanwhile: the same content.
            self._temporary.replace(self._path)

    def abort(self) -> None:
        if self._file is not None and self._temporary is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def check_destination(destination: Path, *, directory: bool) -> None:
    """Raise InvalidOption, naming the reason, unless a layout can be written there. Writes nothing."""
    _check_destination(destination, directory, ours=None)


def _check_destination(destination: Path, directory: bool, ours: Path | None) -> None:
    """ours may stand in the destination directory without making it one that is in use."""
    if directory:
        if destination.is_dir():
            used = any(path != ours for path in destination.iterdir())
            if used and not (destination / _LAYOUT_FILE).is_file():
                raise InvalidOption(f"output {destination}: is neither empty nor an OCI layout")
            _check_writable(destination, destination)
        elif destination.exists():
            raise InvalidOption(f"output {destination}: is not a directory")
        else:
            _check_writable(destination, _existing_parent(destination))
    elif destination.is_dir():
        raise InvalidOption(f"output {destination}: is a directory, expected the name of a file")
    elif not destination.parent.is_dir():
        raise InvalidOption(f"output {destination}: there is no directory {destination.parent}")
    elif is_special(destination):
        if not os.access(destination, os.W_OK):
            raise InvalidOption(f"output {destination}: cannot be written to")
    else:
        _check_writable(destination, Path(os.path.realpath(destination)).parent)


def check_tree_destination(destination: Path) -> Path:
    """The directory in which a tree can be staged, to be moved to destination; InvalidOption where none can."""
    if destination.is_dir():
        staging = destination
    elif os.path.lexists(destination):
        raise InvalidOption(f"output {destination}: is not a directory")
    else:
        staging = _existing_parent(destination)
    _check_writable(destination, staging)
    return staging


def is_special(destination: Path) -> bool:
    """Whether it is a device or a pipe, which is written to; a rename would put a file in its place."""
    return destination.exists() and not destination.is_file() and not destination.is_dir()


def _renamed(source: Path, target: Path) -> bool:
    """Whether the directory could be renamed; not when another process has put something there."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def _check_writable(destination: Path, directory: Path) -> None:
    if not directory.is_dir():
        raise InvalidOption(f"output {destination}: {directory} is not a directory")
    try:
        # Permissions alone do not tell: the file system may be read-only, or one of the kernel's own.
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InvalidOption(f"output {destination}: {directory} cannot be written to: {error.strerror}") from error


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in path.parents if parent.exists())


class _Files(Protocol):
    """The files of a layout, wherever they are."""

    def size(self, name: str) -> int | None:
        """Bytes; None when there is no such file."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]: ...


class Layout:
    """A layout that is read; from open_layout. Every method blocks, and may be called from any thread."""

    def __init__(self, files: _Files, where: str) -> None:
        self._files = files
        self._where = where
        _check_version(self._small(_LAYOUT_FILE))
        self.index = Index.parse(self._small(_INDEX_FILE))
        """Its ``index.json``."""

    def resolve(self, name: str | None = None) -> Descriptor:
        """The entry of this tag, image name or digest; without one, the only image there is.

        Raises InvalidOption, listing the names, when there is none or more than one.
        """
        found = {entry.digest: entry for entry in self.index.manifests if name is None or name in _names_of(entry)}
        if len(found) == 1:
            return next(iter(found.values()))
        known = ", ".join(sorted({text for entry in self.index.manifests for text in _names_of(entry)}))
        problem = "has more than one image" if found else "has no such image"
        raise InvalidOption(f"layout {self._where}: {name or 'without a name'}: {problem}; it has {known or 'none'}")

    def has(self, digest: Digest) -> bool:
        """Whether the blob is there; its content is not looked at."""
        return self._files.size(_blob_name(digest)) is not None

    def read(self, descriptor: Descriptor, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """A whole blob, checked; ProtocolError when it is missing, wrong or larger than max_bytes."""
        if descriptor.size > max_bytes:
            raise ProtocolError(f"{descriptor.digest}: {descriptor.size} bytes are more than {max_bytes}")
        return b"".join(self.chunks(descriptor))

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob in pieces; ProtocolError, at the latest after the last one, when it is not right."""
        name = _blob_name(descriptor.digest)
        size = self._files.size(name)
        if size is None:
            raise ProtocolError(f"layout {self._where}: {descriptor.digest} is missing")
        if size != descriptor.size:
            raise ProtocolError(
                f"layout {self._where}: {descriptor.digest} is {size} bytes, expected {descriptor.size}"
            )
        running = descriptor.digest.new_hash()
        for chunk in self._files.chunks(name):
            running.update(chunk)
            yield chunk
        try:
            descriptor.digest.verify_hash(running, f"layout {self._where}: blob")
        except InvalidDigest as error:
            raise ProtocolError(str(error)) from error

    def _small(self, name: str) -> bytes:
        size = self._files.size(name)
        if size is None:
            raise InvalidOption(f"layout {self._where}: has no {name}; this is no OCI layout")
        if size > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"layout {self._where}: {name} is {size} bytes, more than {MAX_MANIFEST_BYTES}")
        return b"".join(self._files.chunks(name))


@contextlib.contextmanager
def open_layout(path: Path) -> Generator[Layout]:
    """Read a layout: a directory, or a tar archive of one. Blocks; of an archive all headers are read first.

    Raises InvalidOption when there is no layout, ProtocolError when it is damaged.
    """
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            files: _Files = _DirectoryFiles(path)
        else:
            try:
                stream = stack.enter_context(path.open("rb", buffering=0))
            except OSError as error:
                raise InvalidOption(f"layout {path}: {error.strerror}") from error
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise InvalidOption(f"layout {path}: is neither a directory nor a file")
            try:
                files = _ArchiveFiles(stream)
            except ProtocolError as error:
                raise ProtocolError(f"layout {path}: {error}") from error
        yield Layout(files, str(path))


def put_entry(directory: Path, descriptor: Descriptor, tag: str) -> None:
    """Give a blob of a layout directory a tag in its ``index.json``, in place of what had it. Blocks.

    Makes a layout of a directory that has none of its files yet. Raises ProtocolError when its ``index.json`` is
    damaged, DeadlineExceeded when another process keeps it locked.
    """
    entry = descriptor.with_annotations({**descriptor.annotations, REF_NAME: tag})
    mine = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json()]}
    with _writing(directory), _locked(directory):
        index = directory / _INDEX_FILE
        raw = encode_json(mine)
        if index.exists():
            raw = _merged(parse_json(_read_bounded(index, MAX_MANIFEST_BYTES), str(index)), mine)
        if not (directory / _LAYOUT_FILE).exists():
            _replace(directory / _LAYOUT_FILE, _LAYOUT_CONTENT)
        _replace(index, raw)


def remove_unreachable(directory: Path) -> int:
    """Remove the blobs of a layout directory that no entry of its ``index.json`` leads to; how many. Blocks.

    Raises ProtocolError, and removes nothing, when a manifest on the way is missing or damaged.
    """
    with _writing(directory), _locked(directory), open_layout(directory) as layout:
        reachable: set[Digest] = set()
        todo = list(layout.index.manifests)
        while todo:
            entry = todo.pop()
            if entry.digest in reachable:
                continue
            reachable.add(entry.digest)
            if entry.is_index:
                todo += Index.parse(layout.read(entry), entry.media_type).manifests
            elif entry.media_type in MANIFEST_TYPES:
                manifest = Manifest.parse(layout.read(entry), entry.media_type)
                todo += manifest.blobs
        keep = {directory / _blob_name(digest) for digest in reachable}
        removed = [path for path in (directory / "blobs").glob("*/*") if path not in keep]
        for path in removed:
            path.unlink()
    return len(removed)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _DirectoryFiles:
    """A layout directory. Names are ours or made of digests, so none leads elsewhere."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int | None:
        try:
            found = (self._root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BuildKitError(f"{self._root / name}: {error.strerror}") from error
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def chunks(self, name: str) -> Iterator[bytes]:
        try:
            with (self._root / name).open("rb", buffering=0) as stream:
                while chunk := stream.read(_READ_SIZE):
                    yield chunk
        except OSError as error:
            raise BuildKitError(f"{self._root / name}: {error.strerror}") from error


class _ArchiveFiles:
    """A tar archive of a layout: where each file lies in it."""

    def __init__(self, stream: io.FileIO) -> None:
        self._descriptor = stream.fileno()
        self.spans: dict[str, tuple[int, int]] = {}
        reader = tarstream.TarReader()
        offset, end = 0, os.fstat(self._descriptor).st_size
        while offset < end:
            block = self._pread(offset, min(reader.wanted, end - offset))
            if not block:
                break  # it has shrunk meanwhile
            offset += len(block)
            for event in reader.feed(block):
                if isinstance(event, tarstream.Entry) and event.kind is tarstream.Kind.FILE:
                    if len(self.spans) >= _MAX_ENTRIES:
                        raise ProtocolError(f"layout archive has more than {_MAX_ENTRIES} files")
                    self.spans[event.name.removeprefix("./")] = (offset, event.size)
            if step := min(reader.content_left, end - offset):
                reader.skip(step)
                offset += step
        reader.close()

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise BuildKitError(f"layout archive: {error.strerror}") from error

    def size(self, name: str) -> int | None:
        span = self.spans.get(name)
        return None if span is None else span[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        offset, left = self.spans[name]
        while left and (chunk := self._pread(offset, min(left, _READ_SIZE))):
            offset += len(chunk)
            left -= len(chunk)
            yield chunk


def archive_blobs(stream: io.FileIO) -> dict[Digest, tuple[int, int]]:
    """Where each blob of a tar archive of a layout lies: (offset, size). Blocks; raises ProtocolError."""
    blobs: dict[Digest, tuple[int, int]] = {}
    for name, span in _ArchiveFiles(stream).spans.items():
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == "blobs":
            with contextlib.suppress(InvalidDigest):
                blobs[Digest.parse(f"{parts[1]}:{parts[2]}")] = span
    return blobs


def layout_files(root: Descriptor, raw: bytes, names: Sequence[Reference]) -> tuple[tuple[str, bytes], ...]:
    """Name and content of every file of a layout that holds its root alone, for who has the rest already."""
    return (
        (_LAYOUT_FILE, _LAYOUT_CONTENT),
        (_INDEX_FILE, _index_of(root, names)),
        (_blob_name(root.digest), raw),
    )


def _index_of(root: Descriptor, names: Sequence[Reference]) -> bytes:
    entries = [entry.to_json() for entry in _named(root, names)]
    return encode_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _named(root: Descriptor, names: Sequence[Reference]) -> list[Descriptor]:
    """Entries of index.json for a root. Source: buildkit, client/ociindex."""
    if not names:
        return [root.with_annotations({**root.annotations, REF_NAME: DEFAULT_TAG})]
    return [
        root.with_annotations(
            {
                **root.annotations,
                IMAGE_NAME: str(name.with_default_tag()),
                REF_NAME: name.tag_or_latest,
            }
        )
        for name in names
    ]


def _without_names(entry: Descriptor) -> dict[str, str]:
    return {key: value for key, value in entry.annotations.items() if key not in (IMAGE_NAME, REF_NAME)}


def _without_time(entry: Descriptor) -> Descriptor:
    """The daemon stamps the root of an export with the time; as part of an index it has no such stamp."""
    return entry.with_annotations({key: value for key, value in entry.annotations.items() if key != _CREATED})


def _names_of(entry: Descriptor) -> set[str]:
    names = {entry.annotations.get(IMAGE_NAME, ""), entry.annotations.get(REF_NAME, ""), str(entry.digest)}
    return names - {""}


def _merged(existing: Mapping[str, object], mine: Mapping[str, object]) -> bytes:
    """index.json with my entries added and those of the same names replaced; the rest stays as it is."""
    theirs, ours = _entries(existing), _entries(mine)
    taken = {_key(entry) for entry in ours}
    kept = [entry for entry in theirs if _key(entry) not in taken]
    return encode_json({**existing, "manifests": [*kept, *ours]})


def _entries(fields: Mapping[str, object]) -> list[dict[str, object]]:
    """Entries as they stand there; ProtocolError unless all of it is an index."""
    Index.parse(encode_json(fields))
    return cast("list[dict[str, object]]", fields.get("manifests") or [])


def _key(entry: Mapping[str, object]) -> tuple[str, str]:
    """Entries with equal keys replace each other: by image name, else by bare tag, else by digest."""
    descriptor = Descriptor.from_json(entry)
    for annotation in (IMAGE_NAME, REF_NAME):
        if name := descriptor.annotations.get(annotation):
            return annotation, name
    return "digest", str(descriptor.digest)


def _check_version(raw: bytes) -> None:
    version = parse_json(raw, _LAYOUT_FILE).get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise ProtocolError(f"{_LAYOUT_FILE}: layout version {_show(str(version))} is not supported")


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _blob_digest(name: str, parts: Sequence[str]) -> Digest:
    try:
        return Digest(parts[1], parts[2])
    except InvalidDigest as error:
        raise ProtocolError(f"{_show(name)} does not belong into a layout: {error}") from None


def _show(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "...")


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as stream:
        raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ProtocolError(f"{path} is more than {max_bytes} bytes")
    return raw


@contextlib.contextmanager
def _writing(where: Path) -> Generator[None]:
    """Failures of the disk as our errors."""
    try:
        yield
    except BuildKitError:
        raise  # DeadlineExceeded is an OSError too
    except OSError as error:
        path = error.filename or where
        raise BuildKitError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(directory: Path) -> Generator[None]:
    """Keep other processes of this library out while a layout is changed; waits for a bounded time."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        give_up = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise DeadlineExceeded(
                        f"layout {directory}: another process has kept it locked for {_LOCK_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


__all__ = [
    "IMAGE_NAME",
    "REF_NAME",
    "Layout",
    "LayoutBlob",
    "LayoutMerger",
    "LayoutStream",
    "LayoutWriter",
    "check_destination",
    "check_tree_destination",
    "is_special",
    "layout_files",
    "open_layout",
    "put_entry",
    "remove_unreachable",
]
