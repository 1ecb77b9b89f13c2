"""Requests are checked before any daemon is asked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildkit_py.builder.request import BuildRequest, plan
from buildkit_py.errors import BuildKitError, InvalidOption, InvalidPlatform, InvalidReference
from buildkit_py.options import ExporterSpec


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    return tmp_path


def test_the_usual_build(context: Path) -> None:
    """Attributes, directories and references of a plain multi-platform push."""
    checked = plan(
        BuildRequest(
            context=context,
            platforms=["linux/aarch64,linux/armhf", "amd64"],
            tags=["example.com/a", "example.com/a:2", "b"],
            push=True,
            target="final",
            build_args={"X": "1"},
            labels={"l": "v"},
            pull=True,
            no_cache=True,
        )
    )
    assert [str(platform) for platform in checked.platforms] == ["linux/arm64", "linux/arm/v7", "linux/amd64"]
    assert [str(reference) for reference in checked.exports.references] == [
        "example.com/a:latest",
        "example.com/a:2",
        "docker.io/library/b:latest",
    ]
    (push,) = checked.exports.pushes
    assert push.repositories == ("example.com/a", "docker.io/library/b")
    assert checked.directories == {"context": context.resolve(), "dockerfile": context.resolve()}
    assert checked.attrs == {
        "filename": "Dockerfile",
        "build-arg:X": "1",
        "label:l": "v",
        "target": "final",
        "no-cache": "",
        "image-resolve-mode": "pull",
        "attest:provenance": "mode=min,inline-only=true",
    }


def test_a_dockerfile_elsewhere(context: Path) -> None:
    """Its directory is served under its own name."""
    other = context / "sub"
    other.mkdir()
    (other / "My.Dockerfile").write_text("FROM scratch\n")
    checked = plan(BuildRequest(context=context, dockerfile=other / "My.Dockerfile"))
    assert checked.directories["dockerfile"] == other
    assert checked.attrs["filename"] == "My.Dockerfile"


def test_a_lower_case_dockerfile_will_do(context: Path) -> None:
    """As the daemon itself falls back to it."""
    (context / "Dockerfile").rename(context / "dockerfile")
    assert plan(BuildRequest(context=context)).attrs["filename"] == "dockerfile"


def test_a_url_context_is_the_daemons_business() -> None:
    """Nothing of this machine is served for it."""
    checked = plan(BuildRequest(context="https://example.com/repo.git#main"))
    assert not checked.directories
    assert checked.attrs["context"] == "https://example.com/repo.git#main"


def test_named_contexts(context: Path) -> None:
    """Images pass as they are; directories are served, also one that is called like a built-in name."""
    named = {"golang:latest": "docker-image://localhost:5000/go", "src": str(context), "context": str(context)}
    checked = plan(BuildRequest(context=context, build_contexts=named))
    assert checked.attrs["context:golang"] == "docker-image://localhost:5000/go"
    assert checked.attrs["context:src"] == "local:src"
    assert checked.attrs["context:context"] == "local:named-context"
    assert set(checked.directories) == {"context", "dockerfile", "src", "named-context"}


def test_the_shared_key_tells_directories_and_machines_apart(context: Path, tmp_path: Path) -> None:
    """Two sources under one key could be taken for each other by the daemon."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "Dockerfile").write_text("FROM scratch\n")
    first, second = plan(BuildRequest(context=context)), plan(BuildRequest(context=other))
    keys = {first.shared_key("a"), first.shared_key("b"), second.shared_key("a")}
    assert len(keys) == 3
    assert first.shared_key("a") == plan(BuildRequest(context=os.fspath(context) + "/.")).shared_key("a")


def test_an_image_output_with_push_is_a_push(context: Path) -> None:
    """``-o type=image,push=true,name=...`` and ``--push -t`` are the same thing."""
    spec = ExporterSpec.parse("type=image,push=true,name=example.com/x:1")
    checked = plan(BuildRequest(context=context, outputs=[spec]))
    assert [str(reference) for reference in checked.exports.references] == ["example.com/x:1"]
    assert (checked.exports.files, checked.exports.keeps) == ((), ())


BAD: dict[str, tuple[dict[str, Any], type[BuildKitError], str]] = {
    "context missing": ({"context": "/does/not/exist"}, InvalidOption, "context: /does/not/exist does not exist"),
    "context empty": ({"context": ""}, InvalidOption, "context"),
    "Dockerfile missing": ({"dockerfile": "nope"}, InvalidOption, "Dockerfile: nope does not exist"),
    "Dockerfile a directory": ({"dockerfile": "/"}, InvalidOption, "is not a file"),
    "platform malformed": ({"platforms": ["linux/"]}, InvalidPlatform, "linux/"),
    "platform without os": ({"platforms": ["arm/v7"]}, InvalidPlatform, "did you mean linux/arm/v7"),
    "platform unknown": ({"platforms": ["linux/z80"]}, InvalidPlatform, "unknown architecture 'z80'"),
    "platform twice": ({"platforms": ["arm64", "linux/aarch64"]}, InvalidPlatform, "aarch64"),
    "tag malformed": ({"tags": ["x/Upper"], "push": True}, InvalidReference, "Upper"),
    "tag with digest": ({"tags": ["x@sha256:" + "0" * 64], "push": True}, InvalidReference, "digest"),
    "push without tag": ({"push": True}, InvalidOption, "at least one tag"),
    "named context unknown scheme": ({"build_contexts": {"a": "foo://x"}}, InvalidOption, "unknown scheme"),
    "named context missing": ({"build_contexts": {"a": "/none"}}, InvalidOption, "build context a"),
    "named context without name": ({"build_contexts": {"": "/"}}, InvalidOption, "name"),
    "attestation unknown": ({"attestations": {"x": ""}}, InvalidOption, "provenance or sbom"),
    "same destination twice": (
        {"outputs": [ExporterSpec(type="oci", dest="x"), ExporterSpec(type="local", dest="x")]},
        InvalidOption,
        "two outputs",
    ),
    "output of no kind": ({"outputs": [ExporterSpec(type="tar")]}, InvalidOption, "dest is missing"),
    "image push without name": (
        {"outputs": [ExporterSpec(type="image", attrs={"push": "true"})]},
        InvalidOption,
        "needs name",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_clear_error_before_any_work(case: str, context: Path) -> None:
    """Each names the argument or value that is wrong."""
    arguments, expected, needle = BAD[case]
    with pytest.raises(BuildKitError) as caught:
        plan(replace(BuildRequest(context=context), **arguments))
    assert isinstance(caught.value, expected)
    assert needle in str(caught.value)
