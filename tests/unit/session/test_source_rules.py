"""Files of rules about sources are read as docker buildx reads them, but for what they get wrong."""

from __future__ import annotations

import json

import pytest

from buildkit_py.client import SolveRequest
from buildkit_py.errors import InvalidOption
from buildkit_py.features import SOURCE_RULES, used
from buildkit_py.pb import policy_pb2
from buildkit_py.session.policy import SourceRules
from buildkit_py.session.server import Session

RULE = {
    "action": "CONVERT",
    "selector": {"identifier": "https://example.com/*", "match_type": "REGEX", "constraints": [{"key": "a"}]},
    "updates": {"identifier": "https://example.org/", "attrs": {"http.checksum": "sha256:00"}},
}


def test_json_and_protobuf_are_the_same() -> None:
    read = SourceRules.parse(json.dumps({"version": 1, "rules": [RULE]}).encode(), "file")
    policy = policy_pb2.Policy.FromString(read.policy)
    (rule,) = policy.rules
    assert (rule.action, rule.selector.match_type) == (policy_pb2.CONVERT, policy_pb2.REGEX)
    assert dict(rule.updates.attrs) == {"http.checksum": "sha256:00"}
    assert SourceRules.parse(read.policy, "file") == read


def test_the_daemon_gets_them_and_has_to_know_them() -> None:
    rules = SourceRules.parse(json.dumps({"version": 1, "rules": [RULE]}).encode(), "file")
    message = SolveRequest(frontend="dockerfile.v0", source_rules=rules).to_pb(Session([]))
    assert message.SourcePolicy.SerializeToString(deterministic=True) == rules.policy
    assert SOURCE_RULES in set(used(message))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"{", "no source policy"),
        (b"", "version 0"),
        (b"\xff\xfe", "no source policy"),
        (b"{}", "version 0"),
        (b'{"version": 2}', "version 2"),
        (b'{"version": 1, "rule": []}', "rule"),
        (b'{"version": 1, "rules": [{"action": "PERHAPS"}]}', "PERHAPS"),
    ],
)
def test_what_is_no_policy(content: bytes, word: str) -> None:
    with pytest.raises(InvalidOption, match=word) as caught:
        SourceRules.parse(content, "$NAME: file")
    assert str(caught.value).startswith("$NAME: file: ")
