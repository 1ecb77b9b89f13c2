"""Places that images are read from: a repository of a registry, or an OCI layout. One face for both."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias, cast

from buildkit_py.digest import Digest
from buildkit_py.errors import ImageError, InvalidDigest, NotFound, ProtocolError
from buildkit_py.imagetools.location import LayoutLocation, Location
from buildkit_py.oci import (
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    parse_manifest_or_index,
)
from buildkit_py.reference import Reference
from buildkit_py.registry import Registry

if TYPE_CHECKING:
    from buildkit_py.layout.reading import Layout  # loaded for those who have one

Document: TypeAlias = Manifest | Index

_DOCUMENTS = (
    "application/vnd.oci.image.index.",
    "application/vnd.oci.image.manifest.",
    "application/vnd.docker.distribution.manifest.",
)


class Writer(Protocol):
    """Where a blob goes; called in a thread."""

    def write(self, data: bytes, /) -> object: ...


class Store(Protocol):
    """Somewhere that holds manifests and blobs. What it gives has been checked against size and digest."""

    @property
    def name(self) -> str:
        """Of the repository or layout, for messages."""
        ...

    async def find(self) -> tuple[bytes, Descriptor]:
        """The image that the location names: its bytes and their descriptor."""
        ...

    async def manifest(self, descriptor: Descriptor) -> bytes:
        """Bytes of a manifest or index; ImageError when it is not there or not what its descriptor says."""
        ...

    async def blob(self, descriptor: Descriptor, max_bytes: int) -> bytes:
        """A small blob; ImageError when it is not there or not what its descriptor says."""
        ...

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there; its content is not looked at."""
        ...

    async def pull(self, descriptor: Descriptor, writer: Writer) -> None:
        """Stream a blob into writer. What was written counts only if this returns."""
        ...

    async def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """Manifests that name this one as their subject."""
        ...


@dataclass(frozen=True, slots=True)
class RepositoryStore:
    """A repository of a registry."""

    registry: Registry
    reference: Reference
    mirrors: bool = True
    """Whether mirrors of the registry may say what its tag is."""

    @property
    def name(self) -> str:
        return self.reference.name

    async def find(self) -> tuple[bytes, Descriptor]:
        return await self.registry.fetch_manifest(self.reference, mirrors=self.mirrors)

    async def manifest(self, descriptor: Descriptor) -> bytes:
        what = f"{self.name}@{descriptor.digest}"
        try:
            raw, found = await self.registry.fetch_manifest(self.reference.with_digest(descriptor.digest))
        except NotFound as error:
            raise ImageError(f"{what}: is not there") from error
        _check(descriptor, raw, found.media_type, what)
        return raw

    async def blob(self, descriptor: Descriptor, max_bytes: int) -> bytes:
        what = f"{self.name}@{descriptor.digest}"
        try:
            return await self.registry.fetch_blob_bytes(self.name, descriptor, max_bytes)
        except NotFound as error:
            raise ImageError(f"{what}: the blob is not there") from error
        except InvalidDigest as error:
            raise ImageError(f"{what}: {error}") from error

    async def has_blob(self, descriptor: Descriptor) -> bool:
        return await self.registry.exists(self.name, descriptor.digest, blob=True)

    async def pull(self, descriptor: Descriptor, writer: Writer) -> None:
        what = f"{self.name}@{descriptor.digest}"
        try:
            await self.registry.fetch_blob(self.name, descriptor, writer)
        except NotFound as error:
            raise ImageError(f"{what}: the blob is not there") from error
        except InvalidDigest as error:
            raise ImageError(f"{what}: {error}") from error

    async def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        return await self.registry.referrers(self.name, digest)


@dataclass(frozen=True, slots=True)
class LayoutStore:
    """An OCI layout on this machine."""

    layout: Layout
    location: LayoutLocation

    @property
    def name(self) -> str:
        return f"layout {self.location.path}"

    async def find(self) -> tuple[bytes, Descriptor]:
        entry = self.entry
        return await self.manifest(entry), entry

    @property
    def entry(self) -> Descriptor:
        """The entry of ``index.json`` that the location names."""
        if self.location.entry is None:
            from buildkit_py.layout.entries import REF_NAME

            # Referrers stand in the index without a name, beside the one image that has one.
            named = {item.digest: item for item in self.layout.index.manifests if REF_NAME in item.annotations}
            if len(named) == 1:
                return next(iter(named.values()))
        return self.layout.resolve(self.location.entry)

    async def manifest(self, descriptor: Descriptor) -> bytes:
        what = f"{self.name}: {descriptor.digest}"
        try:
            raw = await asyncio.to_thread(self.layout.read, descriptor, MAX_MANIFEST_BYTES)
        except ProtocolError as error:
            raise ImageError(str(error)) from error
        _check(descriptor, raw, descriptor.media_type, what)
        return raw

    async def blob(self, descriptor: Descriptor, max_bytes: int) -> bytes:
        try:
            return await asyncio.to_thread(self.layout.read, descriptor, max_bytes)
        except ProtocolError as error:
            raise ImageError(str(error)) from error

    async def has_blob(self, descriptor: Descriptor) -> bool:
        return await asyncio.to_thread(self.layout.has, descriptor.digest)

    async def pull(self, descriptor: Descriptor, writer: Writer) -> None:
        def copy() -> None:
            for chunk in self.layout.chunks(descriptor):
                writer.write(chunk)

        try:
            await asyncio.to_thread(copy)
        except ProtocolError as error:
            raise ImageError(str(error)) from error

    def opener(self, descriptor: Descriptor) -> Callable[[], BinaryIO]:
        """Opens the blob as a file to be read once, as often as it is called."""
        return lambda: cast("BinaryIO", _ChunkFile(self.layout.chunks(descriptor)))

    async def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        found: list[Descriptor] = []
        for entry in self.layout.index.manifests:
            content = parse_document(await self.manifest(entry), entry)
            if content is not None and content.subject is not None and content.subject.digest == digest:
                found.append(entry.with_annotations({}))
        return tuple(found)


class _ChunkFile(io.RawIOBase):
    """Pieces of a blob as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """At most size bytes; empty at the end, after the digest was found right."""
        if not self._rest:
            self._rest = next(self._chunks, b"")
        if size < 0:
            size = len(self._rest)
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


@asynccontextmanager
async def open_store(
    registry: Registry, location: Location, *, mirrors: bool = True
) -> AsyncGenerator[RepositoryStore | LayoutStore, None]:
    """The store of a location; a layout is closed at the end."""
    if isinstance(location, Reference):
        yield RepositoryStore(registry, location.with_default_tag(), mirrors)
        return
    from buildkit_py.layout.reading import open_layout

    with ExitStack() as stack:
        layout = await asyncio.to_thread(stack.enter_context, open_layout(location.path))
        yield LayoutStore(layout, location)


def parse_document(raw: bytes, descriptor: Descriptor) -> Document | None:
    """Manifest or index of these bytes; None where the type is none of those known."""
    if descriptor.media_type and not _is_document(descriptor.media_type):
        return None
    return parse_manifest_or_index(raw, descriptor.media_type or None)


def _is_document(media_type: str) -> bool:
    # The old schema 1 has a similar name; parsing then says what it is.
    return media_type.startswith(
        (
            "application/vnd.oci.image.index.",
            "application/vnd.oci.image.manifest.",
            "application/vnd.docker.distribution.manifest.",
        )
    )


def _check(descriptor: Descriptor, raw: bytes, media_type: str, what: str) -> None:
    try:
        descriptor.verify(raw, what)
    except ProtocolError as error:
        raise ImageError(str(error)) from error
    if media_type and descriptor.media_type and media_type != descriptor.media_type:
        raise ImageError(f"{what}: is said to be {descriptor.media_type}, is {media_type}")


__all__ = ["Document", "LayoutStore", "RepositoryStore", "Store", "Writer", "open_store", "parse_document"]
