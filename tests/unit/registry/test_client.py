"""The client against registries that misbehave. Real ones are in tests/integration/test_registry.py."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import io
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, InvalidReference, NotFound, ProtocolError, RegistryError, Unauthorized
from buildkit_py.oci import Descriptor
from buildkit_py.registry import (
    Credentials,
    HostConfig,
    Registry,
    RegistryConfig,
    RetryPolicy,
    StaticCredentials,
    Timeouts,
)
from buildkit_py.registry._http import Transport, retry_after
from buildkit_py.registry._operation import Operation
from buildkit_py.registry._oras import follow
from buildkit_py.registry.auth import Authorizer
from buildkit_py.registry.client import ACCEPT, MAX_MANIFEST_BYTES, RegistryClient
from tests.support.fake_registry import Answer, FakeRegistry, Request, manifest_answer
from tests.support.memory_registry import MemoryRegistry

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
# Odd spacing, escapes and an unknown field: nothing that a JSON library would write the same way again.
INDEX = b'{ "schemaVersion":2 ,\n\t"mediaType":"%s", "x":"\\u00e9<>", "manifests" : [ ]}\n' % INDEX_TYPE.encode()
BLOB = bytes(range(256)) * 4096
PASSWORD = "hunter2-" + "x" * 20


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor_of(data: bytes) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))


@dataclass
class Bench:
    """A client whose waits are recorded instead of slept."""

    timeouts: Timeouts = field(default_factory=lambda: Timeouts(connect=2, read=0.5, total=20, blob=20))
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    waits: list[float] = field(default_factory=list[float])
    now: float = 0.0

    def client(self, config: RegistryConfig | None = None, **credentials: Credentials) -> RegistryClient:
        return self.client_for(credentials, config)

    def client_for(self, credentials: dict[str, Credentials], config: RegistryConfig | None = None) -> RegistryClient:
        config = config or RegistryConfig()
        transport = Transport(
            config,
            timeouts=self.timeouts,
            retry=self.retry,
            wait=self._wait,
            jitter=lambda: 1.0,
            clock=lambda: self.now,
        )
        return RegistryClient(
            credentials=StaticCredentials(credentials),
            config=config,
            timeouts=self.timeouts,
            transport=transport,
        )

    def _wait(self, operation: Operation, seconds: float) -> None:
        if seconds:
            self.waits.append(round(seconds, 3))
            self.now += seconds


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def servers() -> Iterator[Callable[[], FakeRegistry]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(FakeRegistry())


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as server:
        yield server


# Manifests


def test_index_bytes_come_back_as_they_are(fake: FakeRegistry, bench: Bench) -> None:
    """Neither direction may parse and print: the digest is that of the very bytes."""
    fake.on("PUT", r"/v2/a/b/manifests/.*", Answer(status=201))
    fake.on("GET", r"/v2/a/b/manifests/v1", manifest_answer(INDEX, INDEX_TYPE + "; charset=utf-8"))
    with bench.client() as client:
        pushed = client.push_manifest(f"{fake.host}/a/b", INDEX, INDEX_TYPE, ["v1", "latest"])
        raw, found = client.fetch_manifest(f"{fake.host}/a/b:v1")
    assert raw == INDEX
    assert str(pushed.digest) == str(found.digest) == digest_of(INDEX)
    assert (pushed.size, found.media_type) == (len(INDEX), INDEX_TYPE)
    puts = fake.asked("PUT")
    assert [request.path.rpartition("/")[2] for request in puts] == [digest_of(INDEX), "v1", "latest"]
    assert all(request.body == INDEX for request in puts)
    assert all(request.headers["content-type"] == INDEX_TYPE for request in puts)
    assert fake.asked("GET")[0].headers["accept"] == ACCEPT


def test_a_tag_is_written_only_after_the_digest(fake: FakeRegistry, bench: Bench) -> None:
    fake.on(
        "PUT",
        r"/v2/a/manifests/sha256:.*",
        Answer(status=400, body=b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"},{"code":"MANIFEST_BLOB_UNKNOWN"}]}'),
    )
    with bench.client() as client, pytest.raises(RegistryError) as caught:
        client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE, ["v1"])
    assert len(fake.requests) == 1
    error = caught.value
    assert (error.status, error.codes, error.retryable) == (400, ("MANIFEST_BLOB_UNKNOWN",), False)
    assert (error.host, error.method, error.repository) == (fake.host, "PUT", "a")


def test_the_registry_must_have_stored_what_was_sent(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("PUT", r".*", Answer(status=201, headers={"Docker-Content-Digest": digest_of(b"other")}))
    with bench.client() as client, pytest.raises(InvalidDigest, match="the registry stored"):
        client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE, ["v1"])
    assert len(fake.requests) == 1


def test_bad_input_meets_no_registry(fake: FakeRegistry, bench: Bench) -> None:
    with bench.client() as client:
        with pytest.raises(InvalidReference):
            client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE, ["ok", "not a tag"])
        with pytest.raises(InvalidReference):
            client.resolve(f"{fake.host}/UPPER")
        with pytest.raises(RegistryError, match="registries take"):
            client.push_manifest(f"{fake.host}/a", b" " * (MAX_MANIFEST_BYTES + 1), INDEX_TYPE)
        with pytest.raises(RegistryError, match="expected at most 10"):
            client.fetch_blob_bytes(f"{fake.host}/a", descriptor_of(b"x" * 11), 10)
    assert fake.requests == []


def test_resolve_by_head(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("HEAD", r"/v2/a/manifests/v1", manifest_answer(INDEX, INDEX_TYPE, digest_of(INDEX)))
    with bench.client() as client:
        found = client.resolve(f"{fake.host}/a:v1")
    assert (str(found.digest), found.size, found.media_type) == (digest_of(INDEX), len(INDEX), INDEX_TYPE)
    assert [request.method for request in fake.requests] == ["HEAD"]


@pytest.mark.parametrize(
    "head",
    [
        Answer(status=405),
        Answer(status=403),
        manifest_answer(INDEX, INDEX_TYPE),
        manifest_answer(INDEX, INDEX_TYPE, "sha256:short"),
    ],
)
def test_resolve_falls_back_to_the_bytes(fake: FakeRegistry, bench: Bench, head: Answer) -> None:
    fake.on("HEAD", r".*", head)
    fake.on("GET", r"/v2/a/manifests/latest", manifest_answer(INDEX, INDEX_TYPE))
    with bench.client() as client:
        assert str(client.resolve(f"{fake.host}/a").digest) == digest_of(INDEX)


def test_wrong_digest_is_refused(fake: FakeRegistry, bench: Bench) -> None:
    """By digest in the reference, and by the registry's own header."""
    fake.on("GET", r".*", manifest_answer(INDEX, INDEX_TYPE))
    with bench.client() as client:
        with pytest.raises(InvalidDigest, match="manifest of"):
            client.fetch_manifest(f"{fake.host}/a@{digest_of(b'other')}")
        fake.on("GET", r".*", manifest_answer(INDEX, INDEX_TYPE, digest_of(b"other")))
        with pytest.raises(InvalidDigest, match="manifest of"):
            client.fetch_manifest(f"{fake.host}/a:v1")
    assert len(fake.requests) == 2  # and none is asked again


def test_types_must_agree(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("GET", r".*", manifest_answer(INDEX, "application/vnd.oci.image.manifest.v1+json"))
    with bench.client() as client, pytest.raises(RegistryError, match="it calls itself"):
        client.fetch_manifest(f"{fake.host}/a:v1")


def test_oversized_manifests_are_not_read(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("GET", r".*", manifest_answer(b" " * (MAX_MANIFEST_BYTES + 1), INDEX_TYPE))
    with bench.client() as client, pytest.raises(RegistryError, match="larger than") as caught:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert not caught.value.retryable


def test_exists(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("HEAD", rf"/v2/a/manifests/{digest_of(INDEX)}", manifest_answer(INDEX, INDEX_TYPE, digest_of(INDEX)))
    fake.on("HEAD", rf"/v2/a/blobs/{digest_of(BLOB)}", Answer())
    fake.on("HEAD", r"/v2/broken/.*", Answer(status=400))
    with bench.client() as client:
        assert client.exists(f"{fake.host}/a", Digest.of(INDEX))
        assert client.exists(f"{fake.host}/a", Digest.of(BLOB), blob=True)
        assert not client.exists(f"{fake.host}/a", Digest.of(b"other"))
        assert not client.exists(f"{fake.host}/a", Digest.of(b"other"), blob=True)
        # Anything but 404 is no proof of absence.
        with pytest.raises(RegistryError, match="HTTP 400"):
            client.exists(f"{fake.host}/broken", Digest.of(BLOB), blob=True)


def test_tags_of_many_pages(fake: FakeRegistry, bench: Bench) -> None:
    """Links are followed with their query as it is; order, null and digests are the client's to deal with."""
    fake.on(
        "GET",
        r"/v2/a/tags/list",
        Answer(
            body=b'{"name":"a","tags":["b",null]}',
            headers={"Link": '</v2/a/tags/list?last=b&n=2>; rel="next"'},
        ),
        Answer(body=b'{"name":"a","tags":["a","b"]}'),
    )
    fake.on("GET", r"/v2/empty/tags/list", Answer(body=b'{"name":"empty","tags":null}'))
    with bench.client() as client:
        assert client.tags(f"{fake.host}/a") == ["a", "b"]
        assert client.tags(f"{fake.host}/empty") == []
        with pytest.raises(NotFound):
            client.tags(f"{fake.host}/none")
    assert fake.requests[1].query == "last=b&n=2"


@pytest.mark.parametrize("link", ["/v2/a/tags/list", "http://127.0.0.1:1/v2/a/tags/list?n=1"])
def test_tag_lists_end_and_stay_at_home(fake: FakeRegistry, bench: Bench, link: str) -> None:
    answer = Answer(body=b'{"tags":["x"]}', headers={"Link": f'<{link}>; rel="next"'})
    fake.on("GET", r"/v2/a/tags/list", answer)
    with bench.client() as client, pytest.raises(RegistryError, match="no page of its own"):
        client.tags(f"{fake.host}/a")
    assert len(fake.requests) == 1


# Retries and time


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(fake: FakeRegistry, bench: Bench, status: int) -> None:
    fake.on("GET", r".*", Answer(status=status), Answer(status=status), manifest_answer(INDEX, INDEX_TYPE))
    with bench.client() as client:
        assert client.fetch_manifest(f"{fake.host}/a:v1")[0] == INDEX
    assert bench.waits == [0.25, 0.5]


@pytest.mark.parametrize("status", [400, 404, 405, 406, 409, 413, 501])
def test_final_failures_are_not(fake: FakeRegistry, bench: Bench, status: int) -> None:
    fake.on("GET", r".*", Answer(status=status, body=b"<html>no JSON here"))
    with bench.client() as client, pytest.raises(RegistryError) as caught:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert caught.value.status == status
    assert isinstance(caught.value, NotFound) == (status == 404)
    assert len(fake.requests) == 1


def test_attempts_are_bounded(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("GET", r".*", Answer(status=503))
    with bench.client() as client, pytest.raises(RegistryError, match="HTTP 503") as caught:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert caught.value.retryable
    assert len(fake.requests) == 5
    assert bench.waits == [0.25, 0.5, 1.0, 2.0]


def test_retry_after_is_obeyed_and_capped(fake: FakeRegistry) -> None:
    bench = Bench(timeouts=Timeouts(read=0.5, total=500), retry=RetryPolicy(retry_after_cap=60))
    fake.on(
        "GET",
        r".*",
        Answer(status=429, headers={"Retry-After": "7"}),
        Answer(status=503, headers={"Retry-After": email.utils.formatdate(time.time() + 3600, usegmt=True)}),
        manifest_answer(INDEX, INDEX_TYPE),
    )
    with bench.client() as client:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert bench.waits == [7.0, 60.0]


def test_too_many_requests_slow_every_worker_down(fake: FakeRegistry, bench: Bench) -> None:
    """The other requests to that host wait, too, before they are sent."""
    fake.on("GET", r"/v2/a/.*", Answer(status=429, headers={"Retry-After": "9"}))
    fake.on("GET", r"/v2/b/.*", manifest_answer(INDEX, INDEX_TYPE))
    bench.retry = RetryPolicy(attempts=1)
    with bench.client() as client:
        with pytest.raises(RegistryError, match="429"):
            client.fetch_manifest(f"{fake.host}/a:v1")
        assert bench.waits == []
        client.fetch_manifest(f"{fake.host}/b:v1")
    assert bench.waits == [9.0]


def test_a_wait_beyond_the_budget_is_not_begun(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("GET", r".*", Answer(status=503, headers={"Retry-After": "50"}))
    with bench.client() as client, pytest.raises(RegistryError, match="HTTP 503") as caught:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert caught.value.retry_after == 50
    assert bench.waits == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [("7", 7.0), (" 0 ", 0.0), ("-1", None), ("soon", None), ("", None), (None, None), ("9" * 400, 999999999.0)],
)
def test_retry_after_forms(value: str | None, expected: float | None) -> None:
    assert retry_after(value) == expected


def test_a_silent_registry_ends_in_a_timeout(fake: FakeRegistry) -> None:
    bench = Bench(timeouts=Timeouts(connect=1, read=0.2, total=5), retry=RetryPolicy(attempts=2))
    fake.on("GET", r".*", Answer(silent=True))
    begin = time.monotonic()
    with bench.client() as client, pytest.raises(RegistryError, match="no answer within") as caught:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert (caught.value.retryable, caught.value.status) == (True, 0)
    assert time.monotonic() - begin < 3
    assert len(fake.requests) == 2


def test_a_dripping_registry_ends_in_a_timeout(fake: FakeRegistry) -> None:
    """Each byte comes in time, the whole does not."""
    bench = Bench(timeouts=Timeouts(connect=1, read=0.5, total=0.6))
    fake.on("GET", r".*", Answer(body=INDEX, drip=0.1))
    begin = time.monotonic()
    operation = Operation(0.6)
    timer = threading.Timer(0.6, operation.expire)
    timer.start()
    with bench.client() as client, pytest.raises(RegistryError, match=r"did not finish within 0\.6 s"):
        client.fetch_manifest(f"{fake.host}/a:v1", operation=operation)
    timer.join()
    assert time.monotonic() - begin < 3


def test_nobody_listens(bench: Bench) -> None:
    with FakeRegistry() as gone:
        host = gone.host
    with bench.client() as client, pytest.raises(RegistryError, match="connection refused") as caught:
        client.resolve(f"{host}/a:v1")
    assert caught.value.retryable
    assert len(bench.waits) == 3


def test_tls_asked_of_a_plain_registry(fake: FakeRegistry, bench: Bench) -> None:
    config = RegistryConfig(hosts={fake.host: HostConfig(plain_http=False)})
    with bench.client(config) as client, pytest.raises(RegistryError, match="may speak plain HTTP") as caught:
        client.resolve(f"{fake.host}/a:v1")
    assert not caught.value.retryable


# Blobs


def test_blob_download(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("GET", rf"/v2/a/blobs/{digest_of(BLOB)}", Answer(body=BLOB))
    sink = io.BytesIO()
    with bench.client() as client:
        client.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), sink)
        assert client.fetch_blob_bytes(f"{fake.host}/a", descriptor_of(BLOB), len(BLOB)) == BLOB
        assert client.fetch_blob_bytes(f"{fake.host}/a", descriptor_of(b""), 10) == b""
    assert sink.getvalue() == BLOB
    assert fake.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("with_range", [True, False])
def test_a_dropped_download_goes_on(fake: FakeRegistry, bench: Bench, with_range: bool) -> None:
    """With a range where the registry knows them, else from the start; no byte is written twice."""

    def rest(request: Request) -> Answer:
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        assert 0 < start < len(BLOB)
        if not with_range:
            return Answer(body=BLOB)
        told = {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}
        return Answer(status=206, body=BLOB[start:], headers=told)

    fake.on("GET", r".*", Answer(body=BLOB[:300_000], length=len(BLOB), cut=True), rest)
    sink = io.BytesIO()
    with bench.client() as client:
        client.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), sink)
    assert sink.getvalue() == BLOB


def test_a_download_that_goes_on_elsewhere(fake: FakeRegistry, bench: Bench) -> None:
    wrong = Answer(status=206, body=BLOB[5:], headers={"Content-Range": f"bytes 5-{len(BLOB) - 1}/{len(BLOB)}"})
    fake.on("GET", r".*", Answer(body=BLOB[:300_000], length=len(BLOB), cut=True), wrong)
    with bench.client() as client, pytest.raises(RegistryError, match="another place"):
        client.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), io.BytesIO())


def test_dropped_mid_blob_every_time(fake: FakeRegistry, bench: Bench) -> None:
    """Ends in a retryable error within seconds, after a bounded number of attempts."""
    fake.on("GET", r".*", Answer(body=b"", length=len(BLOB), cut=True))
    begin = time.monotonic()
    with bench.client() as client, pytest.raises(RegistryError, match="ended in the middle") as caught:
        client.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), io.BytesIO())
    assert caught.value.retryable
    assert len(fake.requests) == 5
    assert time.monotonic() - begin < 3


def test_blobs_of_other_bytes(fake: FakeRegistry, bench: Bench) -> None:
    """Wrong digest, too long, too short: refused, and the too long one before it is written."""
    sink = io.BytesIO()
    with bench.client() as client:
        fake.on("GET", r".*", Answer(body=b"\0" * len(BLOB)))
        with pytest.raises(InvalidDigest, match="blob of"):
            client.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), io.BytesIO())
        fake.on("GET", r".*", Answer(body=BLOB + b"x"))
        with pytest.raises(InvalidDigest, match="larger than"):
            client.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), sink)
        assert len(sink.getvalue()) <= len(BLOB)
        fake.on("GET", r".*", Answer(body=BLOB[:-1]))
        with pytest.raises(RegistryError, match=r"ended after \d+ of"):
            client.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), io.BytesIO())


def uploads(fake: FakeRegistry, location: str, *answers: Answer) -> None:
    fake.on("POST", r"/v2/a/blobs/uploads/", Answer(status=202, headers={"Location": location}))
    fake.on("PUT", r"/up(load)?/.*", *(answers or (Answer(status=201),)))


@pytest.mark.parametrize(
    "location",
    [
        "/up/1?a=&b=1&b=2&_state=%2fX%3d",
        "http://{host}/up/1?a=&b=1&b=2&_state=%2fX%3d",
        "//{host}/up/1?a=&b=1&b=2&_state=%2fX%3d",
    ],
)
def test_upload_locations_are_kept_verbatim(fake: FakeRegistry, bench: Bench, location: str) -> None:
    """Blank and repeated parameters and the case of percent signs may be part of a signature."""
    uploads(fake, location.format(host=fake.host))
    with bench.client() as client:
        assert client.push_blob(f"{fake.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(BLOB))
    (put,) = fake.asked("PUT")
    digest = digest_of(BLOB).replace(":", "%3A")
    assert put.query == f"a=&b=1&b=2&_state=%2fX%3d&digest={digest}"
    assert put.body == BLOB
    assert put.headers["content-length"] == str(len(BLOB))
    assert "transfer-encoding" not in put.headers


def test_relative_upload_location(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("POST", r"/v2/a/blobs/uploads/", Answer(status=202, headers={"Location": "session-1"}))
    fake.on("PUT", r"/v2/a/blobs/uploads/session-1", Answer(status=201))
    with bench.client() as client:
        assert client.push_blob(f"{fake.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(BLOB))
    assert fake.asked("PUT")[0].query.startswith("digest=")


def test_a_failed_upload_begins_anew(fake: FakeRegistry, bench: Bench) -> None:
    """503 in the middle, then a session that is gone: each time from POST, with the whole body."""
    uploads(fake, "/up/1", Answer(status=503), Answer(status=404), Answer(status=201))
    opened: list[io.BytesIO] = []

    def open_content() -> io.BytesIO:
        opened.append(io.BytesIO(BLOB))
        return opened[-1]

    with bench.client() as client:
        assert client.push_blob(f"{fake.host}/a", descriptor_of(BLOB), open_content)
    assert len(fake.asked("POST")) == len(opened) == 3
    assert [len(request.body) for request in fake.asked("PUT")] == [len(BLOB)] * 3
    assert all(file.closed for file in opened)


def test_blobs_that_exist_are_not_sent(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("HEAD", r"/v2/a/blobs/.*", Answer())
    with bench.client() as client:
        assert not client.push_blob(f"{fake.host}/a", descriptor_of(BLOB), lambda: pytest.fail("opened"))


def test_mount(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("POST", r"/v2/a/blobs/uploads/", Answer(status=201))
    with bench.client() as client:
        sent = client.push_blob(
            f"{fake.host}/a", descriptor_of(BLOB), lambda: pytest.fail("opened"), mount_from=f"{fake.host}/b/c"
        )
    assert not sent
    assert fake.asked("POST")[0].parameters == {"mount": [digest_of(BLOB)], "from": ["b/c"]}


@pytest.mark.parametrize("refusal", [Answer(status=401), Answer(status=404), Answer(status=400)])
def test_a_refused_mount_becomes_an_upload(fake: FakeRegistry, bench: Bench, refusal: Answer) -> None:
    accepted = Answer(status=202, headers={"Location": "/up/1"})
    fake.on("POST", r".*", refusal, accepted)
    fake.on("PUT", r"/up/1", Answer(status=201))
    with bench.client() as client:
        assert client.push_blob(
            f"{fake.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(BLOB), mount_from=f"{fake.host}/b"
        )
    assert fake.asked("POST")[1].query == ""


def test_nothing_is_mounted_from_another_registry(fake: FakeRegistry, bench: Bench) -> None:
    uploads(fake, "/up/1")
    with bench.client() as client:
        client.push_blob(f"{fake.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(BLOB), mount_from="other.example/b")
    assert fake.asked("POST")[0].query == ""


@pytest.mark.parametrize("content", [BLOB[:-1], BLOB + b"x"])
def test_content_of_another_size(fake: FakeRegistry, bench: Bench, content: bytes) -> None:
    uploads(fake, "/up/1")
    with bench.client() as client, pytest.raises(InvalidDigest, match="not the"):
        client.push_blob(f"{fake.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(content))


def test_content_that_cannot_be_read(fake: FakeRegistry, bench: Bench, tmp_path: Path) -> None:
    """A failure of our own disk is not retried, and not blamed on the registry."""
    uploads(fake, "/up/1")
    with bench.client() as client, pytest.raises(RegistryError, match="No such file") as caught:
        client.push_blob(f"{fake.host}/a", descriptor_of(BLOB), lambda: (tmp_path / "gone").open("rb"))
    assert not caught.value.retryable


# Credentials and where they go


def token_server(server: FakeRegistry, *, expires: int = 300) -> None:
    """Tokens that name their scopes, so that a registry can look into them."""
    count = iter(range(1, 100))

    def give(request: Request) -> Answer:
        scopes = " ".join(request.parameters.get("scope", []))
        who = request.authorization or "nobody"
        token = f"{next(count)}|{who.removeprefix('Basic ')}|{scopes}".replace(" ", "_")
        return Answer(body=json.dumps({"token": token, "expires_in": expires}).encode())

    server.on("GET", "/token", give)


def protected(realm: FakeRegistry, answer: Answer, *, scope: str = "", needs: str = "") -> Callable[[Request], Answer]:
    challenge = f'Bearer realm="{realm.url}/token",service="svc"' + (f',scope="{scope}"' if scope else "")

    def check(request: Request) -> Answer:
        sent = request.authorization or ""
        if sent.startswith("Bearer ") and needs in sent:
            return answer
        return Answer(status=401, challenges=(challenge,))

    return check


def test_bearer_tokens_are_fetched_once_for_each_scope(fake: FakeRegistry, bench: Bench) -> None:
    token_server(fake)
    read = protected(fake, manifest_answer(INDEX, INDEX_TYPE), scope="repository:user/image:pull")
    fake.on("GET", r"/v2/.*", read)
    fake.on("PUT", r"/v2/.*", protected(fake, Answer(status=201), needs="pull,push"))
    with bench.client_for({fake.host: Credentials("u", PASSWORD)}) as client:
        for _ in range(3):
            client.fetch_manifest(f"{fake.host}/a:v1")
        client.fetch_manifest(f"{fake.host}/b:v1")
        client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE, ["v1", "v2"])
        client.fetch_manifest(f"{fake.host}/a:v1")
    asked = [request.parameters["scope"] for request in fake.asked("GET", "/token")]
    # The placeholder scope of the challenge is not ours, and pull is within pull,push.
    assert asked == [["repository:a:pull"], ["repository:b:pull"], ["repository:a:pull,push"]]
    # Only the very first request had to be refused.
    assert len([r for r in fake.asked("", "/v2/") if r.authorization is None]) == 1


def test_a_token_refused_is_fetched_again_exactly_once(fake: FakeRegistry, bench: Bench) -> None:
    """Also what a token expired on the registry's side comes to."""
    token_server(fake)
    fake.on("GET", r"/v2/.*", protected(fake, manifest_answer(INDEX, INDEX_TYPE)))
    with bench.client() as client:
        client.fetch_manifest(f"{fake.host}/a:v1")
        fake.on("GET", r"/v2/.*", protected(fake, manifest_answer(INDEX, INDEX_TYPE), needs="Bearer 2|"))
        client.fetch_manifest(f"{fake.host}/a:v1")
        assert len(fake.asked("GET", "/token")) == 2
        fake.on("GET", r"/v2/.*", protected(fake, Answer(), needs="never"))
        with pytest.raises(Unauthorized, match="no credentials are known"):
            client.fetch_manifest(f"{fake.host}/a:v1")
    assert len(fake.asked("GET", "/token")) == 3


def test_insufficient_scope_ends(fake: FakeRegistry, bench: Bench) -> None:
    """The registry names more than was asked for: asked once with that, then it is final."""
    token_server(fake)
    more = f'Bearer realm="{fake.url}/token",scope="repository:x:pull",error="insufficient_scope"'
    fake.on("GET", r"/v2/.*", Answer(status=401, challenges=(more,)))
    with bench.client() as client, pytest.raises(Unauthorized) as caught:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert caught.value.status == 401
    assert len(fake.asked("GET", "/token")) <= 2
    assert "repository:x:pull" in fake.asked("GET", "/token")[-1].parameters["scope"]


def test_basic(fake: FakeRegistry, bench: Bench) -> None:
    wanted = "Basic dTpw"
    fake.on(
        "GET",
        r"/v2/.*",
        lambda request: (
            manifest_answer(INDEX, INDEX_TYPE)
            if request.authorization == wanted
            else Answer(status=401, challenges=('Basic realm="x"',))
        ),
    )
    with bench.client_for({fake.host: Credentials("u", "p")}) as client:
        client.fetch_manifest(f"{fake.host}/a:v1")
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert [request.authorization for request in fake.requests] == [None, wanted, wanted]
    with bench.client() as client, pytest.raises(Unauthorized, match=f"docker login {fake.host}"):
        client.fetch_manifest(f"{fake.host}/a:v1")
    with bench.client_for({fake.host: Credentials("u", PASSWORD)}) as client:
        with pytest.raises(Unauthorized, match="check the account's rights") as caught:
            client.fetch_manifest(f"{fake.host}/a:v1")
        assert PASSWORD not in repr(caught.value)


def test_bearer_is_preferred(fake: FakeRegistry, bench: Bench) -> None:
    token_server(fake)
    both = ('Basic realm="x"', f'Bearer realm="{fake.url}/token"')
    fake.on(
        "GET",
        r"/v2/.*",
        lambda request: (
            manifest_answer(INDEX, INDEX_TYPE)
            if (request.authorization or "").startswith("Bearer")
            else Answer(status=401, challenges=both)
        ),
    )
    with bench.client_for({fake.host: Credentials("u", "p")}) as client:
        client.fetch_manifest(f"{fake.host}/a:v1")


def test_403_is_final(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("PUT", r".*", Answer(status=403, body=b'{"errors":[{"code":"denied","message":"read only"}]}'))
    with bench.client() as client, pytest.raises(Unauthorized, match="DENIED") as caught:
        client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE)
    assert (caught.value.status, caught.value.codes, len(fake.requests)) == (403, ("DENIED",), 1)


@pytest.mark.parametrize("challenges", [(), ("Negotiate abc=",), ('Bearer realm="nonsense"',)])
def test_challenges_that_lead_nowhere(fake: FakeRegistry, bench: Bench, challenges: tuple[str, ...]) -> None:
    fake.on("GET", r".*", Answer(status=401, challenges=challenges))
    with bench.client() as client, pytest.raises(Unauthorized):
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert len(fake.requests) == 1


def test_nothing_of_one_registry_reaches_another(servers: Callable[[], FakeRegistry], bench: Bench) -> None:
    """Not its password, not its token: not on requests, redirects, uploads, or to the other's token server."""
    mine, mine_tokens, other, storage = servers(), servers(), servers(), servers()
    token_server(mine_tokens)
    token_server(other)
    elsewhere = {"Location": f"{storage.url}/stored?signature=s"}
    mine.on("GET", r"/v2/.*/manifests/.*", protected(mine_tokens, manifest_answer(INDEX, INDEX_TYPE)))
    mine.on("GET", r"/v2/.*/blobs/.*", protected(mine_tokens, Answer(status=307, headers=elsewhere)))
    mine.on("HEAD", r"/v2/.*", protected(mine_tokens, Answer(status=404)))
    mine.on(
        "POST",
        r"/v2/.*",
        protected(mine_tokens, Answer(status=202, headers={"Location": f"{storage.url}/up/1"})),
    )
    storage.on("GET", "/stored", Answer(body=BLOB))
    storage.on("PUT", "/up/1", Answer(status=201))
    other.on("GET", r"/v2/.*", protected(other, manifest_answer(INDEX, INDEX_TYPE)))
    with bench.client_for({mine.host: Credentials("u", PASSWORD)}) as client:
        client.fetch_manifest(f"{mine.host}/a:v1")
        client.fetch_manifest(f"{other.host}/a:v1")
        assert client.fetch_blob_bytes(f"{mine.host}/a", descriptor_of(BLOB), len(BLOB)) == BLOB
        client.push_blob(f"{mine.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(BLOB))
        client.fetch_manifest(f"{other.host}/a:v1")

        # A storage host that wants authentication gets none, and its realm is not asked.
        realm = f'Bearer realm="{storage.url}/token"'
        storage.on("GET", "/stored", Answer(status=401, challenges=(realm,)))
        with pytest.raises(RegistryError) as caught:
            client.fetch_blob_bytes(f"{mine.host}/a", descriptor_of(BLOB), len(BLOB))
    assert "signature" not in str(caught.value)
    assert [r.authorization for r in storage.requests] == [None] * len(storage.requests)
    assert len(storage.requests) == 3
    assert all("dT" not in (r.authorization or "") for r in other.requests)
    assert all("nobody" in r.authorization for r in other.asked("GET", "/v2/") if r.authorization)
    assert all(r.authorization and r.authorization.startswith("Basic ") for r in mine_tokens.requests)


def test_a_redirect_to_another_registry(servers: Callable[[], FakeRegistry], bench: Bench) -> None:
    """One registry cannot have what is known of another one used there, headers of its settings included."""
    mine, other = servers(), servers()
    challenge = Answer(status=401, challenges=('Basic realm="x"',))
    other.on(
        "GET", r"/v2/a/.*", lambda request: manifest_answer(INDEX, INDEX_TYPE) if request.authorization else challenge
    )
    mine.on("GET", r"/v2/.*", Answer(status=307, headers={"Location": f"{other.url}/v2/a/manifests/v1"}))
    hosts = {
        other.host: HostConfig(headers={"X-Key": "of the other"}),
        mine.host: HostConfig(headers={"X-Key": "mine"}),
    }
    credentials = {other.host: Credentials("u", PASSWORD)}
    with bench.client_for(credentials, RegistryConfig(hosts=hosts)) as client:
        client.fetch_manifest(f"{other.host}/a:v1")
        with pytest.raises(RegistryError, match="401"):
            client.fetch_manifest(f"{mine.host}/a:v1")
    *direct, redirected = other.requests
    assert [bool(request.authorization) for request in direct] == [False, True]
    assert all(request.headers["x-key"] == "of the other" for request in direct)
    assert (redirected.authorization, redirected.headers.get("x-key")) == (None, None)


def test_an_upload_elsewhere(servers: Callable[[], FakeRegistry], bench: Bench) -> None:
    """Where an upload goes on at another host, that host's wish for authentication is not heard."""
    home, storage = servers(), servers()
    home.on("HEAD", r"/v2/.*", Answer(status=404))
    home.on("POST", r"/v2/.*", Answer(status=202, headers={"Location": f"{storage.url}/up/1"}))
    realm = f'Bearer realm="{storage.url}/token"'
    for method in ("PUT", "DELETE"):
        storage.on(method, "/up/1", Answer(status=401, challenges=(realm,)))
    storage.on("GET", "/token", Answer(body=b'{"token":"t"}'))
    known = {host: Credentials("u", PASSWORD) for host in (home.host, storage.host)}
    with bench.client_for(known) as client:
        with pytest.raises(RegistryError, match="401"):
            client.push_blob(f"{home.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(BLOB))
        home.on("HEAD", r"/v2/.*", Answer(status=200))
        assert not client.push_blob(
            f"{home.host}/a", descriptor_of(BLOB), lambda: io.BytesIO(BLOB), mount_from=f"{home.host}/b"
        )
    assert [(request.method, request.authorization) for request in storage.requests] == [
        ("PUT", None),
        ("DELETE", None),
    ]


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("https://r.example/v2/x", "/v2/y?a=b", "https://r.example/v2/y?a=b"),
        ("https://r.example/v2/x", "https://cdn.example/y", "https://cdn.example/y"),
        ("https://r.example/v2/x", "http://r.example/y", "https://r.example/y"),
        ("https://r.example/v2/x", "//cdn.example/y", "https://cdn.example/y"),
        ("http://r.example/v2/x", "http://cdn.example/y", "http://cdn.example/y"),
        ("http://127.0.0.1:5000/v2/x", "http://127.0.0.1:9000/y", "http://127.0.0.1:9000/y"),
        ("https://r.example/v2/x", "http://cdn.example/y", "without TLS"),
        ("https://r.example/v2/x", "http://r.example:8080/y", "without TLS"),
        ("https://r.example:8443/v2/x", "http://r.example/y", "another port without TLS"),
        ("https://r.example/v2/x", "https://127.0.0.1/y", "address of this machine"),
        ("http://r.example/v2/x", "http://localhost:9000/y", "address of this machine"),
        ("http://r.example/v2/x", "http://169.254.169.254/y", "address of this machine"),
        ("https://r.example/v2/x", "https://[::ffff:127.0.0.1]/y", "address of this machine"),
        ("https://r.example/v2/x", "https://u:p@r.example/y", "must not carry credentials"),
        ("https://r.example/v2/x", "https://127.0.0.\N{FULLWIDTH DIGIT ONE}/y", "expected an http or https URL"),
    ],
)
def test_where_a_registry_may_lead(url: str, location: str, expected: str) -> None:
    if expected.startswith("http"):
        assert follow(url, location) == expected
        return
    with pytest.raises(RegistryError, match=expected):
        follow(url, location)


def test_redirects_end(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("GET", r".*", Answer(status=302, headers={"Location": "/v2/a/again"}))
    with bench.client() as client, pytest.raises(RegistryError, match="redirects"):
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert len(fake.requests) == 6


@pytest.mark.parametrize(
    "location",
    ["", "ftp://x/y", "http://u:p@127.0.0.1/x", "http://[bad/", "http://caf\N{LATIN SMALL LETTER E WITH ACUTE}/"],
)
def test_redirects_to_nowhere(fake: FakeRegistry, bench: Bench, location: str) -> None:
    fake.on("GET", r".*", Answer(status=302, headers={"Location": location}))
    with bench.client() as client, pytest.raises(RegistryError):
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert len(fake.requests) == 1


def test_bodies_do_not_follow_redirects(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("PUT", r".*", Answer(status=307, headers={"Location": "/elsewhere"}))
    with bench.client() as client, pytest.raises(RegistryError, match="HTTP 307"):
        client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE)


def test_netrc_is_not_read(fake: FakeRegistry, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login evil password evil\nmachine 127.0.0.1 login evil password evil\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    fake.on("GET", r".*", manifest_answer(INDEX, INDEX_TYPE))
    with bench.client() as client:
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert fake.requests[0].authorization is None


def test_loopback_goes_past_the_proxy(fake: FakeRegistry, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:pw@127.0.0.1:1")
    fake.on("GET", r".*", manifest_answer(INDEX, INDEX_TYPE))
    with bench.client() as client:
        client.fetch_manifest(f"{fake.host}/a:v1")


def test_other_hosts_go_through_the_proxy(fake: FakeRegistry, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", fake.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fake.on("GET", r".*", manifest_answer(INDEX, INDEX_TYPE))
    config = RegistryConfig(hosts={"r.example:5000": HostConfig(plain_http=True)})
    with bench.client(config) as client:
        client.fetch_manifest("r.example:5000/a:v1")
    assert fake.requests[0].headers["host"] == "r.example:5000"


def test_cookies_are_refused(fake: FakeRegistry, bench: Bench) -> None:
    fake.on("GET", r".*", manifest_answer(INDEX, INDEX_TYPE, None, **{"Set-Cookie": "sid=1; Path=/"}))
    with bench.client() as client:
        client.fetch_manifest(f"{fake.host}/a:v1")
        client.fetch_manifest(f"{fake.host}/a:v1")
    assert "cookie" not in fake.requests[1].headers


def test_a_registry_that_echoes_our_header(fake: FakeRegistry, bench: Bench) -> None:
    """What it answers is shown, made printable and cut, but never with our secret in it."""

    def echo(request: Request) -> Answer:
        if request.authorization is None:
            return Answer(status=401, challenges=('Basic realm="x"',))
        sent = request.authorization if "/header" in request.path else PASSWORD
        errors = [{"code": "X", "message": f"you sent {sent}"}, {"code": f"Y {sent}", "message": ""}]
        return Answer(status=400, body=json.dumps({"errors": errors}).encode())

    fake.on("GET", r"/v2/echo/.*", echo)
    evil = {"errors": [{"code": "BAD\x1b[31m", "message": "line\nbreak\x1b]0;" + "x" * 5000}]}
    fake.on("GET", r"/v2/evil/.*", Answer(status=400, body=json.dumps(evil).encode()))
    with bench.client_for({fake.host: Credentials("u", PASSWORD)}) as client:
        for name in ("header", "password"):
            with pytest.raises(RegistryError, match=r"HTTP 400 X$") as caught:
                client.fetch_manifest(f"{fake.host}/echo/{name}:v1")
            assert caught.value.codes == ("X",)
        with pytest.raises(RegistryError) as caught:
            client.fetch_manifest(f"{fake.host}/evil:v1")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


# The face for the event loop


async def test_many_at_once(fake: FakeRegistry) -> None:
    fake.on("GET", r"/v2/a/blobs/.*", Answer(body=BLOB))
    async with Registry(credentials=StaticCredentials({}), concurrency=4) as registry:
        await registry.warm_up()
        found = await asyncio.gather(
            *(registry.fetch_blob_bytes(f"{fake.host}/a", descriptor_of(BLOB), len(BLOB)) for _ in range(20))
        )
    assert found == [BLOB] * 20


async def test_cancelling_ends_the_thread(fake: FakeRegistry) -> None:
    """A read that would last for a minute ends with the call, so that a process can exit."""
    fake.on("GET", r".*", Answer(silent=True))
    async with Registry(credentials=StaticCredentials({})) as registry:
        task = asyncio.create_task(registry.fetch_manifest(f"{fake.host}/a:v1"))
        while not fake.requests:
            await asyncio.sleep(0.01)
        begin = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begin < 1
        # The client is still good for the next call.
        fake.on("GET", r".*", manifest_answer(INDEX, INDEX_TYPE))
        assert (await registry.fetch_manifest(f"{fake.host}/a:v1"))[0] == INDEX


async def test_cancelling_while_a_body_drips(fake: FakeRegistry) -> None:
    """The writer gets nothing after the call has ended."""
    fake.on("GET", r".*", Answer(body=BLOB, drip=0.02))
    sink = io.BytesIO()
    async with Registry(credentials=StaticCredentials({})) as registry:
        task = asyncio.create_task(registry.fetch_blob(f"{fake.host}/a", descriptor_of(BLOB), sink))
        while not fake.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        size = len(sink.getvalue())
        await asyncio.sleep(0.1)
        assert len(sink.getvalue()) == size


async def test_the_total_ends_a_drip(fake: FakeRegistry) -> None:
    fake.on("GET", r".*", Answer(body=INDEX, drip=0.1))
    async with Registry(credentials=StaticCredentials({}), timeouts=Timeouts(read=5, total=0.5)) as registry:
        with pytest.raises(RegistryError, match=r"did not finish within 0\.5 s"):
            await registry.fetch_manifest(f"{fake.host}/a:v1")


async def test_closing_ends_what_runs(fake: FakeRegistry) -> None:
    fake.on("GET", r".*", Answer(silent=True))
    registry = Registry(credentials=StaticCredentials({}))
    task = asyncio.create_task(registry.fetch_manifest(f"{fake.host}/a:v1"))
    while not fake.requests:
        await asyncio.sleep(0.01)
    await registry.aclose()
    with pytest.raises(RegistryError, match="cancelled"):
        await task
    with pytest.raises(RegistryError, match="closed"):
        await registry.resolve(f"{fake.host}/a:v1")


async def test_one_blob_pushed_many_times_at_once() -> None:
    """It is sent once; whoever else wanted it waits, and those whose turn ends badly leave it to the next."""
    with MemoryRegistry() as memory:
        held, first = threading.Event(), threading.Event()

        def hold(request: Request) -> Answer:
            if not first.is_set():
                first.set()
                held.wait(10)
                return Answer(status=500)
            return memory.passing(request)

        memory.on("PUT", r"/v2/a/blobs/uploads/[0-9]+", hold)
        async with Registry(credentials=StaticCredentials({}), retry=RetryPolicy(attempts=1)) as registry:

            def push() -> asyncio.Task[bool]:
                what = descriptor_of(BLOB)
                return asyncio.create_task(registry.push_blob(f"{memory.host}/a", what, lambda: io.BytesIO(BLOB)))

            fails = push()
            while not first.is_set():
                await asyncio.sleep(0.01)
            cancelled, *others = [push() for _ in range(6)]
            elsewhere = registry.push_blob(f"{memory.host}/b", descriptor_of(BLOB), lambda: io.BytesIO(BLOB))
            assert await elsewhere  # another repository is another thing
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            held.set()
            with pytest.raises(RegistryError, match="500"):
                await fails
            assert sorted(await asyncio.gather(*others)) == [False] * 4 + [True]
        sent = [request for request in memory.requests if request.method == "PUT" and "/v2/a/" in request.path]
        assert len(sent) == 2


@pytest.mark.parametrize(
    ("codes", "tried"), [(["DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"], 2), (["MANIFEST_BLOB_UNKNOWN"] * 2, 1)]
)
def test_a_registry_that_loses_sight_of_a_blob(fake: FakeRegistry, bench: Bench, codes: list[str], tried: int) -> None:
    """Distribution reads a link while another push writes it; a blob that is missing is no such thing."""
    body = json.dumps({"errors": [{"code": code} for code in codes]}).encode()
    fake.on("PUT", r".*", Answer(status=400, body=body), Answer(status=201))
    with bench.client() as client:
        if tried == 2:
            client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE)
        else:
            with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN"):
                client.push_manifest(f"{fake.host}/a", INDEX, INDEX_TYPE)
    assert len(fake.requests) == tried


def test_importing_the_package_is_cheap() -> None:
    """Builds without a push never load the HTTP stack, nor does the session until a token is fetched."""
    code = (
        "import sys, buildkit_py.registry, buildkit_py.session.auth\n"
        "heavy = {'requests', 'urllib3', 'oras', 'jsonschema', 'cryptography'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Guards whose loss nothing else would show


def test_an_upload_that_is_not_needed_is_given_back(fake: FakeRegistry, bench: Bench) -> None:
    """A registry that would not mount has opened an upload; the blob turns out to be there."""
    fake.on("POST", r"/v2/a/blobs/uploads/", Answer(status=202, headers={"Location": "/up/1"}))
    fake.on("HEAD", r"/v2/a/blobs/.*", Answer())
    fake.on("DELETE", r"/up/1", Answer(status=204))
    with bench.client() as client:
        assert not client.push_blob(
            f"{fake.host}/a", descriptor_of(BLOB), lambda: pytest.fail("opened"), mount_from=f"{fake.host}/b"
        )
    assert len(fake.asked("DELETE", "/up/1")) == 1


def test_headers_of_a_host_are_not_added_to_redirects(servers: Callable[[], FakeRegistry], bench: Bench) -> None:
    """The URL of a redirect is complete, signed perhaps; what the host wants of its own clients is not for it."""
    mine, storage = servers(), servers()
    config = RegistryConfig(hosts={host: HostConfig(headers={"X-Key": "k"}) for host in (mine.host, storage.host)})
    mine.on("GET", r"/v2/a/blobs/.*", Answer(status=307, headers={"Location": f"{storage.url}/stored"}))
    storage.on("GET", "/stored", Answer(body=BLOB))
    with bench.client(config) as client:
        assert client.fetch_blob_bytes(f"{mine.host}/a", descriptor_of(BLOB), len(BLOB)) == BLOB
    assert [request.headers.get("x-key") for request in mine.requests] == ["k"]
    assert [request.headers.get("x-key") for request in storage.requests] == [None]


def test_content_is_closed_where_a_connection_breaks(fake: FakeRegistry, bench: Bench) -> None:
    """At once, and not when somebody drops the error: it may be a file."""
    bench.retry = RetryPolicy(attempts=1)
    content = io.BytesIO(bytes(32 << 20))
    with socket.create_server(("127.0.0.1", 0)) as breaking:

        def hang_up() -> None:
            connection, _ = breaking.accept()
            connection.recv(1)
            connection.close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        uploads(fake, f"http://127.0.0.1:{breaking.getsockname()[1]}/up/1")
        descriptor = descriptor_of(content.getvalue())
        with bench.client() as client, pytest.raises(RegistryError) as caught:
            client.push_blob(f"{fake.host}/a", descriptor, lambda: content)
        hanging_up.join()
    assert content.closed
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://{host}/stored?sig=secret#secret", "GET http://{host}/stored: HTTP 400"),
        ("ftp://user:secret@{host}/stored?sig=secret", "ftp://{host}/stored: expected an http or https URL"),
        ("http://user:secret@{host}/stored", "a URL must not carry credentials"),
    ],
)
def test_what_is_shown_of_a_url(
    fake: FakeRegistry, bench: Bench, caplog: pytest.LogCaptureFixture, location: str, said: str
) -> None:
    """Neither users and passwords nor queries, which may be signed."""
    elsewhere = Answer(status=307, headers={"Location": location.format(host=fake.host)})
    fake.on("GET", r"/v2/a/blobs/.*", elsewhere)
    fake.on("GET", r"/stored", Answer(status=400))
    with bench.client() as client, caplog.at_level("DEBUG"), pytest.raises(RegistryError) as caught:
        client.fetch_blob_bytes(f"{fake.host}/a", descriptor_of(BLOB), len(BLOB))
    assert said.format(host=fake.host) in str(caught.value)
    assert "secret" not in f"{caught.value} {caplog.text}"


def test_content_that_a_descriptor_carries_is_checked(fake: FakeRegistry, bench: Bench) -> None:
    """None of it is sent."""
    uploads(fake, "/up/1")
    wrong = Descriptor(media_type="x/y", digest=Digest.of(b"right"), size=5, data=b"wrong")
    with bench.client() as client, pytest.raises(ProtocolError, match="has digest"):
        client.copy_blob("other.example/b", f"{fake.host}/a", wrong)
    assert {request.body for request in fake.asked("PUT")} <= {b""}


@pytest.mark.parametrize(("name", "most"), [("_MAX_PAGES", 3), ("_MAX_TAGS", 2)])
def test_tag_lists_that_do_not_end(
    fake: FakeRegistry, bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    """By their pages where each says nothing new, else by their tags."""
    monkeypatch.setattr(f"buildkit_py.registry.client.{name}", most)
    pages = itertools.count(1)

    def page(_: Request) -> Answer:
        number = next(pages)
        tags = ["same"] if name == "_MAX_PAGES" else [f"t{number}"]
        link = f'</v2/a/tags/list?page={number}>; rel="next"'
        return Answer(body=json.dumps({"tags": tags}).encode(), headers={"Link": link})

    fake.on("GET", r"/v2/a/tags/list", page)
    with bench.client() as client, pytest.raises(RegistryError, match="endless list"):
        client.tags(f"{fake.host}/a")
    assert len(fake.requests) == most + 1


def test_a_token_is_not_used_beyond_its_life(fake: FakeRegistry, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched anew before the registry has to refuse it."""
    monkeypatch.setattr(Authorizer.__init__, "__kwdefaults__", {"clock": lambda: bench.now})
    token_server(fake, expires=300)
    fake.on("GET", r"/v2/.*", protected(fake, manifest_answer(INDEX, INDEX_TYPE)))
    with bench.client() as client:
        for bench.now, fetched in ((0.0, 1), (200.0, 1), (299.0, 2)):
            client.fetch_manifest(f"{fake.host}/a:v1")
            assert len(fake.asked("GET", "/token")) == fetched
    assert len(fake.asked("GET", "/v2/")) == 4, "of which the first was refused"
