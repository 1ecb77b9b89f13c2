"""The work behind moby.filesync.v1.Auth, see auth.py; loaded at the first question of a daemon.

A daemon that offers token authority never sees a password: tokens are fetched here. Only a registry that
wants Basic authentication gets the password, by way of the daemon.
Source: moby/buildkit v0.32, session/auth/auth.proto and util/resolver/authorizer.go.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from buildkit_py.errors import BuildKitError, RegistryError, Unauthorized
from buildkit_py.pb import auth_pb2
from buildkit_py.registry._operation import Operation, Workers
from buildkit_py.registry.auth import credentials_for, fetch_token
from buildkit_py.registry.config import RegistryConfig, RetryPolicy, Timeouts
from buildkit_py.registry.credentials import (
    ANONYMOUS,
    Credentials,
    CredentialStore,
    DockerCredentials,
    docker_config_dir,
)
from buildkit_py.session.attachable import Call, CallError, Code, Handler, only_message
from buildkit_py.session.auth import CREDENTIALS, FETCH_TOKEN, GET_TOKEN_AUTHORITY, VERIFY_TOKEN_AUTHORITY

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from google.protobuf.message import Message

_LOG = logging.getLogger(__name__)

CALL_SECONDS = 50.0
"""For one call; the daemon gives up after 60."""
_TIMEOUTS = Timeouts(connect=10.0, read=20.0, total=CALL_SECONDS, blob=CALL_SECONDS)
_RETRY = RetryPolicy(attempts=3)
_THREADS = 4
_SEED_BYTES = 16
_MAX_SEED_FILE_BYTES = 1 << 20
_LOCK_SECONDS = 2.0


class AuthService:
    """Answers the daemon's questions about registries; see Auth, which takes the same arguments."""

    def __init__(
        self,
        credentials: CredentialStore | None = None,
        config: RegistryConfig | None = None,
        *,
        seeds: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._config = RegistryConfig.of_system(environ=environ) if config is None else config
        self._store = self._config.credential_store(credentials or DockerCredentials(environ=environ))
        self._seeds = Seeds(seeds or docker_config_dir(environ) / ".token_seed")
        self._workers = Workers(_THREADS, name="registry-auth")
        self._tokens = environ.get("BUILDKIT_NO_CLIENT_TOKEN", "").lower() not in {"1", "t", "true"}

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        return {
            CREDENTIALS: self._credentials,
            FETCH_TOKEN: self._fetch_token,
            GET_TOKEN_AUTHORITY: self._get_token_authority,
            VERIFY_TOKEN_AUTHORITY: self._verify_token_authority,
        }

    async def _credentials(self, call: Call) -> None:
        request = auth_pb2.CredentialsRequest.FromString(await only_message(call))

        def answer(_: Operation) -> Message:
            found = self._store.get(request.Host)
            if found.identity_token:
                return auth_pb2.CredentialsResponse(Secret=found.identity_token)
            return auth_pb2.CredentialsResponse(Username=found.username, Secret=found.secret)

        await self._answer(call, answer)

    async def _fetch_token(self, call: Call) -> None:
        request = auth_pb2.FetchTokenRequest.FromString(await only_message(call))

        def answer(operation: Operation) -> Message:
            # Here, and not above: the HTTP stack takes longer to import than all the rest.
            from buildkit_py.registry._http import Transport

            scopes = tuple(request.Scopes)
            credentials = credentials_for(self._store, request.Host, scopes)
            transport = Transport(self._config, timeouts=_TIMEOUTS, retry=_RETRY)
            with contextlib.closing(transport):
                token = transport.retrying(
                    operation,
                    lambda: fetch_token(
                        transport,
                        host=request.Host,
                        realm=request.Realm,
                        service=request.Service,
                        scopes=scopes,
                        credentials=credentials,
                        operation=operation,
                        client_id=request.ClientID or "buildkit-client",
                    ),
                )
            # No IssuedAt: with a clock that is behind ours, the daemon would keep the token for ever.
            return auth_pb2.FetchTokenResponse(Token=token.value, ExpiresIn=max(1, int(token.lifetime)))

        await self._answer(call, answer)

    async def _get_token_authority(self, call: Call) -> None:
        request = auth_pb2.GetTokenAuthorityRequest.FromString(await only_message(call))
        self._refuse_without_tokens()
        await self._answer(
            call,
            lambda _: auth_pb2.GetTokenAuthorityResponse(
                PublicKey=public_key(self._private_key(request.Host, request.Salt))
            ),
        )

    async def _verify_token_authority(self, call: Call) -> None:
        request = auth_pb2.VerifyTokenAuthorityRequest.FromString(await only_message(call))
        self._refuse_without_tokens()
        await self._answer(
            call,
            lambda _: auth_pb2.VerifyTokenAuthorityResponse(
                Signed=sign(self._private_key(request.Host, request.Salt), request.Payload)
            ),
        )

    def _refuse_without_tokens(self) -> None:
        if not self._tokens:
            raise CallError(Code.UNAVAILABLE, "token authority is switched off by BUILDKIT_NO_CLIENT_TOKEN")

    def _private_key(self, host: str, salt: bytes) -> bytes:
        """32 bytes, the same for every client that has nothing to show for the host."""
        # A store that fails is nobody here; FetchToken, which follows, says what is wrong.
        seed = b"" if self._lenient(host).anonymous else self._seeds.get(host)
        return hmac.digest(salt, seed, hashlib.sha256)

    def _lenient(self, host: str) -> Credentials:
        try:
            return self._store.get(host)
        except Unauthorized as error:
            _LOG.debug("no credentials for %s: %s", host, error)
            return ANONYMOUS

    async def _answer(self, call: Call, answer: Callable[[Operation], Message]) -> None:
        try:
            message = await self._workers.run(CALL_SECONDS, answer)
        except CallError:
            raise
        except Unauthorized as error:
            raise CallError(Code.UNAUTHENTICATED, str(error)) from error
        except RegistryError as error:
            raise CallError(Code.UNAVAILABLE, str(error)) from error
        except BuildKitError as error:
            raise CallError(Code.INVALID_ARGUMENT, str(error)) from error
        await call.send(message.SerializeToString(deterministic=True))


def public_key(private: bytes) -> bytes:
    """Ed25519 public key of a private one, both 32 bytes."""
    return _ed25519(private).public_key().public_bytes_raw()


def sign(private: bytes, payload: bytes) -> bytes:
    """Signature (64 bytes), then the payload, as NaCl lays signed messages out."""
    return _ed25519(private).sign(payload) + payload


def _ed25519(private: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private)


class Seeds:
    """One random seed for each host, shared by the clients of one user through a file.

    The file is docker's, with its lock. What cannot be read is made anew, and where it cannot be written the
    seeds last as long as this object. Thread-safe; may block for two seconds on the lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, bytes] = {}

    def get(self, host: str) -> bytes:
        """The host's seed, made when it is asked for first."""
        with self._lock:
            known = self._known.get(host)
            if known is None:
                known = self._known[host] = self._load_or_make(host)
            return known

    def _load_or_make(self, host: str) -> bytes:
        try:
            with self._file_lock():
                entries = self._read()
                seed = _seed_of(entries.get(host))
                if seed is None:
                    seed = secrets.token_bytes(_SEED_BYTES)
                    entries[host] = {"Seed": base64.b64encode(seed).decode("ascii")}
                    self._write(entries)
                return seed
        except OSError as error:
            _LOG.debug("%s: %s; its seeds are not remembered", self._path, error.strerror or error)
        return _seed_of(self._read().get(host)) or secrets.token_bytes(_SEED_BYTES)

    @contextlib.contextmanager
    def _file_lock(self) -> Generator[None]:
        path = self._path.with_name(self._path.name + ".lock")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, object]:
        try:
            with self._path.open("rb") as file:
                parsed: object = json.loads(file.read(_MAX_SEED_FILE_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}

    def _write(self, entries: Mapping[str, object]) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(json.dumps(entries).encode())
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _seed_of(entry: object) -> bytes | None:
    text = cast("dict[str, object]", entry).get("Seed") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True) or None
    except (binascii.Error, ValueError):
        return None
