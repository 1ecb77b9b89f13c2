"""A blob on its way: into a writer, out of a file, or from one repository into another; sized and hashed as it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from buildkit_py.digest import Hash
from buildkit_py.errors import InvalidDigest, RegistryError
from buildkit_py.oci import Descriptor
from buildkit_py.reference import Reference
from buildkit_py.registry import _http
from buildkit_py.registry._http import Transport
from buildkit_py.registry._operation import Operation

_HASHED_ASIDE_BYTES = 16 << 20
"""Below this a thread costs more than it saves."""


class Writer(Protocol):
    """Where a blob goes."""

    def write(self, data: bytes, /) -> object:
        """Take all of data."""
        ...


class Content(Protocol):
    """What an upload reads; a binary file is one."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class Collected:
    """A writer that keeps what it gets."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes, /) -> None:
        """Keep one more piece."""
        self.parts.append(data)


class Download:
    """How far a blob has come, over all attempts. A large one is hashed beside being received and written."""

    def __init__(self, descriptor: Descriptor, writer: Writer) -> None:
        self.descriptor = descriptor
        self.received = 0
        self._hash: Hash = descriptor.digest.new_hash()
        self._writer = writer
        large = descriptor.size >= _HASHED_ASIDE_BYTES
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="registry-hash") if large else None
        self._hashing: Future[None] | None = None

    def close(self) -> None:
        """End the thread that hashes."""
        if self._aside is not None:
            self._aside.shutdown()

    def hashed(self) -> Hash:
        """Of all that was received."""
        if self._hashing is not None:
            self._hashing.result()
        return self._hash

    @property
    def complete(self) -> bool:
        return self.received == self.descriptor.size

    def take(self, chunk: bytes, reference: Reference) -> None:
        if self.received + len(chunk) > self.descriptor.size:
            raise InvalidDigest(f"{reference}: the blob is larger than the {self.descriptor.size} bytes it should be")
        if self._aside is None:
            self._hash.update(chunk)
        else:
            self.hashed()  # of the piece before, so that no more than two are held
            self._hashing = self._aside.submit(self._hash.update, chunk)
        self._writer.write(chunk)
        self.received += len(chunk)


class BlobReader:
    """A blob of another repository as the content of an upload; goes on where it was after an interruption."""

    def __init__(
        self,
        transport: Transport,
        reference: Reference,
        descriptor: Descriptor,
        part: Operation,
        read_from: Callable[[int], Generator[bytes]],
    ) -> None:
        """read_from gives the bytes from a position on, in one attempt."""
        self._transport = transport
        self._reference = reference
        self._operation = part
        self._read_from = read_from
        self._last = _Last()
        self._state = Download(descriptor, self._last)
        self._chunks: Generator[bytes] | None = None

    def close(self) -> None:
        self._state.close()
        if self._chunks is not None:
            self._chunks.close()

    def read(self, size: int, /) -> bytes:
        """The next bytes, whatever their number; of a blob that is not what it should be, never the last ones."""
        if self._state.complete:
            return b""
        self._transport.retrying(self._operation, self._step)
        if self._state.complete:
            self._state.descriptor.digest.verify_hash(self._state.hashed(), f"blob of {self._reference.name}")
        return self._last.data

    def _step(self) -> None:
        if self._chunks is None:
            self._chunks = self._read_from(self._state.received)
        try:
            chunk = next(self._chunks, None)
        except RegistryError:
            self._chunks = None
            raise
        if chunk is None:
            self._chunks = None
            raise ended_early(self._reference, self._state)
        self._state.take(chunk, self._reference)


class _Last:
    data = b""

    def write(self, data: bytes, /) -> None:
        self.data = data


def ended_early(reference: Reference, state: Download) -> RegistryError:
    return RegistryError(
        f"{reference}: the blob ended after {state.received} of {state.descriptor.size} bytes",
        retryable=True,
        host=reference.api_host,
        method="GET",
        repository=reference.path,
    )


def slices(descriptor: Descriptor, open_content: Callable[[], Content], operation: Operation) -> Generator[bytes]:
    """The content in pieces, exactly as many bytes as announced."""
    left = descriptor.size
    try:
        with contextlib.closing(open_content()) as file:
            while chunk := file.read(_http.CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    break
                operation.check()
                yield chunk
    except OSError as error:
        # Not to be taken for a failure of the connection that this is being written to.
        raise RegistryError(f"content of {descriptor.digest}: {error.strerror or 'cannot be read'}") from error
    if left:
        raise InvalidDigest(f"content of {descriptor.digest}: not the {descriptor.size} bytes it should be")


__all__ = ["BlobReader", "Collected", "Content", "Download", "Writer", "ended_early", "slices"]
