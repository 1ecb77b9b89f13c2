"""Protobuf wire format, as much of it as definitions are written with.

Digests are of exact bytes, and two habits of Go's encoder are not those of Python's: members of a oneof come
after all other fields of their message, and map entries are sorted by the bytes of their keys. So what is
digested is written here, field by field; every name in this module that starts with a tag number takes it as
the encoded key byte(s). Source: protobuf encoding guide; moby/buildkit client/llb/marshal.go.
"""

from __future__ import annotations

from collections.abc import Iterable

_BYTES = tuple(bytes((number,)) for number in range(256))
_TWO_POWER_64 = 1 << 64

MINUS_ONE = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
"""-1 of any signed type: negative numbers always take ten bytes."""


def varint(number: int) -> bytes:
    """A number in base 128, lowest digits first; negative ones as 64-bit two's complement."""
    if 0 <= number < 128:
        return _BYTES[number]
    if 0 <= number < 16384:
        return _BYTES[number & 127 | 128] + _BYTES[number >> 7]
    if number < 0:
        number += _TWO_POWER_64
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def blob(tag: bytes, value: bytes) -> bytes:
    """A length-delimited field, written even when it is empty."""
    return tag + varint(len(value)) + value


def text(tag: bytes, value: str) -> bytes:
    """A string field; absent when it is empty."""
    return blob(tag, value.encode()) if value else b""


def texts(tag: bytes, values: Iterable[str]) -> bytes:
    """A repeated string field; empty items are kept."""
    return b"".join([blob(tag, value.encode()) for value in values])


def number(tag: bytes, value: int) -> bytes:
    """An integer or enum field; absent when it is zero."""
    return tag + varint(value) if value else b""


def flag(tag: bytes, value: bool) -> bytes:
    """A bool field; absent when it is false."""
    return tag + b"\x01" if value else b""


def text_map(tag: bytes, entries: Iterable[tuple[str, str]]) -> bytes:
    """A map<string, string> field: sorted by key, with key and value always written."""
    pairs = sorted((key.encode(), value.encode()) for key, value in entries)
    return b"".join([blob(tag, blob(b"\x0a", key) + blob(b"\x12", value)) for key, value in pairs])


def true_map(tag: bytes, keys: Iterable[str]) -> bytes:
    """A map<string, bool> field whose values are all true."""
    return b"".join([blob(tag, blob(b"\x0a", key) + b"\x10\x01") for key in sorted(key.encode() for key in keys)])
