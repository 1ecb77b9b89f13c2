"""What errors and displays say of URLs that hold credentials."""

from __future__ import annotations

import pytest

from buildkit_py import BuildRequest, SolveRequest
from buildkit_py.errors import InvalidAddress, InvalidOption, InvalidReference, without_credentials
from buildkit_py.options import SecretSpec
from buildkit_py.progress.model import StatusUpdate, Vertex, VertexStatus
from buildkit_py.progress.rawjson import to_json
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
        ("https://host/x.tar?a=1&sig=pass&b=2", "https://host/x.tar?a=1&sig=***&b=2"),
        ('Get "https://s3/x?X-Amz-Signature=pass": no', 'Get "https://s3/x?X-Amz-Signature=***": no'),
        ("https://git/x?private_token=pass#main", "https://git/x?private_token=***#main"),
        ("https://host/x?design=2", "https://host/x?design=2"),
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
    with pytest.raises(InvalidReference) as userinfo:
        Reference.parse("me:pass@host/x")
    for caught in (reference, address, scheme, userinfo):
        assert "***@host" in str(caught.value)
        assert "pass" not in str(caught.value)


@pytest.mark.parametrize("text", ["hunter2", "id=x,hunter2", "id=x,value=hunter2", "id=x,hunter2=", 'id=x,"hunter2'])
def test_a_secret_in_place_of_an_option_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        SecretSpec.parse(text)
    assert "hunter2" not in str(caught.value)


def test_machine_readable_progress_does_not_tell_them() -> None:
    url = "https://me:pass@host/x.git"
    line = to_json(
        StatusUpdate(
            vertexes=(Vertex(digest="sha256:0", name=f"ADD {url} /", error=f"cannot fetch {url}"),),
            statuses=(VertexStatus(id=url, vertex="sha256:0", name=url, timestamp_ns=0),),
        )
    )
    assert line.count("https://***@host/x.git") == 4
    assert "pass" not in line


def test_requests_are_shown_without_build_arguments() -> None:
    """Many put tokens there."""
    requests = (BuildRequest(build_args={"TOKEN": "hunter2"}), SolveRequest(frontend_attrs={"build-arg:A": "hunter2"}))
    assert "hunter2" not in repr(requests)
