"""What errors and displays say of URLs that hold credentials."""

from __future__ import annotations

import pytest

from buildkit_py.errors import InvalidAddress, InvalidReference, without_credentials
from buildkit_py.progress.text import clean_name
from buildkit_py.reference import Reference
from buildkit_py.rpc import Address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("load git source https://me:pass@host/x.git", "load git source https://***@host/x.git"),
        ("https://token@host/x and http://a:b@c", "https://***@host/x and http://***@c"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("ssh://git:pass@host/x", "ssh://git:***@host/x"),
        ("git@github.com:me/x.git", "git@github.com:me/x.git"),
        ("host/app:tag@sha256:00", "host/app:tag@sha256:00"),
        ("docker-image://host:5000/app:tag@sha256:00", "docker-image://host:5000/app:tag@sha256:00"),
        ("docker-image://docker.io/library/alpine:3@sha256:00", "docker-image://docker.io/library/alpine:3@sha256:00"),
        ("docker-image://alpine:3@sha256:00", "docker-image://alpine:3@sha256:00"),
        ("https://host/a@b:c@d", "https://host/a@b:c@d"),
    ],
)
def test_urls_lose_their_credentials(text: str, shown: str) -> None:
    """And nothing that only looks like some."""
    assert without_credentials(text) == shown
    assert clean_name(text) == shown


def test_errors_of_values_do_not_tell_them() -> None:
    with pytest.raises(InvalidReference) as reference:
        Reference.parse("https://me:pass@host/x")
    with pytest.raises(InvalidAddress) as address:
        Address.parse("tcp://me:pass@host:1", env={})
    with pytest.raises(InvalidAddress) as scheme:
        Address.parse("https://me:pass@host:1", env={})
    for caught in (reference, address, scheme):
        assert "***@host" in str(caught.value)
        assert "pass" not in str(caught.value)
