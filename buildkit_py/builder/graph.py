"""Builds from graphs that a program makes, instead of from a Dockerfile."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from buildkit_py.builder.contexts import checked_directory
from buildkit_py.builder.request import CommonRequest, Plan, Work, plan_common
from buildkit_py.client import check_size
from buildkit_py.errors import InvalidOption
from buildkit_py.platforms import Platform

if TYPE_CHECKING:
    from buildkit_py.llb.emit import Config, Graph, PlatformDefinition


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRequest(CommonRequest):
    """A build of a graph for one platform or many."""

    graph: Graph
    """Called with each platform; gives the state to build for it, or a definition."""
    config: Config = None
    """How a container of the image starts, or a function that says it for a platform. What it leaves out comes from
    the state: environment, working directory and user."""
    locals: Mapping[str, str | os.PathLike[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Directories of this machine, by the name that ``llb.local`` has for them."""
    no_cache: bool = False
    """True runs every vertex again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan(Plan):
    """A build of definitions."""

    definitions: Mapping[Platform, PlatformDefinition]
    """One for each of platforms, with its image config."""

    def work(self, platform: Platform | None, *, directories_session: str) -> Work:
        # A local vertex does not name its session, lest its digest depend on it: the daemon asks those of the build.
        del directories_session
        assert platform is not None  # a plan of graphs has platforms
        made = self.definitions[platform]
        # Said by the result and not by an exporter, since attestations are made between the two.
        metadata = {"refs.platforms": _platforms([made.platform])}
        if made.config is not None:
            metadata["containerimage.config"] = made.config
        # The daemon warns where the result is for another platform than the one that is named here.
        attrs = {**self.attrs, "platform": str(platform)}
        return Work(attrs=attrs, definition=made.definition.to_bytes(), metadata=metadata)

    def joint_work(self) -> Work:
        made = {str(platform): self.definitions[platform] for platform in self.platforms}
        metadata = {"refs.platforms": _platforms(self.platforms)}
        metadata |= {f"containerimage.config/{name}": item.config for name, item in made.items() if item.config}
        attrs = {**self.attrs, "platform": ",".join(made)}
        definitions = {name: item.definition.with_cache().to_bytes() for name, item in made.items()}
        return Work(attrs=attrs, definitions=definitions, metadata=metadata)


def plan_graph(request: GraphRequest, own: Platform | None = None) -> GraphPlan:
    """Check a request and marshal its graph for every platform, or for own, the daemon's, if it names none.

    Raise InvalidOption, InvalidPlatform or InvalidReference for the first thing wrong, and what the graph raises.
    Blocks as long as the graph takes.
    """
    from buildkit_py.llb.emit import marshal_platforms

    common = plan_common(request)
    directories = {name: _local(name, path) for name, path in request.locals.items()}
    platforms = common.platforms or (own or Platform.host(),)
    made = marshal_platforms(request.graph, platforms, request.config)
    for item in made:
        _check_locals(item, directories)
    if request.no_cache:
        made = tuple([replace(item, definition=item.definition.without_cache()) for item in made])
    for item in made:
        check_size(f"the definition for {item.platform}", len(item.definition.to_bytes()))
    return GraphPlan(
        request=request,
        platforms=platforms,
        exports=common.exports,
        entitlements=request.allow,
        directories=MappingProxyType(directories),
        attrs=MappingProxyType(common.attrs),
        definitions=MappingProxyType({item.platform: item for item in made}),
    )


def _platforms(platforms: Iterable[Platform]) -> bytes:
    """The platforms of a result, as Dockerfiles have them. Source: buildkit, exporter/containerimage/exptypes."""
    entries = [{"ID": str(platform), "Platform": platform.to_oci()} for platform in platforms]
    return json.dumps({"Platforms": entries}, separators=(",", ":")).encode()


def _local(name: str, path: str | os.PathLike[str]) -> Path:
    if not name or not os.fspath(path):
        raise InvalidOption(f"locals: {name!r}={os.fspath(path)!r}: neither may be empty")
    return checked_directory(os.fspath(path), f"local {name}")


def _check_locals(item: PlatformDefinition, directories: Mapping[str, Path]) -> None:
    missing = [name for name in item.definition.local_names if name not in directories]
    if missing:
        known = ", ".join(directories) or "none"
        raise InvalidOption(
            f"locals: the graph for {item.platform} needs the directory {missing[0]!r}; those given are: {known}"
        )
