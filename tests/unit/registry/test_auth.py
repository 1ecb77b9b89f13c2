"""Challenges, scopes, realms and the fetching of tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import RegistryError, Unauthorized
from buildkit_py.registry import Credentials, HostConfig, RegistryConfig, RetryPolicy, Timeouts
from buildkit_py.registry._http import Transport
from buildkit_py.registry._operation import Operation
from buildkit_py.registry.auth import (
    Challenge,
    Scope,
    Token,
    check_realm,
    covers,
    credentials_for,
    fetch_token,
    merge_scopes,
    parse_challenges,
)
from tests.support.fake_registry import Answer, FakeRegistry

SECRET = "pa:ss/w%rd"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (['BEARER Realm=x, SERVICE="a, b"'], [("bearer", {"realm": "x", "service": "a, b"})]),
        (['Basic realm="with \\"quotes\\" in"'], [("basic", {"realm": 'with "quotes" in'})]),
        (
            ['Basic realm="one", Bearer realm="two" , service=s, Negotiate'],
            [("basic", {"realm": "one"}), ("bearer", {"realm": "two", "service": "s"}), ("negotiate", {})],
        ),
        (
            ['Basic realm="one"', 'Bearer realm="two"'],
            [("basic", {"realm": "one"}), ("bearer", {"realm": "two"})],
        ),
        (
            ["Negotiate YWJjZA==, Basic realm=x"],
            [("negotiate", {}), ("basic", {"realm": "x"})],
        ),
        (['Bearer realm="a",realm="b"'], [("bearer", {"realm": "a"})]),
        (["Basic"], [("basic", {})]),
        ([""], []),
        ([",,,"], []),
        (['="'], []),
        (['Bearer realm="never closed'], [("bearer", {})]),
    ],
)
def test_challenges(values: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    found = parse_challenges(values)
    assert [(item.scheme, dict(item.parameters)) for item in found] == expected


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_header_is_survived(values: list[str]) -> None:
    """What a registry sends is read or skipped, never an exception."""
    assert all(isinstance(item, Challenge) for item in parse_challenges(values))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ((["repository:a:pull"], ["repository:a:push,pull"]), ("repository:a:pull,push",)),
        ((["repository:b:push"], ["repository:a:pull"]), ("repository:b:push", "repository:a:pull")),
        ((["registry:catalog:*"], ["registry:catalog:x"]), ("registry:catalog:*",)),
        ((["repository:host:5000/a:pull"],), ("repository:host:5000/a:pull",)),
        ((["odd"], ["odd"]), ("odd",)),
        ((), ()),
    ],
)
def test_scopes_merge(groups: tuple[list[str], ...], expected: tuple[str, ...]) -> None:
    assert merge_scopes(*groups) == expected


SCOPES = st.lists(
    st.builds(
        lambda name, actions: f"repository:{name}:{','.join(actions)}",
        st.sampled_from(["a", "b/c", "h:5000/d"]),
        st.lists(st.sampled_from(["pull", "push", "delete", "*"]), min_size=1, max_size=3),
    ),
    max_size=5,
)


@given(SCOPES, SCOPES)
def test_a_union_covers_its_parts(one: list[str], other: list[str]) -> None:
    both = merge_scopes(one, other)
    assert covers(both, one)
    assert covers(both, other)
    assert merge_scopes(both) == both
    assert set(both) == set(merge_scopes(other, one))


def test_scope_covers() -> None:
    assert covers(["repository:a:pull,push"], ["repository:a:pull"])
    assert covers(["repository:a:*"], ["repository:a:pull"])
    assert not covers(["repository:a:pull"], ["repository:a:push"])
    assert not covers([], ["repository:a:pull"])
    assert Scope.parse("nothing") is None
    assert Scope.parse("a:b") is None


@pytest.mark.parametrize(
    ("realm", "host", "complaint"),
    [
        ("https://auth.example/token", "r.example", None),
        ("https://auth.example:8443/token?x=y", "r.example", None),
        ("http://auth.example/token", "r.example", "not https"),
        ("http://auth.example/token", "plain.example", None),
        ("http://127.0.0.1:5001/token", "localhost:5000", None),
        ("https://127.0.0.1/token", "r.example", "address of this machine"),
        ("https://localhost/token", "r.example", "address of this machine"),
        ("https://169.254.169.254/token", "r.example", "address of this machine"),
        ("https://[::1]/token", "r.example", "address of this machine"),
        ("https://[::ffff:127.0.0.1]/token", "r.example", "address of this machine"),
        ("https://[::ffff:a9fe:a9fe]/token", "r.example", "address of this machine"),
        ("https://127.1/token", "r.example", "address of this machine"),
        ("https://0x7f.1/token", "r.example", "address of this machine"),
        ("https://2130706433/token", "r.example", "address of this machine"),
        ("https://169.254.43518/token", "r.example", "address of this machine"),
        ("https://0/token", "r.example", "address of this machine"),
        ("https://anything.localhost/token", "r.example", "address of this machine"),
        ("https://127.0.0.\N{FULLWIDTH DIGIT ONE}/token", "r.example", "not an http or https URL"),
        ("http://169.254.169.254/token", "plain.example", "address of this machine"),
        ("https://user:pw@auth.example/token", "r.example", "credentials in its URL"),
        ("ftp://auth.example/token", "r.example", "not an http or https URL"),
        ("/token", "r.example", "not an http or https URL"),
        ("", "r.example", "not an http or https URL"),
        ("https://[bad/token", "r.example", "not an http or https URL"),
        ("https://a:99999/", "r.example", "not an http or https URL"),
    ],
)
def test_realms(realm: str, host: str, complaint: str | None) -> None:
    """A realm is a place to which credentials are sent: the registry cannot name just anything."""
    config = RegistryConfig(hosts={"plain.example": HostConfig(plain_http=True)})
    if complaint is None:
        check_realm(realm, host=host, config=config)
        return
    with pytest.raises(Unauthorized, match=complaint) as caught:
        check_realm(realm, host=host, config=config)
    assert "pw" not in str(caught.value)


@dataclass
class Fetcher:
    server: FakeRegistry
    transport: Transport

    def __call__(self, credentials: Credentials, *scopes: str, realm: str = "/token") -> Token:
        return fetch_token(
            self.transport,
            host=self.server.host,
            realm=self.server.url + realm,
            service="the service",
            scopes=scopes,
            credentials=credentials,
            operation=Operation(5),
        )


@pytest.fixture
def fetch() -> Iterator[Fetcher]:
    with FakeRegistry() as server:
        server.on("GET", "/token", Answer(body=b'{"token": "t1", "expires_in": 300}'))
        server.on("POST", "/token", Answer(body=b'{"access_token": "t2"}'))
        transport = Transport(RegistryConfig(), timeouts=Timeouts(read=1), retry=RetryPolicy())
        yield Fetcher(server, transport)
        transport.close()


def test_anonymous_token(fetch: Fetcher) -> None:
    """GET, one scope parameter each, and nothing that tells who asks."""
    token = fetch(Credentials(), "repository:a:pull", "repository:b:pull", realm="/token?keep=%2f&empty=")
    (request,) = fetch.server.requests
    assert (token.value, token.lifetime) == ("t1", 300)
    assert request.query.startswith("keep=%2f&empty=&")
    assert request.parameters["scope"] == ["repository:a:pull", "repository:b:pull"]
    assert request.parameters["service"] == ["the service"]
    assert request.authorization is None
    assert "account" not in request.parameters


def test_password_token(fetch: Fetcher) -> None:
    fetch(Credentials("user", SECRET), "repository:a:pull")
    (request,) = fetch.server.requests
    assert request.method == "GET"
    assert request.authorization == "Basic dXNlcjpwYTpzcy93JXJk"
    assert request.parameters["account"] == ["user"]
    assert SECRET not in request.query


@pytest.mark.parametrize("status", [404, 405])
def test_password_by_post_where_get_is_not_served(fetch: Fetcher, status: int) -> None:
    fetch.server.on("GET", "/token", Answer(status=status))
    token = fetch(Credentials("user", SECRET), "repository:a:pull", "repository:b:pull")
    form = parse_qs(fetch.server.asked("POST")[0].body.decode())
    assert token.value == "t2"
    assert form == {
        "grant_type": ["password"],
        "username": ["user"],
        "password": [SECRET],
        "client_id": ["buildkit-py"],
        "service": ["the service"],
        "scope": ["repository:a:pull repository:b:pull"],
    }


def test_identity_token_is_traded(fetch: Fetcher) -> None:
    token = fetch(Credentials("user", SECRET, identity_token="refresh"))
    (request,) = fetch.server.requests
    form = parse_qs(request.body.decode())
    assert (request.method, request.authorization, token.value, token.lifetime) == ("POST", None, "t2", 60)
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == ["refresh"]
    assert "password" not in form


def test_registry_token_needs_no_server(fetch: Fetcher) -> None:
    assert fetch(Credentials(registry_token="as it is")).value == "as it is"
    assert fetch.server.requests == []


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_says_what_to_do(fetch: Fetcher, status: int) -> None:
    fetch.server.on("GET", "/token", Answer(status=status, body=b'{"details":"%s"}' % SECRET.encode()))
    with pytest.raises(Unauthorized, match=f"docker login {fetch.server.host}") as caught:
        fetch(Credentials("user", SECRET))
    assert (caught.value.status, caught.value.retryable) == (status, False)
    assert SECRET not in repr(caught.value)
    with pytest.raises(Unauthorized, match="no credentials are known"):
        fetch(Credentials())


def test_redirects_are_not_followed(fetch: Fetcher) -> None:
    with FakeRegistry() as elsewhere:
        target = {"Location": f"{elsewhere.url}/token"}
        fetch.server.on("GET", "/token", Answer(status=307, headers=target))
        with pytest.raises(RegistryError, match="HTTP 307"):
            fetch(Credentials("user", SECRET))
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not json",
        b'{"token": 5}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nX-Injected: 1"}',
        b'{"expires_in": 5}',
        b"[" * 100_000,
    ],
)
def test_answers_without_a_token(fetch: Fetcher, body: bytes) -> None:
    fetch.server.on("GET", "/token", Answer(body=body))
    with pytest.raises(RegistryError, match="holds no token"):
        fetch(Credentials())


def test_an_endless_answer_is_cut(fetch: Fetcher) -> None:
    fetch.server.on("GET", "/token", Answer(body=b" " * ((1 << 20) + 1)))
    with pytest.raises(RegistryError, match="larger than"):
        fetch(Credentials())


@pytest.mark.parametrize(
    ("answer", "low", "high"),
    [
        ({}, 60, 60),
        ({"expires_in": 5}, 60, 60),
        ({"expires_in": 900}, 900, 900),
        ({"expires_in": 1e12}, 86400, 86400),
        ({"expires_in": "900"}, 60, 60),
        ({"expires_in": 900, "issued_at": "nonsense"}, 900, 900),
        ({"expires_in": 900, "issued_at": "1999-01-01T00:00:00Z"}, 900, 900),
    ],
)
def test_lifetimes(fetch: Fetcher, answer: dict[str, object], low: float, high: float) -> None:
    """A minute at least, a day at most."""
    fetch.server.on("GET", "/token", Answer(body=json.dumps({"token": "t", **answer}).encode()))
    assert low <= fetch(Credentials()).lifetime <= high


def test_the_lifetime_of_a_token_that_was_handed_out_before(fetch: Fetcher) -> None:
    """Less what it has lived already."""
    issued = (datetime.now(UTC) - timedelta(seconds=300)).isoformat()
    answer = {"token": "t", "expires_in": 900, "issued_at": issued}
    fetch.server.on("GET", "/token", Answer(body=json.dumps(answer).encode()))
    assert 500 <= fetch(Credentials()).lifetime <= 600


class BrokenStore:
    def get(self, host: str, /) -> Credentials:
        raise Unauthorized("credentials for r.example: docker-credential-x failed")


def test_a_broken_store_stops_pushes_but_not_pulls(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert credentials_for(BrokenStore(), "r.example", ["repository:a:pull"]).anonymous
    assert "docker-credential-x failed" in caplog.text
    for scopes in (["repository:a:pull,push"], ["repository:a:pull", "repository:b:*"], []):
        with pytest.raises(Unauthorized, match="docker-credential-x failed"):
            credentials_for(BrokenStore(), "r.example", scopes)


def test_tokens_stay_out_of_repr() -> None:
    assert "abc" not in repr(Token("abc", 60))
