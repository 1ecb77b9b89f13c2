"""What the steps of a Dockerfile run in: hosts, network, limits, and whether the cache is used.

Source: docker buildx, build/opt.go; docker cli, opts/ulimit.go.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from buildkit_py.errors import InvalidOption, UnsupportedByDaemon

if TYPE_CHECKING:
    from buildkit_py.builder.request import BuildRequest
    from buildkit_py.records import Worker

HOST_GATEWAY = "host-gateway"
"""Stands for the address of the machine that an engine runs on; only an engine knows it."""

_GATEWAY_LABEL = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"
_ULIMIT = re.compile(r"([a-z]+)=(-?[0-9]+)(?::(-?[0-9]+))?")
_ULIMITS = frozenset(
    {
        *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
        *("rtprio", "rttime", "sigpending", "stack"),
    }
)


def step_attrs(request: BuildRequest) -> dict[str, str]:
    """Attributes of the frontend; raise InvalidOption for what it would not take."""
    attrs: dict[str, str] = {}
    if request.no_cache and request.no_cache_filter:
        raise InvalidOption("no-cache and no-cache-filter: cannot be used together")
    if request.no_cache:
        attrs["no-cache"] = ""
    elif request.no_cache_filter:
        attrs["no-cache"] = ",".join(_stage(name) for name in request.no_cache_filter)
    if request.add_hosts:
        attrs["add-hosts"] = ",".join(entry for text in request.add_hosts for entry in _hosts(text))
    if request.network not in {"", "default", "host", "none"}:
        raise InvalidOption(f"network {request.network!r}: expected default, host or none")
    if request.network in {"host", "none"}:
        attrs["force-network-mode"] = request.network
    if request.shm_size < 0:
        raise InvalidOption(f"shm-size {request.shm_size}: expected bytes")
    if request.shm_size:
        attrs["shm-size"] = str(request.shm_size)
    if request.ulimits:
        attrs["ulimit"] = ",".join(sorted(_ulimits(request.ulimits)))
    if request.cgroup_parent:
        attrs["cgroup-parent"] = request.cgroup_parent
    return attrs


def step_entitlements(request: BuildRequest) -> tuple[str, ...]:
    """What the network asks for besides what the request itself names."""
    host = ("network.host",) if request.network == "host" else ()
    return tuple(dict.fromkeys((*request.allow, *host)))


def with_gateway(attrs: Mapping[str, str], workers: Sequence[Worker], address: str) -> dict[str, str]:
    """The attributes with the address that HOST_GATEWAY stands for; UnsupportedByDaemon where nobody knows it."""
    found = workers[0].labels.get(_GATEWAY_LABEL) if workers else None
    if not found:
        raise UnsupportedByDaemon(
            f"add-host {HOST_GATEWAY}: the daemon at {address} is no docker engine, give an address"
        )
    return {**attrs, "add-hosts": attrs["add-hosts"].replace(f"={HOST_GATEWAY}", f"={found}")}


def needs_gateway(attrs: Mapping[str, str]) -> bool:
    """Whether with_gateway() has something to do."""
    return f"={HOST_GATEWAY}" in attrs.get("add-hosts", "")


def _stage(name: str) -> str:
    if not name or "," in name:
        raise InvalidOption(f"no-cache-filter {name!r}: expected the name of a stage")
    return name


def _hosts(text: str) -> list[str]:
    """``name=address`` for each address of ``name:address[,address]`` or ``name=address[,address]``."""
    name, equals, addresses = text.partition("=")
    if not equals:
        name, _, addresses = text.partition(":")
    if not name or not addresses or any(char in name for char in ",\"' \t"):
        raise InvalidOption(f"add-host {text!r}: expected NAME:ADDRESS")
    if addresses == HOST_GATEWAY:
        return [f"{name}={HOST_GATEWAY}"]
    return [f"{name}={_address(part, text)}" for part in addresses.split(",")]


def _address(part: str, text: str) -> str:
    bare = part[1:-1] if part.startswith("[") and part.endswith("]") else part
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        raise InvalidOption(f"add-host {text!r}: {part!r} is no IP address, nor {HOST_GATEWAY}") from None
    return bare


def _ulimits(given: Sequence[str]) -> list[str]:
    """``name=soft:hard``, the last of each name."""
    found: dict[str, str] = {}
    for text in given:
        match = _ULIMIT.fullmatch(text)
        if match is None:
            raise InvalidOption(f"ulimit {text!r}: expected NAME=SOFT[:HARD]")
        name, soft, hard = match[1], int(match[2]), int(match[3] or match[2])
        if name not in _ULIMITS:
            raise InvalidOption(
                f"ulimit {text!r}: unknown limit {name!r}; expected one of {', '.join(sorted(_ULIMITS))}"
            )
        if hard != -1 and (soft > hard or soft == -1):
            raise InvalidOption(f"ulimit {text!r}: the soft limit is above the hard one")
        found[name] = f"{name}={soft}:{hard}"
    return list(found.values())
