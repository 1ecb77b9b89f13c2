"""Digests: the name of some bytes, made of these bytes alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from buildkit_py.errors import InvalidDigest

_HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_READ_SIZE = 1 << 20


class Hash(Protocol):
    """A running hash, as hashlib makes them."""

    @property
    def name(self) -> str: ...

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """Content address, written ``algorithm:hex``. Source: OCI image-spec v1.1, descriptor.md.

    Besides the two registered algorithms, sha256 and sha512, the sha384 of Go's digest package is read.
    Making one with anything else raises InvalidDigest.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_DIGITS.get(self.algorithm)
        if length is None:
            known = ", ".join(_HEX_DIGITS)
            raise InvalidDigest(f"digest {_show(self)}: unknown algorithm; expected one of {known}")
        if len(self.hex) != length:
            raise InvalidDigest(f"digest {_show(self)}: {len(self.hex)} characters; expected {length} hex digits")
        if not _HEX.fullmatch(self.hex):
            raise InvalidDigest(f"digest {_show(self)}: expected lower-case hex digits")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raise InvalidDigest unless text is ``algorithm:hex`` in lower case."""
        algorithm, colon, value = text.partition(":")
        if not colon:
            raise InvalidDigest(f"digest {text[:80]!r}: expected algorithm:hex, such as sha256:<64 hex digits>")
        return cls(algorithm, value)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
        """Digest of these bytes; blocks for as long as hashing them takes."""
        return cls.of_chunks((data,), algorithm)

    @classmethod
    def of_chunks(cls, chunks: Iterable[bytes | bytearray | memoryview], algorithm: str = "sha256") -> Digest:
        """Digest of the chunks one after the other."""
        running = new_hash(algorithm)
        for chunk in chunks:
            running.update(chunk)
        return cls.of_hash(running)

    @classmethod
    def of_stream(cls, stream: BinaryIO, algorithm: str = "sha256") -> Digest:
        """Digest of what is left in a binary file, read to its end in bounded memory; blocks."""
        return cls.of_chunks(iter(lambda: stream.read(_READ_SIZE), b""), algorithm)

    @classmethod
    def of_hash(cls, running: Hash) -> Digest:
        """Digest of what a hash has been fed so far."""
        return cls(running.name, running.hexdigest())

    def new_hash(self) -> Hash:
        """An empty hash of this digest's algorithm, for content that comes in pieces."""
        return new_hash(self.algorithm)

    def verify(self, data: bytes | bytearray | memoryview, what: str = "content") -> None:
        """Raise InvalidDigest, whose message names what, unless data has this digest."""
        self.verify_hash(_fed(self.new_hash(), data), what)

    def verify_hash(self, running: Hash, what: str = "content") -> None:
        """As verify, for content that was fed to a hash from new_hash."""
        got = Digest.of_hash(running)
        if got != self:
            raise InvalidDigest(f"{what} has digest {got}, expected {self}")

    @property
    def short(self) -> str:
        """First 12 hex digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def new_hash(algorithm: str = "sha256") -> Hash:
    """An empty hash; raise InvalidDigest for an algorithm that digests do not use."""
    if algorithm not in _HEX_DIGITS:
        raise InvalidDigest(f"digest algorithm {algorithm!r}: expected one of {', '.join(_HEX_DIGITS)}")
    return hashlib.new(algorithm, usedforsecurity=False)


def _fed(running: Hash, data: bytes | bytearray | memoryview) -> Hash:
    running.update(data)
    return running


def _show(digest: Digest) -> str:
    """Quoted and cut, since the text may come from anywhere."""
    text = str(digest)
    return repr(text if len(text) <= 160 else text[:160] + "...")


__all__ = ["Digest", "Hash", "new_hash"]
