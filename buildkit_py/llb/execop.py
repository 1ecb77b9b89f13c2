"""Exec vertexes: a process and what it sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from buildkit_py.llb import wire
from buildkit_py.llb.mounts import CONTENT_CACHE, SHARING, SSH, Device, Mount, Proxy, Secret, Ulimit
from buildkit_py.llb.ops import EXEC, Call, Op, Output
from buildkit_py.llb.vertex import NO_SETTINGS, Entry, Settings, entry
from buildkit_py.platforms import Platform

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What daemons give processes that have none of their own."""
_SETS_DEFAULT_PATH = "exec.meta.setsdefaultpath"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Process:
    """What an exec vertex runs, and as whom."""

    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: str = ""
    hostname: str = ""
    network: int = 0
    security: int = 0
    hosts: tuple[tuple[str, str], ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    valid_exit_codes: tuple[int, ...] | None = None
    proxy: Proxy | None = None
    devices: tuple[Device, ...] = ()

    def caps(self) -> list[str]:
        wanted = {
            "exec.meta.base": True,
            "exec.meta.network": self.network != 0,
            "exec.meta.security": self.security != 0,
            "exec.meta.ulimit": bool(self.ulimits),
            "exec.validexitcode": self.valid_exit_codes is not None,
            "exec.meta.proxyenv": self.proxy is not None,
            "exec.meta.cdi": bool(self.devices),
        }
        return [cap for cap, is_wanted in wanted.items() if is_wanted]

    def encode_meta(self, env: Iterable[tuple[str, str]]) -> bytes:
        """The Meta message as a field of ExecOp."""
        parts = [
            wire.texts(b"\x0a", self.args),
            wire.texts(b"\x12", [f"{name}={value}" for name, value in env]),
            wire.text(b"\x1a", self.cwd),
            wire.text(b"\x22", self.user),
        ]
        if (proxy := self.proxy) is not None:
            words = (proxy.http, proxy.https, proxy.ftp, proxy.no, proxy.all)
            tags = (b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a")
            parts.append(wire.blob(b"\x2a", b"".join(map(wire.text, tags, words))))
        for name, address in self.hosts:
            parts.append(wire.blob(b"\x32", wire.text(b"\x0a", name) + wire.text(b"\x12", address)))
        parts.append(wire.text(b"\x3a", self.hostname))
        for limit in self.ulimits:
            numbers = wire.number(b"\x10", limit.soft) + wire.number(b"\x18", limit.hard)
            parts.append(wire.blob(b"\x4a", wire.text(b"\x0a", limit.name) + numbers))
        parts.append(wire.text(b"\x52", self.cgroup_parent))
        parts.append(b"\x58\x01")  # removeMountStubsRecursive, as every client asks for today
        if self.valid_exit_codes:
            parts.append(wire.blob(b"\x62", b"".join(map(wire.varint, self.valid_exit_codes))))
        return wire.blob(b"\x0a", b"".join(parts))

    def encode_modes(self) -> bytes:
        """Network and security of ExecOp."""
        return wire.number(b"\x18", self.network) + wire.number(b"\x20", self.security)

    def encode_devices(self) -> bytes:
        return b"".join(
            [
                wire.blob(b"\x32", wire.text(b"\x0a", device.name) + wire.flag(b"\x10", device.optional))
                for device in self.devices
            ]
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """A mount of an exec vertex: where it comes from and where it goes."""

    mount: Mount | None
    """None is the root."""
    input: int
    """Which of the inputs it shows; -1 is none."""
    output: int
    """Which of the outputs it becomes; -1 is none."""
    readonly: bool

    def encode(self, mapping: Sequence[int] | None) -> bytes:
        """The mount as a field of ExecOp."""
        position = self.input if mapping is None or self.input < 0 else mapping[self.input]
        mount = self.mount
        parts = [
            wire.number(b"\x08", position),
            b"" if mount is None else wire.text(b"\x12", mount.selector),
            wire.text(b"\x1a", "/" if mount is None else mount.target),
            wire.number(b"\x20", self.output),
            wire.flag(b"\x28", self.readonly),
        ]
        if mount is not None:
            if mount.cache_id:
                sharing = wire.number(b"\x10", SHARING[mount.cache_sharing])
                parts += [b"\x30\x03", wire.blob(b"\xa2\x01", wire.text(b"\x0a", mount.cache_id) + sharing)]
            elif mount.is_tmpfs:
                parts += [b"\x30\x04", wire.blob(b"\x9a\x01", wire.number(b"\x08", mount.tmpfs_size))]
            parts.append(wire.number(b"\xc0\x01", CONTENT_CACHE[mount.content_cache]))
        return wire.blob(b"\x12", b"".join(parts))


class ExecOp(Op):
    """A process, run on the filesystem of a state."""

    __slots__ = ("_agents", "_process", "_secrets", "_slots", "mounts", "own_platform")

    writes_platform = True

    def __init__(
        self,
        process: Process,
        root: Output | None,
        *,
        mounts: Sequence[Mount] = (),
        secrets: Sequence[Secret] = (),
        ssh: Sequence[SSH] = (),
        readonly_root: bool = False,
        platform: Platform | None = None,
        settings: Settings = NO_SETTINGS,
    ) -> None:
        """platform is what the state is for; one in settings goes before it."""
        self.mounts = tuple(mounts)
        self._process = process
        self._secrets = tuple(secrets)
        self._agents = tuple(
            [(agent, agent.target or f"/run/buildkit/ssh_agent.{index}") for index, agent in enumerate(ssh)]
        )
        self._slots, inputs = _lay_out(root, readonly_root, mounts)
        super().__init__(settings, self._needed_caps(settings), inputs)
        self.own_platform = settings.platform
        self.platform = settings.platform or platform
        self.fixed_body = self._encode(self._env(), None)

    def output_index(self, mount: Mount | None) -> int:
        """Which output a mount, or None for the root, becomes; -1 is none."""
        return next(slot.output for slot in self._slots if slot.mount is mount)

    def entry_for(self, call: Call) -> Entry:
        if call.daemon_caps is None or _SETS_DEFAULT_PATH not in call.daemon_caps:
            return self.entry
        return entry(self.entry.metadata, [*self.entry.caps, _SETS_DEFAULT_PATH])

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        env = self._env()
        needs_path = call.daemon_caps is not None and _SETS_DEFAULT_PATH not in call.daemon_caps
        if needs_path and "PATH" not in dict(env) and not (call.platform and call.platform.os == "windows"):
            env = (*env, ("PATH", DEFAULT_PATH))
        return self._encode(env, mapping)

    def _env(self) -> tuple[tuple[str, str], ...]:
        """Environment with the socket of the first agent."""
        env = self._process.env
        if not self._agents or "SSH_AUTH_SOCK" in dict(env):
            return env
        return (*env, ("SSH_AUTH_SOCK", self._agents[0][1]))

    def _encode(self, env: Iterable[tuple[str, str]], mapping: Sequence[int] | None) -> bytes:
        parts = [self._process.encode_meta(env)]
        parts += [slot.encode(mapping) for slot in self._slots]
        parts += [_encode_secret(secret, secret.target) for secret in self._secrets if secret.target is not None]
        parts += [_encode_agent(agent, target) for agent, target in self._agents]
        parts.append(self._process.encode_modes())
        parts += [_encode_secret_env(secret, secret.env) for secret in self._secrets if secret.env is not None]
        parts.append(self._process.encode_devices())
        return wire.blob(EXEC, b"".join(parts))

    def _needed_caps(self, settings: Settings) -> list[str]:
        caps = self._process.caps()
        if settings.metadata.resources is not None:
            caps.append("exec.meta.linux.resources")
        for slot in self._slots:
            caps += _mount_caps(slot)
        if self._secrets:
            caps.append("exec.mount.secret")
        if any(secret.env is not None for secret in self._secrets):
            caps.append("exec.secretenv")
        if self._agents:
            caps.append("exec.mount.ssh")
        return caps


def _lay_out(
    root: Output | None, readonly_root: bool, mounts: Sequence[Mount]
) -> tuple[tuple[_Slot, ...], list[Output]]:
    """Mounts in the order of their targets, which is how inputs and outputs are numbered."""
    entries: list[Mount | None] = [None, *mounts]
    entries.sort(key=lambda mount: "/" if mount is None else mount.target)
    inputs: list[Output] = []
    slots: list[_Slot] = []
    outputs = 0
    for mount in entries:
        if mount is None:
            source, readonly, has_output = root, readonly_root, not readonly_root
        else:
            source = None if mount.source is None else mount.source.output
            readonly, has_output = mount.readonly, mount.has_output
        slots.append(_Slot(mount, position_of(source, inputs), outputs if has_output else -1, readonly))
        outputs += has_output
    return tuple(slots), inputs


def position_of(output: Output | None, inputs: list[Output]) -> int:
    """Where output stands among the inputs, to which it is added if need be; -1 for none."""
    if output is None:
        return -1
    for position, known in enumerate(inputs):
        if known.is_same(output):
            return position
    inputs.append(output)
    return len(inputs) - 1


def _mount_caps(slot: _Slot) -> list[str]:
    mount = slot.mount
    if mount is None:
        return [] if slot.input < 0 else ["exec.mount.bind"]
    caps: list[str] = []
    if mount.selector:
        caps.append("exec.mount.selector")
    if mount.cache_id:
        caps += ["exec.mount.cache", "exec.mount.cache.sharing"]
    elif mount.is_tmpfs:
        caps += ["exec.mount.tmpfs", "exec.mount.tmpfs.size"] if mount.tmpfs_size else ["exec.mount.tmpfs"]
    elif slot.input >= 0:
        caps.append("exec.mount.bind")
    if mount.content_cache != "default":
        caps.append("exec.mount.cache.content")
    return caps


# Mounts of secrets and agents have no input, and output 0, which is not written: the Go client leaves it unset.
_NO_INPUT = b"\x08" + wire.MINUS_ONE


def _encode_secret(secret: Secret, target: str) -> bytes:
    opt = wire.blob(b"\xaa\x01", _encode_file(secret))
    return wire.blob(b"\x12", _NO_INPUT + wire.text(b"\x1a", target) + b"\x30\x01" + opt)


def _encode_agent(agent: SSH, target: str) -> bytes:
    opt = wire.blob(b"\xb2\x01", _encode_file(agent))
    return wire.blob(b"\x12", _NO_INPUT + wire.text(b"\x1a", target) + b"\x30\x02" + opt)


def _encode_file(opt: Secret | SSH) -> bytes:
    """SecretOpt or SSHOpt, which have the same fields."""
    return (
        wire.text(b"\x0a", opt.id)
        + wire.number(b"\x10", opt.uid)
        + wire.number(b"\x18", opt.gid)
        + wire.number(b"\x20", opt.mode)
        + wire.flag(b"\x28", opt.optional)
    )


def _encode_secret_env(secret: Secret, name: str) -> bytes:
    optional = wire.flag(b"\x18", secret.optional)
    return wire.blob(b"\x2a", wire.text(b"\x0a", secret.id) + wire.text(b"\x12", name) + optional)
