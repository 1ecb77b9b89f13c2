"""The blocking face of registries and imagetools."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_py import imagetools, sync
from buildkit_py.client import Client
from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption, NotFound
from buildkit_py.oci import Descriptor
from buildkit_py.registry import Registry, RegistryConfig, StaticCredentials, Transfer
from tests.support.contents import attestation, image, index
from tests.support.fake_registry import Answer, Request
from tests.support.memory_registry import MemoryRegistry

AMD64, ARM64 = image("linux/amd64"), image("linux/arm64")
MULTI = index(AMD64, ARM64, attestation(AMD64))


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.put("source", MULTI, "v1")
        yield registry


@pytest.fixture
def registry() -> Iterator[sync.Registry]:
    with sync.open_registry(credentials=StaticCredentials({}), config=RegistryConfig()) as opened:
        yield opened


def test_manifests_and_blobs(memory: MemoryRegistry, registry: sync.Registry) -> None:
    source, other = f"{memory.host}/source", f"{memory.host}/other"
    assert registry.fetch_manifest(f"{source}:v1")[0] == MULTI.raw
    assert registry.resolve(f"{source}:v1").digest == MULTI.digest
    assert registry.exists(source, AMD64.digest)
    assert registry.referrers(source, AMD64.digest) == ()
    layer = Descriptor.of(AMD64.blobs[1], "application/octet-stream")
    assert registry.fetch_blob_bytes(source, layer, 1 << 20) == AMD64.blobs[1]
    sink = io.BytesIO()
    registry.fetch_blob(source, layer, sink)
    assert sink.getvalue() == AMD64.blobs[1]
    assert registry.copy_blob(source, other, layer) is Transfer.MOUNTED
    assert registry.push_blob(other, Descriptor.of(b"new", "x/y"), lambda: io.BytesIO(b"new"))
    pushed = registry.push_manifest(other, ARM64.raw, ARM64.media_type, ["v1"])
    assert pushed.digest == Digest.of(memory.tag("other", "v1") or b"")
    with pytest.raises(NotFound):
        registry.resolve(f"{source}:none")


def test_imagetools(memory: MemoryRegistry, registry: sync.Registry, tmp_path: Path) -> None:
    source = f"{memory.host}/source:v1"
    seen = registry.inspect(source, configs=True)
    assert [str(found.platform) for found in seen.images] == ["linux/amd64", "linux/arm64"]
    assert registry.copy(source, f"layout:{tmp_path / 'layout'}").descriptor.digest == MULTI.digest
    copied = registry.copy(f"layout:{tmp_path / 'layout'}", f"{memory.host}/copy:v1", platforms=["linux/arm64"])
    assert copied.descriptor.digest == Digest.of(memory.tag("copy", "v1") or b"")
    request = imagetools.CreateRequest(sources=[source], tags=[f"{memory.host}/made:v1"])
    assert registry.create(request).descriptor.digest == MULTI.digest
    assert registry.verify(source, full=True).ok
    assert len(registry.rm_platform(f"{memory.host}/made:v1", ["linux/arm64"]).removed) == 1
    registry.annotate(f"{memory.host}/made:v1", ["index:a=1"])
    assert b'"a": "1"' in (memory.tag("made", "v1") or b"")


def test_threads_share_one(memory: MemoryRegistry, registry: sync.Registry) -> None:
    found: list[Descriptor] = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.resolve(f"{memory.host}/source:v1"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8


@pytest.mark.parametrize(
    ("blocking", "awaited", "without"),
    [
        (sync.Registry, Registry, {"aclose"}),
        (sync.Client, Client, {"open_session", "call_frontend"}),  # whose session is of the loop; call() has its own
    ],
    ids=["Registry", "Client"],
)
def test_it_has_all_that_the_other_face_has(blocking: type, awaited: type, without: set[str]) -> None:
    """Under the same names, with the same parameters and defaults."""
    for name, method in inspect.getmembers(awaited, inspect.isfunction):
        if name.startswith("_") or name in without:
            continue
        mine, theirs = (
            [(item.name, item.kind, item.default) for item in inspect.signature(function).parameters.values()]
            for function in (getattr(blocking, name), method)
        )
        assert mine == [item for item in theirs if item[0] != "session"], name


@pytest.mark.parametrize(
    ("name", "request_type"),
    [(name, None) for name in ("inspect", "create", "rm_platform", "annotate")]
    + [("copy", imagetools.CopyRequest), ("verify", imagetools.VerifyRequest)],
)
def test_it_has_all_of_imagetools(name: str, request_type: type | None) -> None:
    """With the parameters of the function, or the fields of the request that it takes."""
    function: Callable[..., object] = getattr(imagetools, name) if request_type is None else request_type
    theirs = list(inspect.signature(function).parameters.values())
    mine = list(inspect.signature(getattr(sync.Registry, name)).parameters.values())[1:]
    theirs = theirs if request_type else theirs[1:]
    assert [(item.name, item.default) for item in mine] == [(item.name, item.default) for item in theirs]


def test_copying_a_manifest(memory: MemoryRegistry, registry: sync.Registry) -> None:
    registry.warm_up(f"{memory.host}/target")
    report = registry.copy_manifest(f"{memory.host}/source:v1", f"{memory.host}/target", tags=["v1"])
    assert report.count(Transfer.MOUNTED) > 0
    assert memory.tag("target", "v1") == MULTI.raw


@pytest.mark.parametrize("face", ["interrupted", "left open"])
def test_the_end_of_a_program_with_an_open_client(memory: MemoryRegistry, face: str) -> None:
    """Control-C ends a call in the midst of it and the client goes on; one never closed keeps nobody waiting."""
    program = f"""
import os, signal, threading, sys
from buildkit_py import sync
from buildkit_py.registry import RegistryConfig, StaticCredentials
opening = sync.open_registry(credentials=StaticCredentials({{}}), config=RegistryConfig())
registry = opening.__enter__()
registry.resolve("{memory.host}/source:v1")
if {face == "interrupted"}:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        registry.tags("{memory.host}/silent")
    except KeyboardInterrupt:
        print("interrupted", registry.resolve("{memory.host}/source:v1").size)
"""
    asked, release = threading.Event(), threading.Event()

    def silent(request: Request) -> Answer:
        asked.set()
        release.wait(60)
        return Answer(status=404)

    memory.on("GET", "/v2/silent/tags/list", silent)
    try:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        release.set()
    assert (done.returncode, done.stderr) == (0, "")
    assert asked.is_set() == (face == "interrupted")
    assert done.stdout == (f"interrupted {len(MULTI.raw)}\n" if face == "interrupted" else "")


def test_one_number_says_how_much_at_once() -> None:
    with pytest.raises(InvalidOption, match="at least 1"), sync.open_registry(concurrency=0):
        pass
