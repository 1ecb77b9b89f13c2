"""Registries: resolve, fetch and push manifests and blobs, with the credentials that docker knows."""

from __future__ import annotations

from buildkit_py.registry.config import HostConfig, Mirror, RegistryConfig, RetryPolicy, Timeouts
from buildkit_py.registry.credentials import (
    Credentials,
    CredentialStore,
    DockerCredentials,
    StaticCredentials,
)
from buildkit_py.registry.registry import Registry, Repository
from buildkit_py.registry.transfer import CopyReport, Transfer

__all__ = [
    "Registry",
    "Repository",
    "Transfer",
    "CopyReport",
    "RegistryConfig",
    "HostConfig",
    "Mirror",
    "Timeouts",
    "RetryPolicy",
    "Credentials",
    "CredentialStore",
    "DockerCredentials",
    "StaticCredentials",
]
