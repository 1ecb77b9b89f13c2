"""``buildkit-py run``."""

from __future__ import annotations

import argparse
import sys

from buildkit_py.cli.connection import open_client
from buildkit_py.cli.progress import show_progress, shows_logs
from buildkit_py.cli.registry import open_registry
from buildkit_py.platforms import Platform
from buildkit_py.runner import RunRequest, run


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("reference", metavar="REF", help="image or index in a registry")
    parser.add_argument(
        "--platform", action="append", default=[], metavar="LIST", help="platforms (default: all of the index)"
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="environment")
    parser.add_argument("--progress", default="quiet", choices=("auto", "plain", "tty", "rawjson", "quiet"))
    parser.epilog = "What follows -- replaces the image's own command: buildkit-py run REF -- sh -c 'uname -m'"


async def execute(args: argparse.Namespace) -> int:
    """Run each platform; the exit code is the first that is not 0, in the order of the platforms."""
    request = RunRequest(reference=args.reference, platforms=args.platform, args=args.rest, env=tuple(args.env))
    request.check()
    args.logs_shown = shows_logs(args.progress)

    def output(_: Platform, stream: int, data: bytes) -> None:
        file = sys.stdout.buffer if stream == 1 else sys.stderr.buffer
        file.write(data)
        file.flush()

    async with (
        show_progress(args.progress, sys.stderr) as on_status,
        open_client(args) as client,
        open_registry() as (registry, auth),
    ):
        results = await run(
            client, request, registry=registry, attachables=[auth], on_output=output, on_status=on_status
        )
    return next((result.exit_code for result in results if result.exit_code), 0)
