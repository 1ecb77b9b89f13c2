"""Who we are at which registry: the files of docker and Podman, credential helpers, or values given.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

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


@runtime_checkable
class RepositoryCredentialStore(Protocol):
    """A store that may know other credentials for some repositories of a registry."""

    def for_repository(self, host: str, repository: str, /) -> Credentials:
        """Like CredentialStore.get, for one repository without its host."""
        ...


def look_up(store: CredentialStore, host: str, repository: str = "") -> Credentials:
    """Credentials for a repository, where the store knows such, or else for its host."""
    if repository and isinstance(store, RepositoryCredentialStore):
        return store.for_repository(host, repository)
    return store.get(host)


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
        return self.for_repository(host, "")

    def for_repository(self, host: str, repository: str, /) -> Credentials:
        """See RepositoryCredentialStore."""
        known = self._by_key.get(config_key(host))
        if known is not None:
            return known
        return look_up(self._fallback, host, repository) if self._fallback is not None else ANONYMOUS


class DockerCredentials:
    """Docker's own lookup: DOCKER_AUTH_CONFIG, then credential helpers, then the config file. Then Podman's files.

    A file named by REGISTRY_AUTH_FILE, as Podman knows it, comes before docker's config file. Answers are kept for a
    little under five minutes. Lookups run one at a time: some keychains hang when two helpers ask at once.
    Source: docker/cli, cli/config; docker-credential-helpers, client; containers-auth.json(5).
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
        """path names docker's config file, and no other one is read then; the usual places otherwise."""
        self._environ: Mapping[str, str] = os.environ if environ is None else environ
        self._path = path if path is not None else docker_config_dir(self._environ) / "config.json"
        self._named = _named_auth_file(self._environ) if path is None else ()
        self._podman = podman_auth_files(self._environ, system) if path is None else ()
        self._helpers = _Helpers(self._environ, helper_timeout)
        self._clock = clock
        self._system = system
        self._lock = threading.Lock()
        self._cache: dict[tuple[str, str], tuple[float, Credentials]] = {}

    @property
    def path(self) -> Path:
        """The config file that is read; it need not exist."""
        return self._path

    def get(self, host: str, /) -> Credentials:
        """See CredentialStore."""
        return self.for_repository(host, "")

    def for_repository(self, host: str, repository: str, /) -> Credentials:
        """See RepositoryCredentialStore; Podman's files may hold such."""
        with self._lock:
            return self._kept((host, repository), lambda: self._look_up(host, repository))

    def _kept(self, key: tuple[str, str], look: Callable[[], Credentials]) -> Credentials:
        known = self._cache.get(key)
        if known is None or self._clock() >= known[0]:
            known = self._cache[key] = (self._clock() + CACHE_SECONDS, look())
        return known[1]

    def _look_up(self, host: str, repository: str) -> Credentials:
        from_environment = self._from_environment(config_key(host))
        if from_environment is not None:
            return from_environment
        found = self._from_auth_files(self._named, host, repository)
        if found.anonymous:
            # Of docker's own there is one answer for all repositories, and its helper is asked once.
            found = self._kept((host, "\0docker"), lambda: self._from_docker(host))
        return self._from_auth_files(self._podman, host, repository) if found.anonymous else found

    def _from_auth_files(self, paths: Sequence[Path], host: str, repository: str) -> Credentials:
        for path in paths:
            found = _of_auth_file(_read(path), path, host, repository, self._helpers)
            if not found.anonymous:
                return found
        return ANONYMOUS

    def _from_docker(self, host: str) -> Credentials:
        key = config_key(host)
        config = _read(self._path)
        entry = _entry(config, key, self._path)
        helper, chosen_by_us = self._helper_for(config, key)
        if helper is None:
            return entry
        try:
            answer = self._helpers.ask(helper, key, self._path)
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


class _Helpers:
    """Runs credential helpers."""

    def __init__(self, environ: Mapping[str, str], timeout: float) -> None:
        self._environ = environ
        self._timeout = timeout

    def ask(self, name: str, key: str, config: Path) -> Credentials:
        """Run ``docker-credential-NAME get``. What it prints goes nowhere but into the answer."""
        if not _HELPER_NAME.fullmatch(name):
            raise Unauthorized(f"{config}: {name!r} is not the name of a credential helper")
        program = f"docker-credential-{name}"
        binary = shutil.which(program, path=self._environ.get("PATH"))
        if binary is None:
            raise Unauthorized(f"credentials for {key}: {program} is not on PATH; install it or edit {config}")
        try:
            done = subprocess.run(
                [binary, "get"],
                input=key.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=dict(self._environ),
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            # No "from": the error carries what the helper printed so far.
            raise Unauthorized(f"credentials for {key}: {program} gave no answer within {self._timeout:g} s") from None
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


def _read(path: Path) -> Mapping[str, object]:
    """A config file; one that is not there is empty."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise Unauthorized(f"credentials in {path}: {error.strerror or 'cannot be read'}") from error
    if len(raw) > _MAX_CONFIG_BYTES:
        raise Unauthorized(f"credentials in {path}: larger than {_MAX_CONFIG_BYTES} bytes")
    if not raw.strip():
        return {}
    try:
        config: object = json.loads(raw)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        # No "from": the decoder's error holds the text, secrets included.
        raise Unauthorized(f"credentials in {path}: not a JSON object") from None
    return cast("dict[str, object]", config)


def _named_auth_file(environ: Mapping[str, str]) -> tuple[Path, ...]:
    named = environ.get("REGISTRY_AUTH_FILE", "")
    return (Path(named),) if named else ()


def podman_auth_files(environ: Mapping[str, str], system: str = sys.platform) -> tuple[Path, ...]:
    """Where ``podman login`` and its like write, beside docker's own file. Source: containers-auth.json(5)."""
    home = Path(environ.get("HOME") or "~").expanduser()
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    places = [config / "containers" / "auth.json"]
    if runtime and system == "linux":
        places.insert(0, Path(runtime) / "containers" / "auth.json")
    return tuple(places)


def _of_auth_file(
    config: Mapping[str, object], path: Path, host: str, repository: str, helpers: _Helpers
) -> Credentials:
    """What one of Podman's files says: its helper for the registry, else the entry closest to the repository."""
    registry = "docker.io" if host in HUB_NAMES else host
    helper = _mapping(config.get("credHelpers")).get(registry)
    if isinstance(helper, str) and helper:
        return helpers.ask(helper, registry, path)
    auths = _mapping(config.get("auths"))
    parts = repository.split("/") if repository else []
    for count in range(len(parts), 0, -1):
        key = "/".join((registry, *parts[:count]))
        if key in auths:
            return _entry({"auths": {key: auths[key]}}, key, path)
    if registry in auths:
        return _entry(config, registry, path)
    # Entries that docker wrote; a key with a path is for repositories below that.
    legacy = {key: value for key, value in auths.items() if "/" not in key or "://" in key}
    return _entry({"auths": legacy}, config_key(host), path)


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
            raise Unauthorized(f'credentials in {path}: "auth" of {key} is not base64 of user:password')
        username, secret = decoded
    return Credentials(
        username,
        secret,
        identity_token=_text(entry.get("identitytoken")),
        registry_token=_text(entry.get("registrytoken")),
    )
