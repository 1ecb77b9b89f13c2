"""Registries that keep lists of referrers themselves, and those that only look as if."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_py.digest import Digest
from buildkit_py.errors import NotFound, RegistryError, Unsupported
from buildkit_py.oci import OCI_INDEX, OCI_MANIFEST
from buildkit_py.registry import RegistryConfig, RetryPolicy, StaticCredentials, Timeouts
from buildkit_py.registry._http import Transport
from buildkit_py.registry.client import RegistryClient
from tests.support.contents import artifact, encode, image
from tests.support.fake_registry import Answer, FakeRegistry, Request
from tests.support.memory_registry import MemoryRegistry

SUBJECT = image()
SIGNATURE = artifact("application/vnd.example.signature", subject=SUBJECT)
SBOM = artifact("application/vnd.example.sbom", subject=SUBJECT)
LIST = f"/v2/a/referrers/{SUBJECT.digest}"
TAG = f"sha256-{SUBJECT.digest.hex}"


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as server:
        server.put("a", SUBJECT, "v1")
        yield server


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    config, timeouts, retry = RegistryConfig(), Timeouts(connect=2, read=2, total=20, blob=20), RetryPolicy()
    transport = Transport(config, timeouts=timeouts, retry=retry, wait=lambda operation, seconds: None)
    with RegistryClient(
        credentials=StaticCredentials({}), config=config, timeouts=timeouts, transport=transport
    ) as made:
        yield made


def listing(*entries: dict[str, object], **headers: str) -> Answer:
    raw = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)})
    return Answer(body=raw, headers={"Content-Type": OCI_INDEX, **headers})


def entries(*kinds: str) -> list[dict[str, object]]:
    return [
        {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(kind.encode())), "size": 9, "artifactType": kind}
        for kind in kinds
    ]


def test_a_list_of_many_pages_that_is_not_filtered(memory: MemoryRegistry, client: RegistryClient) -> None:
    """The type is asked for and looked at again; an entry that comes twice counts once."""
    one, two, three = entries("x/one", "x/two", "x/one")
    memory.on("GET", LIST, listing(one, two, Link=f'<{LIST}?last=2>; rel="next"'), listing(one, three))
    found = client.referrers(f"{memory.host}/a", SUBJECT.digest, "x/one")
    assert [entry.artifact_type for entry in found] == ["x/one"]
    assert [request.query for request in memory.requests] == ["artifactType=x%2Fone", "last=2"]


def test_a_list_that_is_too_long(
    memory: MemoryRegistry, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one page or on many: it is not kept in memory to its end."""
    monkeypatch.setattr("buildkit_py.registry._lists._MAX_REFERRERS", 2)
    memory.on("GET", LIST, listing(*entries("x/one", "x/two")))
    assert len(client.referrers(f"{memory.host}/a", SUBJECT.digest)) == 2
    memory.on("GET", LIST, listing(*entries("x/one", "x/two", "x/three")))
    with pytest.raises(RegistryError, match="more than 2 referrers"):
        client.referrers(f"{memory.host}/a", SUBJECT.digest)


def test_a_registry_that_keeps_track_and_says_so(memory: MemoryRegistry, client: RegistryClient) -> None:
    def put(request: Request) -> Answer:
        answer = memory.passing(request)
        return Answer(status=answer.status, headers={**answer.headers, "OCI-Subject": str(SUBJECT.digest)})

    memory.on("PUT", "/v2/a/manifests/.*", put)
    client.push_manifest(f"{memory.host}/a", SIGNATURE.raw, SIGNATURE.media_type)
    assert memory.tag("a", TAG) is None
    assert [request.method for request in memory.requests] == ["PUT"]


def test_a_registry_that_keeps_track_and_does_not_say_so(memory: MemoryRegistry, client: RegistryClient) -> None:
    """Harbor before 2.9: it is asked for its list, once."""
    memory.on("GET", "/v2/a/referrers/.*", listing())
    for document in (SIGNATURE, SBOM):
        client.push_manifest(f"{memory.host}/a", document.raw, document.media_type)
    assert memory.tag("a", TAG) is None
    assert [request.method for request in memory.requests] == ["PUT", "GET", "PUT"]


def test_a_page_for_people_is_no_list(memory: MemoryRegistry, client: RegistryClient) -> None:
    """GHCR leads there: the tag is looked at."""
    memory.on("GET", LIST, Answer(status=303, headers={"Location": "/page"}))
    memory.on("GET", "/page", Answer(body=b"<html>", headers={"Content-Type": "text/html"}))
    for document in (SIGNATURE, SBOM):
        client.push_manifest(f"{memory.host}/a", document.raw, document.media_type)
    found = client.referrers(f"{memory.host}/a", SUBJECT.digest)
    assert {entry.digest for entry in found} == {SIGNATURE.digest, SBOM.digest}


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_failure_is_no_absence(memory: MemoryRegistry, client: RegistryClient, status: int) -> None:
    """Neither an empty answer nor a tag that would hide what the registry knows."""
    memory.on("GET", LIST, Answer(status=status))
    with pytest.raises(RegistryError):
        client.referrers(f"{memory.host}/a", SUBJECT.digest)
    with pytest.raises(RegistryError):
        client.push_manifest(f"{memory.host}/a", SIGNATURE.raw, SIGNATURE.media_type, ["v2"])
    assert memory.tag("a", TAG) is None
    assert memory.tag("a", "v2") is None


def test_a_list_that_others_keep_replacing(memory: MemoryRegistry, client: RegistryClient) -> None:
    """An error that says so, instead of a referrer that nobody finds."""
    memory.on("PUT", f"/v2/a/manifests/{TAG}", Answer(status=201))
    with pytest.raises(RegistryError, match="others keep replacing") as caught:
        client.push_manifest(f"{memory.host}/a", SIGNATURE.raw, SIGNATURE.media_type)
    assert caught.value.retryable


@pytest.mark.parametrize("theirs_is_gone", [False, True])
def test_a_list_that_another_client_replaces_once(
    memory: MemoryRegistry, client: RegistryClient, theirs_is_gone: bool
) -> None:
    """A client that read the list before us writes it after us, when our write was seen: it is looked at again. What
    vanished with it is put back, unless its manifest was deleted."""
    theirs = artifact("application/vnd.example.theirs", subject=SUBJECT)
    late = artifact("application/vnd.example.late", subject=SUBJECT)
    for document in (theirs, late):
        memory.put("a", document)
        client.push_manifest(f"{memory.host}/a", document.raw, document.media_type)
        if document is theirs:
            stale = memory.manifests["a", TAG]
    looks = 0

    def get(request: Request) -> Answer:
        nonlocal looks
        looks += 1
        if looks == 2:  # ours is written by now
            memory.manifests["a", TAG] = stale
            if theirs_is_gone:
                del memory.manifests["a", str(late.digest)]
        return memory.passing(request)

    memory.on("GET", f"/v2/a/manifests/{TAG}", get)
    client.push_manifest(f"{memory.host}/a", SIGNATURE.raw, SIGNATURE.media_type)
    found = {entry.digest for entry in client.referrers(f"{memory.host}/a", SUBJECT.digest)}
    assert found == {theirs.digest, SIGNATURE.digest} | (set() if theirs_is_gone else {late.digest})


def test_a_list_that_is_ours_alone_is_written_once(memory: MemoryRegistry, client: RegistryClient) -> None:
    """It is read, written, and looked at again a little later."""
    client.push_manifest(f"{memory.host}/a", SIGNATURE.raw, SIGNATURE.media_type)
    asked = [request.method for request in memory.requests if request.path.endswith(TAG)]
    assert asked == ["GET", "PUT", "GET"]


def test_deleting_where_the_registry_keeps_track() -> None:
    """One request to look at it, one to delete it, one to learn that its list is its own affair."""
    with FakeRegistry() as fake:
        path = f"/v2/a/manifests/{SIGNATURE.digest}"
        fake.on("GET", path, Answer(body=SIGNATURE.raw, headers={"Content-Type": OCI_MANIFEST}))
        fake.on("DELETE", path, Answer(status=202))
        fake.on("GET", LIST, listing())
        with RegistryClient(credentials=StaticCredentials({}), config=RegistryConfig()) as client:
            client.delete_manifest(f"{fake.host}/a@{SIGNATURE.digest}")
        assert [request.method for request in fake.requests] == ["GET", "DELETE", "GET"]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([Answer(status=202)], None),
        ([Answer(status=404)], NotFound),
        ([Answer(status=503), Answer(status=404)], None),  # the first attempt did it
        ([Answer(status=405)], Unsupported),
        ([Answer(status=400, body=b'{"errors":[{"code":"UNSUPPORTED"}]}')], Unsupported),
    ],
)
def test_deleting_a_tag(
    memory: MemoryRegistry, client: RegistryClient, answers: list[Answer], error: type[RegistryError] | None
) -> None:
    memory.on("DELETE", "/v2/a/manifests/v1", *answers)
    if error is None:
        client.delete_manifest(f"{memory.host}/a:v1")
    else:
        with pytest.raises(error):
            client.delete_manifest(f"{memory.host}/a:v1")
    assert {request.method for request in memory.requests} == {"DELETE"}
