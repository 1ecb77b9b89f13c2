"""``LEVEL[PLATFORM]:KEY=VALUE``: annotations of a build, and who has to write each.

Source: docker buildx, docs/guides/annotations.md; buildkit, exporter/containerimage/exptypes/annotations.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Self

from buildkit_py.errors import InvalidOption, InvalidPlatform
from buildkit_py.platforms import Platform

_PLACE = re.compile(r"([a-z-]+)(?:\[([^\[\]]*)\])?")
_ATTRIBUTE = re.compile(r"annotation(?:-([a-z-]+))?(?:\[([^\[\]]*)\])?\.(.+)")
_EXPECTED = "expected KEY or LEVEL:KEY, of the levels manifest, index, manifest-descriptor and index-descriptor"


class Level(Enum):
    """Where an annotation stands."""

    MANIFEST = "manifest"
    """In the manifest of an image."""
    INDEX = "index"
    """In the index."""
    MANIFEST_DESCRIPTOR = "manifest-descriptor"
    """In the index' entry of an image."""
    INDEX_DESCRIPTOR = "index-descriptor"
    """In what describes the index: the build's own answer, and the entries of an OCI layout."""


_OF_MANIFESTS = frozenset({Level.MANIFEST, Level.MANIFEST_DESCRIPTOR})


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation and its place."""

    level: Level
    platform: Platform | None
    """Normalised; None is every platform."""
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Annotations:
    """All annotations of a build."""

    items: tuple[Annotation, ...] = ()

    @classmethod
    def parse(cls, given: Mapping[str, str], platforms: Sequence[Platform]) -> Self:
        """Read ``KEY`` or ``LEVEL[PLATFORM],LEVEL:KEY``, by which the values go; raise InvalidOption.

        Without a level it is the manifest. A platform must be one of those that are built.
        """
        return cls(_checked([item for name, value in given.items() for item in _parse(name, value)], platforms))

    def over(self, attrs: Mapping[str, str], platforms: Sequence[Platform]) -> Annotations:
        """These over the ones among the attributes of an output, ``annotation-LEVEL[PLATFORM].KEY``; as parse()."""
        found: list[Annotation] = []
        for name, value in attrs.items():
            if match := _ATTRIBUTE.fullmatch(name):
                level, platform, key = match.groups()
                place = (level or Level.MANIFEST.value) + ("" if platform is None else f"[{platform}]")
                found.append(Annotation(*_place(place, name), key, value))
        return Annotations(_checked(found, platforms) + self.items) if found else self

    @property
    def index(self) -> dict[str, str]:
        """Annotations of the index."""
        return self._of(Level.INDEX)

    @property
    def index_descriptor(self) -> dict[str, str]:
        """Annotations of what describes the index."""
        return self._of(Level.INDEX_DESCRIPTOR)

    def of_image(self, platform: Platform | None) -> dict[str, str]:
        """Attributes for an exporter of one platform's image, all but what belongs to an index.

        A daemon that exports one manifest ignores annotations that name a platform, so none does.
        """
        return {
            f"annotation-{item.level.value}.{item.key}": item.value
            for item in self._for(platform)
            if item.level in _OF_MANIFESTS
        }

    def of_images(self) -> dict[str, str]:
        """Attributes for an exporter of several platforms' images, which finds its own for each."""
        places = {None: ""} | {item.platform: f"[{item.platform}]" for item in self.items if item.platform is not None}
        return {
            f"annotation-{item.level.value}{places[item.platform]}.{item.key}": item.value
            for item in self.items
            if item.level in _OF_MANIFESTS
        }

    def of_descriptor(self, platform: Platform) -> dict[str, str]:
        """Annotations of the entry of one platform's image."""
        return {item.key: item.value for item in self._for(platform) if item.level is Level.MANIFEST_DESCRIPTOR}

    def of_index(self) -> dict[str, str]:
        """Attributes for an exporter that makes the index itself."""
        return {
            f"annotation-{item.level.value}.{item.key}": item.value
            for item in self.items
            if item.level not in _OF_MANIFESTS
        }

    def _for(self, platform: Platform | None) -> list[Annotation]:
        """What one platform gets; that of the platform alone comes last, and so counts."""
        named = [item for item in self.items if item.platform is not None]
        own = [item for item in named if platform is not None and item.platform and item.platform.matches(platform)]
        return [*(item for item in self.items if item.platform is None), *own]

    def _of(self, level: Level) -> dict[str, str]:
        return {item.key: item.value for item in self.items if item.level is level}


def _checked(items: Sequence[Annotation], platforms: Sequence[Platform]) -> tuple[Annotation, ...]:
    for item in items:
        if item.platform is not None and not any(item.platform.matches(platform) for platform in platforms):
            built = ", ".join(map(str, platforms)) or "none is named"
            raise InvalidOption(f"annotation {item.key!r} for {item.platform}: not a platform of this build ({built})")
    return tuple(items)


def is_annotation(attribute: str) -> bool:
    """Whether an attribute of an output is an annotation."""
    return _ATTRIBUTE.fullmatch(attribute) is not None


def _parse(name: str, value: str) -> list[Annotation]:
    places, colon, key = name.partition(":")
    if not colon:
        places, key = Level.MANIFEST.value, name
    if not key:
        raise InvalidOption(f"annotation {name!r}: has no key; {_EXPECTED}")
    return [Annotation(*_place(place.strip(), name), key, value) for place in places.split(",")]


def _place(text: str, name: str) -> tuple[Level, Platform | None]:
    match = _PLACE.fullmatch(text)
    known = {level.value: level for level in Level}
    if match is None or match[1] not in known:
        raise InvalidOption(f"annotation {name!r}: {text!r} is no level; {_EXPECTED}")
    level = known[match[1]]
    if match[2] is None:
        return level, None
    if level not in _OF_MANIFESTS:
        raise InvalidOption(f"annotation {name!r}: an index is for all platforms; leave [{match[2]}] out")
    try:
        return level, Platform.parse(match[2]).normalized()
    except InvalidPlatform as error:
        raise InvalidOption(f"annotation {name!r}: {error}") from error
