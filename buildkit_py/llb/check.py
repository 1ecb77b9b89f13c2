"""Checks of arguments: each returns the value as it is meant, or raises InvalidOption naming the argument."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, InvalidOption, InvalidPlatform
from buildkit_py.platforms import Platform

T = TypeVar("T")

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def fail(name: str, value: object, expected: str) -> InvalidOption:
    """The error for a value that is not what was expected."""
    shown = repr(value)
    return InvalidOption(f"{name}={shown if len(shown) <= 120 else shown[:120] + '...'}: expected {expected}")


def text(name: str, value: object, expected: str = "text") -> str:
    """A string that has a UTF-8 form; the wire format has no other."""
    if not isinstance(value, str):
        raise fail(name, value, expected)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise fail(name, value, f"{expected} without surrogates") from None
    return value


def filled(name: str, value: object, expected: str = "text that is not empty") -> str:
    """A string that is not empty."""
    if not (checked := text(name, value, expected)):
        raise fail(name, value, expected)
    return checked


def path(name: str, value: object) -> str:
    """A path that is not empty and has no NUL in it."""
    checked = filled(name, value, "a path")
    if "\0" in checked:
        raise fail(name, value, "a path without NUL")
    return checked


def texts(name: str, values: object) -> tuple[str, ...]:
    """Several strings; a lone one is refused, since it would be taken for its letters."""
    return tuple([text(f"{name}[{index}]", value) for index, value in enumerate(several(name, values))])


def several(name: str, values: object) -> tuple[object, ...]:
    """The items of an iterable that is not itself text, bytes or a mapping."""
    given = values
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, bytearray, Mapping)):
        return tuple(cast("Iterable[object]", values))
    raise fail(name, given, "a sequence")


def instance(name: str, value: object, kind: type[T] | tuple[type[T], ...], expected: str) -> T:
    """A value of a class."""
    if not isinstance(value, kind):
        raise fail(name, value, expected)
    return value


def of_type(name: str, values: object, kind: type[T] | tuple[type[T], ...], expected: str) -> tuple[T, ...]:
    """Several values of one class."""
    items = several(name, values)
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise fail(f"{name}[{index}]", item, expected)
    return cast("tuple[T, ...]", items)


def pairs(name: str, values: object) -> tuple[tuple[str, str], ...]:
    """A mapping of text to text, or its pairs in order."""
    items: Iterable[object]
    if isinstance(values, Mapping):
        items = cast("Mapping[object, object]", values).items()
    else:
        items = several(name, values)
    found: list[tuple[str, str]] = []
    for item in items:
        key, value = pair(name, item, "a mapping or (name, value) pairs")
        key = filled(f"{name} name", key)
        found.append((key, text(f"{name}[{key!r}]", value)))
    return tuple(found)


def variables(name: str, values: object) -> tuple[tuple[str, str], ...]:
    """Names and values that an environment can hold."""
    items = pairs(name, values)
    for key, value in items:
        if "=" in key or "\0" in key or "\0" in value:
            raise fail(name, key, "names without '=', and no NUL in names or values")
    return items


def pair(name: str, value: object, expected: str) -> tuple[object, object]:
    """Two values."""
    given = value
    items = cast("Sequence[object]", value) if isinstance(value, (tuple, list)) else ()
    if len(items) != 2:
        raise fail(name, given, expected)
    return items[0], items[1]


def integer(name: str, value: object, bounds: tuple[int, int] = INT64) -> int:
    """A whole number within bounds; bool is not one."""
    if isinstance(value, bool) or not isinstance(value, int) or not bounds[0] <= value <= bounds[1]:
        raise fail(name, value, f"a whole number from {bounds[0]} to {bounds[1]}")
    return value


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise fail(name, value, "True or False")
    return value


def choice(name: str, value: object, choices: Collection[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise fail(name, value, "one of " + ", ".join(repr(known) for known in choices))
    return value


def mode(name: str, value: object) -> int:
    """Permission bits, with setuid, setgid and sticky."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o7777:
        raise fail(name, value, "permission bits from 0 to 0o7777")
    return value


def digest(name: str, value: object) -> str:
    """A digest, given as Digest or as its text."""
    if isinstance(value, Digest):
        return str(value)
    try:
        return str(Digest.parse(text(name, value, "a digest")))
    except InvalidDigest as error:
        raise InvalidOption(f"{name}: {error}") from error


def platform(name: str, value: object) -> Platform:
    """A Platform as it is, or one read from text and normalised."""
    if isinstance(value, Platform):
        for part in (value.os, value.architecture, value.variant, value.os_version, *value.os_features):
            text(name, part)
        return value
    try:
        return Platform.parse(text(name, value, "a platform such as 'linux/arm64'")).normalized()
    except InvalidPlatform as error:
        raise InvalidOption(f"{name}: {error}") from error


def nanoseconds(name: str, value: object) -> int:
    """Unix time in nanoseconds of an aware datetime, or of a number that is it already; -1 of None."""
    if value is None:
        return -1
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise fail(name, value, "a datetime with a time zone")
        return integer(name, (value - _EPOCH) // timedelta(microseconds=1) * 1000)
    return integer(name, value)
