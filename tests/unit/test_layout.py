"""Layouts: what daemons stream is checked and merged, and what is written can be read back."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildkit_py import tarstream
from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError, DeadlineExceeded, InvalidOption, ProtocolError
from buildkit_py.layout import disk
from buildkit_py.layout.destination import check_destination
from buildkit_py.layout.merging import LayoutMerger
from buildkit_py.layout.reading import open_layout
from buildkit_py.layout.staging import StagedBlob
from buildkit_py.layout.stream import LayoutStream
from buildkit_py.oci import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    encode_index,
    encode_json,
)
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference

ARM = Platform("linux", "arm", "v7")
ARM64 = Platform("linux", "arm64")
AMD64 = Platform("linux", "amd64")
LAYER = "application/vnd.oci.image.layer.v1.tar"
SHARED = b"a layer that all platforms share" * 40
NAMES = (Reference.parse_normalized("localhost:5000/app:1"), Reference.parse_normalized("app"))


@dataclass
class Export:
    """What a daemon sends for one platform."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    root: Descriptor | None = None
    index_json: bytes = b""

    def add(self, content: bytes, media_type: str) -> Descriptor:
        descriptor = Descriptor.of(content, media_type)
        self.blobs[descriptor.digest] = content
        return descriptor

    def manifest(self, config: object, layers: Sequence[Descriptor], **more: object) -> Descriptor:
        config_descriptor = self.add(json.dumps(config).encode(), OCI_CONFIG)
        fields: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config_descriptor.to_json(),
            "layers": [layer.to_json() for layer in layers],
            **more,
        }
        return self.add(encode_json(fields), OCI_MANIFEST)

    def files(self) -> list[tuple[str, bytes | None]]:
        blobs = sorted((f"blobs/{digest.algorithm}/{digest.hex}", raw) for digest, raw in self.blobs.items())
        return [
            ("blobs/", None),
            ("blobs/sha256/", None),
            *blobs,
            ("index.json", self.index_json),
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ]

    def tar(self) -> bytes:
        return archive(self.files())


def archive(files: Sequence[tuple[str, bytes | None]]) -> bytes:
    parts = [
        tarstream.header(name, directory=True)
        if content is None
        else tarstream.header(name, len(content)) + content + tarstream.padding(len(content))
        for name, content in files
    ]
    return b"".join((*parts, tarstream.END))


def export_of(platform: Platform, *, attested: bool = False, names: Sequence[str] = ("",)) -> Export:
    export = Export()
    layers = [export.add(SHARED, LAYER), export.add(f"binary for {platform}".encode(), LAYER)]
    image = export.manifest(platform.to_oci(), layers)
    root = image.with_platform(platform)
    if attested:
        statement = export.add(f'{{"for":"{platform}"}}'.encode(), "application/vnd.in-toto+json")
        about = export.manifest({"os": "unknown", "architecture": "unknown"}, [statement])
        about = about.with_platform(Platform("unknown", "unknown")).with_annotations(
            {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": str(image.digest),
            }
        )
        root = export.add(encode_index([root, about]), OCI_INDEX)
    export.root = root
    stamped = {"org.opencontainers.image.created": "2024-01-01T00:00:00Z"}
    entries = [
        root.with_annotations(
            {**stamped, "io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1"} if name else stamped
        )
        for name in names
    ]
    export.index_json = encode_index(entries)
    return export


def send(merger: LayoutMerger, platform: Platform | None, raw: bytes, chunk: int = 1000) -> None:
    pour(merger.open_stream(platform), raw, chunk)


def pour(stream: LayoutStream, raw: bytes, chunk: int) -> None:
    for at in range(0, len(raw), chunk):
        stream.write(raw[at : at + chunk])
    stream.close()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def merger(tmp_path: Path) -> Iterator[LayoutMerger]:
    with LayoutMerger(tmp_path / "staging") as merger:
        yield merger
    assert not (tmp_path / "staging").exists()


def test_three_platforms_become_one_index(merger: LayoutMerger, tmp_path: Path) -> None:
    exports = {platform: export_of(platform) for platform in (ARM, ARM64, AMD64)}
    for platform in (AMD64, ARM, ARM64):  # as they happen to end
        send(merger, platform, exports[platform].tar())
    root = merger.finish([ARM, ARM64, AMD64], annotations={"k": "v"}, names=NAMES)
    merger.publish_directory(tmp_path / "out")

    with open_layout(tmp_path / "out") as layout:
        entries = layout.index.manifests
        assert [entry.digest for entry in entries] == [root.digest] * 2
        assert [dict(entry.annotations) for entry in entries] == [
            {
                "io.containerd.image.name": "localhost:5000/app:1",
                "org.opencontainers.image.created": "2024-01-01T00:00:00Z",
                "org.opencontainers.image.ref.name": "1",
            },
            {
                "io.containerd.image.name": "docker.io/library/app:latest",
                "org.opencontainers.image.created": "2024-01-01T00:00:00Z",
                "org.opencontainers.image.ref.name": "latest",
            },
        ]
        index = Index.parse(layout.read(root))
        assert index.annotations == {"k": "v"}
        assert [entry.platform for entry in index.manifests] == [ARM, ARM64, AMD64]
        assert all(not entry.annotations for entry in index.manifests), "the daemon's time stamp is not kept"
        assert index.raw == encode_index(index.manifests, annotations={"k": "v"})
        for entry in index.manifests:
            for blob in Manifest.parse(layout.read(entry)).blobs:
                layout.read(blob)
    files = tree(tmp_path / "out")
    everything = {digest for export in exports.values() for digest in export.blobs} | {root.digest}
    assert set(files) == {"oci-layout", "index.json", *(f"blobs/sha256/{digest.hex}" for digest in everything)}
    assert files["oci-layout"] == b'{"imageLayoutVersion":"1.0.0"}'


def test_attestations_stay_with_their_images_and_old_indexes_go(merger: LayoutMerger, tmp_path: Path) -> None:
    exports = {platform: export_of(platform, attested=True) for platform in (ARM64, AMD64)}
    for platform, export in exports.items():
        send(merger, platform, export.tar())
    root = merger.finish([AMD64, ARM64])
    merger.publish_directory(tmp_path / "out")
    with open_layout(tmp_path / "out") as layout:
        assert layout.index.manifests[0].annotations == {"org.opencontainers.image.ref.name": "latest"}
        index = Index.parse(layout.read(root))
        assert [entry.platform for entry in index.images] == [AMD64, ARM64]
        assert [entry.attests for entry in index.attestations] == [str(entry.digest) for entry in index.images]
        assert index.manifests == index.images + index.attestations
        for export in exports.values():
            assert export.root is not None
            assert not layout.has(export.root.digest)


@pytest.mark.parametrize("attested", [False, True])
@pytest.mark.parametrize("platform", [ARM64, None])
def test_one_platform_is_what_the_daemon_made(
    merger: LayoutMerger, tmp_path: Path, attested: bool, platform: Platform | None
) -> None:
    export = export_of(ARM64, attested=attested, names=["localhost:5000/app:1", "docker.io/library/app:latest"])
    send(merger, platform, export.tar())
    root = merger.finish([platform], names=NAMES)
    merger.publish_directory(tmp_path / "out")
    assert export.root is not None
    assert root.digest == export.root.digest
    assert tree(tmp_path / "out") == {name: raw for name, raw in export.files() if raw is not None}


def test_an_image_without_a_name_is_called_latest(tmp_path: Path) -> None:
    """So that other tools find it, and the next one takes its place. Source: buildkit, client/ociindex."""
    for platform in (ARM, ARM64):
        with LayoutMerger.create(tmp_path / "out") as merger:
            send(merger, None, export_of(platform).tar())
            root = merger.finish([None])
            merger.publish_directory(tmp_path / "out")
        with open_layout(tmp_path / "out") as layout:
            assert [entry.digest for entry in layout.index.manifests] == [root.digest]
            assert layout.resolve("latest").platform == platform


def test_one_platform_can_be_given_names(merger: LayoutMerger, tmp_path: Path) -> None:
    send(merger, None, export_of(ARM64).tar())
    root = merger.finish([None], names=NAMES)
    merger.publish_directory(tmp_path / "out")
    with open_layout(tmp_path / "out") as layout:
        assert layout.resolve("1").digest == root.digest
        assert layout.resolve("docker.io/library/app:latest").digest == root.digest
        assert layout.resolve().digest == root.digest
        assert layout.resolve(str(root.digest)).platform == ARM64
        assert layout.resolve().annotations["org.opencontainers.image.created"] == "2024-01-01T00:00:00Z"
        with pytest.raises(InvalidOption, match=r"no such image; it has .*localhost:5000/app:1"):
            layout.resolve("2")


def test_one_platform_with_annotations_of_an_index_gets_one(merger: LayoutMerger) -> None:
    """There is no other place for them; those of what describes the root stand in index.json."""
    send(merger, None, export_of(ARM64).tar())
    root = merger.finish([None], annotations={"a": "b"}, descriptor_annotations={"c": "d"})
    assert root.is_index
    index = Index.parse(merger.blob_path(root.digest).read_bytes())
    assert (index.annotations, len(index.images)) == ({"a": "b"}, 1)
    (entry,) = Index.parse((merger.staging / "index.json").read_bytes()).manifests
    assert entry.digest == root.digest
    assert entry.annotations["c"] == "d"


def test_streams_may_arrive_at_the_same_time(merger: LayoutMerger, tmp_path: Path) -> None:
    """The shared layer comes three times, at once, in interleaved pieces."""
    platforms = [ARM, ARM64, AMD64]
    barrier = threading.Barrier(len(platforms), timeout=20)
    errors: list[BaseException] = []

    def run(platform: Platform) -> None:
        try:
            raw = export_of(platform).tar()
            stream = merger.open_stream(platform)
            barrier.wait()
            for at in range(0, len(raw), 97):
                stream.write(raw[at : at + 97])
            stream.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(platform,)) for platform in platforms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    merger.finish(platforms)
    merger.publish_directory(tmp_path / "out")
    shared = tmp_path / "out" / "blobs" / "sha256" / Digest.of(SHARED).hex
    assert shared.read_bytes() == SHARED


def published(merger: LayoutMerger) -> bytes:
    stream = io.BytesIO()
    merger.write_tar(stream)
    return stream.getvalue()


def test_an_archive_is_the_same_every_time_and_readable_by_others(tmp_path: Path) -> None:
    archives = []
    for attempt, order in enumerate(([ARM, ARM64], [ARM64, ARM])):
        with LayoutMerger(tmp_path / f"staging{attempt}") as merger:
            for platform in order:
                send(merger, platform, export_of(platform).tar(), chunk=513 + attempt)
            merger.finish([ARM, ARM64], names=NAMES)
            merger.publish_file(tmp_path / f"{attempt}.tar")
            archives.append((tmp_path / f"{attempt}.tar").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(tmp_path / "0.tar") as reader:
        names = reader.getnames()
    assert names == sorted(names)
    assert {"oci-layout", "index.json", "blobs", "blobs/sha256"} < set(names)
    with open_layout(tmp_path / "0.tar") as layout:
        root = layout.resolve("1")
        assert [entry.platform for entry in Index.parse(layout.read(root)).manifests] == [ARM, ARM64]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "1.tar"]


def test_an_archive_can_go_to_a_stream(merger: LayoutMerger, tmp_path: Path) -> None:
    send(merger, None, export_of(ARM).tar())
    merger.finish([None])
    raw = published(merger)
    merger.publish_file(tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == raw


def test_a_file_is_replaced_by_rename_also_through_a_link(merger: LayoutMerger, tmp_path: Path) -> None:
    target, link = tmp_path / "real" / "x.tar", tmp_path / "link.tar"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to(target)
    before = target.stat().st_ino
    send(merger, None, export_of(ARM).tar())
    merger.finish([None])
    merger.publish_file(link)
    assert link.is_symlink()
    assert target.stat().st_ino != before
    assert tarfile.is_tarfile(target)
    assert [path.name for path in target.parent.iterdir()] == ["x.tar"]


def test_a_device_is_written_to(merger: LayoutMerger) -> None:
    send(merger, None, export_of(ARM).tar())
    merger.finish([None])
    merger.publish_file(Path("/dev/null"))
    assert not Path("/dev/null").is_file()


def test_an_existing_layout_keeps_its_other_images(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def build(platform: Platform, name: str) -> Descriptor:
        with LayoutMerger.create(out) as merger:
            send(merger, None, export_of(platform).tar())
            root = merger.finish([None], names=[Reference.parse_normalized(name)])
            merger.publish_directory(out)
        return root

    first, second, third = build(ARM, "app:1"), build(ARM64, "app:2"), build(AMD64, "app:1")
    assert {"blobs", "index.json", "oci-layout"} == {path.name for path in out.iterdir()}
    with open_layout(out) as layout:
        assert layout.resolve("1").digest == third.digest
        assert layout.resolve("2").digest == second.digest
        assert layout.has(first.digest), "blobs of a replaced entry stay, as others may need them"
        assert len(layout.index.manifests) == 2


def test_what_another_tool_wrote_into_index_json_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    other = {**Descriptor.of(b"x", OCI_MANIFEST).to_json(), "x-unknown": [1]}
    (out / "index.json").write_text(json.dumps({"x-more": 1, "schemaVersion": 2, "manifests": [other]}))
    with LayoutMerger.create(out) as merger:
        send(merger, None, export_of(ARM).tar())
        merger.finish([None])
        merger.publish_directory(out)
    after = json.loads((out / "index.json").read_bytes())
    assert after["x-more"] == 1
    assert after["manifests"][0] == other
    assert len(after["manifests"]) == 2


def test_an_empty_directory_is_filled_and_a_missing_one_is_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "deep"):
        with LayoutMerger.create(out) as merger:
            send(merger, None, export_of(ARM).tar())
            merger.finish([None])
            merger.publish_directory(out)
        assert {path.name for path in out.iterdir()} == {"blobs", "index.json", "oci-layout"}
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "new"}


def test_without_a_destination_staging_is_private() -> None:
    with LayoutMerger.create(None) as merger:
        assert merger.staging.stat().st_mode & 0o777 == 0o700
    assert not merger.staging.exists()


def test_a_layout_that_is_locked_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LOCK_SECONDS", 0.1)
    out = tmp_path / "out"
    out.mkdir()
    with LayoutMerger.create(out) as merger:
        send(merger, None, export_of(ARM).tar())
        merger.finish([None])
        holder = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(holder, fcntl.LOCK_EX)
            with pytest.raises(DeadlineExceeded, match="kept it locked"):
                merger.publish_directory(out)
        finally:
            os.close(holder)
        merger.publish_directory(out)


def test_publishing_needs_a_finished_layout(merger: LayoutMerger, tmp_path: Path) -> None:
    for publish in (merger.publish_directory, merger.publish_file):
        with pytest.raises(RuntimeError):
            publish(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_destinations_are_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for path, directory, reason in (
        (tmp_path / "full", True, "neither empty nor an OCI layout"),
        (tmp_path / "file", True, "not a directory"),
        (tmp_path / "file" / "x", True, "not a directory"),
        (tmp_path / "full", False, "is a directory"),
        (tmp_path / "no" / "x", False, "there is no directory"),
    ):
        with pytest.raises(InvalidOption, match=reason):
            check_destination(path, directory=directory)
    check_destination(tmp_path / "new" / "deep", directory=True)
    check_destination(tmp_path / "new.tar", directory=False)
    check_destination(tmp_path / "file", directory=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a directory that even root cannot write to")
def test_a_destination_that_cannot_be_written_to() -> None:
    with pytest.raises(BuildKitError, match="/proc/sys"):
        LayoutMerger.create(Path("/proc/sys/x"))


GOLDEN = Path(__file__).parents[1] / "data" / "layouts"


@pytest.mark.golden
def test_the_golden_index_of_three_platforms(merger: LayoutMerger) -> None:
    """Three exports of one platform each give the index, byte for byte, that one export of all three has."""
    platforms = [ARM, ARM64, AMD64]
    for platform in platforms:
        send(merger, platform, (GOLDEN / f"{platform.local_name}.tar").read_bytes())
    root = merger.finish(platforms, annotations={"k": "v"})
    with open_layout(GOLDEN / "multi.tar") as theirs:
        expected = theirs.resolve()
        assert merger.blob_path(root.digest).read_bytes() == theirs.read(expected)
        assert root.digest == expected.digest
        assert {path.name for path in (merger.staging / "blobs").glob("*/*")} == {
            name.rpartition("/")[2] for name, _ in archive_files(GOLDEN / "multi.tar") if "blobs/sha256/" in name
        }


@pytest.mark.golden
def test_the_golden_archive_of_one_platform(merger: LayoutMerger) -> None:
    """An archive that went in comes out as the same bytes."""
    raw = (GOLDEN / "named_linux_arm64.tar").read_bytes()
    send(merger, ARM64, raw)
    merger.finish([ARM64], names=[Reference.parse_normalized("localhost:5000/app:1")])
    assert published(merger) == raw


@pytest.mark.golden
def test_golden_attestations_are_joined(merger: LayoutMerger) -> None:
    for platform in (ARM64, AMD64):
        send(merger, platform, (GOLDEN / f"attested_{platform.local_name}.tar").read_bytes())
    root = merger.finish([AMD64, ARM64])
    index = Index.parse(merger.blob_path(root.digest).read_bytes())
    assert [entry.platform for entry in index.images] == [AMD64, ARM64]
    assert [entry.attests for entry in index.attestations] == [str(entry.digest) for entry in index.images]
    for entry in index.attestations:
        manifest = Manifest.parse(merger.blob_path(entry.digest).read_bytes())
        assert manifest.artifact_type == "application/vnd.docker.attestation.manifest.v1+json"
        assert manifest.subject is not None
        assert str(manifest.subject.digest) == entry.attests
        assert manifest.config.data == b"{}"


def archive_files(path: Path) -> list[tuple[str, int]]:
    with tarfile.open(path) as tar:
        return [(member.name, member.size) for member in tar.getmembers() if member.isfile()]


GOOD = export_of(ARM64)
SOME_DIGEST = next(iter(GOOD.blobs))


def changed(**changes: Any) -> bytes:
    files = dict(GOOD.files())
    for name, content in changes.items():
        if content is None:
            del files[name]
        else:
            files[name] = content
    return archive(list(files.items()))


def with_index(entries: Sequence[Descriptor], blobs: Sequence[bytes] = ()) -> bytes:
    """The good layout with this index.json and these blobs besides."""
    more = {f"blobs/sha256/{Digest.of(raw).hex}": raw for raw in blobs}
    return changed(**{"index.json": encode_index(entries), **more})


def linked() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo(f"blobs/sha256/{SOME_DIGEST.hex}")
        info.type = tarfile.SYMTYPE
        info.linkname = "/etc/passwd"
        tar.addfile(info)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "cut short"),
        (GOOD.tar()[:2000], "cut short"),
        (GOOD.tar()[:-1024], "cut short"),
        (b"this is not a tar archive" * 100, "checksum|malformed"),
        (changed(**{"../evil": b"x"}), "does not belong"),
        (changed(**{"/etc/evil": b"x"}), "does not belong"),
        (changed(**{"blobs/sha256/../../evil": b"x"}), "does not belong"),
        (changed(**{"blobs/sha256/evil": b"x"}), "does not belong"),
        (changed(**{"blobs/md5/" + "a" * 32: b"x"}), "does not belong"),
        (changed(**{"blobs/sha256/" + "a" * 64: b"x"}), "has digest"),
        (changed(evil=b"x"), "does not belong"),
        (linked(), "link or device"),
        (changed(**{"index.json": None}), "index.json is missing"),
        (changed(**{"oci-layout": None}), "oci-layout is missing"),
        (changed(**{"oci-layout": b'{"imageLayoutVersion":"2.0"}'}), "'2.0' is not supported"),
        (changed(**{"oci-layout": b"{}"}), "is not supported"),
        (changed(**{"index.json": b"{"}), "not valid JSON"),
        (changed(**{"index.json": b" " * (5 << 20)}), "are allowed"),
        (archive([*GOOD.files(), ("index.json", b"{}")]), "came twice"),
    ],
)
def test_streams_that_are_no_layout_are_refused(merger: LayoutMerger, raw: bytes, reason: str) -> None:
    """Nothing is left of them but blobs whose digest is right, and nothing outside."""
    stream = merger.open_stream(ARM64)
    with pytest.raises(ProtocolError, match=reason) as raised:
        pour(stream, raw, chunk=700)
    assert str(raised.value).startswith("layout of linux/arm64: ")
    with pytest.raises(ProtocolError, match="after its end"):
        stream.write(b"more")
    with pytest.raises(ProtocolError, match="did not arrive completely"):
        merger.finish([ARM64])
    assert not list((merger.staging / "tmp").iterdir())
    assert all(
        Digest("sha256", path.name) == Digest.of(path.read_bytes())
        for path in (merger.staging / "blobs").rglob("*")
        if path.is_file()
    )
    assert sorted(path.name for path in merger.staging.parent.iterdir()) == ["staging"]


def root_of(export: Export) -> Descriptor:
    assert export.root is not None
    return export.root


def manifest_with(**change: object) -> bytes:
    fields = json.loads(GOOD.blobs[root_of(GOOD).digest])
    return encode_json({**fields, **change})


NO_CONFIG = manifest_with(config=Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json").to_json())
NO_LAYER = manifest_with(layers=[Descriptor.of(b"elsewhere", LAYER).to_json()])
BAD_SIZE = manifest_with(layers=[{**Descriptor.of(SHARED, LAYER).to_json(), "size": 7}])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (with_index([]), "expected one image, found 0"),
        (with_index([root_of(GOOD), Descriptor.of(b"x", OCI_MANIFEST)]), "expected one image, found 2"),
        (with_index([Descriptor.of(b"x", OCI_MANIFEST)]), "did not send this blob"),
        (with_index([root_of(GOOD).with_platform(AMD64)]), "entry says linux/amd64"),
        (export_of(ARM).tar(), "is for linux/arm/v7, the solve was for linux/arm64"),
        (with_index([Descriptor.of(NO_LAYER, OCI_MANIFEST)], [NO_LAYER]), "did not send this blob"),
        (with_index([Descriptor.of(BAD_SIZE, OCI_MANIFEST)], [BAD_SIZE]), "its descriptor says 7"),
        (with_index([Descriptor.of(NO_CONFIG, OCI_MANIFEST)], [NO_CONFIG, b"{}"]), "no image config"),
        (with_index([Descriptor.of(encode_index([]), OCI_INDEX)], [encode_index([])]), "holds no image"),
        (with_index([Descriptor.of(b"{}", OCI_MANIFEST)], [b"{}"]), "schemaVersion"),
    ],
)
def test_layouts_that_do_not_hold_together_are_refused(merger: LayoutMerger, raw: bytes, reason: str) -> None:
    send(merger, ARM64, raw)
    with pytest.raises(ProtocolError, match=reason):
        merger.finish([ARM64])


def test_a_platform_that_did_not_come_is_named(merger: LayoutMerger) -> None:
    send(merger, ARM64, GOOD.tar())
    with pytest.raises(ProtocolError, match="no layout of linux/arm/v7"):
        merger.finish([ARM64, ARM])
    with pytest.raises(ProtocolError, match="linux/arm64 twice"):
        merger.open_stream(ARM64)


def test_layers_from_elsewhere_may_be_missing(merger: LayoutMerger, tmp_path: Path) -> None:
    layer = {**Descriptor.of(b"elsewhere", LAYER).to_json(), "urls": ["https://example.com/x"]}
    raw = manifest_with(layers=[layer])
    send(merger, ARM64, with_index([Descriptor.of(raw, OCI_MANIFEST)], [raw]))
    root = merger.finish([ARM64])
    assert root.digest == Digest.of(raw)


def test_blobs_that_nothing_needs_are_dropped(merger: LayoutMerger, tmp_path: Path) -> None:
    send(merger, ARM64, with_index([root_of(GOOD)], [b"stray"]))
    merger.finish([ARM64])
    merger.publish_directory(tmp_path / "out")
    with open_layout(tmp_path / "out") as layout:
        assert not layout.has(Digest.of(b"stray"))


def test_leaving_early_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with LayoutMerger.create(tmp_path / "out.tar") as merger:
            merger.open_stream(ARM64).write(GOOD.tar()[:1500])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_discarding_waits_for_a_write_that_is_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled call leaves its thread running; nothing may be written after the directory is gone."""
    writing, go_on = threading.Event(), threading.Event()
    update = StagedBlob.write

    def slow(blob: Any, data: memoryview) -> None:
        writing.set()
        assert go_on.wait(20)
        update(blob, data)

    monkeypatch.setattr(StagedBlob, "write", slow)
    merger = LayoutMerger(tmp_path / "staging")
    stream = merger.open_stream(ARM64)
    writer = threading.Thread(target=stream.write, args=(GOOD.tar(),))
    discarder = threading.Thread(target=merger.discard)
    writer.start()
    assert writing.wait(20)
    discarder.start()
    discarder.join(0.05)
    assert discarder.is_alive()
    go_on.set()
    writer.join(20)
    discarder.join(20)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProtocolError, match="after its end"):
        stream.write(b"")
    with pytest.raises(ProtocolError, match="did not arrive completely"):
        stream.close()


def test_closing_twice_does_no_harm(merger: LayoutMerger) -> None:
    stream = merger.open_stream(ARM64)
    pour(stream, GOOD.tar(), 4096)
    stream.close()
    stream.abort()
    assert stream.index.raw == GOOD.index_json


@pytest.fixture
def layout_dir(tmp_path: Path) -> Path:
    with LayoutMerger.create(tmp_path / "layout") as merger:
        send(merger, ARM64, GOOD.tar())
        merger.finish([ARM64])
        merger.publish_directory(tmp_path / "layout")
    return tmp_path / "layout"


def test_what_is_read_is_checked(layout_dir: Path) -> None:
    blob = layout_dir / "blobs" / "sha256" / Digest.of(SHARED).hex
    descriptor = Descriptor.of(SHARED, LAYER)
    with open_layout(layout_dir) as layout:
        with pytest.raises(ProtocolError, match="more than 3"):
            layout.read(descriptor, max_bytes=3)
        blob.write_bytes(SHARED[::-1])
        with pytest.raises(ProtocolError, match="has digest"):
            layout.read(descriptor)
        blob.write_bytes(b"short")
        with pytest.raises(ProtocolError, match="is 5 bytes, expected"):
            layout.read(descriptor)
        blob.unlink()
        assert not layout.has(descriptor.digest)
        with pytest.raises(ProtocolError, match="is missing"):
            layout.read(descriptor)


def test_what_is_no_layout_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(GOOD.tar()[:3000])
    (tmp_path / "other.tar").write_bytes(archive([("x", b"y")]))
    (tmp_path / "text").write_bytes(b"hello" * 200)
    for name, reason in (
        ("", "this is no OCI layout"),
        ("none", "No such file"),
        ("cut.tar", "cut short"),
        ("other.tar", "has no oci-layout"),
        ("text", "checksum|malformed"),
    ):
        with pytest.raises((InvalidOption, ProtocolError), match=reason) as raised, open_layout(tmp_path / name):
            pass
        assert str(tmp_path) in str(raised.value)


def test_archives_of_other_writers_are_read(layout_dir: Path, tmp_path: Path) -> None:
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=style) as tar:
            tar.add(layout_dir, arcname=".")
        with open_layout(tmp_path / "x.tar") as layout:
            manifest = Manifest.parse(layout.read(layout.resolve()))
            assert layout.read(manifest.layers[0]) == SHARED


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(GOOD.tar())), max_size=12))
def test_any_split_into_chunks_gives_the_same_layout(tmp_path: Path, cuts: list[int]) -> None:
    raw = GOOD.tar()
    with LayoutMerger(tmp_path / "staging") as merger:
        stream = merger.open_stream(ARM64)
        for start, end in pairwise(sorted({0, len(raw), *cuts})):
            stream.write(raw[start:end])
        stream.close()
        merger.finish([ARM64])
        expected = {name: content for name, content in GOOD.files() if content is not None}
        assert {**tree(merger.staging), "index.json": GOOD.index_json} == expected


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, len(GOOD.tar())), st.binary(min_size=1, max_size=20)), max_size=4))
def test_any_stream_is_taken_or_refused(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(GOOD.tar())
    for at, value in changes:
        raw[at : at + len(value)] = value
    with LayoutMerger(tmp_path / "staging") as merger, contextlib.suppress(BuildKitError):
        send(merger, ARM64, bytes(raw))
        merger.finish([ARM64])
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.tar").write_bytes(raw)
    with contextlib.suppress(BuildKitError), open_layout(tmp_path / "x.tar") as layout:
        for entry in layout.index.manifests:
            layout.read(entry)
    (tmp_path / "x.tar").unlink()


def test_archives_of_endlessly_many_files(
    merger: LayoutMerger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that a daemon sends nor one that is read is followed to its end."""
    files = [(name, content) for name, content in GOOD.files() if content is not None]
    (tmp_path / "many.tar").write_bytes(archive(files))
    for module in ("stream", "reading"):
        monkeypatch.setattr(f"buildkit_py.layout.{module}.MAX_ENTRIES", len(files) - 1)
    with pytest.raises(ProtocolError, match=f"more than {len(files) - 1} entries"):
        pour(merger.open_stream(ARM64), archive(files), chunk=700)
    with pytest.raises(ProtocolError, match=f"more than {len(files) - 1} files"), open_layout(tmp_path / "many.tar"):
        pytest.fail("opened")


def test_a_small_file_that_is_announced_as_a_large_one(merger: LayoutMerger) -> None:
    """It is refused by its header, before any of it is held in memory."""
    stream = merger.open_stream(ARM64)
    with pytest.raises(ProtocolError, match=r"index\.json is 1099511627776 bytes"):
        stream.write(tarstream.header("index.json", 1 << 40))


def test_a_merge_that_fails_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    """``index.json`` is the last to change: it never names a blob that is not there."""
    out = tmp_path / "out"
    for platform, name in ((ARM, "app:1"), (ARM64, "app:2")):
        with LayoutMerger.create(out) as merger:
            send(merger, None, export_of(platform).tar())
            root = merger.finish([None], names=[Reference.parse_normalized(name)])
            if platform is ARM:
                merger.publish_directory(out)
                before = (out / "index.json").read_bytes()
                continue
            (out / "blobs" / "sha256" / root.digest.hex).mkdir()  # in the way
            with pytest.raises(BuildKitError, match="cannot write"):
                merger.publish_directory(out)
    assert (out / "index.json").read_bytes() == before
