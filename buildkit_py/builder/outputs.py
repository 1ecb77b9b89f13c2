"""Outputs on this machine: staged while the solves run, in place once all have succeeded, gone otherwise."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from buildkit_py.builder.request import Plan
from buildkit_py.errors import InvalidOption
from buildkit_py.layout import LayoutMerger, LayoutStream, check_destination
from buildkit_py.oci import Descriptor
from buildkit_py.options import ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.session.filesend import (
    DirectoryTarget,
    FileSend,
    FileTarget,
    StreamSink,
    StreamTarget,
    WriterTarget,
)

_BATCH_BYTES = 1 << 20  # one hop to a thread per this many bytes of a layout


class _Output(Protocol):
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


class ClientOutputs:
    """The outputs of a plan that go to this machine. Leaving the context removes what was not published."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._outputs: list[_Output | None] = []

    @property
    def exporters(self) -> tuple[ExporterSpec, ...]:
        """What each solve is asked to export, in the order of the outputs."""
        return tuple(_exporter(spec) for spec in self._plan.outputs)

    async def __aenter__(self) -> Self:
        """Stage every output; InvalidOption for a destination that cannot be written, before any solve."""
        try:
            for spec in self._plan.outputs:
                self._outputs.append(await asyncio.to_thread(_open, spec, self._plan))
        except BaseException:
            await self._discard()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._discard()

    def attachable(self, platform: Platform | None, *, first_exporter: int) -> FileSend | None:
        """Receives the exports of one platform's solve; None where all stays with the daemon."""
        targets = {
            first_exporter + position: output.target(platform)
            for position, output in enumerate(self._outputs)
            if output is not None
        }
        return FileSend(targets) if targets else None

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        """Put all outputs in place; the root of the first that is an image."""
        roots = [await output.publish(order) for output in self._outputs if output is not None]
        return next((root for root in roots if root is not None), None)

    async def _discard(self) -> None:
        for output in self._outputs:
            if output is not None:
                await output.discard()


def _exporter(spec: ExporterSpec) -> ExporterSpec:
    if spec.type != "oci":
        return spec
    # Whatever is written in the end, the daemon sends each platform as a stream, to be merged here.
    return ExporterSpec(type="oci", attrs={key: value for key, value in spec.attrs.items() if key != "tar"})


def _open(spec: ExporterSpec, plan: Plan) -> _Output | None:
    if spec.dest is None:
        return None
    if spec.type == "oci":
        return _LayoutOutput(spec, plan)
    if spec.type == "local":
        return _DirectoryOutput(Path(spec.dest), split=len(plan.platforms) > 1)
    return _FileOutput(spec.dest)


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
