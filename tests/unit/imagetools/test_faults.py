"""What copies and joins come to when a registry misbehaves.

Each fault has its outcome; never a moved tag, never bytes that were not verified.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from buildkit_py import imagetools
from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError, ImageError, InvalidDigest, ProtocolError, RegistryError, Unauthorized
from buildkit_py.oci import OCI_INDEX, OCI_MANIFEST
from buildkit_py.registry import Registry, RegistryConfig, RetryPolicy, StaticCredentials, Timeouts
from tests.support.contents import Document, attestation, encode, image, index
from tests.support.fake_registry import Answer, FakeRegistry, Request
from tests.support.memory_registry import MemoryRegistry, token_route

AMD64, ARM64 = image("linux/amd64", layers=[b"layer " * 50_000]), image("linux/arm64")
MULTI = index(AMD64, ARM64, attestation(AMD64))
OLD = index(image("linux/amd64", text="old"))
LAYER = AMD64.blobs[1]
A_BLOB = r"/v2/source/blobs/.*"
A_LAYER = rf"/v2/source/blobs/{Digest.of(LAYER)}"
A_MANIFEST = rf"/v2/source/manifests/{AMD64.digest}"
A_TAG = r"/v2/target/manifests/v1"
UPLOAD = r"/v2/target/blobs/uploads/[0-9]+"
START = r"/v2/target/blobs/uploads/"


def client() -> Registry:
    """Patient enough for what passes, and not for what does not; waits are short."""
    return Registry(
        credentials=StaticCredentials({}),
        config=RegistryConfig(),
        timeouts=Timeouts(connect=2, read=0.4, total=2.5, blob=2.5),
        retry=RetryPolicy(attempts=4, base=0.01, cap=0.05, retry_after_cap=0.5),
    )


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.put("source", MULTI, "v1")
        registry.put("target", OLD, "v1")
        # No mounts: the bytes go through us, as between two registries.
        registry.on("POST", START, lambda request: registry.passing(without_mount(request)))
        yield registry


def without_mount(request: Request) -> Request:
    return replace(request, query="")


async def copy(registry: Registry, memory: MemoryRegistry) -> None:
    await imagetools.copy(
        registry,
        imagetools.CopyRequest(source=f"{memory.host}/source:v1", destination=f"{memory.host}/target:v1"),
    )


@dataclass(frozen=True)
class Fault:
    name: str
    script: Callable[[MemoryRegistry], None]
    error: type[BuildKitError] | None
    """What is raised; None where the copy succeeds all the same."""
    says: str = "."


def on(method: str, path: str, *faults: Answer, ends: bool = True) -> Callable[[MemoryRegistry], None]:
    """These answers, then what is right; or the last one for ever."""
    return lambda memory: memory.on(method, path, *(memory.once(*faults) if ends else faults))


def again_and_again(method: str, path: str, fault: Answer) -> Callable[[MemoryRegistry], None]:
    return on(method, path, fault, ends=False)


def changed(**more: object) -> Answer:
    """The source's amd64 manifest with other fields."""
    fields = {**json.loads(AMD64.raw), **more}
    return Answer(body=encode(fields), headers={"Content-Type": OCI_MANIFEST})


def wait_a_while(**headers: str) -> Answer:
    return Answer(status=429, headers=headers, body=b'{"errors":[{"code":"TOOMANYREQUESTS"}]}')


def tokens(*answers: Answer) -> Callable[[MemoryRegistry], None]:
    return lambda memory: (token_route(memory, *answers), None)[1]


def expiring(memory: MemoryRegistry) -> None:
    """The token ends while the layer is on its way up."""
    count = iter(range(1, 100))
    memory.on("GET", "/token", lambda request: Answer(body=b'{"token":"good-%d"}' % next(count)))
    challenge = f'Bearer realm="{memory.url}/token",service="memory"'

    def first_expires(request: Request) -> Answer:
        if request.authorization in (None, "Bearer good-1"):
            return Answer(status=401, challenges=(challenge,))
        return memory.passing(request)

    memory.on("PUT", UPLOAD, first_expires)


def elsewhere(memory: MemoryRegistry) -> None:
    """A redirect to a host that is not there, with a secret in its URL."""
    location = {"Location": "http://127.0.0.1:1/storage?signature=secret"}
    memory.on("GET", A_LAYER, Answer(status=307, headers=location))


def downgraded(memory: MemoryRegistry) -> None:
    memory.on("GET", A_LAYER, Answer(status=307, headers={"Location": "ftp://127.0.0.1/x"}))


GOOD = Answer(body=b'{"token":"good"}')
BIG = b'{"schemaVersion":2,"x":"' + b"x" * (5 << 20) + b'"}'
DEEP = b'{"schemaVersion":2,"manifests":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
TWICE = OLD.raw.replace(b'"manifests"', b'"manifests": [], "manifests"')

FAULTS = [
    Fault("401 in mid-upload: a new token, and the upload anew", expiring, None),
    Fault("429 without Retry-After", on("HEAD", A_TAG, wait_a_while(), wait_a_while()), None),
    Fault("429 with Retry-After", on("PUT", A_TAG, wait_a_while(**{"Retry-After": "0"})), None),
    Fault(
        "429 for longer than we wait",
        again_and_again("PUT", A_TAG, wait_a_while(**{"Retry-After": "9999"})),
        RegistryError,
        "429",
    ),
    Fault("503 without Retry-After", on("PUT", UPLOAD, Answer(status=503)), None),
    Fault("503 with Retry-After", on("GET", A_LAYER, Answer(status=503, headers={"Retry-After": "0"})), None),
    Fault("503 for ever", again_and_again("PUT", A_TAG, Answer(status=503)), RegistryError, "HTTP 503"),
    Fault("500 for the tag alone", again_and_again("PUT", A_TAG, Answer(status=500)), RegistryError, "HTTP 500"),
    Fault("cut in mid-blob", on("GET", A_LAYER, Answer(body=LAYER[:1000], length=len(LAYER), cut=True)), None),
    Fault(
        "cut in mid-blob for ever",
        again_and_again("GET", A_LAYER, Answer(body=b"x", length=len(LAYER), cut=True)),
        BuildKitError,
    ),
    Fault("cut in mid-upload", on("PUT", UPLOAD, Answer(status=201, cut=True, length=9)), None),
    Fault("cut in mid-manifest", on("GET", A_MANIFEST, Answer(body=b"{", length=400, cut=True)), None),
    Fault("another blob", again_and_again("GET", A_LAYER, Answer(body=b"x" * len(LAYER))), BuildKitError, "sha256"),
    Fault("a longer blob", again_and_again("GET", A_LAYER, Answer(body=LAYER + b"x")), BuildKitError, "larger"),
    Fault("a shorter blob", again_and_again("GET", A_LAYER, Answer(body=LAYER[:-1])), RegistryError, "ended after"),
    Fault(
        "another manifest", again_and_again("GET", A_MANIFEST, changed(annotations={"a": "b"})), BuildKitError, "sha256"
    ),
    Fault(
        "the wrong digest told of a manifest that was written",
        again_and_again(
            "PUT",
            rf"/v2/target/manifests/{ARM64.digest}",
            Answer(status=201, headers={"Docker-Content-Digest": str(OLD.digest)}),
        ),
        InvalidDigest,
        "the registry stored",
    ),
    Fault(
        "the wrong digest told of a blob that was sent",
        again_and_again("PUT", UPLOAD, Answer(status=201, headers={"Docker-Content-Digest": str(OLD.digest)})),
        InvalidDigest,
        "the registry stored",
    ),
    Fault(
        "the wrong content type",
        again_and_again(
            "GET", r"/v2/source/manifests/v1", Answer(body=MULTI.raw, headers={"Content-Type": OCI_MANIFEST})
        ),
        RegistryError,
        "calls itself",
    ),
    Fault(
        "a page for people",
        again_and_again(
            "GET", r"/v2/source/manifests/v1", Answer(body=b"<html>", headers={"Content-Type": "text/html"})
        ),
        ImageError,
        "text/html",
    ),
    Fault("endless pages of referrers", lambda memory: endless(memory), RegistryError, "referrers|did not finish"),
    Fault("a redirect to a host that is gone", elsewhere, RegistryError, "nothing listens there"),
    Fault("a redirect to no URL that can be asked", downgraded, RegistryError, "http or https"),
    Fault(
        "redirects without an end",
        again_and_again("GET", A_LAYER, Answer(status=307, headers={"Location": "/v2/source/blobs/x"})),
        BuildKitError,
    ),
    Fault(
        "a redirect of an upload",
        again_and_again("PUT", UPLOAD, Answer(status=307, headers={"Location": "/elsewhere"})),
        RegistryError,
        "307",
    ),
    Fault("token server refuses", tokens(Answer(status=401)), Unauthorized, "no credentials are known"),
    Fault("token server down for a moment", tokens(Answer(status=503), GOOD), None),
    Fault("token server down", tokens(Answer(status=503)), RegistryError, "token server"),
    Fault("token server talks nonsense", tokens(Answer(body=b"<html>")), RegistryError, "holds no token"),
    Fault("token server does not answer", tokens(Answer(silent=True)), RegistryError, "no answer within"),
    Fault(
        "a slow drip",
        again_and_again("GET", A_LAYER, Answer(body=LAYER, drip=0.3)),
        RegistryError,
        "did not finish within",
    ),
    Fault("silence", again_and_again("GET", A_MANIFEST, Answer(silent=True)), RegistryError, "no answer within"),
    Fault(
        "a manifest above 4 MiB",
        again_and_again("GET", r"/v2/source/manifests/v1", Answer(body=BIG, headers={"Content-Type": OCI_INDEX})),
        RegistryError,
        "larger than",
    ),
    Fault(
        "JSON that is too deep",
        again_and_again("GET", r"/v2/source/manifests/v1", Answer(body=DEEP, headers={"Content-Type": OCI_INDEX})),
        ProtocolError,
        "nested too deeply",
    ),
    Fault(
        "JSON with a key twice",
        again_and_again("GET", r"/v2/source/manifests/v1", Answer(body=TWICE, headers={"Content-Type": OCI_INDEX})),
        ProtocolError,
        "twice",
    ),
    Fault(
        "no JSON",
        again_and_again("GET", r"/v2/source/manifests/v1", Answer(body=b"\xff{", headers={"Content-Type": OCI_INDEX})),
        ProtocolError,
        "not valid JSON",
    ),
    Fault(
        "a child that is not there", again_and_again("GET", A_MANIFEST, Answer(status=404)), ImageError, "is not there"
    ),
    Fault("a blob that is not there", again_and_again("GET", A_LAYER, Answer(status=404)), BuildKitError, "404"),
    Fault("a full disk", again_and_again("PUT", UPLOAD, Answer(status=507)), RegistryError, "507"),
    Fault("a registry that is read only", again_and_again("POST", START, Answer(status=403)), Unauthorized, "403"),
]


def endless(memory: MemoryRegistry) -> None:
    count = iter(range(1_000_000))

    def page(request: Request) -> Answer:
        link = f'<{request.path}?n={next(count)}>; rel="next"'
        return Answer(body=OLD.raw, headers={"Content-Type": OCI_INDEX, "Link": link})

    memory.on("GET", r"/v2/source/referrers/.*", page)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_copy_with_a_fault(memory: MemoryRegistry, fault: Fault) -> None:
    fault.script(memory)
    before = dict(memory.blobs)
    began = time.monotonic()
    async with client() as registry:
        if fault.error is None:
            await copy(registry, memory)
            assert memory.tag("target", "v1") == MULTI.raw
            assert all(memory.blobs["target", str(Digest.of(blob))] == blob for blob in AMD64.blobs)
        else:
            with pytest.raises(fault.error, match=fault.says) as caught:
                await copy(registry, memory)
            assert memory.tag("target", "v1") == OLD.raw
            assert "secret" not in str(caught.value)
    assert time.monotonic() - began < 15
    # Whatever arrived is what it is called.
    assert all(str(Digest.of(blob)) == digest for (_, digest), blob in memory.blobs.items())
    assert before.items() <= memory.blobs.items()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.error is not None], ids=lambda fault: fault.name)
async def test_a_layout_with_a_fault(memory: MemoryRegistry, fault: Fault, tmp_path: Path) -> None:
    """A copy to disk that fails leaves nothing; one whose fault is of writing succeeds."""
    fault.script(memory)
    layout = tmp_path / "layout"
    request = imagetools.CopyRequest(source=f"{memory.host}/source:v1", destination=f"layout:{layout}")
    async with client() as registry:
        try:
            await imagetools.copy(registry, request)
        except BuildKitError:
            assert list(tmp_path.iterdir()) == []
            return
        checked = await imagetools.verify(registry, imagetools.VerifyRequest(location=f"layout:{layout}", full=True))
        assert checked.ok
        assert checked.descriptor.digest == MULTI.digest


async def test_two_registries_and_one_that_dies() -> None:
    """The source goes away in the middle of a blob: the tag at the target does not move."""
    with MemoryRegistry() as source, MemoryRegistry() as target:
        source.put("source", MULTI, "v1")
        target.put("target", OLD, "v1")

        def die(request: Request) -> Answer:
            source.on("GET", ".*", Answer(cut=True, length=5))
            return Answer(body=LAYER[:1000], length=len(LAYER), cut=True)

        source.on("GET", A_LAYER, die)
        async with client() as registry:
            request = imagetools.CopyRequest(source=f"{source.host}/source:v1", destination=f"{target.host}/target:v1")
            with pytest.raises(BuildKitError):
                await imagetools.copy(registry, request)
        assert target.tag("target", "v1") == OLD.raw


async def test_create_with_many_tags_moves_none_before_all_is_there(memory: MemoryRegistry) -> None:
    """Two repositories, one of which refuses the index: no tag of either moves."""
    memory.on("PUT", r"/v2/other/manifests/sha256:.*", Answer(status=500))
    for tag in ("v1", "v2"):
        memory.put("target", OLD, tag)
    async with client() as registry:
        request = imagetools.CreateRequest(
            sources=[f"{memory.host}/source:v1"],
            tags=[f"{memory.host}/target:v1", f"{memory.host}/target:v2", f"{memory.host}/other:v1"],
        )
        with pytest.raises(RegistryError):
            await imagetools.create(registry, request)
    assert memory.tag("target", "v1") == memory.tag("target", "v2") == OLD.raw


async def test_an_index_of_four_mebibytes(memory: MemoryRegistry) -> None:
    """What registries must take goes both ways; one byte more is refused before anything is written."""
    room = (4 << 20) - len(encode({**json.loads(OLD.raw), "annotations": {"a": ""}}))
    documents: dict[str, Document] = {}
    for name, size in (("fits", room), ("over", room + 1)):
        made = index(*OLD.below, annotations={"a": "x" * size})
        documents[name] = memory.put("source", made, name)
    assert len(documents["fits"].raw) == 4 << 20
    async with client() as registry:
        for name in ("fits", "over"):
            request = imagetools.CopyRequest(
                source=f"{memory.host}/source:{name}", destination=f"{memory.host}/target:v1"
            )
            if name == "fits":
                await imagetools.copy(registry, request)
            else:
                with pytest.raises(RegistryError, match="larger than"):
                    await imagetools.copy(registry, request)
    assert memory.tag("target", "v1") == documents["fits"].raw


async def test_credentials_stay_at_home_through_all_of_it(memory: MemoryRegistry) -> None:
    """A redirect to storage during a copy: neither token nor password is shown there."""
    with FakeRegistry() as storage:
        storage.on("GET", "/blob", Answer(body=LAYER))
        check = token_route(memory, GOOD)
        memory.on("POST", START, lambda request: check(without_mount(request)))

        def redirect(request: Request) -> Answer:
            answer = check(request)
            return answer if answer.status == 401 else Answer(status=307, headers={"Location": f"{storage.url}/blob"})

        memory.on("GET", A_LAYER, redirect)
        async with client() as registry:
            await copy(registry, memory)
        assert memory.tag("target", "v1") == MULTI.raw
        assert [request.authorization for request in storage.requests] == [None]
