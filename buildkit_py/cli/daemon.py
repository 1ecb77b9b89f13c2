"""``buildkit-py daemon start|status|stop``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from buildkit_py import daemon
from buildkit_py.errors import InvalidOption


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("action", choices=("start", "status", "stop"))
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where the daemon keeps all it has")
    parser.add_argument(
        "--kind", choices=("auto", "buildkitd", "dockerd"), default=None, help="start: which daemon (default: auto)"
    )
    parser.add_argument(
        "--insecure-registry",
        action="append",
        default=[],
        metavar="HOST",
        help="start: registry that is spoken to without TLS; may be repeated",
    )
    parser.add_argument("--remove", action="store_true", help="stop: delete the daemon's data too")


async def execute(args: argparse.Namespace) -> int:
    """Do it; print the daemon's address, which ``--addr`` and ``$BUILDKIT_HOST`` take."""
    _check(args)
    match args.action:
        case "start":
            options = daemon.DaemonOptions(
                state_dir=args.state_dir,
                kind=args.kind or "auto",
                insecure_registries=tuple(args.insecure_registry),
            )
            print((await daemon.start(options)).address)
        case "status":
            status = await daemon.status(args.state_dir)
            if not status.running:
                print(f"no daemon runs in {status.state_dir}", file=sys.stderr)
                return 1
            print(status.address, status.pid)
        case _:
            await daemon.stop(args.state_dir, remove=args.remove)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what the action would ignore."""
    if args.action != "start" and (args.kind is not None or args.insecure_registry):
        raise InvalidOption(f"daemon {args.action}: --kind and --insecure-registry are for start")
    if args.action != "stop" and args.remove:
        raise InvalidOption(f"daemon {args.action}: --remove is for stop")
