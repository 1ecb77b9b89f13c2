"""The registry client of the command line, and the same credentials for the daemon."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from buildkit_py.registry import DockerCredentials, Registry, RegistryConfig
from buildkit_py.registry.registry import CONCURRENCY
from buildkit_py.session.auth import Auth


@asynccontextmanager
async def open_registry(concurrency: int = CONCURRENCY) -> AsyncGenerator[tuple[Registry, Auth], None]:
    """A registry client with this machine's credentials and settings; the attachable answers the daemon from them."""
    credentials, config = DockerCredentials(), RegistryConfig.of_system()
    async with Registry(credentials=credentials, config=config, concurrency=concurrency) as registry:
        yield registry, Auth(credentials, config)
