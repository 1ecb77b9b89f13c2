"""Definitions from files and pipes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from buildkit_py.errors import InvalidDefinition, InvalidOption, InvalidPlatform
from buildkit_py.llb import Definition, PlatformDefinition, parse_definitions
from buildkit_py.platforms import parse_platforms


def read_definitions(path: str) -> Definition | tuple[PlatformDefinition, ...]:
    """A definition, or the stream of them that llb.emit writes; ``-`` is standard input. Raises OSError."""
    if path != "-":
        name, data = path, Path(path).read_bytes()
    elif sys.stdin.isatty():
        raise InvalidOption("standard input is a terminal; name a file, or pipe a program's definitions in")
    else:
        name, data = "standard input", sys.stdin.buffer.read()
    if not data:
        # As bytes this would be the definition of scratch, but it is what a program leaves that has failed.
        raise InvalidDefinition(f"{name} is empty; did the program that was to write it fail?")
    try:
        return parse_definitions(data)
    except InvalidDefinition as error:
        raise InvalidDefinition(f"{name}: {error}") from error


def select(made: Sequence[PlatformDefinition], platforms: Sequence[str]) -> tuple[PlatformDefinition, ...]:
    """Those of the platforms asked for, in that order, or all; InvalidPlatform where one is missing."""
    by_platform = {item.platform: item for item in made}
    wanted = parse_platforms(platforms) or tuple(by_platform)
    for platform in wanted:
        if platform not in by_platform:
            known = ", ".join([str(have) for have in by_platform])
            raise InvalidPlatform(f"--platform {platform}: the definitions given are for {known}")
    return tuple([by_platform[platform] for platform in wanted])
