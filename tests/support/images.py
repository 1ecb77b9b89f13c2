"""Stand-ins for the images that a Dockerfile takes from a hub: made here, built and pushed by this library."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from buildkit_py import BuildRequest, build, connect
from tests.support.servers import Unavailable

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
NAMES = {"alpine": "alpine", "golang": "golang:alpine"}
"""Name in FROM, by the name of the context's directory."""

_REPOSITORY = Path(__file__).resolve().parents[2]
_SECONDS = 120


@functools.cache
def rootfs() -> dict[str, Path]:
    """Build context by the name that FROM uses; Unavailable when the packages for them were not fetched."""
    script = _REPOSITORY / "scripts" / "make_base_images.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise Unavailable(done.stderr.strip() or f"{script} failed")
    return {NAMES[path.name]: path for path in map(Path, done.stdout.split())}


async def push_base_images(address: str, registry: str) -> dict[str, str]:
    """Build and push them on the daemon at address; what ``build_contexts`` takes in their place.

    registry is host:port of one that the daemon and this process reach.
    """
    contexts = rootfs()
    images = {name: f"{registry}/base/{name if ':' in name else f'{name}:latest'}" for name in contexts}
    async with connect(address) as client:
        for name, context in contexts.items():
            request = BuildRequest(
                context=context, platforms=PLATFORMS, tags=[images[name]], push=True, attestations={}
            )
            await build(client, request)
    return {name: f"docker-image://{image}" for name, image in images.items()}
