"""Who we are at which registry: docker's config file, credential helpers, or values given.

Secrets stay inside :class:`Credentials`, whose repr hides them. Nothing that a helper prints is ever
logged or put into an error.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

from buildkit_py.errors import Unauthorized

_LOG = logging.getLogger(__name__)

HUB_KEY = "https://index.docker.io/v1/"
"""The key of Docker Hub in docker's config and in credential helpers."""
CACHE_SECONDS = 290.0
"""Below the five minutes that short-lived cloud passwords are good for."""
HELPER_TIMEOUT_SECONDS = 25.0
"""The daemon gives a whole call to the session 60 s, and lookups wait for each other."""

HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_CONFIG_BYTES = 4 << 20
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105  # what a helper says instead of a user name
_NO_SERVER = "credentials server URL is missing"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who we are at one registry; all empty means nobody in particular."""

    username: str = ""
    secret: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """An OAuth2 refresh token; outranks the password."""
    registry_token: str = field(default="", repr=False)
    """A bearer token for the registry itself, used as it is."""

    @property
    def anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return not ((self.username and self.secret) or self.identity_token or self.registry_token)


ANONYMOUS = Credentials()


class CredentialStore(Protocol):
    """Where credentials come from."""

    def get(self, host: str, /) -> Credentials:
        """Credentials for ``host[:port]``; anonymous ones where there are none.

        May block for many seconds: call it in a thread. Raises Unauthorized when a store that should
        know cannot be read.
        """
        ...


def config_key(host: str) -> str:
    """The key that docker files a host under."""
    return HUB_KEY if host in HUB_NAMES else host


class StaticCredentials:
    """Credentials given as values by host; other hosts are asked of the fallback."""

    def __init__(self, by_host: Mapping[str, Credentials], fallback: CredentialStore | None = None) -> None:
        self._by_key = {config_key(host): credentials for host, credentials in by_host.items()}
        self._fallback = fallback

    def get(self, host: str, /) -> Credentials:
        """See CredentialStore."""
        known = self._by_key.get(config_key(host))
        if known is not None:
            return known
        return self._fallback.get(host) if self._fallback is not None else ANONYMOUS


class DockerCredentials:
    """Docker's own lookup: DOCKER_AUTH_CONFIG, then credential helpers, then the config file.

    Answers are kept for a little under five minutes. Lookups run one at a time: some keychains hang
    when two helpers ask at once. Source: docker/cli, cli/config; docker-credential-helpers, client.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        helper_timeout: float = HELPER_TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        system: str = sys.platform,
    ) -> None:
        """path names a config file; the usual place otherwise."""
        self._environ: Mapping[str, str] = os.environ if environ is None else environ
        self._path = path if path is not None else docker_config_dir(self._environ) / "config.json"
        self._helper_timeout = helper_timeout
        self._clock = clock
        self._system = system
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[float, Credentials]] = {}

    @property
    def path(self) -> Path:
        """The config file that is read; it need not exist."""
        return self._path

    def get(self, host: str, /) -> Credentials:
        """See CredentialStore."""
        with self._lock:
            known = self._cache.get(host)
            if known is not None and self._clock() < known[0]:
                return known[1]
            found = self._look_up(host)
            self._cache[host] = (self._clock() + CACHE_SECONDS, found)
            return found

    def _look_up(self, host: str) -> Credentials:
        key = config_key(host)
        from_environment = self._from_environment(key)
        if from_environment is not None:
            return from_environment
        config = self._read()
        entry = _entry(config, key, self._path)
        helper, chosen_by_us = self._helper_for(config, key)
        if helper is None:
            return entry
        try:
            answer = self._ask_helper(helper, key)
        except Unauthorized as error:
            if not chosen_by_us:
                raise
            # Nobody configured this helper, it only happens to be installed (and has no desktop to talk to).
            _LOG.debug("ignoring the default credential store: %s", error)
            return entry
        return replace(
            entry,
            username=answer.username,
            secret=answer.secret,
            identity_token=answer.identity_token,
        )

    def _from_environment(self, key: str) -> Credentials | None:
        text = self._environ.get("DOCKER_AUTH_CONFIG", "")
        if not text.strip():
            return None
        try:
            auths = _auths_of_environment(text)
        except ValueError as error:
            _LOG.warning("DOCKER_AUTH_CONFIG is ignored: %s", error)
            return None
        return auths.get(key)

    def _read(self) -> Mapping[str, object]:
        try:
            with self._path.open("rb") as file:
                raw = file.read(_MAX_CONFIG_BYTES + 1)
        except FileNotFoundError:
            return {}
        except NotADirectoryError:
            return {}
        except OSError as error:
            raise Unauthorized(f"docker config {self._path}: {error.strerror or 'cannot be read'}") from error
        if len(raw) > _MAX_CONFIG_BYTES:
            raise Unauthorized(f"docker config {self._path}: larger than {_MAX_CONFIG_BYTES} bytes")
        if not raw.strip():
            return {}
        try:
            config: object = json.loads(raw)
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            # No "from": the decoder's error holds the text, secrets included.
            raise Unauthorized(f"docker config {self._path}: not a JSON object") from None
        return cast("dict[str, object]", config)

    def _helper_for(self, config: Mapping[str, object], key: str) -> tuple[str | None, bool]:
        """Name of the helper to ask, and whether it is only the default of this system."""
        helpers = _mapping(config.get("credHelpers"))
        named = helpers.get(key)
        if isinstance(named, str) and named:
            return named, False
        store = config.get("credsStore")
        if isinstance(store, str) and store:
            return store, False
        if helpers or _mapping(config.get("auths")) or not config:
            return None, False
        default = self._default_helper()
        found = shutil.which(f"docker-credential-{default}", path=self._environ.get("PATH"))
        return (default, True) if found else (None, False)

    def _default_helper(self) -> str:
        if self._system == "darwin":
            return "osxkeychain"
        if self._system == "win32":
            return "wincred"
        return "pass" if shutil.which("pass", path=self._environ.get("PATH")) else "secretservice"

    def _ask_helper(self, name: str, key: str) -> Credentials:
        """Run ``docker-credential-NAME get``. What it prints goes nowhere but into the answer."""
        if not _HELPER_NAME.fullmatch(name):
            raise Unauthorized(f"docker config {self._path}: {name!r} is not the name of a credential helper")
        program = f"docker-credential-{name}"
        binary = shutil.which(program, path=self._environ.get("PATH"))
        if binary is None:
            raise Unauthorized(f"credentials for {key}: {program} is not on PATH; install it or edit {self._path}")
        try:
            done = subprocess.run(
                [binary, "get"],
                input=key.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=dict(self._environ),
                timeout=self._helper_timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            # No "from": the error carries what the helper printed so far.
            raise Unauthorized(
                f"credentials for {key}: {program} gave no answer within {self._helper_timeout:g} s"
            ) from None
        except OSError as error:
            raise Unauthorized(f"credentials for {key}: {program}: {error.strerror}") from error
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip()
            if said in {_NOT_FOUND, _NO_SERVER}:
                return ANONYMOUS
            raise Unauthorized(
                f"credentials for {key}: {program} failed with exit code {done.returncode}; "
                f"run `echo {key} | {program} get` to see why"
            )
        return _helper_answer(done.stdout, key, program)


def docker_config_dir(environ: Mapping[str, str] | None = None) -> Path:
    """``$DOCKER_CONFIG``, or ``~/.docker``."""
    environ = os.environ if environ is None else environ
    named = environ.get("DOCKER_CONFIG", "")
    if named:
        return Path(named)
    home = environ.get("HOME", "")
    return (Path(home) if home else Path("~").expanduser()) / ".docker"


def _mapping(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _helper_answer(raw: bytes, key: str, program: str) -> Credentials:
    try:
        parsed: object = json.loads(raw)
    except (ValueError, RecursionError):
        parsed = None
    answer = _mapping(parsed)
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise Unauthorized(f"credentials for {key}: {program} did not answer with Username and Secret")
    if username == _TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


def _auths_of_environment(text: str) -> Mapping[str, Credentials]:
    """Strict on purpose, like docker: one odd field and the whole variable is ignored.

    The ValueErrors raised here quote nothing of the text.
    """
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(parsed, dict) or set(cast("dict[str, object]", parsed)) - {"auths"}:
        raise ValueError('expected {"auths": {...}} and nothing else')
    found: dict[str, Credentials] = {}
    for key, value in _mapping(cast("dict[str, object]", parsed).get("auths")).items():
        entry = _mapping(value)
        auth = entry.get("auth")
        if set(entry) != {"auth"} or not isinstance(auth, str):
            raise ValueError(f'the entry {key!r} must hold "auth" and nothing else')
        decoded = _decode_auth(auth)
        if decoded is None:
            raise ValueError(f'"auth" of the entry {key!r} is not base64 of user:password')
        found[key] = Credentials(*decoded)
    return found


def _decode_auth(auth: str) -> tuple[str, str] | None:
    """(user, password) of base64 text, or None where it holds none."""
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    username, colon, password = text.partition(":")
    if not colon or not username:
        return None
    return username, password.rstrip("\0")


def _host_of(key: str) -> str:
    """Host part of a legacy key such as ``https://host:port/v1/``."""
    _, scheme, rest = key.partition("://")
    return (rest if scheme else key).split("/", 1)[0]


def _entry(config: Mapping[str, object], key: str, path: Path) -> Credentials:
    auths = _mapping(config.get("auths"))
    found = auths.get(key)
    if found is None:
        wanted = _host_of(key)
        matches = sorted(candidate for candidate in auths if _host_of(candidate) == wanted)
        found = auths[matches[0]] if matches else None
    entry = _mapping(found)
    username, secret = _text(entry.get("username")), _text(entry.get("password"))
    auth = _text(entry.get("auth"))
    if auth:
        decoded = _decode_auth(auth)
        if decoded is None:
            raise Unauthorized(f'docker config {path}: "auth" of {key} is not base64 of user:password')
        username, secret = decoded
    return Credentials(
        username,
        secret,
        identity_token=_text(entry.get("identitytoken")),
        registry_token=_text(entry.get("registrytoken")),
    )
