"""Caches in directories of this machine: what ``type=local`` means to a daemon, and what is left to its client.

A daemon knows such a cache as a content store of the session and a digest in it. Which digest a tag of the
directory's ``index.json`` stands for, and which one it stands for afterwards, is the client's to say.
Source: moby/buildkit v0.32, client/solve.go, client/ociindex and cache/remotecache/local.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from buildkit_py.digest import Digest
from buildkit_py.errors import BuildKitError, InvalidDigest, InvalidOption, ProtocolError
from buildkit_py.layout.editing import put_entry, remove_unreachable
from buildkit_py.layout.entries import IMAGE_NAME, REF_NAME
from buildkit_py.layout.reading import open_layout
from buildkit_py.oci import MAX_MANIFEST_BYTES, Descriptor, parse_manifest_or_index
from buildkit_py.options import CacheSpec
from buildkit_py.session.content import BlobStore

_LOG = logging.getLogger(__name__)

DEFAULT_TAG = "latest"
_MANIFEST_KEY = "cache.manifest"
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


@dataclass(frozen=True, slots=True)
class _Export:
    store: BlobStore
    tag: str
    reset: bool


class LocalCaches:
    """The local caches of one solve, as its daemon is told of them.

    Serve ``stores`` in a ContentStores, solve with ``imports`` and ``exports``, then call ``publish``. An import that
    is not there is left out with a warning: the first build of all has none.
    """

    def __init__(self, imports: Sequence[CacheSpec] = (), exports: Sequence[CacheSpec] = ()) -> None:
        """Specs of other types stay as they are. Blocks on small files; raises InvalidOption for bad attributes,
        and for a directory that cannot be written to."""
        self.stores: dict[str, BlobStore] = {}
        """By the ids under which the daemon asks for them."""
        self._exports: list[_Export] = []
        self.imports = tuple(found for spec in imports if (found := self._import(spec)) is not None)
        self.exports = tuple(self._export(spec) for spec in exports)

    def _import(self, spec: CacheSpec) -> CacheSpec | None:
        if spec.type != "local":
            return spec
        check_local_import(spec)
        attrs = dict(spec.attrs)
        root = Path(attrs["src"])
        digest = attrs.get("digest") or _lookup(root, attrs.pop("tag", DEFAULT_TAG))
        if digest is None:
            return None
        store = BlobStore(root)
        if store.size(Digest.parse(digest)) is None:
            _LOG.warning("cache from %s: %s is not there; going on without it", root, digest)
            return None
        attrs |= {"src": self._serve(store), "digest": digest}
        return replace(spec, attrs=MappingProxyType(attrs))

    def _export(self, spec: CacheSpec) -> CacheSpec:
        if spec.type != "local":
            return spec
        check_local_export(spec)
        attrs = dict(spec.attrs)
        store = BlobStore(Path(attrs["dest"]), writable=True)
        reset = attrs.pop("reset", "false") in _TRUE
        self._exports.append(_Export(store, attrs.pop("tag", DEFAULT_TAG), reset))
        attrs["dest"] = self._serve(store)
        return replace(spec, attrs=MappingProxyType(attrs))

    def _serve(self, store: BlobStore) -> str:
        """A name for the store that no other solve has, and that says nothing of this machine."""
        name = secrets.token_hex(8)
        self.stores[f"local:{name}"] = store
        return name

    def publish(self, response: Mapping[str, str]) -> None:
        """Let the tags of the exports stand for what came; response is that of the solve, which has succeeded.

        Blocks. Raises ProtocolError when the daemon sent no cache that makes sense.
        """
        said = _said(response)
        for export in self._exports:
            store = export.store
            root = said if said is not None and said.digest in store.committed else _last_manifest(store)
            if root is None:
                # Nothing to cache, or ignore-error: the daemon has told of it.
                _LOG.debug("cache to %s: the daemon sent nothing", store.root)
                continue
            put_entry(store.root, root, export.tag)
            if export.reset:
                remove_unreachable(store.root)


def check_local_import(spec: CacheSpec) -> None:
    """Raise InvalidOption for attributes that no local import can have."""
    if not spec.attrs.get("src"):
        raise InvalidOption("cache-from type=local: src=DIRECTORY is missing")
    if spec.attrs.get("tag") == "":
        raise InvalidOption("cache-from type=local: tag is empty")
    if digest := spec.attrs.get("digest"):
        try:
            Digest.parse(digest)
        except InvalidDigest as error:
            raise InvalidOption(f"cache-from type=local: {error}") from error


def check_local_export(spec: CacheSpec) -> None:
    """Raise InvalidOption for attributes that no local export can have, and for a directory that cannot be written."""
    dest = spec.attrs.get("dest")
    if not dest:
        raise InvalidOption("cache-to type=local: dest=DIRECTORY is missing")
    if spec.attrs.get("tag") == "":
        raise InvalidOption("cache-to type=local: tag is empty")
    if spec.attrs.get("reset", "false") not in _TRUE | _FALSE:
        raise InvalidOption(f"cache-to type=local: reset={spec.attrs['reset']}: expected true or false")
    path = Path(dest).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir():
        raise InvalidOption(f"cache-to type=local: dest={dest}: {nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InvalidOption(f"cache-to type=local: dest={dest}: {nearest} cannot be written to")


def _lookup(root: Path, tag: str) -> str | None:
    """Digest of the entry that has this name, else of the one that has this tag."""
    try:
        with open_layout(root) as layout:
            entries = layout.index.manifests
    except BuildKitError as error:
        _LOG.warning("cache from %s: nothing is imported: %s", root, error)
        return None
    for annotation in (IMAGE_NAME, REF_NAME):
        for entry in entries:
            if entry.annotations.get(annotation) == tag:
                return str(entry.digest)
    _LOG.warning("cache from %s: has no tag %s; going on without it", root, tag)
    return None


def _said(response: Mapping[str, str]) -> Descriptor | None:
    """The cache's root as the daemon names it: of the last one, where it exported several."""
    text = response.get(_MANIFEST_KEY)
    if text is None:
        return None
    try:
        return Descriptor.from_json(json.loads(text), _MANIFEST_KEY)
    except ValueError as error:
        raise ProtocolError(f"the daemon's {_MANIFEST_KEY} is unreadable: {error}") from error


def _last_manifest(store: BlobStore) -> Descriptor | None:
    """What a daemon writes last is the root."""
    if not store.committed:
        return None
    digest, size = next(reversed(store.committed.items()))
    if size > MAX_MANIFEST_BYTES:
        return None
    raw = store.path(digest).read_bytes()
    try:
        media_type = parse_manifest_or_index(raw).media_type
    except ProtocolError:
        return None  # it broke off before its root
    return Descriptor(media_type=media_type, digest=digest, size=size)


__all__ = ["LocalCaches"]
