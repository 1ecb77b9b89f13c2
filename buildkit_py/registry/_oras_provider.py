"""The registry class of ``oras`` on our requests. Loading it takes a tenth of a second: it is loaded when it is used.

oras gives the class and its paging. All of its traffic goes through ``do_request``, which is replaced here: as shipped
it sends one registry's password to another, does not verify what it downloads, has no timeouts and rewrites manifests.
What is relied on is written down in tests/unit/registry/test_oras_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from buildkit_py.registry import _lazy

with _lazy.loaded_at_first_use("jsonschema"):
    # Validators of manifests of files, which nothing here calls, would take a third of that time.
    import oras.auth
    import oras.auth.base
    import oras.provider

from buildkit_py.errors import RegistryError
from buildkit_py.registry._http import Response

_BACKEND = "buildkit_py"


# mypy sees no types in oras (it ships no py.typed), hence the ignores on its classes.
class _NoState(oras.auth.base.AuthBackend):  # type: ignore[misc]
    """An auth backend that knows nothing, so that nothing inherited can leak; see Authorizer."""

    def get_auth_header(self) -> dict[str, str]:
        return {}

    def load_configs(self, container: object, configs: object = None) -> None:
        return None

    def authenticate_request(
        self, original: Response, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        return headers, False


cast("dict[str, object]", oras.auth.auth_backends)[_BACKEND] = _NoState


class OrasRegistry(oras.provider.Registry):  # type: ignore[misc]
    """The registry class of oras, which asks nothing by itself."""

    def __init__(self, ask: Callable[[str], Response]) -> None:
        """ask does a GET, with all that belongs to one."""
        super().__init__(auth_backend=_BACKEND)
        self._ask = ask

    def pages(self, url: str, take: Callable[[Response], bool]) -> None:
        """GET a list page by page while take() says so and there is another."""
        # Of an answer it uses what ours has as well.
        self._do_paginated_request(url, cast("Any", take))

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: Any = None,
        json: Any = None,
        stream: bool = False,
    ) -> Any:
        """A GET of ours. The parameters are those of oras, of which paging uses the first; nothing else is called."""
        if method != "GET" or data is not None or json is not None or stream:
            raise RegistryError("oras: a request other than that for a page was not expected here")
        return self._ask(url)


__all__ = ["OrasRegistry"]
