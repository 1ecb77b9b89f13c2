"""What registries answer about manifests and tags, read with care: their word is not taken for what bytes can show."""

from __future__ import annotations

import json
from typing import cast

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidDigest, RegistryError, Unsupported
from buildkit_py.oci import Descriptor
from buildkit_py.reference import Reference
from buildkit_py.registry import _http
from buildkit_py.registry._http import Response
from buildkit_py.registry._oras import follow

_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"


def location_of(response: Response) -> str:
    return follow(response.request.url or "", response.headers.get("Location", ""))


def digest_told(response: Response) -> Digest | None:
    """Docker-Content-Digest, if it is there and a digest."""
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", "").strip())
    except InvalidDigest:
        return None


def head_descriptor(response: Response, reference: Reference) -> Descriptor | None:
    """None where the headers do not tell enough."""
    digest, kind = digest_told(response), _http.media_type(response)
    length = response.headers.get("Content-Length", "")
    if digest is None or not kind or not (length.isascii() and length.isdigit()):
        return None
    if reference.digest is not None and digest != reference.digest:
        # A registry that stored it under another algorithm, or a wrong answer: only the bytes can tell.
        return None
    return Descriptor(media_type=kind, digest=digest, size=int(length))


def verified(raw: bytes, response: Response, reference: Reference) -> Descriptor:
    what = f"manifest of {reference.name}"
    if _http.media_type(response).startswith(_SCHEMA_1):
        raise Unsupported(
            f"{reference}: an image in Docker's schema 1, whose bytes differ in each answer and cannot be checked; "
            "pull it with an engine and push it again",
            status=response.status_code,
            host=reference.api_host,
            repository=reference.path,
        )
    digest = Digest.of(raw)
    if reference.digest is not None:
        reference.digest.verify(raw, what)
        digest = reference.digest
    else:
        told = digest_told(response)
        if told is not None:
            told.verify(raw, what)
    kind, inner = _http.media_type(response), _inner_media_type(raw)
    if kind and inner and kind != inner:
        raise RegistryError(
            f"{reference}: the registry calls it {kind[:100]}, it calls itself {inner[:100]}",
            status=response.status_code,
            host=reference.api_host,
            repository=reference.path,
        )
    return Descriptor(media_type=inner or kind, digest=digest, size=len(raw))


def _inner_media_type(raw: bytes) -> str:
    try:
        parsed: object = json.loads(raw)
    except (ValueError, RecursionError):
        parsed = None
    kind = cast("dict[str, object]", parsed).get("mediaType") if isinstance(parsed, dict) else None
    return kind if isinstance(kind, str) else ""


def tags_of(response: Response, reference: Reference) -> list[str]:
    try:
        parsed: object = json.loads(response.content)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RegistryError(f"{reference.name}: the list of tags is not JSON", host=reference.api_host)
    # Some registries put null, or digests, among the tags.
    listed = cast("dict[str, object]", parsed).get("tags")
    items = cast("list[object]", listed) if isinstance(listed, list) else []
    return [item for item in items if isinstance(item, str) and item]


__all__ = ["digest_told", "head_descriptor", "location_of", "tags_of", "verified"]
