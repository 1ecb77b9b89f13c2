"""Values of Go's templates and the functions that they have. Pure.

Source: Go, text/template and fmt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

from buildkit_py.errors import ImageError
from buildkit_py.oci import encode_json

Value: TypeAlias = object


@dataclass(frozen=True, slots=True)
class Nil:
    """Nothing, of some type of Go: null in JSON, false, empty, and printed as that type prints it."""

    text: str


NIL_MAP, NIL_LIST, NIL_POINTER, NO_VALUE = Nil("map[]"), Nil("[]"), Nil("<nil>"), Nil("<no value>")


class Field(NamedTuple):
    """A field of a record."""

    key: str
    """Its name in JSON."""
    zero: Value = ""
    """What it is where the JSON has none."""


class Record(dict[str, object]):
    """A Go struct: its fields have names of Go beside those in JSON, and asking for any other is an error.

    The items are those of the JSON, in the order in which Go writes them.
    """

    def __init__(self, items: Mapping[str, object], fields: Mapping[str, Field]) -> None:
        """fields are by their names in Go."""
        super().__init__(items)
        self.fields = fields

    def member(self, name: str) -> Value:
        """A field by its name in Go."""
        if name not in self.fields:
            raise ImageError(f"format: there is no field {name}; there are {', '.join(self.fields)}")
        key, zero = self.fields[name]
        return self.get(key, zero)


def member_of(value: Value, chain: Sequence[str]) -> Value:
    """A field, or a field of a field; ImageError where there is none."""
    for name in chain:
        match value:
            case Record():
                value = value.member(name)
            case dict():
                value = cast("dict[str, Value]", value).get(name, NO_VALUE)
            case None | Nil(NO_VALUE.text):
                return NO_VALUE
            case _:
                raise ImageError(f"format: {printed(value)[:100]} has no field {name}")
    return value


def truth(value: Value) -> bool:
    """Whether Go takes a value for true: nothing, zero and empty are false."""
    return isinstance(value, Record) or (bool(value) and not isinstance(value, Nil))


def printed(value: Value) -> str:
    """A value as Go's fmt prints it with %v."""
    match value:
        case Nil():
            return value.text
        case None:
            return NO_VALUE.text
        case bool():
            return "true" if value else "false"
        case float():
            return f"{int(value)}" if value.is_integer() and abs(value) < 1e21 else repr(value)
        case list():
            return f"[{' '.join(map(printed, cast('list[Value]', value)))}]"
        case Record():
            return f"{{{' '.join(printed(value.member(name)) for name in value.fields)}}}"
        case dict():
            items = sorted(cast("dict[str, Value]", value).items())
            return f"map[{' '.join(f'{key}:{printed(item)}' for key, item in items)}]"
        case _:
            return str(value)


def _plain(value: Value) -> Value:
    """As JSON shows it: the keys of maps sorted, the fields of records in their order."""
    match value:
        case Nil():
            return None
        case Record():
            return {key: _plain(item) for key, item in value.items()}
        case dict():
            return {key: _plain(item) for key, item in sorted(cast("dict[str, Value]", value).items())}
        case list():
            return [_plain(item) for item in cast("list[Value]", value)]
        case _:
            return value


def _json(value: Value) -> str:
    # Lists, texts and null are encoded as well as objects are.
    return encode_json(cast("Mapping[str, object]", _plain(value)), indent=2).decode()


def _index(value: Value, *keys: Value) -> Value:
    for key in keys:
        match value, key:
            case list(), int():
                items = cast("list[Value]", value)
                if not 0 <= key < len(items):
                    raise ImageError(f"format: index {key} is out of range, there are {len(items)}")
                value = items[key]
            case Record(), _:
                raise ImageError("format: index works on maps and lists; ask for a field after a dot")
            case dict(), str():
                value = cast("dict[str, Value]", value).get(key)
            case (None, _) | (Nil(), _):
                return None
            case _:
                raise ImageError(f"format: can't index {printed(value)[:100]} with {printed(key)[:100]}")
    return value


def _len(value: Value) -> int:
    if isinstance(value, (str, list, dict)) and not isinstance(value, Record):
        return len(value.encode()) if isinstance(value, str) else len(cast("list[Value]", value))
    if value is None or isinstance(value, Nil):
        return 0
    raise ImageError(f"format: {printed(value)[:100]} has no length")


def _print(*values: Value) -> str:
    """With spaces between two of which neither is text."""
    text = ""
    for position, value in enumerate(values):
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            text += " "
        text += printed(value)
    return text


def _println(*values: Value) -> str:
    return " ".join(map(printed, values)) + "\n"


_VERB = re.compile(r"%(?P<flags>[-0+ ]*)(?P<width>\d*)(?P<verb>[a-z%])")


def _printf(template: Value = "", *values: Value) -> str:
    if not isinstance(template, str):
        raise ImageError("format: printf needs a text first")
    left = list(values)

    def fill(match: re.Match[str]) -> str:
        verb = match["verb"]
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        value = left.pop(0)
        if verb not in "svdqt":
            raise ImageError(f"format: printf knows %s, %v, %d, %q and %t, not %{verb}")
        text = json.dumps(printed(value), ensure_ascii=False) if verb == "q" else printed(value)
        width = int(match["width"] or 0)
        if width > 1000:
            raise ImageError("format: printf fills up to 1000 characters")
        return text.ljust(width) if "-" in match["flags"] else text.rjust(width, "0" if "0" in match["flags"] else " ")

    return _VERB.sub(fill, template)


def _equal(first: Value, *others: Value) -> bool:
    if not others:
        raise ImageError("format: eq needs two values")
    return any(_alike(first) == _alike(other) for other in others)


def _alike(value: Value) -> Value:
    return None if isinstance(value, Nil) else value


def _ordered(compare: Callable[[int], bool]) -> Callable[..., bool]:
    def order(first: Value, second: Value) -> bool:
        if isinstance(first, str) and isinstance(second, str):
            return compare((first > second) - (first < second))
        if isinstance(first, (int, float)) and isinstance(second, (int, float)):
            return compare((first > second) - (first < second))
        raise ImageError(f"format: {printed(first)[:100]} and {printed(second)[:100]} cannot be compared")

    return order


def _not(value: Value) -> bool:
    return not truth(value)


def _not_equal(first: Value, second: Value) -> bool:
    return not _equal(first, second)


def _checked(name: str, function: Callable[..., Value]) -> Callable[..., Value]:
    def call(*arguments: Value) -> Value:
        try:
            return function(*arguments)
        except TypeError:
            raise ImageError(f"format: {name} cannot take {len(arguments)} such arguments") from None

    return call


_UNCHECKED: Mapping[str, Callable[..., Value]] = {
    "json": _json,
    "index": _index,
    "len": _len,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "eq": _equal,
    "ne": _not_equal,
    "lt": _ordered(lambda order: order < 0),
    "le": _ordered(lambda order: order <= 0),
    "gt": _ordered(lambda order: order > 0),
    "ge": _ordered(lambda order: order >= 0),
    "not": _not,
}
FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    name: _checked(name, function) for name, function in _UNCHECKED.items()
}
"""By name; what they are given wrongly is an ImageError."""

__all__ = [
    "FUNCTIONS",
    "NIL_LIST",
    "NIL_MAP",
    "NIL_POINTER",
    "NO_VALUE",
    "Field",
    "Nil",
    "Record",
    "Value",
    "member_of",
    "printed",
    "truth",
]
