"""The pattern language, mostly against what the original matcher says."""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from buildkit_py.session import patterns
from buildkit_py.session.patterns import (
    BadPattern,
    Matched,
    PatternMatcher,
    clean,
    compile_pattern,
    has_wildcard,
    literal_prefixes,
    match_name,
)
from tests.support import golden

CASES: list[dict[str, Any]] = golden.read("patterns.json").get("match", [])


def walk(matcher: PatternMatcher, path: str) -> list[tuple[str, bool]]:
    """Results at every level, each handed down to the next."""
    parent: Matched | None = None
    steps: list[tuple[str, bool]] = []
    names = path.split("/")
    for end in range(1, len(names) + 1):
        prefix = "/".join(names[:end])
        parent = matcher.match_below(prefix, parent)
        steps.append((prefix, parent.matched))
    return steps


def case_id(case: dict[str, Any]) -> str:
    return f"{' '.join(case['patterns'])}-{case['path']}"


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_golden_match(case: dict[str, Any]) -> None:
    if "pattern_error" in case:
        with pytest.raises(BadPattern):
            PatternMatcher(case["patterns"])
        return
    matcher = PatternMatcher(case["patterns"])
    if "match_error" in case:
        with pytest.raises(BadPattern):
            matcher.matches(case["path"])
    else:
        assert matcher.matches(case["path"]) is case["matches_or_parent_matches"]
    if "walk_error" in case:
        with pytest.raises(BadPattern):
            walk(matcher, case["path"])
    else:
        assert walk(matcher, case["path"]) == [tuple(step) for step in case["walk_steps"]]
        assert walk(matcher, case["path"])[-1][1] is case["matches_using_parent_results"]


def test_the_lone_error_message_names_the_pattern() -> None:
    with pytest.raises(BadPattern, match=re.escape('illegal exclusion pattern: "!"')):
        PatternMatcher(["a", " ! "])


PATTERN_TEXT = st.text(alphabet="ab/*?[]!^-\\.", max_size=8)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "a.b", "-", "ba"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(PATTERN_TEXT, max_size=5), PATHS)
def test_the_combined_test_changes_no_result(patterns: list[str], path: str) -> None:
    """The shortcut for paths that match nothing agrees with trying pattern after pattern."""
    try:
        quick, slow = PatternMatcher(patterns), PatternMatcher(patterns)
    except BadPattern:
        return
    slow._fast = False
    try:
        expected = walk(slow, path)
    except BadPattern:
        return
    assert walk(quick, path) == expected


@given(st.lists(st.text(max_size=12), max_size=4), st.text(max_size=12))
def test_any_text_gives_an_answer_or_a_bad_pattern(patterns: list[str], path: str) -> None:
    with contextlib.suppress(BadPattern):
        matcher = PatternMatcher(patterns)
        matcher.matches(path)
        walk(matcher, path)


def test_many_patterns_without_exceptions_agree_with_each_alone() -> None:
    """A list that takes nothing back matches what one of its patterns matches."""
    patterns = ["**/*.log", "node_modules", "tmp/*", "/abs", "a?c", "**suffix", "pre**"]
    together = PatternMatcher(patterns)
    for path in ["x.log", "d/x.log", "node_modules/a", "tmp", "tmp/x", "abs", "abc", "a/suffix", "prefix/x"]:
        assert together.matches(path) == any(PatternMatcher([one]).matches(path) for one in patterns)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "anything", True),
        ("a*c", "abbc", True),
        ("a*c", "abbd", False),
        ("a?c", "a\nc", True),
        ("[a-c]", "b", True),
        ("[^a-c]", "b", False),
        ("[z-a]", "m", False),
        ("[^z-a]", "m", True),
        ("\\*", "*", True),
        ("\\*", "x", False),
        ("[\\]]", "]", True),
        ("*", "a/b", False),
    ],
)
def test_match_name(pattern: str, name: str, expected: bool) -> None:
    assert match_name(pattern, name) is expected


@pytest.mark.parametrize("pattern", ["[", "[]", "[]a]", "[a", "[-a]", "[a-]", "[a-", "\\", "x\\", "[^]", "[\\"])
def test_malformed_names_are_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        match_name(pattern, "x")


def test_clean() -> None:
    texts = ["", "a/", "./a", "a//b", "a/../b", "../a", "/", "//a", "/../a", "!a/../b"]
    assert [clean(text) for text in texts] == [".", "a", "a", "a/b", "b", "../a", "/", "/a", "/a", "b"]


def test_has_wildcard() -> None:
    assert [has_wildcard(text) for text in ["a", "a*", "\\*", "\\\\*", "[", "?"]] == [
        False,
        True,
        False,
        True,
        True,
        True,
    ]


def test_literal_prefixes() -> None:
    assert literal_prefixes(["a/b", "c/**", "d/*"]) == ["a/b/", "c/", "d/"]
    assert literal_prefixes(["a", "b*c"]) is None


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("**/a/**/a/**/a/**/a/**/a/**/b", "/".join("a" * 400)),
        ("**/**/**/**/**/**/**/**/b", "/".join("a" * 400)),
        ("*a*a*a*a*a*a*a*a*b", "a" * 250),
        ("**/*a*a*a*a*a/**/*a*a*a*a*b", "/".join(["a" * 100] * 20)),
        ("*[a-z]*[a-z]*[a-z]*[a-z]*[a-z]*0", "a" * 250),
    ],
)
def test_no_pattern_takes_long(pattern: str, path: str) -> None:
    """A .dockerignore may come with a stranger's sources, and the walk holds the interpreter's lock meanwhile."""
    begun = time.process_time()
    assert not PatternMatcher([pattern]).matches(path)
    assert not PatternMatcher([pattern]).match_below(path, Matched(False, (False,))).matched
    assert not match_name(pattern.replace("**/", "*"), "a" * 250)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(("pattern", "path"), [("*[^b]*[^b]*[^b]*[^b]*", "a" * 250), ("*a*a*a*a*b", "a\n" * 100)])
def test_patterns_that_would_take_long_are_refused(pattern: str, path: str) -> None:
    with pytest.raises(BadPattern, match="too many wildcards"):
        PatternMatcher([pattern]).matches(path)


_PIECES = ["a", "b", "/", "/", "*", "?", "**", "**/", "/**/", "[ab]", "[^a]", ".", r"\d", "[a-z]", r"\*", "x"]


@given(
    st.lists(st.sampled_from(_PIECES), min_size=1, max_size=8).map("".join),
    st.lists(st.text("aabx.1\n", max_size=4), min_size=1, max_size=6).map("/".join),
)
@settings(max_examples=1000)
def test_fewer_ways_to_match_find_the_same(pattern: str, path: str) -> None:
    kind, expression = patterns._classify(clean(pattern))
    assume(kind == "regexp")
    try:
        expected = re.compile(patterns._to_python(expression) + r"\Z", re.ASCII).match(path) is not None
        found = compile_pattern(clean(pattern))(path)
    except (BadPattern, re.error):
        return
    assert found is expected
