"""``certs.d`` and ``hosts.toml``: what docker, podman and containerd keep about a registry in a directory.

A directory is named after the registry. Without a ``hosts.toml`` its ``*.crt`` files are certificates to trust and its
``*.cert`` with ``*.key`` ours to show. Blocks; reads a few small files.
Source: docker, docs/engine/security/certificates; containers-certs.d(5); containerd, docs/hosts.md.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from buildkit_py.errors import InvalidOption
from buildkit_py.registry.config import HUB_API_HOST, HostConfig, Mirror, split_host

_LOG = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1 << 20
_READS = {"pull", "resolve"}
_CAPABILITIES = _READS | {"push"}
_KNOWN = {"server", "host", "capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ns|us|\u00b5s|ms|s|m|h))+")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Found:
    """What a directory says of one registry."""

    host: HostConfig
    mirrors: Mapping[str, HostConfig]
    """Settings of the hosts that stand in for it."""


def read_directories(directories: Sequence[Path], host: str) -> Found | None:
    """What the first directory that there is for a registry says; None without one.

    Raises InvalidOption for a file that cannot be used: going on without it would mean another trust.
    """
    names = names_of(host)
    for directory in directories:
        for name in names:
            found = _read(directory / name, names)
            if found is not None:
                return found
        default = directory / "_default"
        if (default / "hosts.toml").is_file():
            return _read(default, names)
    return None


def _read(directory: Path, names: Sequence[str]) -> Found | None:
    try:
        files = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError:
        return None  # not there, or not for us: then as if it were not
    text = _text(directory / "hosts.toml") if directory / "hosts.toml" in files else ""
    if text.strip():
        return _HostsFile(directory / "hosts.toml", names).read(text)
    return _certificates(files)


def _certificates(files: Sequence[Path]) -> Found | None:
    authorities = [path for path in files if path.suffix == ".crt"]
    own = next((path for path in files if path.suffix == ".cert"), None)
    if not authorities and own is None:
        return None
    key = None if own is None else own.with_suffix(".key")
    if key is not None and key not in files:
        raise InvalidOption(f"{own}: there is no key {key} beside it")
    return Found(HostConfig(ca=_joined(authorities), cert=own, key=key), {})


def _joined(files: Sequence[Path]) -> bytes | None:
    return b"\n".join(_text(path).encode() for path in files) if files else None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
        if len(raw) > _MAX_FILE_BYTES:
            raise InvalidOption(f"{path}: larger than {_MAX_FILE_BYTES} bytes")
        return raw.decode()
    except OSError as error:
        raise InvalidOption(f"{path}: {error.strerror or 'cannot be read'}") from error
    except UnicodeDecodeError:
        raise InvalidOption(f"{path}: not text") from None


class _HostsFile:
    """One ``hosts.toml``."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path = path
        self._names = frozenset(names)
        self._home = names[0]

    def read(self, text: str) -> Found:
        try:
            fields = cast("dict[str, object]", tomllib.loads(text))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InvalidOption(f"{self._path}: {error}") from None
        entries = self._table(fields.get("host", {}), "host")
        top = {key: value for key, value in fields.items() if key not in ("host", "server")}
        listed = [(self._text(url, "host"), self._table(entry, f"host.{url}")) for url, entry in entries.items()]
        listed.append((self._text(fields.get("server", self._home), "server"), top))
        settings: dict[str, HostConfig] = {}
        reading: dict[Mirror, None] = {}
        push_to: Mirror | None = None
        for url, entry in listed:
            mirror, host = self._endpoint(url, entry)
            settings.setdefault(mirror.host, host)
            capabilities = self._capabilities(entry)
            if capabilities >= _READS:
                reading.setdefault(mirror)
            if push_to is None and "push" in capabilities:
                push_to = mirror
        home = Mirror(self._home)
        own = settings.pop(self._home, HostConfig())
        own = replace(own, mirrors=tuple(reading), fallback=False, push_to=None if push_to == home else push_to)
        return Found(own, settings)

    def _endpoint(self, url: str, entry: Mapping[str, object]) -> tuple[Mirror, HostConfig]:
        for key in entry.keys() - _KNOWN:
            _LOG.warning("%s: %s is not known here, and ignored", self._path, key)
        try:
            scheme, separator, _ = url.partition("://")
            parts = urlsplit(url if separator else f"//{url}")
            host = parts.netloc
            split_host(host)
        except (ValueError, InvalidOption):
            raise InvalidOption(f"{self._path}: {url!r} is not the URL of a registry") from None
        if separator and scheme not in ("http", "https"):
            raise InvalidOption(f"{self._path}: {url!r} is not an http or https URL")
        host = self._home if host.lower().removesuffix(":443") in self._names else host.lower().removesuffix(":443")
        path = parts.path.rstrip("/")
        if not self._flag(entry, "override_path") and not path.endswith("/v2"):
            path = f"{path}/v2"
        plain = scheme == "http"
        certificates = self._client(entry)
        config = HostConfig(
            plain_http=plain if separator else None,
            skip_verify=self._flag(entry, "skip_verify") and not plain,
            ca=None if plain else _joined(self._files(entry.get("ca", []), "ca")),
            cert=None if plain else certificates[0],
            key=None if plain else certificates[1],
            headers=self._headers(entry),
            connect_timeout=self._seconds(entry.get("dial_timeout"), "dial_timeout"),
        )
        return Mirror(host, path), config

    def _capabilities(self, entry: Mapping[str, object]) -> set[str]:
        listed = entry.get("capabilities")
        if listed is None:
            return set(_CAPABILITIES)
        return {self._text(item, "capabilities") for item in self._list(listed, "capabilities")}

    def _client(self, entry: Mapping[str, object]) -> tuple[Path | None, Path | None]:
        """Our certificate and its key; of several pairs the first."""
        value = entry.get("client")
        if value is None:
            return None, None
        if isinstance(value, str):
            return self._file(value), None
        pair = self._list(value, "client")
        if pair and not isinstance(pair[0], str):
            pair = self._list(pair[0], "client")
        files = self._files(pair[:2], "client")
        return files[0] if files else None, files[1] if len(files) > 1 else None

    def _headers(self, entry: Mapping[str, object]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for name, value in self._table(entry.get("header", {}), "header").items():
            values = [value] if isinstance(value, str) else self._list(value, "header")
            text = ", ".join(self._text(item, "header") for item in values)
            if not (name.isascii() and text.isascii() and (name + text).isprintable()):
                raise InvalidOption(f"{self._path}: the header {name!r} is not one")
            found[name] = text
        return found

    def _seconds(self, value: object, key: str) -> float | None:
        """A duration as Go writes it."""
        if value is None:
            return None
        text = self._text(value, key)
        found = 0.0
        if _DURATION.fullmatch(text):
            found = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)([^\d.]+)", text))
        if not 0 < found < 1e9:
            raise InvalidOption(f"{self._path}: {key} {text!r} is no duration such as 5s or 1m30s")
        return found

    def _files(self, value: object, key: str) -> list[Path]:
        items = [value] if isinstance(value, str) else self._list(value, key)
        return [self._file(self._text(item, key)) for item in items]

    def _file(self, name: str) -> Path:
        return self._path.parent / name

    def _flag(self, entry: Mapping[str, object], key: str) -> bool:
        value = entry.get(key, False)
        if not isinstance(value, bool):
            raise InvalidOption(f"{self._path}: {key} is neither true nor false")
        return value

    def _table(self, value: object, key: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise InvalidOption(f"{self._path}: {key} is not a table")
        return cast("dict[str, object]", value)

    def _list(self, value: object, key: str) -> list[object]:
        if not isinstance(value, list):
            raise InvalidOption(f"{self._path}: {key} is not a list")
        return cast("list[object]", value)

    def _text(self, value: object, key: str) -> str:
        if not isinstance(value, str):
            raise InvalidOption(f"{self._path}: {key} holds something that is not text")
        return value


def names_of(host: str) -> tuple[str, ...]:
    """Names that a registry's directory may have, in the order in which they are tried."""
    return tuple(_names(host))


def _names(host: str) -> Iterator[str]:
    yield host  # the one that settings are filed under
    name, port = split_host(host)
    if port is not None:
        yield f"{name}_{port}_"
    else:
        yield f"{host}:443"
    if host == HUB_API_HOST:
        yield from ("docker.io", "index.docker.io")


__all__ = ["Found", "names_of", "read_directories"]
