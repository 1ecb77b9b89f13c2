"""Platforms: spellings, normal form, matching. Golden results are those of containerd/platforms."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import BuildKitError, InvalidPlatform
from buildkit_py.platforms import (
    Matcher,
    Platform,
    any_of,
    only,
    only_os,
    only_strict,
    ordered,
    parse_platforms,
)
from tests.support import golden

GOLDEN = golden.read("platforms.json")


def from_golden(fields: Mapping[str, Any]) -> Platform:
    return Platform(
        fields["os"],
        fields["architecture"],
        fields["variant"],
        fields.get("os_version", ""),
        tuple(fields.get("os_features", ())),
    )


HOST = from_golden(GOLDEN["host"]) if GOLDEN else Platform("linux", "amd64")

ERROR_WORDS = {
    "wildcard": "wildcards are not supported",
    "os-component": "is no operating system",
    "component": "is no architecture or variant",
    "unknown": "unknown operating system or architecture",
    "too-many-parts": "expected at most os/architecture/variant",
}


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN.get("parse", []), ids=lambda case: repr(case["text"]))
def test_golden_texts(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(InvalidPlatform, match=ERROR_WORDS[case["error_class"]]):
            Platform.parse(case["text"], HOST)
        return
    platform = Platform.parse(case["text"], HOST)
    assert platform == from_golden(case["parsed"])
    assert (platform.format(), str(platform)) == (case["format"], case["format_all"])
    normal = platform.normalized()
    assert normal == from_golden(case["normalized"])
    assert (normal.format(), str(normal)) == (case["normalized_format"], case["normalized_format_all"])


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN.get("normalize", []), ids=lambda case: case["input_format_all"])
def test_golden_normalisations(case: dict[str, Any]) -> None:
    platform = from_golden(case["input"])
    normal = platform.normalized(HOST.os)
    assert (platform.format(), str(platform)) == (case["input_format"], case["input_format_all"])
    assert normal == from_golden(case["normalized"])
    assert str(normal) == case["normalized_format_all"]


def golden_matcher(kind: str, texts: list[str]) -> Matcher:
    platforms = [Platform.parse(text, HOST) for text in texts]
    match kind:
        case "only":
            return only(*platforms)
        case "only-strict":
            return only_strict(*platforms)
        case "only-os":
            return only_os(*platforms)
        case "ordered":
            return ordered(*platforms)
        case "any":
            return any_of(*platforms)
        case "default":
            return only(HOST)
        case _:
            raise AssertionError(kind)


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN.get("match", []), ids=lambda case: f"{case['kind']} {case['platforms']}")
def test_golden_comparers(case: dict[str, Any]) -> None:
    matcher = golden_matcher(case["kind"], case["platforms"])
    candidates = [from_golden(fields) for fields in case["candidates"]]
    assert [matcher.match(candidate) for candidate in candidates] == case["match"]
    less = [
        [i, j]
        for i, first in enumerate(candidates)
        for j, second in enumerate(candidates)
        if matcher.less(first, second)
    ]
    assert less == case["less"]
    assert sorted(range(len(candidates)), key=lambda i: matcher.key(candidates[i])) == case["order"]
    best = matcher.best(candidates)
    assert best == (case["order"][0] if any(case["match"]) else None)


@pytest.mark.golden
@pytest.mark.skipif(golden.IS_ANOTHER, reason="golden data of another folder")
def test_golden_data_has_all_its_cases() -> None:
    assert [len(GOLDEN[part]) for part in ("parse", "normalize", "match")] == [82, 10, 19]


@pytest.mark.parametrize(
    ("wanted", "candidates"),
    [
        (
            "linux/arm64/v8.2",
            ["linux/arm64/v8.2", "linux/arm64/v8.1", "linux/arm64", "linux/arm/v8", "linux/arm/v5"],
        ),
        (
            "linux/arm64/v9.1",
            ["linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.6", "linux/arm64", "linux/arm/v7"],
        ),
        ("linux/arm64/v9", ["linux/arm64/v9", "linux/arm64/v8.5", "linux/arm64/v8"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ("linux/riscv64", ["linux/riscv64"]),
    ],
)
def test_only_prefers_the_newest_variant_that_runs(wanted: str, candidates: list[str]) -> None:
    matcher = only(Platform.parse(wanted))
    platforms = [Platform.parse(text) for text in candidates]
    assert all(matcher.match(platform) for platform in platforms)
    worst_first = [*reversed(platforms)]
    assert sorted(worst_first, key=matcher.key) == platforms


@pytest.mark.parametrize(
    ("host", "image", "runs"),
    [
        ("10.0.20348.1", "10.0.20348.9", True),
        ("10.0.25398.1", "10.0.20348.1", True),
        ("10.0.25398.1", "10.0.17763.1", False),
        ("10.0.26100.1", "10.0.25398.1", False),
        ("10.0.26100.1", "10.0.26100.9", True),
        ("10.0.20348.1", "10.0.25398.1", False),
        ("10.0.26100.1", "6.3.26100", False),
        ("10.0.26100.1", "nonsense", False),
    ],
)
def test_windows_runs_back_to_the_last_long_term_release(host: str, image: str, runs: bool) -> None:
    matcher = only(Platform("windows", "amd64", os_version=host))
    assert matcher.match(Platform("windows", "amd64", os_version=image)) is runs


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("Linux", "x86_64", "linux/amd64"),
        ("Linux", "aarch64", "linux/arm64"),
        ("Linux", "armv7l", "linux/arm/v7"),
        ("Linux", "armv6l", "linux/arm/v6"),
        ("Linux", "i686", "linux/386"),
        ("Linux", "riscv64", "linux/riscv64"),
        ("Linux", "loongarch64", "linux/loong64"),
        ("Darwin", "arm64", "darwin/arm64"),
        ("Windows", "AMD64", "windows/amd64"),
    ],
)
def test_a_machine_is_named_by_its_uname(system: str, machine: str, expected: str) -> None:
    assert str(Platform.host(system, machine)) == expected


def test_a_half_is_completed_with_linux_and_this_machine() -> None:
    """Daemons run Linux even where the client does not."""
    assert Platform.parse("arm64") == Platform("linux", "arm64")
    here = Platform.host()
    assert Platform.parse("linux").normalized() == Platform("linux", here.architecture, here.variant)


def test_a_list_is_split_normalised_and_keeps_its_order() -> None:
    expected = (Platform("linux", "arm", "v7"), Platform("linux", "arm64"), Platform("linux", "amd64"))
    assert parse_platforms("linux/arm, linux/arm64/v8,linux/x86_64") == expected
    assert parse_platforms(["linux/arm/v7,linux/aarch64", Platform("linux", "amd64", "v1")]) == expected
    assert parse_platforms([]) == ()
    assert parse_platforms("local", Platform("linux", "s390x")) == (Platform("linux", "s390x"),)


@pytest.mark.parametrize("given_twice", ["linux/arm64,linux/arm64/v8", "linux/arm/v7,arm"])
def test_the_same_platform_twice_is_an_error_that_names_both_spellings(given_twice: str) -> None:
    first, second = given_twice.split(",")
    with pytest.raises(InvalidPlatform, match=f"{first} and {second} are the same"):
        parse_platforms(given_twice)


@pytest.mark.parametrize("text", ["", " ", "linux/amd64,", ",", "linux/amd64,,linux/arm64"])
def test_an_empty_item_is_an_error(text: str) -> None:
    with pytest.raises(InvalidPlatform, match="empty platform"):
        parse_platforms(text)


@pytest.mark.parametrize("text", ["windows(%)/amd64", "windows(%zz)/amd64", "windows(1+%ff)/amd64"])
def test_versions_and_features_must_be_percent_encoded_text(text: str) -> None:
    with pytest.raises(InvalidPlatform, match="percent-encoded"):
        Platform.parse(text)


def test_wire_form_survives_a_round_trip() -> None:
    platform = Platform("windows", "arm64", "v9", "10.0.1", ("a", "b"))
    assert Platform.from_pb(platform.to_pb()) == platform
    assert platform.to_pb().OSVersion == "10.0.1"


def test_directory_names_have_no_slash() -> None:
    assert Platform("linux", "arm", "v7").local_name == "linux_arm_v7"


def test_oci_form_has_the_key_order_of_go() -> None:
    platform = Platform("windows", "arm64", "v9", "10.0.1", ("a", "b"))
    assert list(platform.to_oci()) == ["architecture", "os", "os.version", "os.features", "variant"]
    assert Platform.from_oci(platform.to_oci()) == platform
    assert Platform.from_oci({}) == Platform("", "")
    wrongs: list[dict[str, object]] = [{"os": 1}, {"os.features": "x"}, {"os.features": [1]}, {"variant": []}]
    for wrong in wrongs:
        with pytest.raises(InvalidPlatform):
            Platform.from_oci(wrong)


words = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=6)
platforms = st.builds(
    Platform,
    words,
    words,
    st.just("") | words,
    st.just("") | st.text(max_size=5),
    st.lists(st.text(min_size=1, max_size=4), max_size=3).map(tuple),
).filter(lambda platform: platform.os != "macos")


@given(platforms)
def test_text_form_survives_a_round_trip(platform: Platform) -> None:
    normal = platform.normalized()
    assert Platform.parse(str(normal)).normalized() == normal
    assert normal.normalized() == normal


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    for read in (Platform.parse, parse_platforms):
        with contextlib.suppress(BuildKitError):
            read(text)


@given(st.lists(platforms, min_size=1, max_size=4), platforms)
def test_a_platform_matches_itself_first(others: list[Platform], platform: Platform) -> None:
    matcher = only(platform)
    assert matcher.match(platform)
    assert platform.matches(platform)
    best = matcher.best([*others, platform])
    assert best is not None
    assert not matcher.less(platform, [*others, platform][best])
