"""Settings by host."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_py.errors import InvalidOption
from buildkit_py.registry import Credentials, HostConfig, RegistryConfig, RetryPolicy, StaticCredentials
from buildkit_py.registry.config import is_loopback, split_host


@pytest.mark.parametrize(
    ("host", "scheme"),
    [
        ("localhost", "http"),
        ("localhost:5000", "http"),
        ("127.0.0.1:5000", "http"),
        ("127.8.9.1", "http"),
        ("[::1]:5000", "http"),
        ("LOCALHOST:5000", "http"),
        ("localhost.example", "https"),
        ("r.example:80", "https"),
        ("10.0.0.1:5000", "https"),
        ("registry-1.docker.io", "https"),
    ],
)
def test_scheme_by_name(host: str, scheme: str) -> None:
    assert RegistryConfig().scheme(host) == scheme


def test_scheme_as_told() -> None:
    config = RegistryConfig(
        hosts={
            "r.example:5000": HostConfig(plain_http=True),
            "localhost:5001": HostConfig(plain_http=False),
            "localhost:5002": HostConfig(ca=b"pem"),
            "localhost:5003": HostConfig(skip_verify=True),
        }
    )
    assert config.scheme("r.example:5000") == "http"
    assert config.scheme("R.EXAMPLE:5000") == "http"
    assert config.scheme("r.example") == "https"
    # Whoever talks about certificates means TLS.
    assert [config.scheme(f"localhost:500{n}") for n in (1, 2, 3, 4)] == ["https", "https", "https", "http"]


def test_one_registry_has_one_entry_whatever_it_is_called() -> None:
    mine = HostConfig(skip_verify=True)
    config = RegistryConfig(hosts={"docker.io": mine, "r.example:443": mine})
    for name in ("docker.io", "index.docker.io", "registry-1.docker.io", "r.example", "r.example:443"):
        assert config.host(name) is mine
    assert config.host("x.example") == HostConfig()


def test_credentials_of_the_settings_come_first() -> None:
    given = Credentials("given", "p")
    config = RegistryConfig(hosts={"r.example": HostConfig(credentials=given), "x.example": HostConfig()})
    fallback = StaticCredentials({"x.example": Credentials("x", "p"), "r.example": Credentials("r", "p")})
    store = config.credential_store(fallback)
    assert (store.get("r.example"), store.get("x.example").username) == (given, "x")
    assert RegistryConfig().credential_store(fallback) is fallback
    assert "'p'" not in repr(config)


@pytest.mark.parametrize("host", ["", "a/b", "https://r.example", "r:x", "r:0", "r:70000", "[::1", "u@r", "a b"])
def test_hosts_are_checked(host: str) -> None:
    with pytest.raises(InvalidOption, match="registry host"):
        RegistryConfig(hosts={host: HostConfig()})


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(InvalidOption, match="plain_http"):
        HostConfig(plain_http=True, ca=b"x")
    with pytest.raises(InvalidOption, match="key without"):
        HostConfig(key=Path("key.pem"))
    with pytest.raises(InvalidOption, match="one host"):
        RegistryConfig(default=HostConfig(credentials=Credentials("u", "p")))
    with pytest.raises(InvalidOption, match="attempts"):
        RetryPolicy(attempts=0)


def test_split_host() -> None:
    assert split_host("[fe80::1]:5000") == ("fe80::1", 5000)
    assert split_host("R.Example") == ("r.example", None)
    assert not is_loopback("0.0.0.0")
