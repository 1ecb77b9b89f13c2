"""Lists of referrers: the registry's own, and those at tags that are kept up to date where it has none.

Source: OCI distribution-spec v1.1, "Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from buildkit_py.digest import Digest
from buildkit_py.errors import NotFound, ProtocolError, RegistryError
from buildkit_py.oci import OCI_INDEX, Descriptor
from buildkit_py.reference import Reference
from buildkit_py.registry import _http
from buildkit_py.registry._http import Response, Transport
from buildkit_py.registry._operation import Operation, Turns
from buildkit_py.registry._oras import OrasRegistry
from buildkit_py.registry._referrers import edited, entry_for, fallback_tag, listed
from buildkit_py.registry.auth import pull

_MAX_PAGES = 1000
_MAX_REFERRERS = 10_000
_MAX_EDITS = 12
"""Of one list, in a row; twenty clients that change one at once need about half as many each."""
_MAX_LOOKS = 3
"""At a list that others change while what we changed stays."""


class ReferrerLists:
    """Those of all repositories of one client."""

    def __init__(
        self,
        http: OrasRegistry,
        transport: Transport,
        turns: Turns,
        *,
        fetch: Callable[[Reference, Operation], tuple[bytes, Descriptor]],
        put: Callable[[Reference, bytes, Operation], object],
        exists: Callable[[Reference, Digest, Operation], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """fetch and put are for the indexes at tags, exists for manifests; none of them asks a mirror."""
        self._http = http
        self._transport = transport
        self._turns = turns
        self._fetch = fetch
        self._put = put
        self._exists = exists
        self._clock = clock
        self._lock = threading.Lock()
        self._changes: dict[str, dict[Digest, Descriptor | None]] = {}
        """By tag: entries that calls which run want listed, or not listed any more."""
        self._listing: dict[str, bool] = {}
        """By repository: whether the registry lists referrers by itself."""

    def of_api(
        self, reference: Reference, digest: Digest, artifact_type: str | None, operation: Operation
    ) -> list[Descriptor] | None:
        """None where the registry does not list referrers."""
        query = {} if artifact_type is None else {"artifactType": artifact_type}
        url = self._http.url(reference, lambda urls: urls.referrers_url(str(digest)), query=query)

        def once() -> list[Descriptor] | None:
            found: list[Descriptor] = []
            pages = 0

            def take(response: Response) -> bool:
                nonlocal pages
                pages += 1
                if pages == 1 and _http.media_type(response) != OCI_INDEX:
                    # GHCR, for one, leads to a page for people.
                    raise _NoSuchList
                found.extend(_checked_list(response.content, _http.media_type(response), reference))
                if len(found) > _MAX_REFERRERS or pages > _MAX_PAGES:
                    raise RegistryError(
                        f"{reference.name}: more than {_MAX_REFERRERS} referrers of {digest}, or an endless list",
                        host=reference.api_host,
                        repository=reference.path,
                    )
                return True

            try:
                self._http.pages(
                    url,
                    take,
                    scopes=(pull(reference.path),),
                    repository=reference.path,
                    operation=operation,
                    accept=OCI_INDEX,
                )
            except _NoSuchList:
                return None
            except RegistryError as error:
                unknown = error.status in {404, 405, 501} or "UNSUPPORTED" in error.codes
                if pages or not unknown:
                    raise
                return None
            return found

        found = self._transport.retrying(operation, once)
        self._listing[reference.name] = found is not None
        return found

    def are_kept(self, reference: Reference, digest: Digest, operation: Operation) -> bool:
        """Whether the registry keeps track of referrers by itself; asked once for each repository."""
        known = self._listing.get(reference.name)
        if known is None:
            known = self.of_api(reference, digest, None, operation) is not None
        return known

    def of_tag(
        self, reference: Reference, digest: Digest, operation: Operation
    ) -> tuple[bytes | None, tuple[Descriptor, ...]]:
        """The list that stands at the tag of the tag schema; no bytes where there is none."""
        try:
            tag = reference.with_tag(fallback_tag(digest))
            raw, found = self._fetch(tag, operation)
        except NotFound:
            return None, ()
        return raw, _checked_list(raw, found.media_type, reference)

    def track(self, reference: Reference, subject: Digest, raw: bytes, media_type: str, operation: Operation) -> None:
        """See to it that the manifest is found by its subject."""
        # Some registries have the list and do not say so in their answer (Harbor before 2.9).
        if self.are_kept(reference, subject, operation):
            return
        entry = entry_for(raw, media_type)
        self._edit(reference, subject, entry.digest, entry, operation)

    def forget(self, reference: Reference, subject: Digest, digest: Digest, operation: Operation) -> None:
        """See to it that the manifest is not listed with its subject any more."""
        self._edit(reference, subject, digest, None, operation)

    def _edit(
        self, reference: Reference, subject: Digest, digest: Digest, entry: Descriptor | None, operation: Operation
    ) -> None:
        """Put the entry of a digest on the list at the subject's tag, or take it off where there is no entry.

        Changes that wait for their turn are made together.
        """
        tag = reference.with_tag(fallback_tag(subject))
        with self._lock:
            changes = self._changes.setdefault(str(tag), {})
            changes[digest] = entry
        try:
            # One at a time in this client, which would otherwise collide with itself.
            with self._turns.take(str(tag), operation):
                with self._lock:
                    together = dict(changes)
                self._settle(reference, subject, together, operation)
        finally:
            with self._lock:
                if changes.get(digest) is entry:
                    changes.pop(digest, None)
                if not changes and self._changes.get(str(tag)) is changes:
                    del self._changes[str(tag)]

    def _settle(
        self, reference: Reference, subject: Digest, changes: Mapping[Digest, Descriptor | None], operation: Operation
    ) -> None:
        """Write the list until a look at it, some time later, finds the changes in it.

        Registries have no locks, so a client that read the list before us and writes it after us undoes what we did.
        Such a write comes within about the time that ours took; what was seen on the list and vanished from it is
        put back, too, as long as the manifest is there.
        """
        tag = reference.with_tag(fallback_tag(subject))
        seen: dict[Digest, Descriptor] = {}
        expected: bytes | None = None
        edits = looks = 0
        pause = 0.0
        while True:
            began = self._clock()
            before, entries = self.of_tag(reference, subject, operation)
            present = {entry.digest: entry for entry in entries}
            missing = [item for item in seen.values() if item.digest not in present and item.digest not in changes]
            missing = [item for item in missing if self._exists(reference, item.digest, operation)]
            missing += [entry for digest, entry in changes.items() if entry is not None and digest not in present]
            surplus = [digest for digest, entry in changes.items() if entry is None and digest in present]
            seen = present
            if missing or surplus:
                if edits == _MAX_EDITS:
                    break
                edits += 1
                expected = edited(before, missing, surplus)
                seen = {**present, **{item.digest: item for item in missing}}
                try:
                    self._put(tag, expected, operation)
                except RegistryError as error:
                    # Distribution takes no index that names a manifest which is gone, deleted by whoever did not know
                    # of this list or is about to write it.
                    gone = self._gone(reference, seen, operation) if "MANIFEST_BLOB_UNKNOWN" in error.codes else {}
                    if not gone:
                        raise
                    changes = {**changes, **gone}
                pause = self._transport.spread(self._clock() - began, edits)
            elif edits == 0 or before == expected or looks == _MAX_LOOKS:
                return
            else:
                expected = before  # others write it, too
                looks += 1
            self._transport.pause(operation, pause)
        raise RegistryError(
            f"{tag}: others keep replacing this list of referrers; try again later",
            retryable=True,
            host=reference.api_host,
            repository=reference.path,
        )

    def _gone(
        self, reference: Reference, digests: Iterable[Digest], operation: Operation
    ) -> dict[Digest, Descriptor | None]:
        return {digest: None for digest in digests if not self._exists(reference, digest, operation)}


class _NoSuchList(Exception):
    """The registry does not list referrers."""


def _checked_list(raw: bytes, media_type: str, reference: Reference) -> tuple[Descriptor, ...]:
    try:
        return listed(raw, media_type)
    except ProtocolError as error:
        raise RegistryError(
            f"{reference.name}: the list of referrers cannot be used: {error}",
            host=reference.api_host,
            repository=reference.path,
        ) from error


__all__ = ["ReferrerLists"]
