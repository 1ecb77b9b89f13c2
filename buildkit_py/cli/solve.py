"""``buildkit-py solve``: build what a program made of it, instead of a Dockerfile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_py.builder import GraphRequest
from buildkit_py.builder.graph import plan_graph
from buildkit_py.cli import flags
from buildkit_py.cli.common import add_output_flags, add_solve_flags, common_fields, run_build
from buildkit_py.cli.definitions import read_definitions, select
from buildkit_py.errors import InvalidOption
from buildkit_py.llb import Definition, ImageConfig
from buildkit_py.platforms import parse_platforms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_py.llb.emit import Graph
    from buildkit_py.platforms import Platform

_EPILOG = "A program writes its definitions with llb.emit(): python mybuild.py | buildkit-py solve -t REF --push"


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments; what docker buildx has no flag for is spelt as buildctl spells it."""
    add = parser.add_argument
    add(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="a pb.Definition, or several as llb.emit writes them (default: standard input)",
    )
    add_output_flags(parser)
    add("--local", action="append", default=[], metavar="NAME=DIR", help="directory that the graph has as local NAME")
    add("--image-config", metavar="FILE", help="OCI image config for definitions that come without one")
    add_solve_flags(parser)
    parser.epilog = _EPILOG


async def execute(args: argparse.Namespace) -> int:
    """Solve; print the digest of what was made, unless that itself goes to stdout."""
    graph, platforms = _graph(args)
    request = GraphRequest(
        graph=graph,
        config=_config(args.image_config),
        platforms=platforms,
        locals=flags.pairs(args.local, "local"),
        **common_fields(args),
    )
    return await run_build(args, request, plan_graph(request))  # bad input is told of without a daemon


def _graph(args: argparse.Namespace) -> tuple[Graph, Sequence[Platform]]:
    """The definition of each platform, and the platforms."""
    found = read_definitions(args.file)
    if not isinstance(found, Definition):
        chosen = {item.platform: item for item in select(found, args.platform)}
        return chosen.__getitem__, tuple(chosen)
    platforms = parse_platforms(args.platform)
    if len(platforms) > 1:
        raise InvalidOption(
            f"--platform: {len(platforms)} are asked for, and there is one definition; "
            "let the program write one for each, with llb.emit()"
        )
    if not platforms and found.platform is not None:
        platforms = (found.platform,)
    return lambda _: found, platforms


def _config(path: str | None) -> ImageConfig | None:
    return None if path is None else ImageConfig(base=Path(path).read_bytes())
