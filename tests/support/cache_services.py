"""Services that daemons keep caches in: S3, Azure's blob storage, and the cache of GitHub's runners."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, cast

from tests.support import guardian
from tests.support.fake_registry import Answer, FakeRegistry, Request
from tests.support.peers import prefix
from tests.support.servers import Unavailable, end_group

BUCKET = "cache"
S3_KEY = "S3RVER"
"""Name and secret of the one user that s3rver has."""
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the one account that azurite has, as its manual tells everybody."""

_Handler: TypeAlias = "Callable[[Request], Answer]"
_READY_SECONDS = 20.0
_POLL_SECONDS = 0.05
_LISTENING = re.compile(rb"listen\w* on (?:http://)?127\.0\.0\.1:([1-9]\d*)")


@contextmanager
def run_s3(folder: Path) -> Generator[str]:
    """s3rver with an empty bucket; gives its URL. Unavailable where it is not installed."""
    words = ["--directory", str(folder), "--address", "127.0.0.1", "--port", "0", "--configure-bucket", BUCKET]
    with _run("s3rver", words, folder) as url:
        yield url


@contextmanager
def run_azurite(folder: Path) -> Generator[str]:
    """Azurite's blob service, empty; gives the URL of its account. Unavailable where it is not installed."""
    words = [
        *("--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(folder)),
        *("--disableTelemetry", "--disableProductStyleUrl", "--skipApiVersionCheck"),
    ]
    with _run("azurite-blob", words, folder) as url:
        yield f"{url}/{AZURE_ACCOUNT}"


@contextmanager
def _run(program: str, words: Sequence[str], folder: Path) -> Generator[str]:
    binary = prefix() / "caches" / "node_modules" / ".bin" / program
    if not binary.exists():
        raise Unavailable(f"no {program} found (scripts/fetch_servers.py caches)")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    guardian.watch_group(process.pid)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not (found := _LISTENING.search(log.read_bytes())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{program} does not listen; its log:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(_POLL_SECONDS)
        yield f"http://127.0.0.1:{int(found[1])}"
    finally:
        end_group(process)


class ActionsCache(FakeRegistry):
    """The cache of GitHub's runners, both of its protocols, in memory; takes one token. Use it with ``with``.

    Source: actions/toolkit, packages/cache; the part of Azure's blob service that its second protocol hands out URLs
    of: Put Blob, Put Block, Put Block List and Get Blob.
    """

    def __init__(self) -> None:
        super().__init__()
        self.token = _unsigned_token()
        self.entries: dict[str, bytes] = {}
        """Complete entries by key."""
        self._changing = threading.Lock()
        self._open: dict[str, tuple[str, dict[int, bytes]]] = {}
        self._reserved: set[str] = set()
        self._blobs: dict[str, bytes] = {}
        first, second = "/_apis/artifactcache", "/twirp/github.actions.results.api.v1.CacheService"
        self.on("GET", f"{first}/cache", self._guarded(self._find))
        self.on("POST", f"{first}/caches", self._guarded(self._reserve))
        self.on("PATCH", f"{first}/caches/[0-9]+", self._guarded(self._write))
        self.on("POST", f"{first}/caches/[0-9]+", self._guarded(self._commit))
        self.on("POST", f"{second}/CreateCacheEntry", self._guarded(self._create))
        self.on("POST", f"{second}/FinalizeCacheEntryUpload", self._guarded(self._finalize))
        self.on("POST", f"{second}/GetCacheEntryDownloadURL", self._guarded(self._look_up))
        self.on("PUT", "/upload/.*", self._put)
        self.on("GET", "/content/.*", self._get)

    def _guarded(self, answer: _Handler) -> _Handler:
        def checked(request: Request) -> Answer:
            if request.authorization != f"Bearer {self.token}":
                return Answer(status=401, body=b"{}")
            with self._changing:
                return answer(request)

        return checked

    def _best(self, keys: Sequence[str]) -> str | None:
        """The newest entry whose key begins with the first of keys that any begins with."""
        for key in keys:
            if found := [name for name in self.entries if name.startswith(key)]:
                return found[-1]
        return None

    # The first protocol: entries by number, in ranges

    def _find(self, request: Request) -> Answer:
        key = self._best(request.parameters["keys"][0].split(","))
        if key is None:
            return Answer(status=204)
        return _json({"cacheKey": key, "archiveLocation": f"{self.url}/content/{_name(key)}", "scope": "main"})

    def _reserve(self, request: Request) -> Answer:
        key = _fields(request)["key"]
        if key in self.entries or any(key == taken for taken, _ in self._open.values()):
            return _TAKEN
        number = str(len(self._open) + len(self.entries) + 1)
        self._open[number] = (key, {})
        return _json({"cacheId": int(number)})

    def _write(self, request: Request) -> Answer:
        begin = int(request.headers["content-range"].removeprefix("bytes ").partition("-")[0])
        self._open[request.path.rpartition("/")[2]][1][begin] = request.body
        return Answer(status=204)

    def _commit(self, request: Request) -> Answer:
        key, ranges = self._open.pop(request.path.rpartition("/")[2])
        self.entries[key] = b"".join(ranges[begin] for begin in sorted(ranges))
        complete = len(self.entries[key]) == int(_fields(request)["size"])
        return Answer(status=204) if complete else Answer(status=400)

    # The second protocol: URLs of a blob service

    def _create(self, request: Request) -> Answer:
        key = _fields(request)["key"]
        if key in self.entries or key in self._reserved:
            return _TAKEN
        self._reserved.add(key)
        return _json({"ok": True, "signed_upload_url": f"{self.url}/upload/{_name(key)}?sig=x"})

    def _finalize(self, request: Request) -> Answer:
        key = _fields(request)["key"]
        self.entries[key] = self._blobs.pop(_name(key))
        return _json({"ok": True, "entry_id": str(len(self.entries))})

    def _look_up(self, request: Request) -> Answer:
        fields = _fields(request)
        key = self._best([fields["key"], *cast("list[str]", fields["restore_keys"])])
        if key is None:
            return _json({"ok": False})
        return _json({"ok": True, "signed_download_url": f"{self.url}/content/{_name(key)}", "matched_key": key})

    def _put(self, request: Request) -> Answer:
        name = request.path.rpartition("/")[2]
        with self._changing:
            match request.parameters.get("comp", [""])[0]:
                case "block":
                    self._blobs[f"{name} {request.parameters['blockid'][0]}"] = request.body
                case "blocklist":
                    blocks = re.findall(r"<Latest>([^<]+)</Latest>", request.body.decode())
                    self._blobs[name] = b"".join(self._blobs.pop(f"{name} {block}") for block in blocks)
                case _:
                    self._blobs[name] = request.body
        return Answer(status=201, headers={"x-ms-request-id": "1"})

    def _get(self, request: Request) -> Answer:
        with self._changing:
            content = next(body for key, body in self.entries.items() if _name(key) == request.path.rpartition("/")[2])
        wanted = request.headers.get("x-ms-range") or request.headers.get("range") or "bytes=0-"
        begin, _, end = wanted.removeprefix("bytes=").partition("-")
        part = content[int(begin) : int(end) + 1 if end else None]
        span = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(content)}"
        return Answer(status=206, body=part, headers={"Content-Range": span, "x-ms-request-id": "1"})


_TAKEN = Answer(
    status=409,
    body=b'{"typeKey":"ArtifactCacheItemAlreadyExistsException","message":"Cache already exists."}',
)


def _json(fields: object) -> Answer:
    return Answer(body=json.dumps(fields).encode(), headers={"Content-Type": "application/json"})


def _fields(request: Request) -> dict[str, str]:
    return cast("dict[str, str]", json.loads(request.body))


def _name(key: str) -> str:
    return key.encode().hex()


def _unsigned_token() -> str:
    """What a runner has, as far as daemons look into it: which caches it may write."""
    now = int(time.time())
    claims = {
        "ac": json.dumps([{"Scope": "refs/heads/main", "Permission": 3}]),
        "exp": now + 3600,
        "nbf": now - 60,
    }
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    return ".".join([base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, b"signature")])
