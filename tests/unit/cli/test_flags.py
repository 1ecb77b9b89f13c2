"""Flags of build that are more than a word, and answers of frontends as people read them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from buildkit_py.builder.call import CallResult
from buildkit_py.cli import flags
from buildkit_py.cli.call import CallSpec, Rendered, render
from buildkit_py.errors import InvalidOption


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SOURCE_DATE_EPOCH", "DOCKER_DEFAULT_PLATFORM", "BUILDX_NO_DEFAULT_ATTESTATIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


DEFAULT = "mode=min,inline-only=true"


@pytest.mark.parametrize(
    ("attest", "provenance", "sbom", "expected"),
    [
        ([], None, None, {"provenance": DEFAULT}),
        ([], "false", None, {}),
        ([], "true", None, {"provenance": "type=provenance"}),
        ([], "mode=max", "true", {"provenance": "type=provenance,mode=max", "sbom": "type=sbom"}),
        (["type=sbom,generator=a/b"], None, None, {"provenance": DEFAULT, "sbom": "type=sbom,generator=a/b"}),
        (["type=provenance,disabled=true"], None, None, {}),
        (["type=provenance,mode=max"], "false", None, {"provenance": "type=provenance,mode=max"}),
        (["type=provenance,version=v1,mode=max"], None, "false", {"provenance": "type=provenance,mode=max,version=v1"}),
        (['type=sbom,"generator=a,b"'], None, None, {"provenance": DEFAULT, "sbom": 'type=sbom,"generator=a,b"'}),
    ],
)
def test_attestations(attest: list[str], provenance: str | None, sbom: str | None, expected: dict[str, str]) -> None:
    """docker buildx's defaults and words: of two for one type the first counts."""
    assert flags.attestations(attest, provenance, sbom) == expected


def test_no_default_attestations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")
    assert flags.attestations([], None, "true") == {"sbom": "type=sbom"}
    monkeypatch.setenv("BUILDX_NO_DEFAULT_ATTESTATIONS", "maybe")
    with pytest.raises(InvalidOption, match="BUILDX_NO_DEFAULT_ATTESTATIONS 'maybe': expected true or false"):
        flags.attestations([], None, None)


@pytest.mark.parametrize("text", ["mode=max", "type=", "type=sbom,x", "type=sbom,disabled=maybe"])
def test_attestations_that_are_none(text: str) -> None:
    with pytest.raises(InvalidOption, match="attest"):
        flags.attestations([text], None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("64m", 64 << 20),
        ("1g", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("128 kb", 128 << 10),
        ("1024", 1024),
        ("2b", 2),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """By 1024, as docker counts memory."""
    assert flags.size(text, "--shm-size") == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1mm"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InvalidOption, match="--shm-size"):
        flags.size(text, "--shm-size")


def test_build_arguments_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The epoch unless it is given, bare names where they are set, proxies of docker's configuration unless given."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "proxies": {
                    "default": {"httpProxy": "http://p", "noProxy": "a,b"},
                    "tcp://far:1": {"httpsProxy": "https://q"},
                }
            }
        )
    )
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    monkeypatch.setenv("SET", "x")
    found = flags.build_args(["SET", "UNSET", "A=", "no_proxy=c"], "")
    assert found == {
        "SET": "x",
        "A": "",
        "no_proxy": "c",
        "SOURCE_DATE_EPOCH": "7",
        "HTTP_PROXY": "http://p",
        "http_proxy": "http://p",
    }
    assert flags.build_args(["SOURCE_DATE_EPOCH=9"], "tcp://far:1") == {
        "SOURCE_DATE_EPOCH": "9",
        "HTTPS_PROXY": "https://q",
        "https_proxy": "https://q",
    }
    (tmp_path / "config.json").write_text('{"proxies": 3}')
    with pytest.raises(InvalidOption, match="the proxies cannot be read"):
        flags.build_args([], "")
    with pytest.raises(InvalidOption, match="BUILDKIT_SYNTAX"):
        flags.build_args(["BUILDKIT_SYNTAX= "], "")


def test_several_hosts_and_stages_in_one_word() -> None:
    """Separated by commas; hosts may have several addresses besides."""
    given = ["one:10.0.0.1,two=[::1]", "", "three:10.0.0.3,::3,[::4]", "four:host-gateway"]
    assert flags.hosts(given) == ["one:10.0.0.1", "two=[::1]", "three:10.0.0.3,::3,[::4]", "four:host-gateway"]
    assert flags.stages(["a,b", "", "c"]) == ["a", "b", "c"]


def test_the_default_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flags.platforms([]) == []
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/arm64")
    assert flags.platforms([]) == ["linux/arm64"]
    assert flags.platforms(["linux/386"]) == ["linux/386"]


def test_inline_cache() -> None:
    assert flags.inline_cache({"BUILDKIT_INLINE_CACHE": "1"}) == ["type=inline"]
    assert flags.inline_cache({"BUILDKIT_INLINE_CACHE": "0"}) == []


# --call


def test_methods_of_call() -> None:
    assert CallSpec.parse("build") is None
    assert CallSpec.parse("check") == CallSpec(method="lint")
    assert CallSpec.parse("outline,format=json") == CallSpec(method="outline", json=True)
    assert CallSpec.parse("lint,ignorestatus=true") == CallSpec(method="lint", ignore_status=True)


@pytest.mark.parametrize(
    "text", ["", "format=json", "check,outline", "check,format=yaml", "check,x=y", "check,ignorestatus=x"]
)
def test_methods_that_are_none(text: str) -> None:
    with pytest.raises(InvalidOption, match="--call"):
        CallSpec.parse(text)


SOURCE = {"filename": "Dockerfile", "data": base64.b64encode(b"FROM scratch\nCOPY . /\n").decode()}


def answer(document: object, *, status: str = "0", text: str = "") -> CallResult:
    metadata = {"result.json": json.dumps(document).encode(), "result.statuscode": status.encode()}
    return CallResult("x", metadata | ({"result.txt": text.encode()} if text else {}))


def test_a_check_with_warnings() -> None:
    """In the order of the file, each with its lines; the exit code that the frontend gives, unless it is ignored."""
    place = {"sourceIndex": 0, "ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}
    warnings = [
        {"ruleName": "B", "detail": "second \x1b[31m", "url": "https://b", "location": place},
        {"ruleName": "A", "detail": "first"},
    ]
    result = answer({"warnings": warnings, "sources": [SOURCE]}, status="1")
    shown = render(CallSpec(method="lint"), result, "sub/Dockerfile")
    assert (shown.status, shown.error) == (1, "")
    assert shown.text.splitlines() == [
        "Check complete, 2 warnings have been found!",
        "",
        "WARNING: A",
        "first",
        "",
        "WARNING: B - https://b",
        "second  [31m",
        "sub/Dockerfile:2",
        "--------------------",
        "   1 |     FROM scratch",
        "   2 | >>> COPY . /",
        "   3 |",
        "--------------------",
    ]
    assert render(CallSpec(method="lint", ignore_status=True), result, "").status == 0
    assert render(CallSpec(method="lint"), answer({"warnings": None, "sources": []}), "") == Rendered(
        text="Check complete, no warnings found.\n", status=0
    )


def test_a_check_of_what_cannot_be_built() -> None:
    result = answer({"warnings": None, "sources": [SOURCE], "buildError": {"message": "no such instruction"}})
    expected = Rendered(text="", error="ERROR: no such instruction\n", status=1)
    assert render(CallSpec(method="lint"), result, "") == expected


def test_outline_and_targets() -> None:
    outline = {
        "name": "final",
        "description": "what it is",
        "args": [{"name": "A", "value": "1", "description": "about"}, {"name": "LONGER"}],
        "secrets": [{"name": "key", "required": True}],
        "ssh": [{"name": "default"}],
        "cache": [{"ID": "mod"}],
    }
    assert render(CallSpec(method="outline"), answer(outline), "").text.splitlines() == [
        "TARGET:      final",
        "DESCRIPTION: what it is",
        "",
        "BUILD ARG   VALUE   DESCRIPTION",
        "A           1       about",
        "LONGER",
        "",
        "SECRET   REQUIRED",
        "key      true",
        "",
        "SSH       REQUIRED",
        "default",
        "",
    ]
    targets = {"targets": [{"name": "base", "description": "first"}, {"name": "x", "default": True}, {"default": True}]}
    assert render(CallSpec(method="targets"), answer(targets), "").text.splitlines() == [
        "TARGET      DESCRIPTION",
        "base        first",
        "x (default)",
        "(default)",
    ]


def test_json_is_passed_on_as_it_is() -> None:
    result = CallResult("x", {"result.json": b'{"a":  1}', "result.txt": b"words\n"})
    assert render(CallSpec(method="outline", json=True), result, "").text == '{"a":  1}\n'
    assert render(CallSpec(method="subrequests.describe"), result, "").text == "words\n"


@pytest.mark.parametrize("document", [None, [], 3, {"warnings": 7}, {"warnings": [{"location": {"sourceIndex": 9}}]}])
def test_answers_that_make_no_sense_do_no_harm(document: object) -> None:
    for method in ("lint", "outline", "targets"):
        render(CallSpec(method=method), answer(document), "")
