"""``LEVEL[PLATFORM]:KEY=VALUE``: annotations and the places they go to.

Source: docker buildx, docs/guides/annotations.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from buildkit_py.errors import InvalidOption, InvalidPlatform
from buildkit_py.platforms import Platform

_LEVEL = re.compile(r"(index-descriptor|manifest-descriptor|index|manifest)(?:\[([^\]]*)\])?")
_EXPECTED = (
    "expected index:, manifest: or manifest-descriptor: before KEY=VALUE, the last two with [PLATFORM] if wanted"
)


class Level(Enum):
    """Where an annotation stands."""

    INDEX = "index"
    """In the index."""
    MANIFEST = "manifest"
    """In the manifest of an image, whose digest changes by that."""
    DESCRIPTOR = "manifest-descriptor"
    """In the index' entry of an image."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation and its place."""

    level: Level
    platform: Platform | None
    """Normalised; None is every platform."""
    key: str
    value: str

    def __str__(self) -> str:
        scope = "" if self.platform is None else f"[{self.platform}]"
        return f"{self.level.value}{scope}:{self.key}"


def parse_annotations(given: Mapping[str, str] | Sequence[str]) -> tuple[Annotation, ...]:
    """Read ``LEVEL:KEY=VALUE`` items, or a mapping of ``LEVEL:KEY`` to values; raises InvalidOption.

    Several levels stand before the colon with commas between. Without a level nothing is guessed: for a build that
    is the manifest, which to change here would change an image's digest, and docker buildx refuses it, too.
    """
    found: list[Annotation] = []
    if isinstance(given, Mapping):
        pairs = [(name, value, name) for name, value in given.items()]
    else:
        split = [(text.partition("="), text) for text in given]
        if wrong := next((text for (_, equals, _), text in split if not equals), None):
            raise InvalidOption(f"annotation {wrong!r}: {_EXPECTED}")
        pairs = [(name, value, text) for (name, _, value), text in split]
    for name, value, text in pairs:
        for level, platform, key in parse_place(name, text):
            found.append(Annotation(level, platform, key, value))
    return tuple(found)


def parse_place(name: str, text: str | None = None) -> tuple[tuple[Level, Platform | None, str], ...]:
    """Read ``LEVEL:KEY``; text is what errors show."""
    text = name if text is None else text
    prefix, colon, key = name.partition(":")
    levels = _levels(prefix) if colon else None
    if levels is None:
        raise InvalidOption(f"annotation {text!r}: does not say where it goes; {_EXPECTED}")
    places = [_place(level, text) for level in levels]
    if not key:
        raise InvalidOption(f"annotation {text!r}: has no key; {_EXPECTED}")
    return tuple((level, platform, key) for level, platform in places)


def _levels(prefix: str) -> list[re.Match[str]] | None:
    """The levels in what stands before a colon; None where it is a part of a key."""
    found = [_LEVEL.fullmatch(part.strip()) for part in re.split(r",(?![^\[]*\])", prefix)]
    return [match for match in found if match] if all(found) else None


def _place(match: re.Match[str], text: str) -> tuple[Level, Platform | None]:
    if match[1] == "index-descriptor":
        raise InvalidOption(f"annotation {text!r}: nothing in a registry describes the index; use index:")
    level = Level(match[1])
    if match[2] is None:
        return level, None
    if level is Level.INDEX:
        raise InvalidOption(f"annotation {text!r}: an index is for all platforms; leave [{match[2]}] out")
    try:
        return level, Platform.parse(match[2]).normalized()
    except InvalidPlatform as error:
        raise InvalidOption(f"annotation {text!r}: {error}") from error


__all__ = ["Annotation", "Level", "parse_annotations", "parse_place"]
