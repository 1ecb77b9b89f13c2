"""Native client of BuildKit: one solve per target platform over gRPC, one index pushed by us."""

from __future__ import annotations

from buildkit_py.builder import BuildRequest, BuildResult, PlatformResult, build
from buildkit_py.client import Client, SolveRequest, SolveResult, connect
from buildkit_py.digest import Digest
from buildkit_py.options import CacheSpec, ExporterSpec
from buildkit_py.platforms import Platform
from buildkit_py.progress import StatusUpdate
from buildkit_py.reference import Reference
from buildkit_py.rpc import TLSConfig
from buildkit_py.run import RunRequest, RunResult, run

__version__ = "0.1.0"

__all__ = [
    "connect",
    "Client",
    "build",
    "BuildRequest",
    "BuildResult",
    "PlatformResult",
    "run",
    "RunRequest",
    "RunResult",
    "SolveRequest",
    "SolveResult",
    "ExporterSpec",
    "CacheSpec",
    "Platform",
    "Reference",
    "Digest",
    "StatusUpdate",
    "TLSConfig",
]
