"""Credentials for the daemon's own pulls and pushes: moby.filesync.v1.Auth.

A daemon that offers token authority never sees a password: tokens are fetched here. Only a registry that
wants Basic authentication gets the password, by way of the daemon.
Source: moby/buildkit v0.32, session/auth/auth.proto and util/resolver/authorizer.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_py.session.attachable import Call, Handler

if TYPE_CHECKING:
    from buildkit_py.registry import CredentialStore, RegistryConfig
    from buildkit_py.session.auth_service import AuthService

_SERVICE = "/moby.filesync.v1.Auth/"
CREDENTIALS = f"{_SERVICE}Credentials"
FETCH_TOKEN = f"{_SERVICE}FetchToken"
GET_TOKEN_AUTHORITY = f"{_SERVICE}GetTokenAuthority"
VERIFY_TOKEN_AUTHORITY = f"{_SERVICE}VerifyTokenAuthority"


class Auth:
    """Answers the daemon's questions about registries.

    Docker's credentials are used unless others are given; credentials in config come before both. A store
    that fails (a broken credential helper) is an error for a push, and for a registry with Basic
    authentication; the pull of a repository that may be public goes on without credentials.
    """

    def __init__(
        self,
        credentials: CredentialStore | None = None,
        config: RegistryConfig | None = None,
        *,
        seeds: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """seeds is the file that remembers who may share tokens; ``.token_seed`` beside docker's config."""
        self._credentials = credentials
        self._config = config
        self._seeds = seeds
        self._environ = environ
        self._service: AuthService | None = None

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        names = (CREDENTIALS, FETCH_TOKEN, GET_TOKEN_AUTHORITY, VERIFY_TOKEN_AUTHORITY)
        return {name: partial(self._answer, name) for name in names}

    async def _answer(self, method: str, call: Call) -> None:
        if self._service is None:
            # Most builds are never asked, so they do not load what it takes to answer.
            from buildkit_py.session.auth_service import AuthService

            self._service = AuthService(self._credentials, self._config, seeds=self._seeds, environ=self._environ)
        await self._service.methods()[method](call)
