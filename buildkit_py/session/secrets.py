"""Secrets: values that steps and sources of a build may ask for by their id.

Source: moby/buildkit v0.32, session/secrets/secrets.proto and session/secrets/secretsprovider.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import select
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

from buildkit_py.errors import InvalidOption
from buildkit_py.options import SecretSpec
from buildkit_py.session.attachable import Call, CallError, Code, Handler, only_message

_LOG = logging.getLogger(__name__)

GET_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105  # a method

MAX_SECRET_BYTES = 500 << 10
"""As much as Go clients send; daemons set no limit of their own."""
PIPE_SECONDS = 60.0
"""How long a pipe may take to say the secret."""
_LIMIT = "the limit is 500 KB (512000 bytes)"


class Secrets:
    """Serves secrets. Other ids are not found, as daemons ask for many that nobody has."""

    def __init__(self, specs: Iterable[SecretSpec], *, environ: Mapping[str, str] | None = None) -> None:
        """Check that every secret can be had; raise InvalidOption otherwise, and for an id that is given twice.

        Blocks shortly on files. No value is kept but those that the specs hold and those of pipes, which can be
        read only once.
        """
        environ = os.environ if environ is None else environ
        self._sources: dict[str, _Source] = {}
        for spec in specs:
            spec.check()
            if spec.id in self._sources:
                raise InvalidOption(f"secret {spec.id}: given twice")
            self._sources[spec.id] = _source(spec, environ)

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        return {GET_SECRET: self._get}

    async def _get(self, call: Call) -> None:
        from buildkit_py.pb import secrets_pb2  # most builds have no secrets

        request = secrets_pb2.GetSecretRequest.FromString(await only_message(call))
        source = self._sources.get(request.ID)
        if source is None:
            raise CallError(Code.NOT_FOUND, f"secret {request.ID[:200]}: not found")
        value = await _bounded(request.ID, source)
        await call.send(secrets_pb2.GetSecretResponse(data=value).SerializeToString())


_Source = Callable[[], Awaitable[bytes]]


async def _bounded(name: str, source: _Source) -> bytes:
    try:
        value = await source()
    except CallError:
        raise
    except OSError as error:
        raise CallError(Code.UNKNOWN, f"secret {name}: cannot be read: {error.strerror}") from None
    except Exception as error:  # of the caller's function; what it says may hold the secret
        raise CallError(Code.UNKNOWN, f"secret {name}: its function raised {type(error).__name__}") from None
    if len(value) > MAX_SECRET_BYTES:
        raise CallError(Code.UNKNOWN, f"secret {name}: too large, {_LIMIT}")
    return value


def _source(spec: SecretSpec, environ: Mapping[str, str]) -> _Source:
    if isinstance(spec.value, bytes):
        return _constant(spec.id, spec.value)
    if spec.value is not None:
        return _function(spec.id, spec.value)
    if spec.env is not None or (spec.file is None and spec.id in environ):
        name = spec.env if spec.env is not None else spec.id
        return _constant(spec.id, os.fsencode(environ[name])) if name in environ else _unset(spec.id, name)
    return _file(spec)


def _constant(name: str, value: bytes) -> _Source:
    if len(value) > MAX_SECRET_BYTES:
        raise InvalidOption(f"secret {name}: {len(value)} bytes, {_LIMIT}")

    async def read() -> bytes:
        return value

    return read


def _unset(name: str, variable: str) -> _Source:
    async def read() -> bytes:
        _LOG.warning("secret %s: environment variable %s is not set: the secret is empty", name, variable)
        return b""

    return read


def _function(name: str, function: Callable[[], bytes | Awaitable[bytes]]) -> _Source:
    if not callable(function):
        raise InvalidOption(f"secret {name}: the value is neither bytes nor a function")

    async def read() -> bytes:
        direct = inspect.iscoroutinefunction(function)
        given = function() if direct else await asyncio.to_thread(function)
        value = cast("object", await given if inspect.isawaitable(given) else given)
        if not isinstance(value, bytes):
            raise CallError(Code.UNKNOWN, f"secret {name}: its function gave {type(value).__name__}, not bytes")
        return value

    return read


def _file(spec: SecretSpec) -> _Source:
    path = Path(spec.file if spec.file is not None else spec.id)
    what = f"secret {spec.id}: {path}"
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InvalidOption(f"{what} is a directory")
        if not os.access(path, os.R_OK):
            raise InvalidOption(f"{what} cannot be read")
    except FileNotFoundError:
        hint = "" if spec.file is not None else f", and no environment variable {spec.id} is set"
        raise InvalidOption(f"{what} does not exist{hint}") from None
    except OSError as error:
        raise InvalidOption(f"{what} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode):
        if status.st_size > MAX_SECRET_BYTES:
            raise InvalidOption(f"{what} is {status.st_size} bytes, {_LIMIT}")
        return lambda: asyncio.to_thread(_read, path)
    return _Pipe(path).read


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_SECRET_BYTES + 1)


class _Pipe:
    """A pipe, such as a shell's ``<(command)``: read at the first question, and remembered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._value: bytes | None = None

    async def read(self) -> bytes:
        async with self._lock:
            if self._value is None:
                self._value = await asyncio.to_thread(self._drain)
            return self._value

    def _drain(self) -> bytes:
        deadline = time.monotonic() + PIPE_SECONDS
        parts: list[bytes] = []
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            while sum(map(len, parts)) <= MAX_SECRET_BYTES:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    raise CallError(Code.DEADLINE_EXCEEDED, f"{self._path}: said nothing for {PIPE_SECONDS:g} s")
                part = os.read(descriptor, MAX_SECRET_BYTES + 1)
                if not part:
                    break
                parts.append(part)
        finally:
            os.close(descriptor)
        return b"".join(parts)


__all__ = ["MAX_SECRET_BYTES", "Secrets"]
