"""The blocking face of registries and imagetools."""

from __future__ import annotations

import inspect
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_py import imagetools, sync
from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption, NotFound
from buildkit_py.oci import Descriptor
from buildkit_py.registry import Registry, RegistryConfig, StaticCredentials, Transfer
from tests.support.contents import attestation, image, index
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


def test_it_has_all_that_the_other_face_has() -> None:
    """Under the same names, with the same parameters."""
    for name, method in inspect.getmembers(Registry, inspect.isfunction):
        if name.startswith("_") or name in ("aclose", "warm_up", "copy_manifest"):
            continue  # lifetime; and copy() is the same with referrers
        mine = inspect.signature(getattr(sync.Registry, name)).parameters
        assert list(mine) == list(inspect.signature(method).parameters), name


def test_one_number_says_how_much_at_once() -> None:
    with pytest.raises(InvalidOption, match="at least 1"), sync.open_registry(concurrency=0):
        pass
