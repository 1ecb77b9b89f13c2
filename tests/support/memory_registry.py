"""A registry in memory that does what it should, until a test scripts a fault over one of its routes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from buildkit_py.digest import Digest
from tests.support.contents import Document
from tests.support.fake_registry import Answer, FakeRegistry, Request, Script

_NAME = r"/v2/(?P<name>[a-z0-9/-]+)"


class MemoryRegistry(FakeRegistry):
    """Any repositories; what was written is in the tables. Routes added later win, and fall back with ``passing``."""

    def __init__(self) -> None:
        super().__init__()
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        """Bytes and type by repository and tag or digest."""
        self.blobs: dict[tuple[str, str], bytes] = {}
        self._sessions = 0
        for method in ("GET", "HEAD", "PUT"):
            self.on(method, f"{_NAME}/manifests/[^/]+", self.passing)
        for method in ("GET", "HEAD"):
            self.on(method, f"{_NAME}/blobs/[^/]+", self.passing)
        self.on("POST", f"{_NAME}/blobs/uploads/", self.passing)
        self.on("PUT", f"{_NAME}/blobs/uploads/[0-9]+", self.passing)
        self.on("DELETE", f"{_NAME}/blobs/uploads/[0-9]+", Answer(status=204))

    def put(self, repository: str, document: Document, *tags: str) -> Document:
        """Have a document with everything below it."""
        for item in document.walk():
            for blob in item.blobs:
                self.blobs[repository, str(Digest.of(blob))] = blob
            for name in (str(item.digest), *(tags if item is document else ())):
                self.manifests[repository, name] = (item.raw, item.media_type)
        return document

    def tag(self, repository: str, tag: str) -> bytes | None:
        """What a tag points at."""
        found = self.manifests.get((repository, tag))
        return None if found is None else found[0]

    def passing(self, request: Request) -> Answer:
        """What a registry without faults answers."""
        match = re.fullmatch(f"{_NAME}/(?P<kind>manifests|blobs)/(?P<rest>.*)", request.path)
        assert match is not None
        answer = self._manifest if match["kind"] == "manifests" else self._blob
        return answer(request, match["name"], match["rest"])

    def once(self, *faults: Answer) -> list[Script]:
        """These answers first, then what is right."""
        return [*faults, self.passing]

    def _manifest(self, request: Request, name: str, reference: str) -> Answer:
        if request.method == "PUT":
            digest, kind = str(Digest.of(request.body)), request.headers["content-type"]
            if ":" in reference and reference != digest:
                return Answer(status=400, body=_error("DIGEST_INVALID"))
            for key in (digest, reference):
                self.manifests[name, key] = (request.body, kind)
            return Answer(status=201, headers={"Docker-Content-Digest": digest})
        found = self.manifests.get((name, reference))
        if found is None:
            return Answer(status=404, body=_error("MANIFEST_UNKNOWN"))
        headers = {"Content-Type": found[1], "Docker-Content-Digest": str(Digest.of(found[0]))}
        return Answer(body=found[0], headers=headers)

    def _blob(self, request: Request, name: str, rest: str) -> Answer:
        if request.method == "POST":
            mount = request.parameters.get("mount", [""])[0]
            source = request.parameters.get("from", [""])[0]
            if (source, mount) in self.blobs:
                self.blobs[name, mount] = self.blobs[source, mount]
                return Answer(status=201, headers={"Docker-Content-Digest": mount})
            self._sessions += 1
            location = f"/v2/{name}/blobs/uploads/{self._sessions}"
            return Answer(status=202, headers={"Location": location})
        if request.method == "PUT":
            digest = request.parameters["digest"][0]
            if digest != str(Digest.of(request.body)):
                return Answer(status=400, body=_error("DIGEST_INVALID"))
            self.blobs[name, digest] = request.body
            return Answer(status=201, headers={"Docker-Content-Digest": digest})
        blob = self.blobs.get((name, rest))
        return Answer(status=404, body=_error("BLOB_UNKNOWN")) if blob is None else Answer(body=blob)


def _error(code: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()


def token_route(registry: MemoryRegistry, *answers: Script) -> Callable[[Request], Answer]:
    """Make the registry want tokens, of a server that is in it; returns what checks a request first."""
    registry.on("GET", "/token", *answers)
    challenge = f'Bearer realm="{registry.url}/token",service="memory"'

    def check(request: Request) -> Answer:
        if not (request.authorization or "").startswith("Bearer good"):
            return Answer(status=401, challenges=(challenge,))
        return registry.passing(request)

    for method in ("GET", "HEAD", "PUT"):
        registry.on(method, f"{_NAME}/manifests/[^/]+", check)
    for method in ("GET", "HEAD"):
        registry.on(method, f"{_NAME}/blobs/[^/]+", check)
    registry.on("POST", f"{_NAME}/blobs/uploads/", check)
    registry.on("PUT", f"{_NAME}/blobs/uploads/[0-9]+", check)
    return check
