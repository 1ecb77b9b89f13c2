"""Addresses of daemons: what is read, what is refused, where we look by default."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_py.errors import InvalidAddress
from buildkit_py.rpc import Address, default_addresses


@pytest.mark.parametrize(
    ("text", "scheme", "canonical"),
    [
        ("unix:///run/buildkit/buildkitd.sock", "unix", "unix:///run/buildkit/buildkitd.sock"),
        ("unix://some/where.sock", "unix", "unix://some/where.sock"),
        ("UNIX:///a%20b?c#d", "unix", "unix:///a%20b?c#d"),
        ("unix:///run/docker.sock", "unix", "unix:///run/docker.sock"),
        ("/run/my.sock", "unix", "unix:///run/my.sock"),
        ("/run/docker.sock", "docker", "docker:///run/docker.sock"),
        ("/run/user/7/rootless-docker.sock", "docker", "docker:///run/user/7/rootless-docker.sock"),
        ("docker://", "docker", "docker:///var/run/docker.sock"),
        ("docker:///x/d.sock", "docker", "docker:///x/d.sock"),
        ("tcp://127.0.0.1:1234", "tcp", "tcp://127.0.0.1:1234"),
        ("tcp://Build-er.example.com:65535", "tcp", "tcp://build-er.example.com:65535"),
        ("tcp://[::1]:1", "tcp", "tcp://[::1]:1"),
    ],
)
def test_an_address_is_read_and_written(text: str, scheme: str, canonical: str) -> None:
    address = Address.parse(text)
    assert address.scheme == scheme
    assert str(address) == canonical
    assert Address.parse(canonical) == address


def test_the_parts_of_a_tcp_address() -> None:
    assert Address.parse("tcp://[fe80::1]:8080") == Address("tcp", host="fe80::1", port=8080)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected unix:///path"),
        ("localhost:1234", "expected unix:///path"),
        ("run/buildkitd.sock", "expected unix:///path"),
        ("unix:/run/x.sock", "expected unix:///path"),
        ("unix://", "names no socket"),
        ("/", "names no socket"),
        ("unix:///a\0b", "NUL"),
        ("/" + "x" * 107, "at most 107 bytes"),
        ("tcp://host", "no port"),
        ("tcp://:1234", "no host"),
        ("tcp://host:", "no port"),
        ("tcp://host:0", "'0' is no port"),
        ("tcp://host:65536", "'65536' is no port"),
        ("tcp://host:1e3", "'1e3' is no port"),
        ("tcp://host:\N{ARABIC-INDIC DIGIT ONE}", "is no port"),
        ("tcp://host:12/path", "'12/path' is no port"),
        ("tcp://user@host:12", "'user@host' is no host name"),
        ("tcp://::1:12", "IPv6 address stands in brackets"),
        ("tcp://[::1:12", "brackets"),
        ("tcp://[host]:12", "brackets"),
        ("tcp://[::1]12", "no port"),
        ("tcp://ho st:12", "no host name"),
        ("http://host:12", "unknown scheme 'http'"),
        ("docker-container://builder", "unknown scheme 'docker-container'"),
    ],
)
def test_a_malformed_address_is_refused_with_what_was_expected(text: str, why: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        Address.parse(text)
    assert why in str(caught.value)
    assert "expected" in str(caught.value) or "at most" in str(caught.value) or "NUL" in str(caught.value)


@given(st.text(max_size=60) | st.from_regex(r"(unix|tcp|docker)://[\[\]:a-z0-9./]{0,20}", fullmatch=True))
def test_any_text_is_an_address_that_survives_or_is_refused(text: str) -> None:
    try:
        address = Address.parse(text)
    except InvalidAddress:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("host", "socket"),
    [
        ("unix:///my/docker.sock", "/my/docker.sock"),
        ("ssh://remote", "/var/run/docker.sock"),
        ("", "/var/run/docker.sock"),
    ],
)
def test_docker_alone_is_the_socket_that_docker_host_names(host: str, socket: str) -> None:
    assert Address.parse("docker://", env={"DOCKER_HOST": host}) == Address("docker", path=socket)


def test_an_engine_across_a_network() -> None:
    """By its own address, or by the one that docker's environment has."""
    there = Address("docker", host="remote", port=2376)
    assert Address.parse("docker://remote:2376") == there
    assert Address.parse("docker://", env={"DOCKER_HOST": "tcp://remote:2376"}) == there
    assert str(there) == "docker://remote:2376"
    assert not there.is_loopback
    assert Address.parse("docker://[::1]:1").is_loopback
    assert there in default_addresses({"DOCKER_HOST": "tcp://remote:2376"}, 0)
    with pytest.raises(InvalidAddress, match=r"DOCKER_HOST: .*it has no port"):
        Address.parse("docker://", env={"DOCKER_HOST": "tcp://remote"})


@pytest.mark.parametrize(
    ("env", "uid", "places"),
    [
        ({}, 0, ["unix:///run/buildkit/buildkitd.sock", "docker:///var/run/docker.sock"]),
        (
            {"XDG_RUNTIME_DIR": "/xdg:/other", "DOCKER_HOST": "unix:///my.sock"},
            7,
            [
                "unix:///run/buildkit/buildkitd.sock",
                "unix:///xdg/buildkit/buildkitd.sock",
                "docker:///my.sock",
                "docker:///var/run/docker.sock",
                "docker:///xdg/docker.sock",
            ],
        ),
        (
            {},
            7,
            [
                "unix:///run/buildkit/buildkitd.sock",
                "unix:///run/user/7/buildkit/buildkitd.sock",
                "docker:///var/run/docker.sock",
                "docker:///run/user/7/docker.sock",
            ],
        ),
        ({"BUILDKIT_HOST": "tcp://b:1", "XDG_RUNTIME_DIR": "/xdg"}, 7, ["tcp://b:1"]),
    ],
)
def test_where_a_daemon_is_looked_for(env: dict[str, str], uid: int, places: list[str]) -> None:
    assert [str(place) for place in default_addresses(env, uid)] == places


def test_a_malformed_variable_is_named() -> None:
    with pytest.raises(InvalidAddress, match="BUILDKIT_HOST: invalid daemon address 'nonsense'"):
        default_addresses({"BUILDKIT_HOST": "nonsense"}, 0)
