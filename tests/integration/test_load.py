"""Images loaded into docker engines, of both kinds of image store, as the engine itself lists and runs them."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import random
import socket
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from buildkit_py import BuildRequest, ExporterSpec, build, connect
from buildkit_py.builder import BuildResult
from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption, UnsupportedByDaemon
from tests.support import servers

pytestmark = pytest.mark.daemon

TWO = ("linux/amd64", "linux/arm64")
DOCKER = "docker://"


def ask(engine: str, path: str) -> Any:
    """What the engine's API says."""
    connection = http.client.HTTPConnection("docker", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(engine.removeprefix(DOCKER))
    with closing(connection):
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


async def kinds(engine: str, name: str) -> dict[str, list[str]]:
    """Platforms of the images of a name, and of its attestations; asserts that their content is all there."""
    found: dict[str, list[str]] = {"image": [], "attestation": []}
    async with connect(engine) as client:

        async def read(digest: str) -> Any:
            return json.loads(await client.read_blob(Digest.parse(digest), 4 << 20))

        digest = ask(engine, f"/images/{name}/json")["Id"]
        root = await read(digest)
        for entry in root.get("manifests") or [{"digest": digest}]:
            manifest = await read(entry["digest"])
            for blob in (manifest["config"], *manifest["layers"]):
                assert await client.has_blob(Digest.parse(blob["digest"]))
            platform = entry.get("platform") or await read(manifest["config"]["digest"])
            kind = "attestation" if "vnd.docker.reference.type" in entry.get("annotations", {}) else "image"
            found[kind].append(f"{platform['os']}/{platform['architecture']}")
    return found


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """Two layers, one of which is 8 MiB and not to be compressed."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY big /big\nCOPY small /$TARGETARCH\n")
    (folder / "big").write_bytes(bytes(range(256)) * 1024 + tmp_path.name.encode() + _noise(8 << 20))
    (folder / "small").write_text("small")
    return folder


def _noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


async def loaded(address: str, context: Path, *outputs: str, **fields: object) -> BuildResult:
    request = BuildRequest(
        context=context,
        outputs=[ExporterSpec.parse(text) for text in outputs],
        **{"attestations": {}, **fields},  # type: ignore[arg-type]
    )
    async with connect(address) as client:
        return await build(client, request)


class Relay:
    """A socket in front of an engine, and how much went through it to the engine."""

    def __init__(self, path: Path, engine: str) -> None:
        self.sent = 0
        self._target = engine.removeprefix(DOCKER)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self.host = f"unix://{path}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            far.connect(self._target)
            self._open += [near, far]
            for source, target, counted in ((near, far, True), (far, near, False)):
                thread = threading.Thread(target=self._copy, args=(source, target, counted), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                self.sent += len(data) * counted
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        for sock in (self._server, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in (self._server, *self._open):
            sock.close()


@contextmanager
def relay(folder: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> Generator[Relay]:
    """$DOCKER_HOST is the engine behind it."""
    counting = Relay(folder / "relay.sock", engine)
    thread = threading.Thread(target=counting.serve, daemon=True)
    thread.start()
    monkeypatch.setenv("DOCKER_HOST", counting.host)
    try:
        yield counting
    finally:
        counting.close()
        thread.join(5)


@pytest.mark.parametrize("attested", [False, True])
async def test_all_platforms_into_the_engine_that_builds(
    engine_address: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attested: bool
) -> None:
    """No layer leaves it, the index gets every name, attestations stay paired, and no other name is left."""
    before = {tag for item in ask(engine_address, "/images/json") for tag in item["RepoTags"] or []}
    tags = [f"example.com/own-{attested}:1".lower(), f"own-{attested}:2".lower()]
    attestations = {"provenance": "mode=max"} if attested else {}
    with relay(tmp_path, engine_address, monkeypatch) as counting:
        address = counting.host.replace("unix://", DOCKER)
        result = await loaded(address, context, load=True, tags=tags, platforms=TWO, attestations=attestations)
        # The context crosses once, and nothing comes back that would have to go in again.
        assert counting.sent < 12 << 20
    for tag in tags:
        found = await kinds(engine_address, tag)
        assert found["image"] == list(TWO)
        assert len(found["attestation"]) == (2 if attested else 0)
        assert ask(engine_address, f"/images/{tag}/json")["Id"] == str(result.descriptor and result.descriptor.digest)
    after = {tag for item in ask(engine_address, "/images/json") for tag in item["RepoTags"] or []}
    assert after - before == set(tags)
    assert result.notes == ()


async def test_what_is_loaded_is_what_is_pushed(engine_address: str, context: Path, registry: Any) -> None:
    """One build, one index, in the engine and in the registry, its provenance included."""
    name = f"{registry.host}/load/both:1"
    result = await loaded(
        engine_address, context, load=True, push=True, tags=[name], platforms=TWO, attestations={"provenance": ""}
    )
    assert ask(engine_address, f"/images/{name}/json")["RepoTags"] == [name]
    assert result.descriptor is not None
    images = {entry.manifest.digest for entry in result.platforms if entry.manifest}
    assert len(images) == len(TWO)
    async with connect(engine_address) as client:
        for digest in images:
            assert await client.has_blob(digest)
    assert (await kinds(engine_address, name))["image"] == list(TWO)


async def test_one_platform_and_a_next_build_from_it(engine_address: str, context: Path) -> None:
    """What was loaded is what FROM finds first, as docker build has it."""
    await loaded(engine_address, context, "type=docker", tags=["local/base:1"], platforms=["linux/amd64"])
    assert (await kinds(engine_address, "local/base:1"))["image"] == ["linux/amd64"]
    (context / "Dockerfile").write_text("FROM local/base:1\nCOPY small /more\n")
    await loaded(engine_address, context, load=True, tags=["local/next:1"])
    assert len(ask(engine_address, "/images/local/next:1/json")["RootFS"]["Layers"]) == 3


async def test_another_engine_gets_only_what_it_lacks(
    daemon_address: str, engine_address: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both platforms with their attestations the first time; after a small change little crosses."""
    with relay(tmp_path, engine_address, monkeypatch) as counting:
        fields: dict[str, Any] = {"platforms": TWO, "tags": ["other:1"], "attestations": {"provenance": "mode=max"}}
        # By a context of its own, so that an engine that builds does not take itself for the one that is meant.
        output = f"type=docker,context={_context(tmp_path, counting.host, monkeypatch)}"
        result = await loaded(daemon_address, context, output, **fields)
        first, counting.sent = counting.sent, 0
        assert first > 8 << 20
        found = await kinds(engine_address, "other:1")
        assert (found["image"], len(found["attestation"])) == (list(TWO), 2)
        assert ask(engine_address, "/images/other:1/json")["Id"] == str(result.descriptor and result.descriptor.digest)

        (context / "small").write_text("changed")
        changed = await loaded(daemon_address, context, output, **fields)
        assert counting.sent < 1 << 20
        found = await kinds(engine_address, "other:1")
        assert (found["image"], len(found["attestation"])) == (list(TWO), 2)
        assert ask(engine_address, "/images/other:1/json")["Id"] == str(
            changed.descriptor and changed.descriptor.digest
        )
        assert changed.descriptor != result.descriptor


def _context(folder: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A docker context for an engine, as docker context create makes it."""
    config = folder / "docker"
    place = config / "contexts" / "meta" / hashlib.sha256(b"there").hexdigest()
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"Name": "there", "Endpoints": {"docker": {"Host": host}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    return "there"


async def test_a_classic_store_gets_the_native_platform_and_says_so(
    daemon_address: str, classic_engine_address: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One platform of two, a note about the other, and layers that are there are not sent again."""
    with relay(tmp_path, classic_engine_address, monkeypatch) as counting:
        output = f"type=docker,context={_context(tmp_path, counting.host, monkeypatch)}"
        result = await loaded(daemon_address, context, output, platforms=TWO, tags=["classic:1"])
        (note,) = result.notes
        assert "classic image store" in note
        assert "linux/amd64 is loaded" in note
        assert counting.sent > 8 << 20
        counting.sent = 0
        (context / "small").write_text("changed")
        await loaded(daemon_address, context, output, platforms=TWO, tags=["classic:2"])
        assert counting.sent < 1 << 20
    first, second = (ask(classic_engine_address, f"/images/classic:{tag}/json") for tag in (1, 2))
    assert first["Architecture"] == second["Architecture"] == "amd64"
    assert first["RootFS"]["Layers"][0] == second["RootFS"]["Layers"][0]
    assert first["Id"] != second["Id"]


async def test_a_classic_engine_that_builds(classic_engine_address: str, context: Path) -> None:
    """Its own platform of two; none that it could hold is refused by name, as is what it has no exporter for."""
    result = await loaded(classic_engine_address, context, load=True, platforms=TWO, tags=["built:1"])
    assert "linux/amd64 is loaded" in result.notes[0]
    assert ask(classic_engine_address, "/images/built:1/json")["Architecture"] == "amd64"
    with pytest.raises(InvalidOption, match="classic image store holds linux/amd64 alone"):
        await loaded(classic_engine_address, context, load=True, platforms=["arm64", "linux/arm/v7"], tags=["built:2"])
    with pytest.raises(UnsupportedByDaemon, match=r"classic image store, and so cannot push"):
        await loaded(classic_engine_address, context, push=True, tags=["localhost:1/x"])


async def test_what_a_classic_store_cannot_keep_is_told(classic_engine_address: str, context: Path) -> None:
    """The image is there all the same; docker buildx says nothing."""
    output = "type=image,name=plain:1,compression=zstd,force-compression=true"
    result = await loaded(classic_engine_address, context, output, annotations={"a": "b"}, platforms=["amd64"])
    assert result.notes == (
        "the engine's classic image store keeps no annotations, compression, force-compression; "
        "its containerd image store does",
    )
    assert ask(classic_engine_address, "/images/plain:1/json")["Architecture"] == "amd64"
    assert (await loaded(classic_engine_address, context, load=True, tags=["plain:2"])).notes == ()


async def test_a_context_that_is_not_there(daemon_address: str, context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of before anything is built."""
    monkeypatch.setenv("DOCKER_CONFIG", str(context))
    with pytest.raises(InvalidOption, match="docker context 'nowhere': there is no such context"):
        await loaded(daemon_address, context, "type=docker,context=nowhere")


async def test_cancelling_a_load_leaves_nothing(
    daemon_address: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that takes the archive and never answers: the build ends at once, its staging is gone."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(tmp_path / "dead.sock"))
    server.listen()
    staging = tmp_path / "staging"
    staging.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(staging))

    done, cancelled = threading.Event(), threading.Event()

    def answer() -> None:
        for body in (b'{"OSType": "linux", "Architecture": "x86_64"}', b"[]"):
            near, _ = server.accept()
            with near:
                near.recv(1 << 16)
                near.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        near, _ = server.accept()
        with near:
            near.recv(1)
            done.set()
            cancelled.wait(60)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    output = f"type=docker,context={_context(tmp_path, f'unix://{tmp_path}/dead.sock', monkeypatch)}"
    task = asyncio.create_task(loaded(daemon_address, context, output, platforms=["linux/amd64"]))
    assert await asyncio.to_thread(done.wait, 60)
    task.cancel()
    async with asyncio.timeout(15):
        with pytest.raises(asyncio.CancelledError):
            await task
    cancelled.set()
    thread.join(5)
    server.close()
    assert list(staging.iterdir()) == []


async def test_what_a_daemon_with_a_store_keeps(engine_address: str, context: Path, registry: servers.Registry) -> None:
    """Beside a push, all platforms under the name; without a name, that of its digest; and that besides a name."""

    def listed() -> dict[str, set[str]]:
        return {item["Id"]: set(item["RepoTags"] or []) for item in ask(engine_address, "/images/json")}

    name = f"{registry.host}/kept/stored:1"
    pushed = await loaded(
        engine_address, context, f"type=image,name={name},push=true,store=true,unpack=true", platforms=TWO
    )
    assert pushed.descriptor is not None
    assert name in listed()[str(pushed.descriptor.digest)]
    assert (await kinds(engine_address, name))["image"] == list(TWO)
    for platforms in ((), TWO):
        for prefix in ("", "example.com/dangling"):
            output = f"type=image,dangling-name-prefix={prefix}" if prefix else "type=docker"
            # Content of its own, since an engine forgets no name that an image once had.
            (context / "small").write_text(f"{output}{platforms}")
            dangling = await loaded(engine_address, context, output, platforms=platforms)
            assert dangling.descriptor is not None
            digest = str(dangling.descriptor.digest)
            assert listed()[digest] == ({f"{prefix}@{digest}"} if prefix else set())
        await loaded(
            engine_address, context, "type=image,name=example.com/canonical:1,name-canonical=true", platforms=platforms
        )
        assert {"example.com/canonical:1", f"example.com/canonical:1@{digest}"} <= listed()[digest]
