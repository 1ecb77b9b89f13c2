"""Outputs sorted by who has to do what for them, and annotations by where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from buildkit_py import ExporterSpec
from buildkit_py.builder.annotations import Annotations
from buildkit_py.builder.exports import Exports, plan_exports
from buildkit_py.errors import BuildKitError, InvalidOption
from buildkit_py.platforms import parse_platforms

TWO = parse_platforms(["linux/amd64", "linux/arm64"])


def sorted_out(
    *outputs: str, tags: tuple[str, ...] = (), push: bool = False, load: bool = False, annotations: Any = None
) -> Exports:
    return plan_exports(
        [ExporterSpec.parse(text) for text in outputs],
        tags=tags,
        push=push,
        load=load,
        annotations=Annotations.parse(annotations or {}, TWO),
    )


def test_an_output_may_have_annotations_of_its_own() -> None:
    """As its attributes, which those of the build go before; what is not for images is not told to their solves."""
    given = {"manifest:a": "flag", "index:both": "flag"}
    spec = (
        "type=image,push=true,annotation-manifest.a=x,annotation.b=y,annotation-index.c=z,annotation[linux/arm64].b=arm"
    )
    exports = plan_exports(
        [ExporterSpec.parse(spec), ExporterSpec.parse("type=oci,dest=x")],
        tags=("t",),
        push=False,
        load=False,
        annotations=Annotations.parse(given, TWO),
        platforms=TWO,
    )
    (push,), (file,) = exports.pushes, exports.files
    assert dict(push.attrs) == {}
    assert push.annotations.of_image(TWO[0]) == {"annotation-manifest.a": "flag", "annotation-manifest.b": "y"}
    assert push.annotations.of_image(TWO[1]) == {"annotation-manifest.a": "flag", "annotation-manifest.b": "arm"}
    assert push.annotations.index == {"c": "z", "both": "flag"}
    assert file.annotations.of_image(TWO[1]) == {"annotation-manifest.a": "flag"}
    assert file.annotations.index == {"both": "flag"}
    for wrong in ("annotation-nope.a=b", "annotation-manifest[linux/s390x].a=b"):
        with pytest.raises(InvalidOption, match="annotation"):
            plan_exports(
                [ExporterSpec.parse(f"type=image,{wrong}")],
                tags=("t",),
                push=True,
                load=False,
                annotations=Annotations(),
                platforms=TWO,
            )


def test_push_makes_an_image_output_or_uses_the_one_that_is_there() -> None:
    """As docker buildx: --push is short for one more output, or turns on pushing for those that make images."""
    (plain,) = sorted_out(tags=("example.com/a", "example.com/a:2", "b/c"), push=True).pushes
    assert plain.repositories == ("example.com/a", "docker.io/b/c")
    assert dict(plain.attrs) == {}
    (zstd,) = sorted_out("type=image,compression=zstd", tags=("a",), push=True).pushes
    assert dict(zstd.attrs) == {"compression": "zstd"}
    (both,) = sorted_out("type=registry,name=a", "type=image,name=b,push=true").pushes
    assert both.repositories == ("docker.io/library/a", "docker.io/library/b")


def test_tags_go_before_the_names_of_outputs() -> None:
    """As docker buildx: with -t, name= says nothing."""
    exports = sorted_out("type=image,name=ignored,push=true", "type=oci,dest=x,name=too", tags=("t:1",))
    assert [str(name) for name in exports.references] == ["docker.io/library/t:1"]
    assert [str(name) for name in exports.files[0].references] == ["docker.io/library/t:1"]


def test_images_that_differ_are_pushed_apart() -> None:
    """One exporter for each kind; what is insecure or untagged is a kind too."""
    pushes = sorted_out(
        "type=image,name=a,push=true",
        "type=image,name=b,push=true,compression=zstd",
        "type=image,name=c,push=true,registry.insecure=true",
        "type=image,name=d,push=true,push-by-digest=true",
        "type=image,name=e,push=true",
    ).pushes
    assert [[str(name.name) for name in push.references] for push in pushes] == [
        ["docker.io/library/a", "docker.io/library/e"],
        ["docker.io/library/b"],
        ["docker.io/library/c"],
        ["docker.io/library/d"],
    ]
    assert [push.insecure for push in pushes] == [False, False, True, False]
    assert [push.tagged for push in pushes] == [True, True, True, False]


def test_what_is_kept_and_what_is_loaded() -> None:
    """An image without push stays with the daemon; docker without dest, or load, means an engine; cacheonly nothing."""
    kept = sorted_out("type=image,name=a", "type=docker", "type=docker,dest=x", "type=cacheonly", load=True)
    assert [keep.engine for keep in kept.keeps] == [False, True]
    assert [export.dest for export in kept.files] == ["x"]
    assert [keep.engine for keep in sorted_out(load=True).keeps] == [True]
    stored = sorted_out("type=image,name=a,push=true,store=true")
    assert (len(stored.pushes), [keep.engine for keep in stored.keeps]) == (1, [False])


BAD: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any], str]] = {
    "no tag": ((), {"push": True}, "push: needs at least one tag"),
    "no name": (("type=image,push=true",), {}, "needs name=... or a tag"),
    "a tag by digest": (("type=image,push=true,push-by-digest=true,name=a:1",), {}, "a:1 has a tag"),
    "no boolean": (("type=image,name=a,push=maybe",), {}, "push=maybe: expected true or false"),
    "no compression": (("type=oci,dest=x,compression=lz4",), {}, "expected one of uncompressed, gzip, estargz, zstd"),
    "no level": (("type=oci,dest=x,compression-level=x",), {}, "compression-level=x: expected 0 to 9"),
    "a high level": (("type=oci,dest=x,compression=zstd,compression-level=23",), {}, "expected 0 to 22"),
    "no mode": (("type=local,dest=x,mode=move",), {}, "mode=move: expected copy or delete"),
    "one name for two": (
        ("type=image,name=a,push=true", "type=image,name=a,push=true,compression=zstd"),
        {},
        "two different images would have this name",
    ),
    "one place for two": (("type=oci,dest=x", "type=tar,dest=x"), {}, "two outputs have the same destination"),
    "a digest": ((), {"tags": ("a@sha256:" + "0" * 64,)}, "cannot have a digest"),
    "an annotation without a key": ((), {"annotations": {"index:": "v"}}, "has no key"),
    "no level of annotations": ((), {"annotations": {"layer:k": "v"}}, "'layer' is no level"),
    "a platform of the index": ((), {"annotations": {"index[linux/amd64]:k": "v"}}, "an index is for all platforms"),
    "no platform": (
        (),
        {"annotations": {"manifest[linux/z80/a/b]:k": "v"}},
        "expected at most os/architecture/variant",
    ),
    "a platform that is not built": ((), {"annotations": {"manifest[s390x]:k": "v"}}, "not a platform of this build"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_daemon_could_do_is_told_before_any_work(case: str) -> None:
    """Each names the output and the value."""
    outputs, fields, needle = BAD[case]
    with pytest.raises(BuildKitError) as caught:
        sorted_out(*outputs, **fields)
    assert needle in str(caught.value)
    assert isinstance(caught.value, InvalidOption | ValueError)


def test_annotations_by_place() -> None:
    """Several levels at once, platforms picked, the manifest where nothing is said."""
    annotations = Annotations.parse(
        {
            "plain": "1",
            "index,manifest:both": "2",
            "manifest[linux/arm64]:arm": "3",
            "manifest-descriptor[amd64]:entry": "4",
            "index-descriptor:root": "5",
            "manifest:with:colon": "6",
        },
        TWO,
    )
    amd64, arm64 = TWO
    assert annotations.of_image(amd64) == {
        "annotation-manifest.plain": "1",
        "annotation-manifest.both": "2",
        "annotation-manifest-descriptor.entry": "4",
        "annotation-manifest.with:colon": "6",
    }
    assert annotations.of_image(arm64) == {
        "annotation-manifest.plain": "1",
        "annotation-manifest.both": "2",
        "annotation-manifest.arm": "3",
        "annotation-manifest.with:colon": "6",
    }
    assert annotations.index == {"both": "2"}
    assert annotations.index_descriptor == {"root": "5"}
    assert annotations.of_index() == {"annotation-index.both": "2", "annotation-index-descriptor.root": "5"}
