"""Programs of others, to compare with: where scripts/fetch_servers.py puts them, or on the PATH."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]


def prefix() -> Path:
    """Where scripts/fetch_servers.py unpacks."""
    return Path(os.environ.get("BUILDKIT_PY_PREFIX") or _REPOSITORY / ".cache" / "prefix")


def engine_prefix() -> Path:
    """Where the docker engine of the tests is: in the prefix, or where ``$BUILDKIT_PY_TEST_ENGINE`` says."""
    return Path(os.environ.get("BUILDKIT_PY_TEST_ENGINE") or prefix())


def buildx() -> str | None:
    """docker-buildx, which runs without the docker CLI."""
    plugin = prefix() / "usr" / "libexec" / "docker" / "cli-plugins" / "docker-buildx"
    return str(plugin) if plugin.is_file() else shutil.which("docker-buildx")


def skopeo() -> str | None:
    """skopeo."""
    return shutil.which("skopeo")


def oras() -> str | None:
    """The oras CLI."""
    path = os.pathsep.join((str(prefix() / "usr" / "bin"), os.environ.get("PATH", os.defpath)))
    return shutil.which("oras", path=path)
