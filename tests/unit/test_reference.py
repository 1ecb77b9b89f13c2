"""References: taking apart, filling in, printing. Golden results are those of distribution/reference."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError, InvalidReference
from buildkit_py.reference import Reference
from tests.support import golden

GOLDEN: list[dict[str, Any]] = golden.read("references.json").get("references", [])
DIGEST = Digest.of(b"x")

ERROR_WORDS = {
    "invalid-format": "expected \\[registry/\\]repository",
    "uppercase-repository": "must be in lower case",
    "hex-identifier": "an identifier, not a name",
    "name-too-long": "longer than 255",
    "digest-invalid-format": "expected lower-case hex",
    "digest-invalid-length": "expected 64 hex digits",
    "digest-unsupported-algorithm": "unknown algorithm",
}


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: repr(case["text"][:60]))
def test_golden_references(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(InvalidReference, match=ERROR_WORDS[case["error_class"]]):
            Reference.parse_normalized(case["text"])
        return
    reference = Reference.parse_normalized(case["text"])
    assert str(reference) == case["string"]
    assert reference.name == case["name"]
    assert reference.domain == case.get("domain", "")
    assert reference.path == case["path"]
    assert (reference.tag or "") == case.get("tag", "")
    assert (str(reference.digest) if reference.digest else "") == case.get("digest", "")
    assert reference.familiar == case["familiar"]
    assert reference.familiar_name == case["familiar_name"]
    assert str(reference.with_default_tag()) == case["tag_name_only"]
    docker_form = reference.with_digest(reference.digest) if reference.digest else reference.with_default_tag()
    assert str(docker_form) == case["docker_ref"]
    assert (reference == reference.without_tag()) is case["is_name_only"]


@pytest.mark.golden
@pytest.mark.skipif(golden.IS_ANOTHER, reason="golden data of another folder")
def test_golden_data_has_all_its_cases() -> None:
    assert len(GOLDEN) == 80


def test_parse_fills_nothing_in() -> None:
    assert Reference.parse("registry/app:1") == Reference("registry", "app", "1")
    assert Reference.parse("app") == Reference("", "app")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("alpine", "registry-1.docker.io"),
        ("index.docker.io/user/app", "registry-1.docker.io"),
        ("localhost:5000/app", "localhost:5000"),
        ("ghcr.io/owner/app", "ghcr.io"),
    ],
)
def test_the_host_to_ask(text: str, host: str) -> None:
    assert Reference.parse_normalized(text).api_host == host


def test_a_name_without_registry_has_no_host_to_ask() -> None:
    with pytest.raises(InvalidReference, match="names no registry"):
        _ = Reference.parse_normalized("exa_mple.com/app").api_host


def test_tag_and_digest_replace_each_other() -> None:
    reference = Reference.parse_normalized("localhost:5000/app:1")
    assert str(reference.with_tag("2")) == "localhost:5000/app:2"
    assert str(reference.with_digest(DIGEST)) == f"localhost:5000/app@{DIGEST}"
    assert str(reference.with_digest(DIGEST).with_tag("3")) == "localhost:5000/app:3"
    assert reference.tag_or_latest == "1"
    assert reference.without_tag().tag_or_latest == "latest"


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a:b", "a/b", "a" * 129, "a\n", "tü"])
def test_a_bad_tag_is_refused(tag: str) -> None:
    with pytest.raises(InvalidReference, match="1 to 128"):
        Reference("localhost", "app").with_tag(tag)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://example.com/app", "URL scheme"),
        ("Team/App", "such as 'app'"),
        ("example.com/Team/App:1", "such as 'team/app'"),
        ("a b", "white space"),
        ("x" * 5000, "too long"),
    ],
)
def test_errors_say_what_is_wrong(text: str, hint: str) -> None:
    with pytest.raises(InvalidReference, match=hint) as raised:
        Reference.parse_normalized(text)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("name", ["docker.io/localhost/app", "docker.io/foo.bar/app", f"docker.io/library/{'a' * 64}"])
def test_familiar_keeps_what_it_takes_to_read_it_back(name: str) -> None:
    reference = Reference.parse_normalized(name)
    assert Reference.parse_normalized(reference.familiar) == reference


components = st.from_regex(r"[a-z0-9]{1,4}((\.|_|__|-{1,2})[a-z0-9]{1,3}){0,2}", fullmatch=True)
references = st.builds(
    Reference,
    st.sampled_from(["docker.io", "localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000", "Example.com", "UP"]),
    st.lists(components, min_size=1, max_size=4).map("/".join),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True),
    st.none() | st.binary(max_size=3).map(Digest.of),
)


@given(references)
def test_text_form_survives_a_round_trip(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference
    normal = Reference.parse_normalized(str(reference))
    assert Reference.parse_normalized(str(normal)) == normal
    assert Reference.parse_normalized(normal.familiar) == normal


@given(st.text() | st.text("aA0./:@-_[]sh256", max_size=80))
def test_any_text_parses_or_is_refused(text: str) -> None:
    for read in (Reference.parse, Reference.parse_normalized):
        with contextlib.suppress(BuildKitError):
            assert Reference.parse(str(read(text)))


def test_the_longest_name() -> None:
    """Of domain and path together."""
    path = "a" * (255 - len("r.example/"))
    assert Reference.parse(f"r.example/{path}:v1").name == f"r.example/{path}"
    with pytest.raises(InvalidReference, match="longer than 255"):
        Reference.parse(f"r.example/{path}a:v1")
