"""One client with much to do at once, and one that is told to stop in the midst of it."""

from __future__ import annotations

import asyncio
import io
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import pytest

from buildkit_py import imagetools
from buildkit_py.digest import Digest
from buildkit_py.oci import Descriptor
from buildkit_py.registry import Registry, StaticCredentials
from tests.support import servers
from tests.support.contents import image
from tests.support.leftovers import nothing_left_behind
from tests.support.proxy import proxy_to

pytestmark = pytest.mark.daemon

AT_ONCE = 50
NOBODY = StaticCredentials({})
MIB = 1 << 20


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes of the machine use the common one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def blob_of(data: bytes) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))


@pytest.mark.parametrize("concurrency", [1, 16, 64])
async def test_fifty_pushes_and_pulls_at_once(registry: servers.Registry, concurrency: int) -> None:
    """Of images with layers of their own and one in common, and all their bytes; never more threads than were said."""
    common = os.urandom(100_000)
    images = [image(text=f"{n} of {concurrency}", layers=[os.urandom(50_000), common]) for n in range(AT_ONCE)]
    name = f"{registry.host}/stress/{concurrency}"
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(thread.name.startswith("registry_") for thread in threading.enumerate()))
            await asyncio.sleep(0.005)

    async with nothing_left_behind(descriptors=0), Registry(credentials=NOBODY, concurrency=concurrency) as client:
        watching = asyncio.create_task(watch())

        async def one(number: int) -> None:
            made = images[number]
            repository = f"{name}/{number % 5}"
            await made.push(client, repository, f"v{number}")
            raw, found = await client.fetch_manifest(f"{repository}:v{number}")
            assert (raw, found.digest) == (made.raw, made.digest)
            for blob in made.blobs:
                assert await client.fetch_blob_bytes(repository, blob_of(blob), MIB) == blob

        async with asyncio.timeout(100):
            await asyncio.gather(*(one(number) for number in range(AT_ONCE)))
        watching.cancel()
        assert sorted(await client.tags(f"{name}/0")) == sorted(f"v{number}" for number in range(0, AT_ONCE, 5))
    assert 1 <= most <= concurrency


async def test_cancelling_uploads(registry: servers.Registry) -> None:
    """Fifty, some on the wire and some that wait for their turn: all end at once, and the client goes on."""
    data = random.Random(1).randbytes(32 * MIB)  # more than sockets on the way would take
    opened: list[io.BytesIO] = []

    def open_content() -> io.BytesIO:
        opened.append(io.BytesIO(data))
        return opened[-1]

    port = int(registry.host.rpartition(":")[2])
    async with nothing_left_behind(), proxy_to(port) as proxy:
        proxy.hold_after = MIB
        async with Registry(credentials=NOBODY) as client:
            pushes = [
                asyncio.create_task(client.push_blob(f"{proxy.host}/cancelled/{n}", blob_of(data), open_content))
                for n in range(AT_ONCE)
            ]
            await proxy.reached.wait()
            began = time.monotonic()
            for task in pushes:
                task.cancel()
            ended = await asyncio.gather(*pushes, return_exceptions=True)
            assert time.monotonic() - began < 5
            assert all(isinstance(error, asyncio.CancelledError) for error in ended)
            assert opened
            assert all(file.closed for file in opened)
            proxy.hold_after = None
            proxy.release()
            assert await client.push_blob(f"{proxy.host}/cancelled/0", blob_of(data), open_content)
    async with Registry(credentials=NOBODY) as client:
        assert not await client.exists(f"{registry.host}/cancelled/1", Digest.of(data), blob=True)


@pytest.mark.parametrize("suffix", ["", ".tar"])
async def test_cancelling_a_pull_into_a_layout(registry: servers.Registry, tmp_path: Path, suffix: str) -> None:
    """Nothing stands where the layout would have come to stand, nor beside it."""
    out = tmp_path / "out"
    out.mkdir()
    made = image(text="pulled", layers=[random.Random(n).randbytes(4 * MIB) for n in range(4)])
    port = int(registry.host.rpartition(":")[2])
    async with Registry(credentials=NOBODY) as client:
        await made.push(client, f"{registry.host}/cancelled/pull", "v1")
    async with nothing_left_behind(out), proxy_to(port) as proxy:
        proxy.hold_answers_after = 2 * MIB
        target = f"layout:{out}/image{suffix}"
        request = imagetools.CopyRequest(source=f"{proxy.host}/cancelled/pull:v1", destination=target)
        async with Registry(credentials=NOBODY) as client:
            copying = asyncio.create_task(imagetools.copy(client, request))
            await proxy.reached.wait()
            assert list(out.iterdir()) != []  # what is to be cleared
            copying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copying
        proxy.release()
    assert list(out.iterdir()) == []
