"""Where outputs on this machine go: a file, a directory, or an OCI layout of all platforms."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from buildkit_py.builder.annotations import Annotations, is_annotation
from buildkit_py.builder.exports import FileExport, is_true
from buildkit_py.builder.request import Plan
from buildkit_py.errors import BuildKitError, InvalidOption, ProtocolError
from buildkit_py.layout.destination import check_destination, check_tree_destination, is_special
from buildkit_py.layout.merging import LayoutMerger
from buildkit_py.layout.stream import LayoutStream
from buildkit_py.oci import Descriptor
from buildkit_py.options import ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference
from buildkit_py.session.directory import DirectoryTarget
from buildkit_py.session.filesend import (
    FileTarget,
    StreamSink,
    StreamTarget,
    Target,
    WriterTarget,
)
from buildkit_py.session.placing import place_tree

_BATCH_BYTES = 1 << 20  # one hop to a thread per this many bytes of a layout


class Output(Protocol):
    """One output of the build, over all its platforms."""

    def exporter(self, platform: Platform | None) -> ExporterSpec:
        """What the solve of this platform is asked for."""
        ...

    def target(self, platform: Platform | None) -> Target | None:
        """Where it exports to; None for one that exports nothing here."""
        ...

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        """Put it in place; the root of an image, where it is one."""
        ...

    async def discard(self) -> None:
        """Remove what is not in place. Does no harm after publish, or twice."""
        ...


def open_output(export: FileExport, plan: Plan) -> Output:
    """Stage the output. Blocks; InvalidOption for a destination that cannot be written."""
    several = len(plan.platforms) > 1
    if export.spec.type == "local":
        return _DirectoryOutput(export, plan)
    if export.spec.type == "oci" or (export.spec.type == "docker" and (several or _unpacked(export))):
        return LayoutOutput(export, plan)
    if several:
        return _TarsOutput(export)
    return _FileOutput(export, plan)


def _unpacked(export: FileExport) -> bool:
    """Whether a layout is to be a directory rather than an archive."""
    if export.dest == "-":
        return False
    return (
        export.dest.endswith("/")
        or Path(export.dest).is_dir()
        or export.spec.attrs.get("tar") in {"false", "0", "f", "F", "FALSE", "False"}
    )


def _stream_target(path: Path) -> FileTarget | _DeviceTarget:
    check_destination(path, directory=False)
    return _DeviceTarget(path) if is_special(path) else FileTarget(path)


class _FileOutput:
    """A tar or docker archive of one platform, with the daemon's own bytes."""

    def __init__(self, export: FileExport, plan: Plan) -> None:
        self._export = export
        self._plan = plan
        self._target: FileTarget | WriterTarget | _DeviceTarget
        if export.dest == "-":
            self._target = WriterTarget(sys.stdout.buffer)
        else:
            self._target = _stream_target(Path(export.dest).absolute())

    def exporter(self, platform: Platform | None) -> ExporterSpec:
        return image_exporter(self._export, platform)

    def target(self, platform: Platform | None) -> StreamTarget:
        return self._target

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        if isinstance(self._target, FileTarget):
            await self._target.commit()
        return None

    async def discard(self) -> None:
        if isinstance(self._target, FileTarget):
            await self._target.abort()
        elif isinstance(self._target, _DeviceTarget):
            self._target.close()


class _DeviceTarget:
    """Writes to what is there; opened when something comes, because a pipe waits for its reader."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        self._file = await asyncio.to_thread(self._path.open, "wb", buffering=0)
        return await WriterTarget(self._file).open(metadata)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _TarsOutput:
    """A tar archive of several platforms, each in a directory of its own, such as ``linux_arm64``.

    Nothing is made before the first export comes: the destination may lie in the build's own context.
    """

    def __init__(self, export: FileExport) -> None:
        self._spec = export.spec
        self._path = None if export.dest == "-" else Path(export.dest).absolute()
        if self._path is not None:
            check_destination(self._path, directory=False)
        self._staging: Path | None = None
        self._parts: dict[Platform | None, FileTarget] = {}

    def exporter(self, platform: Platform | None) -> ExporterSpec:
        return self._spec

    def target(self, platform: Platform | None) -> StreamTarget:
        return _TarPart(self, platform)

    def open_part(self, platform: Platform | None) -> FileTarget:
        """Where the archive of one platform goes. Blocks for the making of a directory, at most."""
        if self._staging is None:
            beside = self._path is not None and not is_special(self._path)
            where = self._path.parent if beside and self._path is not None else None
            self._staging = Path(tempfile.mkdtemp(prefix=".buildkit-py-", dir=where))
        return self._parts.setdefault(platform, FileTarget(self._staging / str(len(self._parts))))

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        if self._staging is None or any(platform not in self._parts for platform in order):
            raise ProtocolError("the daemon did not send the archives of all platforms")
        for platform in order:
            await self._parts[platform].commit()
        await asyncio.to_thread(self._publish, self._staging, order)
        return None

    def _publish(self, staging: Path, order: Sequence[Platform | None]) -> None:
        from buildkit_py.builder.tars import join_tars

        parts = [(platform.local_name, self._parts[platform].path) for platform in order if platform is not None]
        if self._path is None:
            join_tars(parts, sys.stdout.buffer)
        elif is_special(self._path):
            with self._path.open("wb") as stream:
                join_tars(parts, stream)
        else:
            joined = staging / "joined"
            with joined.open("xb") as stream:
                join_tars(parts, stream)
            joined.replace(self._path)

    async def discard(self) -> None:
        for part in self._parts.values():
            await part.abort()
        if self._staging is not None:
            await asyncio.to_thread(shutil.rmtree, self._staging, ignore_errors=True)


class _TarPart:
    """Takes the archive of one platform."""

    def __init__(self, output: _TarsOutput, platform: Platform | None) -> None:
        self._output = output
        self._platform = platform

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        return await self._output.open_part(self._platform).open(metadata)


class _DirectoryOutput:
    """Files of the result; of several platforms each in a directory of its own, such as ``linux_arm64``.

    All of it is received beside its place, or inside a directory that is there already, and moved when everything
    is complete. Nothing is made before the first file comes: the destination may lie in the build's own context.
    """

    def __init__(self, export: FileExport, plan: Plan) -> None:
        attrs = export.spec.attrs
        several = len(plan.platforms) > 1
        self._attrs = {key: value for key, value in attrs.items() if key != "mode"}
        if plan.platforms:
            self._attrs.pop("platform-split", None)  # a daemon would do it for one of the platforms alone
        self._dest = Path(export.dest).absolute()
        self._delete = attrs.get("mode") == "delete"
        self._split = is_true(attrs["platform-split"]) if "platform-split" in attrs else several
        self._mark = f".buildkit-py-{secrets.token_hex(8)}." if several and not self._split else ""
        """Begins the names of attestations that would be the same for all platforms."""
        self._mtime_ns = _epoch_ns(plan)
        if self._delete and self._dest.resolve() == Path("/"):
            raise InvalidOption("output type=local,mode=delete: dest is the root of the file system")
        self._root = check_tree_destination(self._dest) / f".buildkit-py-{secrets.token_hex(8)}"
        self._targets: dict[str, DirectoryTarget] = {}
        self._placing = threading.Lock()

    def exporter(self, platform: Platform | None) -> ExporterSpec:
        attrs = self._attrs
        if self._mark and platform is not None:
            prefix = f"{self._mark}{platform.local_name}."
            attrs = {**attrs, "attestation-prefix": prefix + attrs.get("attestation-prefix", "")}
        return ExporterSpec(type="local", attrs=attrs)

    def target(self, platform: Platform | None) -> DirectoryTarget:
        folder = platform.local_name if self._split and platform is not None else ""
        if folder not in self._targets:
            path, above = (self._root / folder, self._root) if folder else (self._root, None)
            self._targets[folder] = DirectoryTarget(path, private=True, above=above)
        return self._targets[folder]

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        if sum(target.export.streams for target in self._targets.values()) != len(order):
            raise ProtocolError(f"the daemon did not export all files for {self._dest}")
        await asyncio.to_thread(self._place)
        return None

    def _place(self) -> None:
        with self._placing:
            directories: dict[bytes, tuple[int, int]] = {}
            for folder, target in self._targets.items():
                if not folder:
                    directories |= target.directories
                    continue
                prefix = os.fsencode(folder)
                directories[prefix] = (0o755, self._mtime_ns)
                directories |= {prefix + b"/" + path: value for path, value in target.directories.items()}
            self._name_attestations()
            try:
                place_tree(self._root, self._dest, directories, delete=self._delete)
            except OSError as error:
                raise BuildKitError(f"output {self._dest}: cannot be written: {error.strerror or error}") from error

    def _name_attestations(self) -> None:
        """``provenance.linux_arm64.json``, as a daemon names them that merges platforms itself."""
        for path in self._root.glob(f"{self._mark}*") if self._mark else ():
            platform, _, name = path.name.removeprefix(self._mark).partition(".")
            stem, dot, suffix = name.rpartition(".")
            path.rename(self._root / (f"{stem}.{platform}.{suffix}" if dot else f"{name}.{platform}"))

    async def discard(self) -> None:
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        # After a cancelled publish, which goes on in its thread: half of a tree is worse than all of it.
        with self._placing:
            shutil.rmtree(self._root, ignore_errors=True)


def _epoch_ns(plan: Plan) -> int:
    """Time of the platforms' directories, as a daemon that splits by platform sets it."""
    text = plan.attrs.get("build-arg:SOURCE_DATE_EPOCH", "")
    return int(text) * 10**9 if re.fullmatch(r"[0-9]{1,10}", text) else 0


def image_exporter(export: FileExport, platform: Platform | None) -> ExporterSpec:
    """What a solve is asked for: each platform as a stream, whatever is written of it in the end."""
    attrs = {
        key: value for key, value in export.spec.attrs.items() if key not in {"tar", "name"} and not is_annotation(key)
    }
    if export.spec.type in {"oci", "docker"}:
        if export.references:
            attrs["name"] = ",".join(map(str, export.references))
        attrs |= export.annotations.of_image(platform)
    return ExporterSpec(type=export.spec.type, attrs=attrs)


class MergedLayout:
    """The layouts of all platforms on their way into one; nothing is made before the first one comes."""

    def __init__(self, path: Path | None) -> None:
        """path is where it will be published, None for nowhere on the disk."""
        self._path = path
        self._merger: LayoutMerger | None = None

    def open_stream(self, platform: Platform | None) -> LayoutStream:
        """Where the export of a platform goes. Blocks for the making of a directory, at most."""
        if self._merger is None:
            self._merger = LayoutMerger.create(self._path)
        return self._merger.open_stream(platform)

    def finish(
        self, order: Sequence[Platform | None], names: Sequence[Reference], annotations: Annotations
    ) -> tuple[LayoutMerger, Descriptor]:
        """Join what came, with the annotations that belong to the index. Blocks."""
        if self._merger is None:
            raise ProtocolError("the daemon did not send a layout")
        root = self._merger.finish(
            order, annotations=annotations.index, descriptor_annotations=annotations.index_descriptor, names=names
        )
        return self._merger, root

    def discard(self) -> None:
        """Remove what was staged. Blocks; does no harm twice."""
        if self._merger is not None:
            self._merger.discard()


class LayoutOutput:
    """One OCI layout of all platforms, as a file or a directory; for docker with what ``docker load`` reads."""

    def __init__(self, export: FileExport, plan: Plan) -> None:
        self._plan = plan
        self._export = export
        self._path = None if export.dest == "-" else Path(export.dest).absolute()
        self._directory = _unpacked(export)
        if self._path is not None:
            check_destination(self._path, directory=self._directory)
        self._layout = MergedLayout(self._path)

    def exporter(self, platform: Platform | None) -> ExporterSpec:
        return image_exporter(self._export, platform)

    def target(self, platform: Platform | None) -> StreamTarget:
        return LayoutTarget(self._layout, platform)

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        return await asyncio.to_thread(self._publish, order)

    def _publish(self, order: Sequence[Platform | None]) -> Descriptor:
        merger, root = self._layout.finish(order, self._export.references, self._export.annotations)
        if self._export.spec.type == "docker":
            merger.add_docker_manifest(self._export.references)
        if self._path is None:
            merger.write_tar(sys.stdout.buffer)
        elif self._directory:
            merger.publish_directory(self._path)
        else:
            merger.publish_file(self._path)
        return root

    async def discard(self) -> None:
        await asyncio.to_thread(self._layout.discard)


class LayoutTarget:
    """Takes the export of one platform."""

    def __init__(self, layout: MergedLayout, platform: Platform | None) -> None:
        self._layout = layout
        self._platform = platform

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        return _LayoutSink(self._layout.open_stream(self._platform))


class _LayoutSink:
    """Feeds a layout stream from a thread, in batches: the stream hashes and writes what it gets."""

    def __init__(self, stream: LayoutStream) -> None:
        self._stream = stream
        self._batch: list[bytes] = []
        self._size = 0

    async def write(self, chunk: bytes) -> None:
        self._batch.append(chunk)
        self._size += len(chunk)
        if self._size >= _BATCH_BYTES:
            await self._flush()

    async def close(self) -> None:
        await self._flush()
        await asyncio.to_thread(self._stream.close)

    async def abort(self) -> None:
        await asyncio.to_thread(self._stream.abort)

    async def _flush(self) -> None:
        batch, self._batch, self._size = self._batch, [], 0
        await asyncio.to_thread(self._feed, batch)

    def _feed(self, batch: Sequence[bytes]) -> None:
        for chunk in batch:
            self._stream.write(chunk)
