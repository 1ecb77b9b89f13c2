"""Where outputs on this machine go: a file, a directory, or an OCI layout of all platforms."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from buildkit_py.builder.request import Plan
from buildkit_py.errors import BuildKitError, InvalidOption, ProtocolError
from buildkit_py.layout import LayoutMerger, LayoutStream, check_destination, check_tree_destination, is_special
from buildkit_py.oci import Descriptor
from buildkit_py.options import ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.session.directory import DirectoryTarget
from buildkit_py.session.filesend import (
    FileTarget,
    StreamSink,
    StreamTarget,
    WriterTarget,
)
from buildkit_py.session.placing import place_tree

_BATCH_BYTES = 1 << 20  # one hop to a thread per this many bytes of a layout


class Output(Protocol):
    """One output of the build, over all its platforms."""

    def target(self, platform: Platform | None) -> StreamTarget | DirectoryTarget:
        """Where the solve of this platform exports to."""
        ...

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        """Put it in place; the root of an image, where it is one."""
        ...

    async def discard(self) -> None:
        """Remove what is not in place. Does no harm after publish, or twice."""
        ...


def open_output(spec: ExporterSpec, dest: str, plan: Plan) -> Output:
    """Stage the output. Blocks; InvalidOption for a destination that cannot be written."""
    if spec.type == "oci":
        return _LayoutOutput(spec, plan)
    if spec.type == "local":
        return _DirectoryOutput(spec, Path(dest), plan)
    return _FileOutput(dest)


class _FileOutput:
    """A tar or docker archive of one platform."""

    def __init__(self, dest: str) -> None:
        self._target: FileTarget | WriterTarget | _DeviceTarget
        path = Path(dest).absolute()
        if dest == "-":
            self._target = WriterTarget(sys.stdout.buffer)
        else:
            check_destination(path, directory=False)
            self._target = _DeviceTarget(path) if is_special(path) else FileTarget(path)

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


class _DirectoryOutput:
    """Files of the result; of several platforms each in a directory of its own, such as ``linux_arm64``.

    All of it is received beside its place, or inside a directory that is there already, and moved when everything
    is complete. Nothing is made before the first file comes: the destination may lie in the build's own context.
    """

    def __init__(self, spec: ExporterSpec, dest: Path, plan: Plan) -> None:
        self._dest = dest.absolute()
        self._delete = _deletes(spec)
        self._split = _splits(spec, plan)
        self._mtime_ns = _epoch_ns(plan)
        if self._delete and self._dest.resolve() == Path("/"):
            raise InvalidOption("output type=local,mode=delete: dest is the root of the file system")
        self._root = check_tree_destination(self._dest) / f".buildkit-py-{secrets.token_hex(8)}"
        self._targets: dict[str, DirectoryTarget] = {}
        self._placing = threading.Lock()

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
            try:
                place_tree(self._root, self._dest, directories, delete=self._delete)
            except OSError as error:
                raise BuildKitError(f"output {self._dest}: cannot be written: {error.strerror or error}") from error

    async def discard(self) -> None:
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        # After a cancelled publish, which goes on in its thread: half of a tree is worse than all of it.
        with self._placing:
            shutil.rmtree(self._root, ignore_errors=True)


def _deletes(spec: ExporterSpec) -> bool:
    """Source: buildkit, client/exporters.go."""
    mode = spec.attrs.get("mode", "").strip().lower()
    if mode not in {"", "copy", "delete"}:
        raise InvalidOption(f"output type=local: mode={mode}: expected copy or delete")
    return mode == "delete"


def _splits(spec: ExporterSpec, plan: Plan) -> bool:
    text = spec.attrs.get("platform-split")
    return len(plan.platforms) > 1 if text is None else text in {"1", "t", "T", "true", "TRUE", "True"}


def _epoch_ns(plan: Plan) -> int:
    """Time of the platforms' directories, as a daemon that splits by platform sets it."""
    text = plan.attrs.get("build-arg:SOURCE_DATE_EPOCH", "")
    return int(text) * 10**9 if re.fullmatch(r"[0-9]{1,10}", text) else 0


class _LayoutOutput:
    """One OCI layout of all platforms, as a file or a directory.

    Nothing is made before the first export comes: the destination may lie in the build's own context.
    """

    def __init__(self, spec: ExporterSpec, plan: Plan) -> None:
        dest = spec.dest or ""
        self._plan = plan
        self._spec = spec
        self._path = None if dest == "-" else Path(dest).absolute()
        self._directory = self._path is not None and (
            dest.endswith("/") or self._path.is_dir() or spec.attrs.get("tar") in {"false", "0", "f", "F"}
        )
        if self._path is not None:
            check_destination(self._path, directory=self._directory)
        self._merger: LayoutMerger | None = None

    def target(self, platform: Platform | None) -> StreamTarget:
        return _LayoutTarget(self, platform)

    def open_stream(self, platform: Platform | None) -> LayoutStream:
        """Where the export of a platform goes. Blocks for the making of a directory, at most."""
        if self._merger is None:
            self._merger = LayoutMerger.create(self._path)
        return self._merger.open_stream(platform)

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        if self._merger is None:
            raise ProtocolError("the daemon did not send a layout")
        return await asyncio.to_thread(self._publish, self._merger, order)

    def _publish(self, merger: LayoutMerger, order: Sequence[Platform | None]) -> Descriptor:
        names = self._plan.names_of(self._spec)
        annotations = self._plan.request.annotations if len(order) > 1 else None
        root = merger.finish(order, annotations=annotations, names=names)
        if self._path is None:
            merger.write_tar(sys.stdout.buffer)
        elif self._directory:
            merger.publish_directory(self._path)
        else:
            merger.publish_file(self._path)
        return root

    async def discard(self) -> None:
        if self._merger is not None:
            await asyncio.to_thread(self._merger.discard)


class _LayoutTarget:
    """Takes the export of one platform."""

    def __init__(self, output: _LayoutOutput, platform: Platform | None) -> None:
        self._output = output
        self._platform = platform

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        return _LayoutSink(self._output.open_stream(self._platform))


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
