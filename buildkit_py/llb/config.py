"""Image configs: how a container of the image that a graph makes will start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from buildkit_py.errors import InvalidOption, ProtocolError
from buildkit_py.llb import check
from buildkit_py.llb.execop import DEFAULT_PATH
from buildkit_py.oci import MAX_CONFIG_BYTES, JSONObject, encode_json, parse_json

if TYPE_CHECKING:
    from buildkit_py.llb.state import Values
    from buildkit_py.platforms import Platform

_PORT = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?")
_FIELDS = frozenset(
    {"Env", "Entrypoint", "Cmd", "Labels", "User", "WorkingDir", "ExposedPorts", "Volumes", "StopSignal"}
)
# Of a base image: triggers that are meant for a Dockerfile.
_NOT_INHERITED = frozenset({"OnBuild"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How a container of an image starts, and what the image says of itself.

    What is not said here comes from the state that is built: its environment, working directory and user; what that
    does not say either comes from base. Platform and layers are for whoever makes the image.
    """

    env: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    """Variables beside those of the state, or other values for them."""
    entrypoint: Iterable[str] | None = None
    """None leaves that of base. One that is given drops the cmd of base, as in a Dockerfile."""
    cmd: Iterable[str] | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    user: str | None = None
    working_dir: str | None = None
    exposed_ports: Iterable[str] = ()
    """Such as ``80``, which is ``80/tcp``, or ``53/udp``."""
    volumes: Iterable[str] = ()
    stop_signal: str | None = None
    """Such as ``SIGTERM``."""
    extra: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Further fields of the OCI config object, such as ``Healthcheck``, as JSON has them."""
    base: Mapping[str, object] | bytes | str | None = None
    """Config of the image that this one is built on, parsed or as JSON."""

    def __post_init__(self) -> None:
        env = check.variables("ImageConfig(env)", self.env)
        object.__setattr__(self, "env", env)
        for name in ("entrypoint", "cmd"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check.texts(f"ImageConfig({name})", getattr(self, name)))
        labels = MappingProxyType(dict(check.pairs("ImageConfig(labels)", self.labels)))
        object.__setattr__(self, "labels", labels)
        for name in ("user", "working_dir", "stop_signal"):
            if getattr(self, name) is not None:
                check.text(f"ImageConfig({name})", getattr(self, name))
        if self.working_dir and not self.working_dir.startswith("/"):
            raise check.fail("ImageConfig(working_dir)", self.working_dir, "an absolute path")
        ports = check.texts("ImageConfig(exposed_ports)", self.exposed_ports)
        object.__setattr__(self, "exposed_ports", tuple([_port(port) for port in ports]))
        volumes = check.texts("ImageConfig(volumes)", self.volumes)
        for volume in volumes:
            check.path("ImageConfig(volumes)", volume)
        object.__setattr__(self, "volumes", volumes)
        if self.base is not None:
            base = _parsed("ImageConfig(base)", self.base)
            _check_base(base)
            object.__setattr__(self, "base", base)
        extra = _parsed("ImageConfig(extra)", self.extra)
        for name in extra:
            if name in _FIELDS:
                raise InvalidOption(f"ImageConfig(extra): {name} has an argument of its own")
        object.__setattr__(self, "extra", MappingProxyType(extra))


def encode_config(config: ImageConfig | None, values: Values, platform: Platform) -> bytes:
    """The config of the image as JSON, but for its layers, which the exporter adds."""
    config = config or ImageConfig()
    base = _object(cast("JSONObject", config.base or {}), "config")
    cwd = config.working_dir or (values.cwd if values.cwd != "/" else _text(base, "WorkingDir") or "/")
    user = config.user if config.user is not None else values.user or _text(base, "User")
    entrypoint, cmd = _texts(base, "Entrypoint"), _texts(base, "Cmd")
    if config.entrypoint is not None:
        entrypoint, cmd = tuple(config.entrypoint), ()
    if config.cmd is not None:
        cmd = tuple(config.cmd)
    own: dict[str, object] = {
        "User": user,
        "ExposedPorts": _set(_object(base, "ExposedPorts"), config.exposed_ports),
        "Env": _environment(base, values, config, platform),
        "Entrypoint": list(entrypoint),
        "Cmd": list(cmd),
        "Volumes": _set(_object(base, "Volumes"), config.volumes),
        "WorkingDir": cwd,
        "Labels": dict(sorted({**_object(base, "Labels"), **config.labels}.items())),
        "StopSignal": _text(base, "StopSignal") if config.stop_signal is None else config.stop_signal,
    }
    inherited = {name: value for name, value in base.items() if name not in _FIELDS | _NOT_INHERITED}
    fields: dict[str, object] = dict(platform.to_oci())
    fields["config"] = {**{name: value for name, value in own.items() if value}, **inherited, **config.extra}
    fields["rootfs"] = {"type": "layers", "diff_ids": []}
    return encode_json(fields)


def _set(base: JSONObject, more: Iterable[str]) -> JSONObject:
    """A set as JSON has it: names with an empty object each."""
    return {name: {} for name in sorted({*base, *more})}


def _environment(base: JSONObject, values: Values, config: ImageConfig, platform: Platform) -> list[str]:
    """Variables of base, of the state and of the config, the last having the last word."""
    variables: dict[str, str] = {}
    for item in _texts(base, "Env"):
        name, _, value = item.partition("=")
        variables[name] = value
    variables.update(values.env)
    variables.update(config.env)
    if "PATH" not in variables and platform.os != "windows":
        # What processes of the build had, too; engines have no default of their own.
        variables = {"PATH": DEFAULT_PATH, **variables}
    return [f"{name}={value}" for name, value in variables.items()]


def _port(text: str) -> str:
    match = _PORT.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise check.fail("ImageConfig(exposed_ports)", text, "a port such as '80' or '53/udp'")
    return f"{int(match[1])}/{match[2] or 'tcp'}"


def _parsed(name: str, value: object) -> dict[str, object]:
    """A JSON object, given as one or as its text; whatever it holds can be written again."""
    if isinstance(value, Mapping):
        try:
            value = encode_json(dict(cast("JSONObject", value)))
        except (TypeError, ValueError, RecursionError):
            raise InvalidOption(f"{name}: cannot be written as JSON") from None
    raw = value.encode() if isinstance(value, str) else value
    if not isinstance(raw, bytes):
        raise check.fail(name, value, "a JSON object or its text")
    try:
        return dict(parse_json(raw, name, max_bytes=MAX_CONFIG_BYTES))
    except ProtocolError as error:
        raise InvalidOption(str(error)) from None


def _check_base(base: JSONObject) -> None:
    """Raise InvalidOption for fields that are not of their type."""
    config = _object(base, "config")
    for key in ("Env", "Entrypoint", "Cmd"):
        _texts(config, key)
    for key in ("User", "WorkingDir", "StopSignal"):
        _text(config, key)
    for key in ("ExposedPorts", "Volumes", "Labels"):
        _object(config, key)


def _object(fields: JSONObject, key: str) -> JSONObject:
    value = fields.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidOption(f"ImageConfig(base): {key} is not an object")
    return cast("JSONObject", value)


def _text(fields: JSONObject, key: str) -> str:
    value = fields.get(key)
    return "" if value is None else check.text(f"ImageConfig(base): {key}", value)


def _texts(fields: JSONObject, key: str) -> tuple[str, ...]:
    value = fields.get(key)
    return () if value is None else check.texts(f"ImageConfig(base): {key}", value)
