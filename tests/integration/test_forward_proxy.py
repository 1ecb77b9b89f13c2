"""Registries that are reached through the proxies of the environment alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_py.errors import RegistryError
from buildkit_py.registry import Credentials, HostConfig, Registry, RegistryConfig, RetryPolicy, StaticCredentials
from tests.support import servers
from tests.support.contents import image
from tests.support.forward_proxy import ForwardProxy

pytestmark = pytest.mark.daemon

SECURE, PLAIN = "registry.invalid:5443", "registry.invalid:5080"
IMAGE = image("linux/amd64", layers=[b"layer" * 100_000])


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def client(server: servers.Registry, host: str) -> Registry:
    """Knows the authority and the password, and tries once."""
    known = {host: Credentials(server.username, server.password)} if server.username else {}
    settings = HostConfig(ca=server.ca) if server.ca else HostConfig(plain_http=True)
    config = RegistryConfig(hosts={host: settings})
    return Registry(config=config, credentials=StaticCredentials(known), retry=RetryPolicy(attempts=1))


async def push_and_pull(registry: Registry, name: str) -> None:
    await IMAGE.push(registry, name, "v1")
    raw, found = await registry.fetch_manifest(f"{name}:v1")
    assert (raw, found.digest) == (IMAGE.raw, IMAGE.digest)


async def test_tls_through_a_tunnel(
    tmp_path: Path, registry: servers.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy gets its own password and the name to connect to; what proves who we are is inside."""
    with (
        servers.run_registry(tmp_path / "registry", tls=True, password=True) as server,
        ForwardProxy({SECURE: server.host}, password="of the proxy") as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:of%20the%20proxy@{proxy.address}")
        async with client(server, SECURE) as registry_:
            await push_and_pull(registry_, f"{SECURE}/team/app")
        assert {line.rpartition(" ")[0] for line, _ in proxy.asked} == {f"CONNECT {SECURE}"}
        assert not any("authorization" in headers for _, headers in proxy.asked)
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:wrong@{proxy.address}")
        async with client(server, SECURE) as registry_:
            with pytest.raises(RegistryError, match=r"the proxy of the environment: refuses.*407") as caught:
                await registry_.resolve(f"{SECURE}/team/app:v1")
        assert not caught.value.retryable
        assert "wrong" not in repr(caught.value)
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        async with client(server, SECURE) as registry_:
            with pytest.raises(RegistryError, match="the proxy of the environment: connection refused"):
                await registry_.resolve(f"{SECURE}/team/app:v1")
        monkeypatch.setenv("NO_PROXY", "registry.invalid")
        proxy.asked.clear()
        async with client(server, SECURE) as registry_:
            with pytest.raises(RegistryError, match="no such host"):
                await registry_.resolve(f"{SECURE}/team/app:v1")
        assert not proxy.asked


async def test_plain_http_through_a_proxy(registry: servers.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed upload locations arrive as they are; loopback addresses are asked without a proxy."""
    with ForwardProxy({PLAIN: registry.host}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        async with client(registry, PLAIN) as registry_:
            await push_and_pull(registry_, f"{PLAIN}/proxied/app")
        assert all(f" http://{PLAIN}/v2/proxied/app/" in line for line, _ in proxy.asked)
        assert any("_state=" in line and line.startswith("PUT ") for line, _ in proxy.asked)
        proxy.asked.clear()
        async with client(registry, registry.host) as registry_:
            assert (await registry_.resolve(f"{registry.host}/proxied/app:v1")).digest == IMAGE.digest
        assert not proxy.asked
