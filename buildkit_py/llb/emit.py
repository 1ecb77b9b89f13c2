"""Definitions for several platforms: made from one function, and handed from one program to another.

The stream format is one JSON object a line::

    {"platform": "linux/arm64", "config": {...}, "definition": "CnkKdw..."}

``definition`` is a serialised ``pb.Definition`` in base64; ``config`` is an OCI image config without layers, and may
be left out. Such a stream never looks like a definition by itself, so readers take either.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, TypeAlias, cast

from buildkit_py.errors import InvalidDefinition, InvalidOption, InvalidPlatform, ProtocolError
from buildkit_py.llb import check
from buildkit_py.llb.base import is_state
from buildkit_py.llb.config import ImageConfig, encode_config
from buildkit_py.llb.definition import Definition
from buildkit_py.llb.marshal import marshal, random_id
from buildkit_py.llb.state import NO_VALUES, State
from buildkit_py.oci import MAX_CONFIG_BYTES, JSONObject, encode_json, parse_json
from buildkit_py.platforms import Platform, parse_platforms


@dataclass(frozen=True, slots=True)
class PlatformDefinition:
    """What to solve for one platform."""

    platform: Platform
    definition: Definition
    config: bytes | None = field(default=None, repr=False)
    """OCI image config as JSON, but for its layers; None leaves it to whoever solves."""

    def __post_init__(self) -> None:
        check.instance("PlatformDefinition(platform)", self.platform, Platform, "a Platform")
        check.instance("PlatformDefinition(definition)", self.definition, Definition, "a Definition")
        if self.config is not None:
            check.instance("PlatformDefinition(config)", self.config, bytes, "an image config as JSON")

    def to_line(self) -> bytes:
        """The line of a stream, with its newline."""
        fields: dict[str, object] = {"platform": str(self.platform)}
        if self.config is not None:
            fields["config"] = parse_json(self.config, "image config", max_bytes=MAX_CONFIG_BYTES)
        fields["definition"] = base64.b64encode(self.definition.to_bytes()).decode()
        return encode_json(fields) + b"\n"


Graph: TypeAlias = Callable[[Platform], State | Definition | PlatformDefinition]
"""Makes what is built for a platform: a state, or a definition that is marshalled already."""
Config: TypeAlias = ImageConfig | Callable[[Platform], ImageConfig] | None
"""One config for all platforms, or what makes that of each."""


def marshal_platforms(
    graph: Graph, platforms: Iterable[Platform], config: Config = None
) -> tuple[PlatformDefinition, ...]:
    """Call graph for each platform and marshal what it gives, together with the image's config.

    Local directories are the same vertexes for all of them, so that a daemon asks for each once. Raises InvalidOption
    where a state is for another platform than it was made for; ``state.with_platform(...)`` says that this is meant.
    """
    if not callable(graph):
        raise check.fail("graph", graph, "a function of a platform")
    wanted = check.of_type("platforms", platforms, Platform, "a Platform")
    unique_id = random_id()
    return tuple([_marshal(graph, platform, config, unique_id) for platform in wanted])


def emit(
    graph: Graph, platforms: str | Iterable[str | Platform], *, config: Config = None, file: BinaryIO | None = None
) -> None:
    """Write what graph makes for each platform as a stream, for ``buildkit-py solve`` to read.

    file is standard output by default. Nothing is written before all platforms are marshalled.
    """
    if not isinstance(platforms, str):
        platforms = check.of_type("platforms", platforms, (str, Platform), "a platform")
    try:
        wanted = parse_platforms(platforms)
    except InvalidPlatform as error:
        raise InvalidOption(f"platforms: {error}") from error
    if not wanted:
        raise InvalidOption("platforms: expected at least one")
    if file is not None and not hasattr(file, "write"):
        raise check.fail("file", file, "a binary file")
    lines = [made.to_line() for made in marshal_platforms(graph, wanted, config)]
    out = file or sys.stdout.buffer
    out.write(b"".join(lines))
    out.flush()


def parse_definitions(data: bytes) -> Definition | tuple[PlatformDefinition, ...]:
    """Read one definition, or a stream of them; raise InvalidDefinition for anything else."""
    check.instance("data", data, bytes, "bytes")
    if not data.startswith(b"{"):  # no definition does
        return Definition.parse(data)
    found: dict[Platform, PlatformDefinition] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of the definitions"
        item = _parse_line(line, where)
        if item.platform in found:
            raise InvalidDefinition(f"{where}: {item.platform} is there twice")
        found[item.platform] = item
    return tuple(found.values())


def _parse_line(line: bytes, where: str) -> PlatformDefinition:
    try:
        fields = parse_json(line, where, max_bytes=len(line))
        texts = {name: fields.get(name) for name in ("platform", "definition")}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise InvalidDefinition(f"{where}: {name} is not a string")
        if unknown := sorted(fields.keys() - {*texts, "config"}):
            raise InvalidDefinition(f"{where}: has an unknown field {unknown[0][:80]!r}")
        config = fields.get("config")
        if config is not None and not isinstance(config, Mapping):
            raise InvalidDefinition(f"{where}: config is not an object")
        platform = Platform.parse(cast("str", texts["platform"])).normalized()
        platform.check_known()
        data = base64.b64decode(cast("str", texts["definition"]), validate=True)
    except (InvalidPlatform, ProtocolError) as error:
        raise InvalidDefinition(f"{where}: {error}") from error
    except (binascii.Error, ValueError) as error:
        if isinstance(error, InvalidDefinition):
            raise
        raise InvalidDefinition(f"{where}: definition is not base64") from error
    encoded = None if config is None else encode_json(cast("JSONObject", config))
    return PlatformDefinition(platform, Definition.parse(data), encoded)


def _marshal(graph: Graph, platform: Platform, config: Config, unique_id: str) -> PlatformDefinition:
    made = graph(platform)
    if isinstance(made, PlatformDefinition):
        if made.platform != platform:
            raise InvalidOption(f"graph: was asked for {platform}, and gave a definition for {made.platform}")
        if made.config is not None:
            return PlatformDefinition(platform, made.definition, _completed(made.config, platform))
        made = made.definition
    if isinstance(made, Definition):
        return PlatformDefinition(platform, made, encode_config(_config_for(config, platform), NO_VALUES, platform))
    is_state("graph(platform)", made)
    if made.platform is not None and made.platform != platform:
        raise InvalidOption(
            f"graph: what it gave for {platform} is for {made.platform}; with_platform() says that this is meant"
        )
    definition = marshal(made, platform=platform, unique_id=unique_id)
    return PlatformDefinition(platform, definition, encode_config(_config_for(config, platform), made.values, platform))


def _config_for(config: Config, platform: Platform) -> ImageConfig | None:
    made = config(platform) if callable(config) else config
    if made is not None:
        check.instance("config", made, ImageConfig, "an ImageConfig")
    return made


def _completed(config: bytes, platform: Platform) -> bytes:
    """The config with its platform, which it may leave out but not contradict."""
    try:
        fields = parse_json(config, "config", max_bytes=MAX_CONFIG_BYTES)
        said = Platform.from_oci(fields)
    except (ProtocolError, InvalidPlatform) as error:
        raise InvalidOption(str(error)) from error
    if not (said.os or said.architecture):
        return encode_json({**fields, **platform.to_oci()})
    if said.normalized(default_os="") != platform:
        raise InvalidOption(f"config: is for {said.format()}, and stands beside a definition for {platform}")
    return config
