"""States: filesystems that a build would make, and the values that processes on them start with."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Unpack, cast

from buildkit_py.errors import InvalidOption
from buildkit_py.llb import check
from buildkit_py.llb.base import StateBase, is_state
from buildkit_py.llb.execop import ExecOp, Process
from buildkit_py.llb.fileop import (
    Action,
    Chain,
    Copy,
    Created,
    FileOp,
    Mkdir,
    Mkfile,
    Owner,
    Rm,
    Symlink,
    check_actions,
)
from buildkit_py.llb.mounts import SSH, Device, Mount, Proxy, Secret, Ulimit
from buildkit_py.llb.ops import BuildOp, DiffOp, MergeOp, Output, PassthroughOp
from buildkit_py.llb.paths import change_dir
from buildkit_py.llb.vertex import CallOptions, Settings, VertexOptions, settings
from buildkit_py.llb.words import split_words
from buildkit_py.platforms import Platform

NetworkMode = Literal["sandbox", "host", "none"]
SecurityMode = Literal["sandbox", "insecure"]

_NETWORK = {"sandbox": 0, "host": 1, "none": 2}
_SECURITY = {"sandbox": 0, "insecure": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """What processes start with."""

    cwd: str = "/"
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    hostname: str = ""
    network: int = 0
    security: int = 0
    hosts: tuple[tuple[str, str], ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    platform: Platform | None = None


NO_VALUES = Values()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class State(StateBase):
    """A filesystem that some build would make. Never changes: every method returns a new State.

    It also carries what the next process starts with: environment, working directory, user and so on. Those
    go along from state to state; nothing is built before the graph is marshalled and solved. Each method that
    makes a vertex takes the keyword arguments of VertexOptions and raises InvalidOption for what cannot be.
    """

    output: Output | None = None
    """Which result of which vertex; None is scratch, the empty filesystem."""
    values: Values = NO_VALUES
    marshal_defaults: Settings | None = None

    @property
    def cwd(self) -> str:
        """Working directory; relative paths of file actions are seen from it too."""
        return self.values.cwd

    @property
    def env(self) -> dict[str, str]:
        """Environment, in the order in which variables were last set."""
        return dict(self.values.env)

    @property
    def user(self) -> str:
        """Name or number that the next processes run as; "" is root."""
        return self.values.user

    @property
    def platform(self) -> Platform | None:
        """What the state is for; None where the marshal call says it."""
        return self.values.platform

    @property
    def is_scratch(self) -> bool:
        """True for the empty file system."""
        return self.output is None

    def with_env(self, variables: Mapping[str, str] | Iterable[tuple[str, str]]) -> State:
        """Set variables, in order; one that is set again moves to the end."""
        return self._with(env=_set_env(self.values.env, check.variables("variables", variables)))

    def without_env(self, *names: str) -> State:
        """Unset variables."""
        gone = set(check.texts("names", names))
        return self._with(env=tuple([pair for pair in self.values.env if pair[0] not in gone]))

    def with_cwd(self, path: str) -> State:
        """Change the working directory; a relative path starts from where it is."""
        return self._with(cwd=change_dir(self.values.cwd, check.text("path", path)))

    def with_user(self, user: str) -> State:
        """Run as ``user[:group]``, names or numbers; "" is root."""
        return self._with(user=check.text("user", user))

    def with_hostname(self, hostname: str) -> State:
        """A state whose next processes see this host name."""
        return self._with(hostname=check.text("hostname", hostname))

    def with_network(self, network: NetworkMode) -> State:
        """Which network processes have; "host" needs an entitlement."""
        return self._with(network=_NETWORK[check.choice("network", network, _NETWORK)])

    def with_security(self, security: SecurityMode) -> State:
        """Which rights processes have; "insecure" needs an entitlement."""
        return self._with(security=_SECURITY[check.choice("security", security, _SECURITY)])

    def with_host(self, name: str, address: str) -> State:
        """Add a line to /etc/hosts."""
        return self._with(hosts=(*self.values.hosts, *_hosts([(name, address)])))

    def with_ulimit(self, name: str, soft: int, hard: int) -> State:
        """A state whose next processes have this limit, soft and hard."""
        return self._with(ulimits=(*self.values.ulimits, Ulimit(name, soft, hard)))

    def with_cgroup_parent(self, cgroup_parent: str) -> State:
        """A state whose next processes run below this cgroup."""
        return self._with(cgroup_parent=check.text("cgroup_parent", cgroup_parent))

    def with_platform(self, platform: Platform | str) -> State:
        """Say what the next vertexes are for, instead of the marshal call; it is normalised."""
        return self._with(platform=check.platform("platform", platform).normalized())

    def with_image_config(self, config: Mapping[str, object] | bytes | str) -> State:
        """Take over environment, working directory and platform of an OCI image config, parsed or as JSON.

        Its user, entrypoint and command are left out, as they are for who runs the image.
        """
        fields = _config_fields(config)
        inner = _object(fields, "config")
        variables: list[tuple[str, str]] = []
        for item in _texts(inner, "Env"):
            name, _, value = item.partition("=")
            if name:
                variables.append((name, value))
        state = self._with(
            env=_set_env(self.values.env, variables),
            cwd=change_dir(self.values.cwd, _text(inner, "WorkingDir")),
        )
        if not (_text(fields, "os") and _text(fields, "architecture")):
            return state
        return state.with_platform(
            Platform(
                _text(fields, "os"),
                _text(fields, "architecture"),
                _text(fields, "variant"),
                _text(fields, "os.version"),
                _texts(fields, "os.features"),
            )
        )

    def with_output(self, other: State) -> State:
        """The values of this state, on the filesystem of the other one."""
        is_state("other", other)
        return self.on_output(other.output)

    def with_values_of(self, other: State) -> State:
        """The filesystem of this state, with the values of the other one; the working directory becomes "/".

        Where this filesystem has a platform of its own, this platform and the other's directory are kept.
        """
        is_state("other", other)
        platform = None if self.output is None else self.output.platform
        # Odd, but it is what the Go client's Reset does, and digests follow.
        values = (
            replace(other.values, cwd="/")
            if platform is None
            else replace(other.values, platform=platform.normalized())
        )
        return State(self.output, values)

    def with_marshal_defaults(self, **options: Unpack[CallOptions]) -> State:
        """Options that hold when this very state is marshalled, before those of the call."""
        return replace(self, marshal_defaults=settings(options))

    def run(
        self,
        command: str | Iterable[str],
        *,
        env: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        cwd: str | None = None,
        user: str | None = None,
        hostname: str | None = None,
        network: NetworkMode | None = None,
        security: SecurityMode | None = None,
        hosts: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        ulimits: Iterable[Ulimit] = (),
        cgroup_parent: str | None = None,
        valid_exit_codes: Iterable[int] | None = None,
        readonly_root: bool = False,
        proxy: Proxy | None = None,
        devices: Iterable[Device | str] = (),
        mounts: Iterable[Mount] = (),
        secrets: Iterable[Secret | str] = (),
        ssh: Iterable[SSH] = (),
        **options: Unpack[VertexOptions],
    ) -> ExecState:
        """Run a process on this filesystem; the state is what it leaves of it, mount() what it leaves elsewhere.

        A str is split into words by quotes and backslashes; no shell runs it. Values that are given here are
        for this process alone. valid_exit_codes replaces "only 0". A secret or a device may be given by its
        id. The two need entitlements: network "host" and security "insecure".
        """
        values = self.values
        named_devices = [Device(item) if isinstance(item, str) else item for item in check.several("devices", devices)]
        process = Process(
            args=_command(command),
            env=_set_env(values.env, check.variables("env", env)),
            cwd=values.cwd if cwd is None else change_dir(values.cwd, check.text("cwd", cwd)),
            user=values.user if user is None else check.text("user", user),
            hostname=values.hostname if hostname is None else check.text("hostname", hostname),
            network=values.network if network is None else _NETWORK[check.choice("network", network, _NETWORK)],
            security=(
                values.security if security is None else _SECURITY[check.choice("security", security, _SECURITY)]
            ),
            hosts=(*values.hosts, *_hosts(hosts)),
            ulimits=(*values.ulimits, *check.of_type("ulimits", ulimits, Ulimit, "a Ulimit")),
            cgroup_parent=(
                values.cgroup_parent if cgroup_parent is None else check.text("cgroup_parent", cgroup_parent)
            ),
            valid_exit_codes=_exit_codes(valid_exit_codes),
            proxy=None if proxy is None else check.instance("proxy", proxy, Proxy, "a Proxy"),
            devices=check.of_type("devices", named_devices, Device, "a Device or its name"),
        )
        named = [Secret(item) if isinstance(item, str) else item for item in check.several("secrets", secrets)]
        given = settings(options)
        op = ExecOp(
            process,
            self.output,
            mounts=_distinct(check.of_type("mounts", mounts, Mount, "a Mount")),
            secrets=check.of_type("secrets", named, Secret, "a Secret"),
            ssh=check.of_type("ssh", ssh, SSH, "an SSH"),
            readonly_root=check.boolean("readonly_root", readonly_root),
            platform=values.platform,
            settings=given,
        )
        root = self.output if readonly_root else Output(op, op.output_index(None), given.platform)
        after = self.on_output(root)
        return ExecState(root, after.values, op=op)

    def file(self, *actions: Action, **options: Unpack[VertexOptions]) -> State:
        """Do file actions, one after the other, in one vertex."""
        op = FileOp(self, check_actions("actions", actions), settings(options))
        return self.on_output(Output(op))

    def mkdir(
        self,
        path: str,
        mode: int = 0o755,
        *,
        parents: bool = False,
        owner: Owner | None = None,
        created: Created = None,
        **options: Unpack[VertexOptions],
    ) -> State:
        """Make a directory, in a vertex of its own."""
        return self.file(Mkdir(path, mode, parents, owner, created), **options)

    def mkfile(
        self,
        path: str,
        data: bytes | str = b"",
        mode: int = 0o644,
        *,
        owner: Owner | None = None,
        created: Created = None,
        **options: Unpack[VertexOptions],
    ) -> State:
        """Write a file, in a vertex of its own."""
        return self.file(Mkfile(path, data, mode, owner, created), **options)

    def symlink(
        self,
        oldpath: str,
        newpath: str,
        *,
        owner: Owner | None = None,
        created: Created = None,
        **options: Unpack[VertexOptions],
    ) -> State:
        """Make newpath a symbolic link to oldpath, in a vertex of its own."""
        return self.file(Symlink(oldpath, newpath, owner, created), **options)

    def rm(
        self,
        path: str,
        *,
        allow_not_found: bool = False,
        allow_wildcard: bool = False,
        **options: Unpack[VertexOptions],
    ) -> State:
        """Remove a file or directory, in a vertex of its own."""
        return self.file(Rm(path, allow_not_found, allow_wildcard), **options)

    def copy(
        self,
        source: State | Chain,
        src: str,
        dest: str,
        *,
        mode: int | str | None = None,
        owner: Owner | None = None,
        created: Created = None,
        follow_symlinks: bool = False,
        dir_contents_only: bool = False,
        include_patterns: Iterable[str] = (),
        exclude_patterns: Iterable[str] = (),
        required_paths: Iterable[str] = (),
        attempt_unpack: bool = False,
        create_dest_path: bool = False,
        allow_wildcard: bool = False,
        allow_empty_wildcard: bool = False,
        always_replace_existing_dest_paths: bool = False,
        **options: Unpack[VertexOptions],
    ) -> State:
        """Copy files from another state to this one, in a vertex of its own."""
        action = Copy(
            source,
            src,
            dest,
            mode,
            owner,
            created,
            follow_symlinks,
            dir_contents_only,
            include_patterns,
            exclude_patterns,
            required_paths,
            attempt_unpack,
            create_dest_path,
            allow_wildcard,
            allow_empty_wildcard,
            always_replace_existing_dest_paths,
        )
        return self.file(action, **options)

    def requires(self, id: str, *states: State, **options: Unpack[VertexOptions]) -> State:
        """The same filesystem, which is only there once the other states are built too.

        id tells it from other such vertexes. Without states, or with scratch alone, nothing changes.
        """
        check.filled("id", id)
        given = settings(options)
        for index, state in enumerate(states):
            is_state(f"states[{index}]", state)
        if not states:
            return self
        if self.output is None:
            raise InvalidOption("requires(): scratch cannot require other states")
        outputs = [state.output for state in (self, *states) if state.output is not None]
        return self.on_output(Output(PassthroughOp(id, outputs, given)))

    def build(self, filename: str = "", **options: Unpack[VertexOptions]) -> State:
        """The result of a definition that is a file of this filesystem; "" is buildkit.llb.definition."""
        check.text("filename", filename)
        if self.output is None:
            raise InvalidOption("build(): scratch has no file with a definition")
        return self.on_output(Output(BuildOp(self.output, filename, settings(options))))

    def _with(self, **values: object) -> State:
        return State(self.output, replace(self.values, **values))  # type: ignore[arg-type]  # fields of Values

    def on_output(self, output: Output | None) -> State:
        """These values on another filesystem, and its platform if it has one of its own."""
        if output is None or output.platform is None:
            return State(output, self.values)
        return State(output, replace(self.values, platform=output.platform.normalized()))

    def __repr__(self) -> str:
        what = "scratch" if self.output is None else f"{type(self.output.op).__name__}, output {self.output.index}"
        return f"<{type(self).__name__}: {what}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ExecState(State):
    """What a process leaves of its root, and of what was mounted."""

    op: ExecOp = field(kw_only=True)

    def mount(self, target: str) -> State:
        """What the process leaves in a mount, with no values but the directory "/".

        Of a mount that is read-only this is its source. A tmpfs, a cache and a mount without output leave nothing.
        """
        found = [mount for mount in self.op.mounts if mount.target == target]
        if not found:
            known = ", ".join([repr(mount.target) for mount in self.op.mounts]) or "none"
            raise InvalidOption(f"target={target!r}: no such mount; there are: {known}")
        mount = found[0]
        if mount.readonly:
            return of_output(None if mount.source is None else mount.source.output)
        if not mount.has_output:
            kind = "cache" if mount.cache_id else "tmpfs" if mount.is_tmpfs else "mount without output"
            raise InvalidOption(f"target={target!r}: a {kind} leaves nothing that could be used afterwards")
        return of_output(Output(self.op, self.op.output_index(mount), self.op.own_platform))


def of_output(output: Output | None) -> State:
    """A fresh state of an output."""
    return State().on_output(output)


def scratch() -> State:
    """The empty filesystem."""
    return State()


def merge(*states: State, **options: Unpack[VertexOptions]) -> State:
    """All states laid over each other, later ones on top; the values are those of the first.

    Scratch adds nothing. Of one state alone, that state; of none, scratch.
    """
    for index, state in enumerate(states):
        is_state(f"states[{index}]", state)
    given = settings(options)
    filled = [state for state in states if state.output is not None]
    if len(filled) < 2:
        return filled[0] if filled else scratch()
    outputs = [state.output for state in filled if state.output is not None]
    return filled[0].on_output(Output(MergeOp(outputs, given)))


def diff(lower: State, upper: State, **options: Unpack[VertexOptions]) -> State:
    """What upper has changed since lower, to be merged with something; the values are those of lower."""
    is_state("lower", lower)
    is_state("upper", upper)
    given = settings(options)
    if lower.output is None:
        return upper if upper.output is not None else scratch()
    return lower.on_output(Output(DiffOp(lower.output, upper.output, given)))


def _command(command: object) -> tuple[str, ...]:
    if isinstance(command, str):
        args = split_words(check.text("command", command))
    else:
        args = check.texts("command", command)
    if not args:
        raise InvalidOption("command: expected a program to run, and its arguments")
    for arg in args:
        if "\0" in arg:
            raise check.fail("command", arg, "words without NUL")
    return args


def _set_env(env: tuple[tuple[str, str], ...], variables: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if not variables:
        return env
    known = dict(env)
    for name, value in variables:
        known.pop(name, None)
        known[name] = value
    return tuple(known.items())


def _hosts(hosts: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Names and addresses, these as Go prints them."""
    found: list[tuple[str, str]] = []
    for name, address in check.pairs("hosts", hosts):
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            raise check.fail("hosts", address, "an IP address") from None
        if isinstance(parsed, ipaddress.IPv6Address):
            if parsed.scope_id is not None:
                raise check.fail("hosts", address, "an IP address without a zone")
            parsed = parsed.ipv4_mapped or parsed
        found.append((name, str(parsed)))
    return tuple(found)


def _exit_codes(codes: Iterable[int] | None) -> tuple[int, ...] | None:
    if codes is None:
        return None
    items = check.several("valid_exit_codes", codes)
    return tuple([check.integer("valid_exit_codes", code, check.INT32) for code in items]) or None


def _distinct(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    targets: set[str] = set()
    for mount in mounts:
        if mount.target in targets:
            raise InvalidOption(f"mounts: two of them have the target {mount.target!r}")
        targets.add(mount.target)
    return mounts


def _config_fields(config: object) -> Mapping[str, object]:
    if isinstance(config, (bytes, str)):
        try:
            config = json.loads(config)
        except (ValueError, RecursionError):
            raise InvalidOption("config: expected an OCI image config, got text that is not JSON") from None
    if not isinstance(config, Mapping):
        raise check.fail("config", config, "an OCI image config")
    return cast("Mapping[str, object]", config)


def _object(fields: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = fields.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise check.fail(f"config: {key}", value, "an object")
    return cast("Mapping[str, object]", value)


def _text(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    return "" if value is None else check.text(f"config: {key}", value)


def _texts(fields: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = fields.get(key)
    return () if value is None else check.texts(f"config: {key}", value)
