"""URLs of a repository, as ``oras`` makes them. All else that is used of oras is in _oras_provider."""

from __future__ import annotations

from typing import cast

import oras.container

from buildkit_py.reference import Reference


# mypy sees no types in oras (it ships no py.typed), hence the ignore.
class RepositoryURLs(oras.container.Container):  # type: ignore[misc]
    """URLs of one repository, from a reference that has been parsed already (oras' own parser guesses)."""

    def __init__(self, reference: Reference) -> None:  # no super(): that one parses text
        self.registry = reference.api_host
        self.namespace = None
        self.repository = reference.path
        self.tag = reference.tag_or_latest
        self.digest = str(reference.digest) if reference.digest is not None else None

    def referrers_url(self, digest: str) -> str:
        """URL of the list of manifests whose subject this is; oras knows none."""
        return f"{self.registry}/v2/{self.repository}/referrers/{digest}"

    @property
    def all_tags_url(self) -> str:
        """URL of the list of tags."""
        return cast("str", self.tags_url())  # pyright: ignore[reportUnknownMemberType, reportUnnecessaryCast]


__all__ = ["RepositoryURLs"]
