"""Where outputs on this machine go: a file, a directory, or an OCI layout of all platforms."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from buildkit_py.builder.request import Plan
from buildkit_py.errors import InvalidOption
from buildkit_py.layout import LayoutMerger, LayoutStream, check_destination
from buildkit_py.oci import Descriptor
from buildkit_py.options import ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.session.filesend import (
    DirectoryTarget,
    FileTarget,
    StreamSink,
    StreamTarget,
    WriterTarget,
)

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
        return _DirectoryOutput(Path(dest), split=len(plan.platforms) > 1)
    return _FileOutput(dest)


class _FileOutput:
    """A tar or docker archive of one platform."""

    def __init__(self, dest: str) -> None:
        self._target = WriterTarget(sys.stdout.buffer) if dest == "-" else FileTarget(Path(dest).absolute())
        if isinstance(self._target, FileTarget):
            check_destination(self._target.path, directory=False)

    def target(self, platform: Platform | None) -> StreamTarget:
        return self._target

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        if isinstance(self._target, FileTarget):
            await self._target.commit()
        return None

    async def discard(self) -> None:
        if isinstance(self._target, FileTarget):
            await self._target.abort()


class _DirectoryOutput:
    """Files of the result; of several platforms each in a directory of its own, such as ``linux_arm64``.

    A destination that is not there yet, or is empty, appears at once when all is complete. One that holds
    something is written into while the exports run, file by file.
    """

    def __init__(self, dest: Path, *, split: bool) -> None:
        self._dest = dest.absolute()
        self._split = split
        if self._dest.exists() and not self._dest.is_dir():
            raise InvalidOption(f"output {dest}: is not a directory")
        self._staged = not self._dest.exists() or not any(self._dest.iterdir())
        self._root = self._dest
        if self._staged:
            try:
                self._dest.parent.mkdir(parents=True, exist_ok=True)
                self._root = self._dest.with_name(f".{self._dest.name[:100]}.{secrets.token_hex(8)}.tmp")
                self._root.mkdir()
            except OSError as error:
                raise InvalidOption(f"output {dest}: cannot be written: {error.strerror}") from error

    def target(self, platform: Platform | None) -> DirectoryTarget:
        if not self._split or platform is None:
            return DirectoryTarget(self._root)
        folder = self._root / platform.local_name
        folder.mkdir(exist_ok=True)
        return DirectoryTarget(folder)

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        if self._staged:
            # A rename takes the place of an empty directory, and fails where something has come in between.
            await asyncio.to_thread(self._root.replace, self._dest)
            self._staged = False
        return None

    async def discard(self) -> None:
        if self._staged:
            await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)


class _LayoutOutput:
    """One OCI layout of all platforms, as a file or a directory."""

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
        self._merger = LayoutMerger.create(self._path)

    def target(self, platform: Platform | None) -> StreamTarget:
        return _LayoutTarget(self._merger.open_stream(platform))

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        return await asyncio.to_thread(self._publish, order)

    def _publish(self, order: Sequence[Platform | None]) -> Descriptor:
        names = self._plan.names_of(self._spec)
        annotations = self._plan.request.annotations if len(order) > 1 else None
        root = self._merger.finish(order, annotations=annotations, names=names)
        if self._path is None:
            self._merger.write_tar(sys.stdout.buffer)
        elif self._directory:
            self._merger.publish_directory(self._path)
        else:
            self._merger.publish_file(self._path)
        return root

    async def discard(self) -> None:
        await asyncio.to_thread(self._merger.discard)


class _LayoutTarget:
    """Takes the export of one platform."""

    def __init__(self, stream: LayoutStream) -> None:
        self._stream = stream

    async def open(self, metadata: Mapping[str, str]) -> StreamSink:
        return _LayoutSink(self._stream)


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
