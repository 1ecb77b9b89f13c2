"""``buildkit-py build``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from buildkit_py.builder import BuildRequest
from buildkit_py.builder.request import plan
from buildkit_py.cli import flags
from buildkit_py.cli.common import add_output_flags, add_solve_flags, add_switch, common_fields, run_build
from buildkit_py.cli.connection import open_client
from buildkit_py.cli.progress import show_progress, shows_logs

if TYPE_CHECKING:
    from buildkit_py.builder.request import Plan
    from buildkit_py.cli.call import CallSpec


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments, spelt as docker buildx spells them."""
    add = parser.add_argument
    add("context", nargs="?", default=".", metavar="PATH|URL|-", help="context (default: this directory)")
    add("-f", "--file", metavar="PATH|URL|-", help="Dockerfile (default: PATH/Dockerfile)")
    add_output_flags(parser)
    add("--target", default="", metavar="STAGE", help="stage to build")
    add("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="build argument")
    add("--build-context", action="append", default=[], metavar="NAME=VALUE", help="named context")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="label of the image")
    add("--no-cache-filter", action="append", default=[], metavar="STAGE", help="run the steps of a stage again")
    add_switch(parser, "--pull", help="ask for newer base images")
    add("--add-host", action="append", default=[], metavar="NAME:ADDRESS", help="line of the steps' hosts file")
    add("--network", default="default", metavar="MODE", help="network of the steps: default, host or none")
    add("--shm-size", default="0", metavar="SIZE", help="size of /dev/shm in the steps, such as 64m")
    add("--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]", help="limit of the steps")
    add("--cgroup-parent", default="", metavar="PATH", help="control group to run the steps in")
    add(
        "--call",
        default="build",
        metavar="METHOD",
        help="ask about the build: check, outline or targets, with ,format=json if wanted",
    )
    add_switch(parser, "--check", help="short for --call=check")
    add_solve_flags(parser)
    for name in ("--rm", "--force-rm", "--compress"):
        # Of builders before BuildKit; scripts still have them, and what they ask for is so, or changes nothing.
        add_switch(parser, name, help=argparse.SUPPRESS)


async def execute(args: argparse.Namespace) -> int:
    """Build; print the digest of what was made, unless that itself goes to stdout."""
    request = _request(args)
    if "-" in (args.context, args.file):
        from buildkit_py.builder.streams import open_streams

        request = await open_streams(request)
    if args.check or args.call not in {"", "build"}:
        from buildkit_py.cli.call import CallSpec

        spec = CallSpec.parse("check" if args.check else args.call)
        if spec is not None:
            return await _call(args, request, spec)
    planned = plan(request)  # bad input is told of without a daemon
    if planned.directories:
        from buildkit_py.builder.gitfacts import with_git_facts

        request = with_git_facts(request, planned.directories, flags.git_options())
    return await run_build(args, request, planned)


async def _call(args: argparse.Namespace, request: BuildRequest, spec: CallSpec) -> int:
    """Print what the frontend answers."""
    from buildkit_py.builder.call import call
    from buildkit_py.cli.call import render

    planned = plan(request)  # bad input is told of without a daemon
    mode = "quiet" if args.quiet or args.progress in {"auto", "none"} else args.progress
    args.logs_shown = shows_logs(mode)
    async with show_progress(mode, sys.stderr) as on_status, open_client(args) as client:
        result = await call(client, request, spec.method, on_status=on_status)
    shown = render(spec, result, _shown_name(planned))
    print(shown.text, end="")
    if shown.error:
        print(shown.error, end="", file=sys.stderr)
    return shown.status


def _shown_name(planned: Plan) -> str:
    """The Dockerfile as the caller finds it; "" where it is not on this machine."""
    directory = planned.directories.get("dockerfile")
    return "" if directory is None else os.path.relpath(directory / planned.attrs["filename"])


def _request(args: argparse.Namespace) -> BuildRequest:
    build_args = flags.build_args(args.build_arg, getattr(args, "addr", "") or "")
    return BuildRequest(
        context=args.context,
        dockerfile=args.file or None,
        platforms=flags.platforms(args.platform),
        target=args.target,
        build_args=build_args,
        build_contexts=flags.pairs(flags.said(args.build_context), "build-context"),
        labels=flags.pairs(args.label, "label"),
        no_cache_filter=flags.stages(args.no_cache_filter),
        add_hosts=flags.hosts(args.add_host),
        network=args.network,
        shm_size=flags.size(args.shm_size, "--shm-size"),
        ulimits=args.ulimit,
        cgroup_parent=args.cgroup_parent,
        pull=args.pull,
        **common_fields(args, cache_to=flags.inline_cache(build_args)),
    )
