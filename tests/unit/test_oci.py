"""Manifests, indexes and configs: strict reading, bytes as BuildKit writes them, assembly."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError, ProtocolError
from buildkit_py.oci import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    PlatformRoot,
    assemble,
    check_entry,
    encode_index,
    encode_json,
    index_media_type,
    parse_json,
    parse_manifest_or_index,
)
from buildkit_py.platforms import Platform

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))
ARM = Platform("linux", "arm", "v7")
ARM64 = Platform("linux", "arm64")
AMD64 = Platform("linux", "amd64")


def image(digest: Digest, platform: Platform | None, **more: Any) -> Descriptor:
    return Descriptor(**{"media_type": OCI_MANIFEST, "digest": digest, "size": 10, "platform": platform, **more})


def attestation(digest: Digest, of: Digest) -> Descriptor:
    return image(
        digest,
        Platform("unknown", "unknown"),
        annotations={
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": str(of),
        },
    )


def root_of(*entries: Descriptor) -> PlatformRoot:
    index = Index.parse(encode_index(entries))
    return PlatformRoot(descriptor=index.descriptor, index=index)


def test_an_index_has_the_bytes_of_gos_marshal_indent() -> None:
    """Key order, two spaces, sorted maps, five escapes, other text as it is, no newline at the end."""
    entry = Descriptor(
        media_type=OCI_MANIFEST,
        digest=A,
        size=481,
        platform=Platform("windows", "arm64", "v9", "10.0.1", ("f",)),
        annotations={"b": "<&>\u2028\u2029", "a": 'ü "quoted"\n'},
        artifact_type="application/x",
        urls=("https://example.com/?a=1&b=2",),
        data=None,
    )
    raw = encode_index([entry], annotations={"z": "1", "k": "2"}, artifact_type="application/y", subject=image(B, None))
    assert (
        raw.decode()
        == f"""{{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.index.v1+json",
  "artifactType": "application/y",
  "manifests": [
    {{
      "mediaType": "application/vnd.oci.image.manifest.v1+json",
      "digest": "{A}",
      "size": 481,
      "urls": [
        "https://example.com/?a=1\\u0026b=2"
      ],
      "annotations": {{
        "a": "ü \\"quoted\\"\\n",
        "b": "\\u003c\\u0026\\u003e\\u2028\\u2029"
      }},
      "platform": {{
        "architecture": "arm64",
        "os": "windows",
        "os.version": "10.0.1",
        "os.features": [
          "f"
        ],
        "variant": "v9"
      }},
      "artifactType": "application/x"
    }}
  ],
  "subject": {{
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": "{B}",
    "size": 10
  }},
  "annotations": {{
    "k": "2",
    "z": "1"
  }}
}}"""
    )
    assert Index.parse(raw).manifests == (entry,)


def test_an_empty_index_has_an_empty_list() -> None:
    raw = encode_index([])
    assert b'"manifests": []' in raw
    assert Index.parse(raw).manifests == ()


def test_data_travels_inside_a_descriptor_and_is_checked() -> None:
    """The empty descriptor. Source: OCI image-spec v1.1, manifest.md."""
    empty = Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json")
    fields = {**empty.to_json(), "data": "e30="}
    assert Descriptor.from_json(fields).data == b"{}"
    assert Descriptor.from_json(fields).to_json() == fields
    for wrong, reason in (("e3s=", "digest"), ("e30", "base64"), ("e300", "bytes")):
        with pytest.raises(ProtocolError, match=reason):
            Descriptor.from_json({**fields, "data": wrong})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mediaType": None}, "mediaType"),
        ({"mediaType": 1}, "mediaType"),
        ({"digest": "sha256:../../x"}, "digest"),
        ({"digest": None}, "digest"),
        ({"size": -1}, "size"),
        ({"size": 1.5}, "size"),
        ({"size": True}, "size"),
        ({"size": 1 << 63}, "size"),
        ({"annotations": []}, "annotations"),
        ({"annotations": {"a": 1}}, "annotations"),
        ({"platform": "linux"}, "platform"),
        ({"platform": {"os": 1}}, "platform"),
        ({"urls": [1]}, "urls"),
        ({"artifactType": {}}, "artifactType"),
    ],
)
def test_a_descriptor_is_read_strictly(change: dict[str, object], reason: str) -> None:
    good = image(A, ARM64).to_json()
    assert Descriptor.from_json(good) == image(A, ARM64)
    with pytest.raises(ProtocolError, match=reason):
        Descriptor.from_json({**good, **change})


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_descriptor_is_an_object(value: object) -> None:
    with pytest.raises(ProtocolError, match="not a JSON object"):
        Descriptor.from_json(value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"x":{"a":1,"a":2}}', "twice"),
        (b'{"a":NaN}', "no JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":"' + b"x" * MAX_MANIFEST_BYTES + b'"}', "more than"),
    ],
    ids=range(12),
)
def test_json_on_which_parsers_disagree_or_choke_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        parse_json(raw, "thing")


def manifest_json(**change: object) -> bytes:
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(media_type=OCI_CONFIG, digest=A, size=1).to_json(),
        "layers": [Descriptor(media_type="l", digest=B, size=2).to_json()],
        **change,
    }
    return encode_json({key: value for key, value in fields.items() if value is not None})


def test_a_manifest_keeps_its_bytes() -> None:
    raw = b" " + manifest_json(unknown={"z": 1}) + b"\n"
    manifest = parse_manifest_or_index(raw, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    assert manifest.raw == raw
    assert manifest.digest == Digest.of(raw)
    assert [blob.digest for blob in manifest.blobs] == [A, B]


@pytest.mark.parametrize(
    ("raw", "said", "kind"),
    [
        (manifest_json(), None, Manifest),
        (manifest_json(), f"{OCI_MANIFEST}; charset=utf-8", Manifest),
        (manifest_json(mediaType=None), OCI_MANIFEST, Manifest),
        (manifest_json(mediaType=None), None, Manifest),
        (manifest_json(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST, Manifest),
        (encode_index([image(A, ARM)]), None, Index),
        (encode_index([image(A, ARM)]), OCI_INDEX, Index),
        (b'{"schemaVersion":2,"manifests":[]}', None, Index),
        (b'{"schemaVersion":2,"manifests":null}', OCI_INDEX, Index),
    ],
)
def test_the_kind_is_what_the_type_says(raw: bytes, said: str | None, kind: type[object]) -> None:
    assert isinstance(parse_manifest_or_index(raw, said), kind)


@pytest.mark.parametrize(
    ("raw", "said", "reason"),
    [
        (manifest_json(), DOCKER_MANIFEST, "calls itself"),
        (manifest_json(), OCI_INDEX, "calls itself"),
        (manifest_json(mediaType="text/html"), None, "media type"),
        (manifest_json(), "text/html", "media type"),
        (manifest_json(manifests=[]), OCI_MANIFEST, "does not belong"),
        (b'{"schemaVersion":2,"manifests":[],"layers":[]}', OCI_INDEX, "does not belong"),
        (manifest_json(schemaVersion=1), OCI_MANIFEST, "schema 1"),
        (manifest_json(schemaVersion=3), OCI_MANIFEST, "schemaVersion"),
        (manifest_json(config=None), OCI_MANIFEST, "config"),
        (manifest_json(layers={}), OCI_MANIFEST, "layers"),
        (b'{"schemaVersion":2,"manifests":[{"mediaType":"x"}]}', OCI_INDEX, r"manifests\[0\]: digest"),
    ],
)
def test_what_contradicts_itself_is_refused(raw: bytes, said: str | None, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        parse_manifest_or_index(raw, said)


def config_json(**change: object) -> bytes:
    return encode_json({"architecture": "arm", "os": "linux", "variant": "v7", **change})


def test_a_config_says_how_its_image_starts() -> None:
    raw = config_json(
        created="2024-01-01T00:00:00Z",
        config={
            "Entrypoint": ["/e"],
            "Cmd": "sh",
            "Env": ["A=1"],
            "WorkingDir": "/w",
            "User": "u:g",
            "Labels": {"k": "v"},
            "StopSignal": "SIGINT",
        },
        rootfs={"type": "layers", "diff_ids": [str(A), str(B)]},
    )
    config = ImageConfig.parse(raw)
    assert (config.entrypoint, config.cmd, config.env) == (("/e",), ("sh",), ("A=1",))
    assert (config.working_dir, config.user, config.stop_signal) == ("/w", "u:g", "SIGINT")
    assert (config.labels, config.created, config.diff_ids) == ({"k": "v"}, "2024-01-01T00:00:00Z", (A, B))
    assert config.digest == Digest.of(raw)
    assert config.platform == ARM


def test_an_artifacts_config_is_empty() -> None:
    config = ImageConfig.parse(b'{"config":null,"rootfs":null}')
    assert (config.platform, config.entrypoint, config.diff_ids) == (Platform("", ""), (), ())


@pytest.mark.parametrize(
    "raw",
    [
        config_json(os=1),
        config_json(config=[]),
        config_json(config={"Env": "A"}),
        config_json(rootfs={"diff_ids": ["x"]}),
    ],
)
def test_a_config_is_read_strictly(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        ImageConfig.parse(raw)


@pytest.mark.parametrize(
    ("entry", "config"),
    [
        (ARM, {}),
        (Platform("linux", "arm"), {}),
        (ARM, {"variant": ""}),
        (ARM64, {"architecture": "arm64", "variant": "v8"}),
        (Platform("linux", "arm64", "v8"), {"architecture": "aarch64", "variant": ""}),
        (Platform("linux", "amd64", "v1"), {"architecture": "amd64", "variant": ""}),
        (
            Platform("windows", "amd64"),
            {"os": "windows", "architecture": "amd64", "variant": "", "os.version": "10.0.1"},
        ),
    ],
)
def test_an_entry_that_agrees_with_its_config(entry: Platform, config: dict[str, object]) -> None:
    check_entry(image(A, entry), ImageConfig.parse(config_json(**config)))


@pytest.mark.parametrize(
    ("entry", "config", "reason"),
    [
        (ARM64, {}, "says linux/arm64, its config linux/arm/v7"),
        (ARM, {"variant": "v6"}, "linux/arm/v6"),
        (ARM, {"os": "windows"}, "windows"),
        (Platform("linux", "amd64", "v2"), {"architecture": "amd64", "variant": ""}, "linux/amd64/v2"),
        (AMD64, {"os": "", "architecture": "amd64", "variant": ""}, "its config unknown"),
        (
            Platform("windows", "amd64", os_version="1"),
            {"os": "windows", "architecture": "amd64", "variant": ""},
            "1",
        ),
        (None, {}, "no platform"),
    ],
)
def test_an_entry_that_disagrees_is_refused(entry: Platform | None, config: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        check_entry(image(A, entry), ImageConfig.parse(config_json(**config)))


def test_roots_are_joined_in_order_with_attestations_last() -> None:
    for_arm, for_arm64 = attestation(Digest.of(b"1"), A), attestation(Digest.of(b"2"), B)
    joined = assemble(
        [
            root_of(image(B, ARM64), for_arm64),
            root_of(for_arm, image(A, ARM)),
            PlatformRoot(descriptor=image(C, AMD64)),
        ]
    )
    assert joined == (image(B, ARM64), image(A, ARM), image(C, AMD64), for_arm64, for_arm)


def test_a_missing_platform_comes_from_the_config() -> None:
    root = PlatformRoot(descriptor=image(A, None))
    assert assemble([root], {A: ARM}) == (image(A, ARM),)
    with pytest.raises(ProtocolError, match="which platform"):
        assemble([root], {B: ARM})


def test_attestations_of_what_is_not_there_are_left_out() -> None:
    assert assemble([root_of(image(A, ARM), attestation(B, C))]) == (image(A, ARM),)


def test_equal_digests_stand_once() -> None:
    root = root_of(image(A, ARM), attestation(B, A))
    assert assemble([root, root]) == (image(A, ARM), attestation(B, A))


@pytest.mark.parametrize(
    ("roots", "reason"),
    [
        ([image(A, ARM64), image(B, Platform("linux", "arm64", "v8"))], "both for linux/arm64"),
        ([image(A, ARM64), image(A, AMD64)], "is said to be for"),
        ([image(A, None, media_type=OCI_INDEX)], "content of this index is missing"),
    ],
)
def test_roots_that_do_not_fit_together(roots: list[Descriptor], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        assemble([PlatformRoot(descriptor=root) for root in roots])


def test_an_index_inside_an_index_is_refused() -> None:
    with pytest.raises(ProtocolError, match="holds another index"):
        assemble([root_of(image(A, ARM, media_type=DOCKER_INDEX))])


def test_dockers_list_is_for_dockers_manifests_alone() -> None:
    docker = image(A, ARM, media_type=DOCKER_MANIFEST)
    assert index_media_type([docker]) == DOCKER_INDEX
    assert index_media_type([docker, image(B, ARM64)]) == OCI_INDEX
    assert index_media_type([docker], {"a": "b"}) == OCI_INDEX
    assert index_media_type([]) == OCI_INDEX
    assert Index.parse(encode_index([docker])).media_type == DOCKER_INDEX


def test_an_index_that_no_registry_takes_is_not_made() -> None:
    with pytest.raises(ProtocolError, match="registries take"):
        encode_index([image(A, ARM, annotations={"a": "x" * MAX_MANIFEST_BYTES})])


def test_content_is_checked_by_size_and_digest() -> None:
    descriptor = Descriptor.of(b"abc", "x")
    descriptor.verify(b"abc")
    with pytest.raises(ProtocolError, match="2 bytes, expected 3"):
        descriptor.verify(b"ab")
    with pytest.raises(ProtocolError, match="layer has digest"):
        descriptor.verify(b"abd", "layer")


texts = st.text(max_size=6)
descriptors = st.builds(
    Descriptor,
    media_type=st.text(min_size=1, max_size=6),
    digest=st.binary(max_size=4).map(Digest.of),
    size=st.integers(0, (1 << 63) - 1),
    platform=st.none() | st.builds(Platform, texts, texts, texts, texts, st.lists(texts, max_size=2).map(tuple)),
    annotations=st.dictionaries(texts, texts, max_size=3),
    artifact_type=texts,
    urls=st.lists(texts, max_size=2).map(tuple),
)


@given(st.lists(descriptors, max_size=3), st.dictionaries(texts, texts, max_size=2))
def test_an_index_survives_a_round_trip(entries: list[Descriptor], annotations: dict[str, str]) -> None:
    raw = encode_index(entries, annotations=annotations)
    index = Index.parse(raw)
    assert index.manifests == tuple(entries)
    assert index.annotations == annotations
    assert encode_index(index.manifests, annotations=index.annotations, media_type=index.media_type) == raw
    assert index.raw == raw
    assert index.digest == Digest.of(raw)


KEYS = (
    "schemaVersion mediaType digest size manifests config layers platform os architecture annotations data "
    "urls subject rootfs diff_ids Env Cmd Labels artifactType"
)
keys = st.sampled_from(KEYS.split())
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars | st.sampled_from([OCI_MANIFEST, str(A), "e30="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | texts, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(keys, values, max_size=8).map(
    lambda fields: json.dumps({"schemaVersion": 2, **fields}).encode()
)


@given(documents | st.binary())
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for media_type in (None, OCI_INDEX, OCI_MANIFEST):
        with contextlib.suppress(BuildKitError):
            assert parse_manifest_or_index(raw, media_type).raw == raw
    with contextlib.suppress(BuildKitError):
        assert ImageConfig.parse(raw).raw == raw
    with contextlib.suppress(BuildKitError):
        Descriptor.from_json(parse_json(raw, "descriptor"))
