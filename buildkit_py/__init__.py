"""Native client of BuildKit: one solve per target platform over gRPC, one index pushed by us."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_py.builder.build import build
    from buildkit_py.builder.call import CallResult, call
    from buildkit_py.builder.graph import GraphRequest
    from buildkit_py.builder.request import BuildRequest
    from buildkit_py.builder.result import BuildResult, PlatformResult
    from buildkit_py.builder.transfers import TransferCounts
    from buildkit_py.client import Client, SolveRequest, SolveResult, connect
    from buildkit_py.digest import Digest
    from buildkit_py.options import CacheSpec, ExporterSpec, SecretSpec, SSHSpec
    from buildkit_py.platforms import Platform
    from buildkit_py.progress import StatusUpdate
    from buildkit_py.reference import Reference
    from buildkit_py.rpc import TLSConfig
    from buildkit_py.runner import RunRequest, RunResult, run
    from buildkit_py.session.policy import Allow, Convert, Deny, Resolve, SourceQuestion, Verdict

__version__ = "0.1.0"

__all__ = [
    "connect",
    "Client",
    "build",
    "BuildRequest",
    "GraphRequest",
    "BuildResult",
    "PlatformResult",
    "TransferCounts",
    "call",
    "CallResult",
    "run",
    "RunRequest",
    "RunResult",
    "SolveRequest",
    "SolveResult",
    "ExporterSpec",
    "CacheSpec",
    "SecretSpec",
    "SSHSpec",
    "SourceQuestion",
    "Verdict",
    "Allow",
    "Deny",
    "Convert",
    "Resolve",
    "Platform",
    "Reference",
    "Digest",
    "StatusUpdate",
    "TLSConfig",
]

# Loaded at their first use: a command imports this package on its way to the few modules that it needs.
_HOMES = {
    "builder": ("build", "BuildRequest", "GraphRequest", "BuildResult", "PlatformResult", "TransferCounts"),
    "builder.call": ("call", "CallResult"),
    "client": ("connect", "Client", "SolveRequest", "SolveResult"),
    "digest": ("Digest",),
    "options": ("CacheSpec", "ExporterSpec", "SecretSpec", "SSHSpec"),
    "platforms": ("Platform",),
    "progress": ("StatusUpdate",),
    "reference": ("Reference",),
    "rpc": ("TLSConfig",),
    "runner": ("run", "RunRequest", "RunResult"),
    "session.policy": ("Allow", "Convert", "Deny", "Resolve", "SourceQuestion", "Verdict"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
