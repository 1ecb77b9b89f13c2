"""Daemons and registries that go away in the middle: a typed error within seconds, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from buildkit_py import BuildRequest, ExporterSpec, StatusUpdate, build, connect
from buildkit_py.client import new_ref
from buildkit_py.errors import BuildKitError, ConnectionLost, NotFound, RegistryError, SolveError
from buildkit_py.registry import Registry
from tests.support import images
from tests.support.leftovers import nothing_left_behind
from tests.support.proxy import proxy_to
from tests.support.servers import PrivateDaemon
from tests.support.servers import Registry as RegistryServer

pytestmark = pytest.mark.daemon

WITHIN_SECONDS = 20


class When:
    """Acts once, at the first update that matches."""

    def __init__(self, matches: Callable[[StatusUpdate], bool], act: Callable[[], None]) -> None:
        self.acted = asyncio.Event()
        self._matches = matches
        self._act = act

    def __call__(self, label: str, update: StatusUpdate) -> None:
        if not self.acted.is_set() and self._matches(update):
            self.acted.set()
            self._act()


async def failing_build(address: str, request: BuildRequest, when: When | None = None) -> BuildKitError:
    """The error of a build that must fail in time."""
    async with asyncio.timeout(60):
        async with connect(address) as client:
            started = asyncio.get_running_loop().time()
            with pytest.raises(BuildKitError) as caught:
                await build(client, request, on_status=when)
            took = asyncio.get_running_loop().time() - started
    if when is not None:
        assert when.acted.is_set(), f"the moment never came: {caught.value}"
    assert took < WITHIN_SECONDS + 20
    return caught.value


async def has_tag(reference: str) -> bool:
    async with Registry() as registry:
        try:
            await registry.resolve(reference)
        except NotFound:
            return False
    return True


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes of the machine use the common one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


async def test_the_daemon_dies_during_the_context_upload(
    fresh_daemon: PrivateDaemon, context: Path, tmp_path: Path
) -> None:
    """With a gigabyte on its way."""
    (context / "Dockerfile").write_text("FROM scratch\nCOPY big /\n")
    with (context / "big").open("wb") as file:
        file.truncate(2 << 30)
    out = tmp_path / "out"
    out.mkdir()

    def uploading(update: StatusUpdate) -> bool:
        return any("transferring context" in status.id and status.current > 1 << 20 for status in update.statuses)

    request = BuildRequest(context=context, outputs=[ExporterSpec(type="oci", dest=str(out / "image.tar"))])
    async with nothing_left_behind(out):
        error = await failing_build(fresh_daemon.address, request, When(uploading, fresh_daemon.kill))
    assert isinstance(error, ConnectionLost)


async def test_the_daemon_dies_during_a_run(
    fresh_daemon: PrivateDaemon, registry: RegistryServer, context: Path
) -> None:
    """That has printed a line and waits."""
    busybox = images.rootfs()["alpine"] / "rootfs" / "amd64" / "bin" / "busybox"
    (context / "busybox").write_bytes(busybox.read_bytes())
    (context / "busybox").chmod(0o755)
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /busybox\nRUN ["/busybox", "sh", "-c", "echo started; exec /busybox sleep 600"]\n'
    )
    name = f"{registry.host}/dies-in-run:{new_ref()}"
    request = BuildRequest(context=context, platforms=["amd64"], tags=[name], push=True)
    async with nothing_left_behind():
        error = await failing_build(
            fresh_daemon.address, request, When(lambda update: bool(update.logs), fresh_daemon.kill)
        )
    assert isinstance(error, ConnectionLost)
    assert not await has_tag(name)


async def test_the_daemon_dies_during_the_push(
    fresh_daemon: PrivateDaemon, registry: RegistryServer, context: Path
) -> None:
    """Half of a blob is with the registry; no tag is."""
    (context / "Dockerfile").write_text("FROM scratch\nCOPY noise /\n")
    (context / "noise").write_bytes(os.urandom(8 << 20))
    port = int(registry.host.rpartition(":")[2])
    async with nothing_left_behind(), proxy_to(port) as proxy:
        proxy.hold_after = 1 << 20
        name = f"{proxy.host}/dies-in-push"
        request = BuildRequest(context=context, platforms=["amd64", "arm64"], tags=[name], push=True)

        async def kill_when_pushing() -> None:
            await proxy.reached.wait()
            fresh_daemon.kill()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_when_pushing())
            error = await failing_build(fresh_daemon.address, request)
        # What the proxy itself holds is not the library's.
        proxy.release()
    assert isinstance(error, ConnectionLost)
    assert not await has_tag(f"{registry.host}/dies-in-push")


async def test_the_registry_goes_away_in_mid_blob(daemon_address: str, registry: RegistryServer, context: Path) -> None:
    """The daemon's push fails; what it says reaches the caller, and the tag that was there stays."""
    (context / "Dockerfile").write_text("FROM scratch\nCOPY noise /\n")
    (context / "noise").write_bytes(os.urandom(64))
    port = int(registry.host.rpartition(":")[2])
    name = f"{registry.host}/cut"
    async with connect(daemon_address) as client:
        first = await build(client, BuildRequest(context=context, platforms=["amd64"], tags=[name], push=True))
    (context / "noise").write_bytes(os.urandom(8 << 20))
    async with nothing_left_behind(), proxy_to(port) as proxy:
        proxy.cut_after = 1 << 20
        request = BuildRequest(context=context, platforms=["amd64", "arm64"], tags=[f"{proxy.host}/cut"], push=True)
        error = await failing_build(daemon_address, request)
        assert proxy.reached.is_set()
    assert isinstance(error, SolveError | BuildKitError)
    async with Registry() as client_:
        assert first.descriptor is not None
        assert (await client_.resolve(name)).digest == first.descriptor.digest


class Refusing:
    """Answers PUT requests for manifests with an error, the first so many of them."""

    def __init__(self, times: int, status: str, code: str, text: str) -> None:
        self.times = times
        self.asked = 0
        body = json.dumps({"errors": [{"code": code, "message": text}]}).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._answer = head.encode() + b"Connection: close\r\n\r\n" + body

    def __call__(self, data: bytes) -> bytes | None:
        if not (data.startswith(b"PUT ") and b"/manifests/" in data.partition(b"\r\n")[0]):
            return None
        self.asked += 1
        return self._answer if self.asked <= self.times else None


async def test_a_registry_that_misses_layers_of_another_push_is_asked_again(
    daemon_address: str, registry: RegistryServer, scratch: Path
) -> None:
    """Distribution on a file system, where platforms that share a layer push it at the same time."""
    refusing = Refusing(2, "400 Bad Request", "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
    async with proxy_to(int(registry.host.rpartition(":")[2])) as proxy, connect(daemon_address) as client:
        proxy.answer = refusing
        request = BuildRequest(
            context=scratch, platforms=["linux/amd64", "linux/arm64"], tags=[f"{proxy.host}/faults/missed"], push=True
        )
        result = await build(client, request)
        assert refusing.asked > 2
    async with Registry() as reader:
        assert result.descriptor is not None
        assert (await reader.resolve(f"{registry.host}/faults/missed:latest")).digest == result.descriptor.digest


async def test_what_came_here_stays_when_a_push_is_tried_once_more(
    daemon_address: str, registry: RegistryServer, scratch: Path, tmp_path: Path
) -> None:
    """Each platform's layout and files are exported once, and the counts are of the try that ran the steps."""
    refusing = Refusing(2, "400 Bad Request", "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
    (scratch / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n")
    (scratch / "file").write_text(tmp_path.name)
    outputs = [
        ExporterSpec(type="oci", dest=str(tmp_path / "layout.tar"), attrs={"oci-mediatypes": "true"}),
        ExporterSpec(type="local", dest=str(tmp_path / "files")),
    ]
    async with proxy_to(int(registry.host.rpartition(":")[2])) as proxy, connect(daemon_address) as client:
        proxy.answer = refusing
        proxy.answer_seconds = 1.0  # by then all that is exported here has arrived
        name = f"{proxy.host}/faults/streams"
        request = BuildRequest(
            context=scratch,
            platforms=["linux/amd64", "linux/arm64"],
            tags=[name],
            push=True,
            outputs=outputs,
            attestations={},  # they tell of the solve that made them
        )
        result = await build(client, request)
        assert refusing.asked > 2
    assert [entry.cached < entry.total for entry in result.platforms] == [True, True]
    assert result.descriptor is not None
    async with Registry() as reader:
        assert (await reader.resolve(f"{registry.host}/faults/streams:latest")).digest == result.descriptor.digest
    assert (tmp_path / "files" / "linux_arm64" / "arm64").read_text() == tmp_path.name
    with tarfile.open(tmp_path / "layout.tar") as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        assert str(result.descriptor.digest) in index.read().decode()


async def test_a_registry_that_refuses_a_manifest_is_not_asked_again(
    daemon_address: str, registry: RegistryServer, scratch: Path
) -> None:
    refusing = Refusing(100, "403 Forbidden", "DENIED", "not for you")
    async with proxy_to(int(registry.host.rpartition(":")[2])) as proxy, connect(daemon_address) as client:
        proxy.answer = refusing
        request = BuildRequest(context=scratch, tags=[f"{proxy.host}/faults/denied"], push=True)
        with pytest.raises(SolveError, match="failed to push"):
            await build(client, request)
        assert refusing.asked == 1


async def test_the_registry_goes_away_before_the_index(
    daemon_address: str, fresh_registry: RegistryServer, scratch: Path
) -> None:
    """The daemon has pushed its children; ours is the part that fails, and it says with which registry."""

    def exported(update: StatusUpdate) -> bool:
        return any(
            status.id.startswith("pushing manifest") and status.completed_ns is not None for status in update.statuses
        )

    name = f"{fresh_registry.host}/gone:1"
    request = BuildRequest(context=scratch, platforms=["amd64"], tags=[name], push=True)
    async with nothing_left_behind():
        async with asyncio.timeout(WITHIN_SECONDS * 3):
            async with connect(daemon_address) as client:
                with pytest.raises(BuildKitError) as caught:
                    await build(client, request, on_status=When(exported, fresh_registry.kill))
    assert isinstance(caught.value, RegistryError)
    assert fresh_registry.host in str(caught.value)


async def test_the_daemon_dies_between_two_calls(fresh_daemon: PrivateDaemon) -> None:
    """The next call on the same client says that the connection is lost."""
    async with connect(fresh_daemon.address) as client:
        await client.workers()
        fresh_daemon.kill()
        async with asyncio.timeout(WITHIN_SECONDS):
            with pytest.raises(ConnectionLost):
                await client.workers()


async def test_cancelling_a_build_leaves_nothing(
    daemon_address: str, base_images: Mapping[str, str], context: Path, tmp_path: Path
) -> None:
    """Of three platforms in mid-RUN, with an output staged."""
    (context / "Dockerfile").write_text(f"FROM alpine\nRUN echo {new_ref()}; sleep 600\n")
    out = tmp_path / "out"
    out.mkdir()
    request = BuildRequest(
        context=context,
        platforms=["amd64", "arm64", "linux/arm/v7"],
        build_contexts=base_images,
        outputs=[ExporterSpec(type="oci", dest=str(out / "image.tar"))],
    )
    running = asyncio.Event()
    when = When(lambda update: bool(update.logs), running.set)
    async with nothing_left_behind(out), asyncio.timeout(90), connect(daemon_address) as client:
        building = asyncio.create_task(build(client, request, on_status=when))
        await running.wait()
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building
