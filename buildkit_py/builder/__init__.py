"""Builds: one solve per platform, joined into one index."""

from __future__ import annotations

from buildkit_py.builder.build import StatusCallback, build
from buildkit_py.builder.graph import GraphRequest
from buildkit_py.builder.request import BuildRequest
from buildkit_py.builder.result import BuildResult, PlatformResult
from buildkit_py.builder.transfers import TransferCallback, TransferCounts

__all__ = [
    "BuildRequest",
    "BuildResult",
    "GraphRequest",
    "PlatformResult",
    "StatusCallback",
    "TransferCallback",
    "TransferCounts",
    "build",
]
