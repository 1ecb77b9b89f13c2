"""Lists of referrers: the registry's own, and those at tags that are kept up to date where it has none.

Source: OCI distribution-spec v1.1, "Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

from collections.abc import Callable

from buildkit_py.digest import Digest
from buildkit_py.errors import NotFound, ProtocolError, RegistryError
from buildkit_py.oci import OCI_INDEX, Descriptor
from buildkit_py.reference import Reference
from buildkit_py.registry import _http
from buildkit_py.registry._http import Response, Transport
from buildkit_py.registry._operation import Operation, Turns
from buildkit_py.registry._oras import OrasRegistry
from buildkit_py.registry._referrers import entry_for, fallback_tag, listed, with_entry, without_entry
from buildkit_py.registry.auth import pull

_MAX_PAGES = 1000
_MAX_REFERRERS = 10_000
_MAX_EDITS = 5


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
    ) -> None:
        """fetch and put are for the indexes at tags, and never of a mirror."""
        self._http = http
        self._transport = transport
        self._turns = turns
        self._fetch = fetch
        self._put = put
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
        self._edit(
            reference,
            subject,
            lambda listed: entry.digest in listed,
            lambda before: with_entry(before, entry),
            operation,
        )

    def forget(self, reference: Reference, subject: Digest, digest: Digest, operation: Operation) -> None:
        self._edit(
            reference,
            subject,
            lambda listed: digest not in listed,
            lambda before: without_entry(before or b"{}", digest),
            operation,
        )

    def _edit(
        self,
        reference: Reference,
        subject: Digest,
        is_done: Callable[[set[Digest]], bool],
        edit: Callable[[bytes | None], bytes],
        operation: Operation,
    ) -> None:
        """Change the list of referrers at its tag, and look whether the change is still there.

        Registries have no locks: another client that writes at the same time may undo it.
        """
        tag = reference.with_tag(fallback_tag(subject))
        # One at a time in this client, which would otherwise collide with itself.
        with self._turns.take(str(tag), operation):
            for attempt in range(1, _MAX_EDITS + 1):
                before, entries = self.of_tag(reference, subject, operation)
                if is_done({entry.digest for entry in entries}):
                    return
                if attempt > 1:
                    self._transport.pause(operation, attempt)
                after = edit(before)
                self._put(tag, after, operation)
            if is_done({entry.digest for entry in self.of_tag(reference, subject, operation)[1]}):
                return
        raise RegistryError(
            f"{tag}: others keep replacing this list of referrers; try again later",
            retryable=True,
            host=reference.api_host,
            repository=reference.path,
        )


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
