"""Flags of ``build`` that are more than a word: pairs, sizes, attestations, and what the environment adds.

Source: docker buildx, commands/build.go and util/buildflags.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

from buildkit_py.builder.request import DEFAULT_PROVENANCE, BuildRequest
from buildkit_py.errors import InvalidOption
from buildkit_py.options import parse_fields

if TYPE_CHECKING:
    from buildkit_py.builder.gitfacts import GitOptions
    from buildkit_py.session.policy import SourceRules

EPOCH = "SOURCE_DATE_EPOCH"

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp]?)i?b?")
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
"""Go's words for them."""
_PROXIES = {
    "httpProxy": "HTTP_PROXY",
    "httpsProxy": "HTTPS_PROXY",
    "ftpProxy": "FTP_PROXY",
    "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY",
}


def said(given: Sequence[str]) -> list[str]:
    """What is not empty: a script that has nothing to say says that, and docker buildx takes it for nothing."""
    return [text for text in given if text]


def hosts(given: Sequence[str]) -> list[str]:
    """--add-host: each may be several, separated by commas; an address alone is one more of the host before it."""
    found: list[str] = []
    for text in said(given):
        entries: list[str] = []
        for part in text.split(","):
            if entries and _is_address(part):
                entries[-1] += f",{part}"
            else:
                entries.append(part)
        found += entries
    return found


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def stages(given: Sequence[str]) -> list[str]:
    """--no-cache-filter: each may be several, separated by commas."""
    return said([name for text in given for name in text.split(",")])


def boolean(text: str, flag: str) -> bool:
    """Go's notion of one."""
    if text in TRUE | FALSE:
        return text in TRUE
    raise InvalidOption(f"{flag} {text!r}: expected true or false")


def pairs(items: Sequence[str], option: str, *, from_environment: bool = False) -> MappingProxyType[str, str]:
    """NAME=VALUE items; a bare build argument takes its value from the environment, if it is set there."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise InvalidOption(f"--{option} {item!r}: expected NAME=VALUE")
        if equals:
            found[name] = value
        elif from_environment:
            if name in os.environ:
                found[name] = os.environ[name]
        elif option == "label":
            found[name] = ""
        else:
            raise InvalidOption(f"--{option} {item!r}: expected NAME=VALUE")
    return MappingProxyType(found)


def build_args(items: Sequence[str], address: str) -> MappingProxyType[str, str]:
    """--build-arg, with the epoch of the environment and the proxies of docker's configuration."""
    found = dict(pairs(items, "build-arg", from_environment=True))
    if EPOCH not in found and os.environ.get(EPOCH):
        found[EPOCH] = os.environ[EPOCH]
    if "BUILDKIT_SYNTAX" in found and not found["BUILDKIT_SYNTAX"].strip():
        raise InvalidOption("--build-arg BUILDKIT_SYNTAX: is empty; leave out '=' to take it from the environment")
    given = {name.lower() for name in found}
    proxies = {name: value for name, value in _proxies(address).items() if name.lower() not in given}
    return MappingProxyType(found | proxies)


def inline_cache(arguments: Mapping[str, str]) -> Sequence[str]:
    """The cache export that a build argument stands for."""
    return ["type=inline"] if arguments.get("BUILDKIT_INLINE_CACHE") in TRUE else []


def _proxies(address: str) -> dict[str, str]:
    """What docker's configuration says of proxies for a daemon, else for all. Source: docker cli, ParseProxyConfig."""
    path = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    if b'"proxies"' not in text:  # nearly always
        return {}
    import json

    try:
        listed = cast("dict[str, dict[str, dict[str, str]]]", json.loads(text)).get("proxies") or {}
        settings = listed.get(address) or listed.get("default") or {}
        chosen = {name: str(settings[key]) for key, name in _PROXIES.items() if settings.get(key)}
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidOption(f"{path}: the proxies cannot be read: {error}") from error
    return chosen | {name.lower(): value for name, value in chosen.items()}


def platforms(given: Sequence[str]) -> Sequence[str]:
    """--platform, or docker's variable for it."""
    default = os.environ.get("DOCKER_DEFAULT_PLATFORM")
    return given or ([default] if default else [])


def attestations(attest: Sequence[str], provenance: str | None, sbom: str | None) -> MappingProxyType[str, str]:
    """Parameters by type; provenance is on until somebody says otherwise. Of each type the first counts."""
    wanted: dict[str, str | None] = {}
    for text in (*attest, *_shorthand("provenance", provenance), *_shorthand("sbom", sbom)):
        fields = parse_fields(text, option="attest")
        if bare := next((key for key, value in fields if value is None), None):
            raise InvalidOption(f"--attest {text!r}: {bare!r} is not key=value")
        found = {key: value or "" for key, value in fields}
        kind = found.pop("type", "")
        if not kind:
            raise InvalidOption(f"--attest {text!r}: type=... is missing")
        disabled = boolean(found.pop("disabled", "false"), "--attest disabled")
        wanted.setdefault(kind, None if disabled else _joined({"type": kind} | dict(sorted(found.items()))))
    if "provenance" not in wanted and not _without_defaults():
        wanted["provenance"] = DEFAULT_PROVENANCE
    return MappingProxyType({kind: text for kind, text in wanted.items() if text is not None})


def _shorthand(kind: str, text: str | None) -> Sequence[str]:
    if not text:
        return ()
    if text in TRUE | FALSE:
        return (f"type={kind},disabled={str(text in FALSE).lower()}",)
    return (f"type={kind},{text}",)


def _without_defaults() -> bool:
    name = "BUILDX_NO_DEFAULT_ATTESTATIONS"
    return name in os.environ and boolean(os.environ[name], f"${name}")


def _joined(fields: Mapping[str, str]) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow([f"{key}={value}" for key, value in fields.items()])
    return row.getvalue()


def source_rules() -> SourceRules | None:
    """Those of the file that docker buildx's variable names."""
    name = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"
    path = os.environ.get(name)
    if not path:
        return None
    from buildkit_py.session.policy import SourceRules  # hardly anybody has one

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidOption(f"${name}: {path}: {error.strerror}") from error
    return SourceRules.parse(data, f"${name}: {path}")


def git_options() -> GitOptions:
    """What docker buildx's variables want to know of git; one that says neither yes nor no says nothing."""
    from buildkit_py.builder.gitfacts import GitOptions

    def wanted(name: str, *, default: bool = False) -> bool:
        text = os.environ.get(name, "")
        return text in TRUE if text in TRUE | FALSE else default

    return GitOptions(
        provenance=wanted("BUILDX_GIT_INFO", default=True),
        labels=wanted("BUILDX_GIT_LABELS") or os.environ.get("BUILDX_GIT_LABELS") == "full",
        check_dirty=wanted("BUILDX_GIT_CHECK_DIRTY"),
    )


def loads_by_default(request: BuildRequest, address: str) -> bool:
    """Whether the engine that builds gets the image, as nobody said where it should go."""
    if request.push or request.load or request.outputs or not address.startswith("docker://"):
        return False
    return os.environ.get("BUILDX_NO_DEFAULT_LOAD", "") not in TRUE


def record_provenance() -> Literal["", "min", "max"]:
    """What the metadata file tells of how the build was made."""
    text = os.environ.get("BUILDX_METADATA_PROVENANCE", "")
    if text == "disabled" or text in FALSE:
        return ""
    return "max" if text == "max" else "min"


def size(text: str, flag: str) -> int:
    """Bytes of ``64m``, ``1.5g`` or a bare number, by 1024. Source: docker, go-units, RAMInBytes."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidOption(f"{flag} {text!r}: expected a size such as 64m or 1g")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2] or " "))
