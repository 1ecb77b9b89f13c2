"""``hosts.toml`` with real registries behind it: pull-through caches, private authorities, client certificates."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trustme

from buildkit_py.errors import NotFound, RegistryError
from buildkit_py.registry import Registry, RegistryConfig, StaticCredentials
from tests.support import servers
from tests.support.contents import descriptor, image, index

pytestmark = pytest.mark.daemon

READS = 'capabilities = ["pull", "resolve"]'
IMAGES = [image("linux/amd64", layers=[b"one" * 1000]), image("linux/arm64", layers=[b"two" * 1000])]
INDEX = index(*IMAGES)


@pytest.fixture
def upstream(tmp_path: Path, registry: servers.Registry) -> Iterator[servers.Registry]:
    """Asks for the common one as well, which skips where there is no registry at all."""
    with servers.run_registry(tmp_path / "upstream", access_log=True) as server:
        yield server


def configured(folder: Path, host: str, text: str) -> Registry:
    """A client that reads this hosts.toml and nothing else."""
    (folder / "certs.d" / host).mkdir(parents=True, exist_ok=True)
    (folder / "certs.d" / host / "hosts.toml").write_text(text)
    config = RegistryConfig(directories=[folder / "certs.d"])
    return Registry(config=config, credentials=StaticCredentials({}))


async def pull(registry: Registry, reference: str) -> int:
    """Read an index with all that is below it; returns how many manifests and blobs these were."""
    raw, found = await registry.fetch_manifest(reference)
    assert (raw, found.digest) == (INDEX.raw, INDEX.digest)
    repository = reference.rpartition(":")[0]
    blobs = 0
    for child in IMAGES:
        assert (await registry.fetch_manifest(f"{repository}@{child.digest}"))[0] == child.raw
        for blob in child.blobs:
            described = descriptor("application/octet-stream", blob)
            assert await registry.fetch_blob_bytes(repository, described, 1 << 20) == blob
            blobs += 1
    return 1 + len(IMAGES) + blobs


async def test_a_pull_through_cache(tmp_path: Path, upstream: servers.Registry) -> None:
    """It is asked first and fills itself; pushes go past it; when it is gone its home serves, and the other way."""
    with servers.run_registry(tmp_path / "cache", cache_of=upstream.url, access_log=True) as cache:
        text = f'server = "{upstream.url}"\n[host."{cache.url}"]\n{READS}\n'
        async with configured(tmp_path, upstream.host, text) as registry:
            name = f"{upstream.host}/team/app"
            await INDEX.push(registry, name, "v1")
            assert not cache.asked()
            before = upstream.asked()["GET"]
            count = await pull(registry, f"{name}:v1")
            assert cache.asked() == {"GET": count}
            filled = upstream.asked()["GET"] - before
            assert filled > 0  # by the cache: the client asked that one alone
            await registry.resolve(f"{name}@{IMAGES[0].digest}")
            assert cache.asked()["HEAD"] == 1
            with pytest.raises(NotFound):
                await registry.resolve(f"{name}:none")
            # By digest a cache needs nobody.
            upstream.stop()
            assert (await registry.fetch_manifest(f"{name}@{IMAGES[0].digest}"))[0] == IMAGES[0].raw


async def test_a_cache_that_is_gone(tmp_path: Path, upstream: servers.Registry) -> None:
    with servers.run_registry(tmp_path / "cache", cache_of=upstream.url) as cache:
        text = f'server = "{upstream.url}"\n[host."{cache.url}"]\n{READS}\n'
        async with configured(tmp_path, upstream.host, text) as registry:
            name = f"{upstream.host}/team/app"
            await INDEX.push(registry, name, "v1")
            cache.stop()
            await pull(registry, f"{name}:v1")


async def test_a_mirror_that_may_not_say_what_a_tag_is(tmp_path: Path, upstream: servers.Registry) -> None:
    """Without ``resolve`` it is not asked at all: what it has of a tag may be of yesterday."""
    with servers.run_registry(tmp_path / "cache", cache_of=upstream.url, access_log=True) as cache:
        text = f'server = "{upstream.url}"\n[host."{cache.url}"]\ncapabilities = ["pull"]\n'
        async with configured(tmp_path, upstream.host, text) as registry:
            name = f"{upstream.host}/team/app"
            await INDEX.push(registry, name, "v1")
            await pull(registry, f"{name}:v1")
        assert not cache.asked()


async def test_trust_headers_and_paths(tmp_path: Path, upstream: servers.Registry) -> None:
    """Five mirrors in turn, each of which must answer: by ca, client, skip_verify, header, override_path."""
    authority = trustme.CA()
    mine = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")
    folder = tmp_path / "certs.d" / upstream.host
    folder.mkdir(parents=True)
    mine.private_key_pem.write_to_path(folder / "client.key")
    mine.cert_chain_pems[0].write_to_path(folder / "client.cert")
    name = f"{upstream.host}/team/app"
    with ExitStack() as stack:

        def cache(label: str, **options: object) -> servers.Registry:
            run = servers.run_registry(tmp_path / label, cache_of=upstream.url, access_log=True, **options)  # type: ignore[arg-type]
            return stack.enter_context(run)

        by_ca = cache("ca", tls=True)
        assert by_ca.ca is not None
        (folder / "own.crt").write_bytes(by_ca.ca.read_bytes())
        by_client = cache("client", tls=True, client_ca=tmp_path / "clients.pem")
        unchecked = cache("unchecked", tls=True)
        plain = cache("plain")
        below = cache("below", prefix="/of/upstream")
        cases = [
            (by_ca, f'[host."{by_ca.url}"]\n{READS}\nca = "own.crt"\n'),
            (
                by_client,
                f'[host."{by_client.url}"]\n{READS}\nskip_verify = true\nclient = [["client.cert", "client.key"]]\n',
            ),
            (unchecked, f'[host."{unchecked.url}"]\n{READS}\nskip_verify = true\n'),
            (plain, f'[host."{plain.url}"]\n{READS}\n[host."{plain.url}".header]\nReferer = ["from the settings"]\n'),
            (below, f'[host."{below.url}/of/upstream/v2"]\n{READS}\noverride_path = true\n'),
        ]
        async with Registry(credentials=StaticCredentials({})) as registry:
            await INDEX.push(registry, name, "v1")
        for server, text in cases:
            async with configured(tmp_path, upstream.host, f'server = "{upstream.url}"\n{text}') as registry:
                count = await pull(registry, f"{name}:v1")
                assert server.asked() == {"GET": count}, text
        assert b'"from the settings"' in plain.log.read_bytes()
        assert b"GET /of/upstream/v2/team/app/manifests/v1" in below.log.read_bytes()
        # Without its certificate ours is refused, and without the authority theirs is: then home has the word.
        for server in (by_client, by_ca):
            before = server.asked()
            skip = "skip_verify = true" if server is by_client else ""
            text = f'server = "{upstream.url}"\n[host."{server.url}"]\n{READS}\n{skip}\n'
            async with configured(tmp_path, upstream.host, text) as registry:
                await pull(registry, f"{name}:v1")
            assert server.asked() == before


async def test_a_server_elsewhere(tmp_path: Path, upstream: servers.Registry) -> None:
    """A name that no resolver knows, whose settings say where it is: pushes and pulls go there."""
    async with configured(tmp_path, "registry.invalid", f'server = "{upstream.url}"\n') as registry:
        await INDEX.push(registry, "registry.invalid/team/app", "v1")
        await pull(registry, "registry.invalid/team/app:v1")
    async with Registry(credentials=StaticCredentials({})) as registry:
        assert (await registry.resolve(f"{upstream.host}/team/app:v1")).digest == INDEX.digest


async def test_a_mirror_that_nobody_reaches(tmp_path: Path, upstream: servers.Registry) -> None:
    """dial_timeout is the time that it may cost."""
    with closing(socket.socket()) as deaf, ExitStack() as stack:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        for _ in range(4):  # what the queue takes; whoever comes next gets no answer
            caller = stack.enter_context(closing(socket.socket()))
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
        text = f'server = "{upstream.url}"\n[host."http://127.0.0.1:{port}"]\n{READS}\ndial_timeout = "300ms"\n'
        async with configured(tmp_path, upstream.host, text) as registry:
            await INDEX.push(registry, f"{upstream.host}/team/app", "v1")
            begin = time.monotonic()
            assert (await registry.fetch_manifest(f"{upstream.host}/team/app:v1"))[0] == INDEX.raw
            assert 0.25 < time.monotonic() - begin < 5
        text = f'server = "http://127.0.0.1:{port}"\ndial_timeout = "100ms"\n'
        async with configured(tmp_path, f"127.0.0.1:{port}", text) as registry:
            with pytest.raises(RegistryError, match="no connection within the time allowed"):
                await registry.resolve(f"127.0.0.1:{port}/a:v1")
