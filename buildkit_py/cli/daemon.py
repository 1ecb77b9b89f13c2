"""``buildkit-py daemon start|status|stop``."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("action", choices=("start", "status", "stop"))
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where the daemon keeps all it has")
    parser.add_argument(
        "--kind", choices=("auto", "buildkitd", "dockerd"), default="auto", help="which daemon to start"
    )
    parser.add_argument(
        "--insecure-registry",
        action="append",
        default=[],
        metavar="HOST",
        help="registry that is spoken to without TLS; may be repeated",
    )
    parser.add_argument("--remove", action="store_true", help="stop: delete the daemon's data too")


async def execute(args: argparse.Namespace) -> int:
    """Do it; print the daemon's address, which ``--addr`` and ``$BUILDKIT_HOST`` take."""
    raise NotImplementedError
