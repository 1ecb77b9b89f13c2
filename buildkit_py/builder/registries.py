"""The registry client of one build, from the first use on: most of its code takes long to load."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_py.registry import Credentials, CredentialStore, DockerCredentials, Registry, RegistryConfig

_PROBE_SECONDS = 5.0


class OpenRegistries:
    """A client, opened when it is needed. Ends with aclose()."""

    def __init__(
        self, credentials: CredentialStore | None, config: RegistryConfig | None, *, insecure: Sequence[str] = ()
    ) -> None:
        """insecure names hosts whose certificates do not matter, and that may have none."""
        # One store for the daemon's questions and for our own: it asks a helper once, and one at a time.
        self.credentials: CredentialStore = credentials or _DockerCredentials()
        self._config = config
        self._insecure = insecure
        self._opening = asyncio.Lock()
        self._client: Registry | None = None

    async def open(self) -> Registry:
        """The client; closed by aclose()."""
        async with self._opening:
            if self._client is None:
                from buildkit_py.registry import Registry

                config = await _with_insecure(self._config, self._insecure) if self._insecure else self._config
                self._client = Registry(credentials=self.credentials, config=config)
        return self._client

    async def warm_up(self, repositories: Sequence[str]) -> None:
        """Load the code for a push, connect, and fetch tokens."""
        await asyncio.to_thread(importlib.import_module, "buildkit_py.builder.publish")
        await (await self.open()).warm_up(*repositories)

    async def aclose(self) -> None:
        """End running calls and close the connections."""
        if self._client is not None:
            await self._client.aclose()


class _DockerCredentials:
    """Docker's credentials, from the first question on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: DockerCredentials | None = None

    def get(self, host: str, /) -> Credentials:
        """See CredentialStore."""
        return self.for_repository(host, "")

    def for_repository(self, host: str, repository: str, /) -> Credentials:
        """See RepositoryCredentialStore."""
        with self._lock:
            if self._store is None:
                from buildkit_py.registry import DockerCredentials

                self._store = DockerCredentials()
        return self._store.for_repository(host, repository)


async def _with_insecure(config: RegistryConfig | None, hosts: Sequence[str]) -> RegistryConfig:
    """Settings that accept what these hosts are; what the caller says of a host goes before."""
    from buildkit_py.registry import RegistryConfig

    config = config or RegistryConfig.of_system()
    found = dict(config.hosts)
    for host in hosts:
        settings = config.host(host)
        if settings.plain_http is None and not settings.tls:
            tls = await _speaks_tls(host)
            found[host] = replace(settings, plain_http=not tls, skip_verify=tls)
    return replace(config, hosts=found)


async def _speaks_tls(host: str) -> bool:
    """Whether a registry answers with TLS, whatever its certificate; one that does not answer is taken to."""
    import ssl

    from buildkit_py.registry.config import api_host, split_host

    name, port = split_host(api_host(host))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            _, writer = await asyncio.open_connection(name, port or 443, ssl=context)
    except ssl.SSLError:
        return False
    except OSError:  # TimeoutError too: the push itself will say what is wrong
        return True
    writer.transport.abort()
    return True
