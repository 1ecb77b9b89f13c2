"""Local caches: what a daemon is told, and what the directory says afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption, ProtocolError
from buildkit_py.layout.editing import put_entry, remove_unreachable
from buildkit_py.layout.entries import REF_NAME
from buildkit_py.oci import OCI_MANIFEST, Descriptor
from buildkit_py.options import CacheSpec
from buildkit_py.session.content import BlobStore
from buildkit_py.session.localcache import LocalCaches


def local(**attrs: str) -> CacheSpec:
    return CacheSpec(type="local", attrs=attrs)


def blob(root: Path, data: bytes) -> Descriptor:
    path = BlobStore(root).path(Digest.of(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))


def manifest(root: Path, *layers: bytes) -> Descriptor:
    config = blob(root, b"{}")
    fields = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.to_json(),
        "layers": [blob(root, layer).to_json() for layer in layers],
    }
    descriptor = blob(root, json.dumps(fields).encode())
    return Descriptor(media_type=OCI_MANIFEST, digest=descriptor.digest, size=descriptor.size)


def tags(root: Path) -> dict[str, str]:
    entries = json.loads((root / "index.json").read_text())["manifests"]
    return {entry["annotations"][REF_NAME]: entry["digest"] for entry in entries}


def test_an_import_is_looked_up_by_its_tag(tmp_path: Path) -> None:
    """The daemon gets the digest, and a name of a store that says nothing of this machine."""
    one, two = manifest(tmp_path, b"1"), manifest(tmp_path, b"2")
    put_entry(tmp_path, one, "latest")
    put_entry(tmp_path, two, "other")
    caches = LocalCaches([local(src=str(tmp_path)), local(src=str(tmp_path), tag="other"), CacheSpec(type="inline")])
    assert [spec.attrs.get("digest") for spec in caches.imports] == [str(one.digest), str(two.digest), None]
    for spec in caches.imports[:2]:
        assert set(spec.attrs) == {"src", "digest"}
        store = caches.stores[f"local:{spec.attrs['src']}"]
        assert (store.root, store.writable) == (tmp_path, False)
        assert str(tmp_path) not in str(spec)


def test_an_import_that_is_not_there_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As at the first build of all."""
    put_entry(tmp_path, manifest(tmp_path, b"1"), "latest")
    absent = local(src=str(tmp_path), digest="sha256:" + "a" * 64)
    caches = LocalCaches([local(src=str(tmp_path / "none")), local(src=str(tmp_path), tag="other"), absent])
    assert caches.imports == ()
    assert not caches.stores
    assert len(caplog.records) == 3
    assert "has no tag other" in caplog.text


@pytest.mark.parametrize("answer", ["said", "unsaid", "of another cache"])
def test_the_tag_of_an_export_stands_for_what_came(tmp_path: Path, answer: str) -> None:
    """By the daemon's word, or by what it wrote last, where its word is about another cache."""
    old = manifest(tmp_path, b"old")
    put_entry(tmp_path, old, "latest")
    put_entry(tmp_path, old, "kept")
    caches = LocalCaches(exports=[local(dest=str(tmp_path), mode="max", tag="latest")])
    (spec,) = caches.exports
    assert set(spec.attrs) == {"dest", "mode"}
    (store,) = caches.stores.values()
    assert store.writable
    root = manifest(tmp_path, b"new")
    store.note(root.digest, root.size)
    response = {
        "said": {"cache.manifest": json.dumps(root.to_json())},
        "unsaid": {},
        "of another cache": {"cache.manifest": json.dumps(old.to_json())},
    }[answer]
    caches.publish(response)
    assert tags(tmp_path) == {"kept": str(old.digest), "latest": str(root.digest)}
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_reset_removes_what_no_tag_leads_to(tmp_path: Path) -> None:
    put_entry(tmp_path, manifest(tmp_path, b"old"), "latest")
    kept = manifest(tmp_path, b"kept")
    put_entry(tmp_path, kept, "kept")
    caches = LocalCaches(exports=[local(dest=str(tmp_path), reset="true")])
    root = manifest(tmp_path, b"new")
    (store,) = caches.stores.values()
    store.note(root.digest, root.size)
    caches.publish({})
    left = {path.read_bytes() for path in (tmp_path / "blobs" / "sha256").iterdir()}
    assert {b"{}", b"new", b"kept"} < left
    assert b"old" not in left
    assert len(left) == 5


def test_nothing_is_removed_where_a_manifest_is_missing(tmp_path: Path) -> None:
    root = manifest(tmp_path, b"1")
    put_entry(tmp_path, root, "latest")
    loose = blob(tmp_path, b"loose")
    BlobStore(tmp_path).path(root.digest).unlink()
    with pytest.raises(ProtocolError, match="missing"):
        remove_unreachable(tmp_path)
    assert BlobStore(tmp_path).size(loose.digest) == 5


def test_an_export_of_nothing_changes_nothing(tmp_path: Path) -> None:
    LocalCaches(exports=[local(dest=str(tmp_path / "x"))]).publish({})
    assert not (tmp_path / "x").exists()


def test_an_answer_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"cache\.manifest"):
        LocalCaches(exports=[local(dest=str(tmp_path))]).publish({"cache.manifest": "{"})


def test_bad_attributes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for exports, why in (
        (local(), "dest=DIRECTORY is missing"),
        (local(dest="x", tag=""), "tag is empty"),
        (local(dest="x", reset="maybe"), "reset=maybe: expected true or false"),
        (local(dest=str(tmp_path / "file" / "x")), "is not a directory"),
    ):
        with pytest.raises(InvalidOption, match=why):
            LocalCaches(exports=[exports])
    for imports, why in (
        (local(), "src=DIRECTORY is missing"),
        (local(src="x", tag=""), "tag is empty"),
        (local(src="x", digest="latest"), "expected algorithm:hex"),
    ):
        with pytest.raises(InvalidOption, match=why):
            LocalCaches([imports])
