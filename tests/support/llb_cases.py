"""Golden graphs: find the cases and build each through the public API.

The cases are data (`tests/data/golden/README.md` explains them); $BUILDKIT_PY_GOLDEN names another folder of the
same layout. A key that is not known here is an error, so that no part of a case is passed over.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildkit_py import llb
from buildkit_py.errors import InvalidOption
from buildkit_py.platforms import Platform

RANDOM = Path(__file__).parents[1] / "data" / "llb" / "go"
"""Random graphs, in the same format; these are not replaced."""

Data = dict[str, Any]


def load_cases(folder: Path, file: str = "cases.json") -> dict[str, Data]:
    """Cases by name; none where the folder does not have the file."""
    path = folder / file
    if not path.exists():
        return {}
    cases: list[Data] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {case["name"]: case for case in cases}


class AllBut(Container[str]):
    """Every capability but a few."""

    def __init__(self, missing: Iterable[str]) -> None:
        self._missing = set(missing)

    def __contains__(self, cap: object) -> bool:
        return cap not in self._missing


def build_definition(case: Data) -> llb.Definition:
    """Build the graph of a case and marshal its result as the case says."""
    graph = Graph(case)
    return graph.marshal(graph.state(case["result"]), case["marshal"])


# Values that a state carries, by their names in the data, and what sets them.
_VALUES: dict[str, Callable[[llb.State, Any], llb.State]] = {
    "env": lambda state, value: state.with_env([(value[0], value[1])]),
    "dir": lambda state, value: state.with_cwd(value),
    "user": lambda state, value: state.with_user(value),
    "hostname": lambda state, value: state.with_hostname(value),
    "extra_host": lambda state, value: state.with_host(*value),
    "network": lambda state, value: state.with_network(value),
    "security": lambda state, value: state.with_security(value),
    "ulimit": lambda state, value: state.with_ulimit(*value),
    "cgroup_parent": lambda state, value: state.with_cgroup_parent(value),
    "platform": lambda state, value: state.with_platform(platform(value)),
    "image_config": lambda state, value: state.with_image_config(value),
}

# Those of them that run() takes for one process.
_RUN_ARGUMENTS = {
    "env": "env",
    "dir": "cwd",
    "user": "user",
    "hostname": "hostname",
    "extra_host": "hosts",
    "network": "network",
    "security": "security",
    "ulimit": "ulimits",
    "cgroup_parent": "cgroup_parent",
}


@dataclass
class Graph:
    """The states of one case."""

    case: Data
    states: dict[str, llb.State] = field(default_factory=dict)
    execs: dict[str, llb.ExecState] = field(default_factory=dict)
    sources: dict[str, llb.SourceFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.specs: dict[str, Data] = {spec["id"]: spec for spec in self.case["states"]}
        self.added: dict[str, list[Data]] = {}
        for spec in self.case["states"]:
            if "add_mount" in spec:
                self.added.setdefault(spec["add_mount"]["run"], []).append(spec["add_mount"])
        self.refused: dict[str, InvalidOption] = {}
        # In order, so that long chains need no deep recursion.
        for spec in self.case["states"]:
            self._make(spec["id"])

    def state(self, name: str) -> llb.State:
        if name not in self.states and name not in self.refused:
            if name == "scratch" and name not in self.specs:
                return llb.scratch()
            self._make(name)
        if name in self.refused:
            raise self.refused[name]
        return self.states[name]

    def _make(self, name: str) -> None:
        if name in self.states or name in self.refused:
            return
        (kind, spec), *others = [(key, value) for key, value in self.specs[name].items() if key != "id"]
        assert not others, others
        try:
            self.states[name] = _KINDS[kind](self, dict(spec), name)
        except InvalidOption as error:
            # A state that nothing uses may be refused, as the other implementation would only find it later.
            self.refused[name] = error

    # --- options

    def marshal(self, state: llb.State, spec: Data) -> llb.Definition:
        spec = dict(spec)
        arguments: Data = {"unique_id": spec.pop("local_unique_id", None), "source_map": False}
        caps = spec.pop("daemon_caps", "none")
        if caps != "none":
            arguments["daemon_caps"] = AllBut([] if caps == "all" else [cap.removeprefix("-") for cap in caps])
        spec.pop("locations", None)
        options = self.options(spec)
        if "platform" not in options and state.marshal_defaults is None:
            options["platform"] = "linux/amd64"  # where the data was made
        return llb.marshal(state, **arguments, **options)

    def options(self, *specs: Data) -> Data:
        """Keyword arguments for the constraints of a vertex, given in several parts."""
        merged: Data = {}
        for given in specs:
            spec = dict(given)
            spec.pop("local_unique_id", None)  # an argument of local() and marshal()
            if "platform" in spec:
                merged["platform"] = platform(spec.pop("platform"))
            merged["require"] = [*merged.get("require", []), *spec.pop("require", [])]
            if spec.pop("ignore_cache", False):
                merged["ignore_cache"] = True
            description = {**merged.get("description", {}), **spec.pop("description", {})}
            if "custom_name" in spec:
                merged["custom_name"] = spec.pop("custom_name")
                description.pop("llb.customname", None)
            merged["description"] = description
            for setting in spec.pop("export_cache", []):
                merged["export_cache"] = {"on": True, "off": False, "default": None}[setting]
            if "progress_group" in spec:
                merged["progress_group"] = llb.ProgressGroup(**spec.pop("progress_group"))
            if "linux_resources" in spec:
                merged["resources"] = llb.LinuxResources(**spec.pop("linux_resources"))
            locations = [self._location(item) for item in spec.pop("locations", [])]
            if locations:
                merged["locations"] = [*merged.get("locations", []), *locations]
            assert not spec, spec
        if merged.get("export_cache", False) is None:
            del merged["export_cache"]
        return {key: value for key, value in merged.items() if value not in ([], {})}

    def _location(self, spec: Data) -> llb.Location:
        ranges = [
            llb.Range(start_line=line, start_character=character, end_line=end_line, end_character=end_character)
            for line, character, end_line, end_character in spec["ranges"]
        ]
        name = spec["source_map"]
        if name not in self.sources:
            file = dict(self.case["source_maps"][name])
            state = file.pop("state", None) or file.pop("from", None)
            self.sources[name] = llb.SourceFile(
                file.pop("filename", ""),
                content(file.pop("data", {"text": ""})),
                file.pop("language", ""),
                None if state is None else self.state(state),
            )
            assert not file, file
        return llb.Location(self.sources[name], tuple(ranges))

    # --- sources

    def _scratch(self, spec: Data, name: str) -> llb.State:
        assert not spec
        return llb.scratch()

    def _image(self, spec: Data, name: str) -> llb.State:
        ref = spec.pop("ref")
        arguments: Data = {}
        if spec.pop("record_type_internal", False):
            arguments["record_type"] = "internal"
        resolver = dict(spec.pop("resolver", None) or {})
        resolve_digest = spec.pop("resolve_digest", False) or resolver.pop("resolve_digest", False)
        if resolver:
            if resolve_digest and "@" not in ref:
                ref = resolver.pop("ref", ref)
                arguments["digest"] = resolver.pop("digest", None)
            resolver.pop("ref", None)
            resolver.pop("digest", None)
            arguments["config"] = resolver.pop("config", None)
            assert not resolver, resolver
        options = self.options(spec.pop("constraints", {}))
        return llb.image(ref, **arguments, **spec, **options)

    def _local(self, spec: Data, name: str) -> llb.State:
        constraints = spec.pop("constraints", {})
        if "local_unique_id" in constraints:
            spec["unique_id"] = constraints["local_unique_id"]
        return llb.local(spec.pop("name"), **spec, **self.options(constraints))

    def _git(self, spec: Data, name: str) -> llb.State:
        if "sub_dir" in spec:
            spec["subdir"] = spec.pop("sub_dir")
        options = self.options(spec.pop("constraints", {}))
        return llb.git(spec.pop("url"), **spec, **options)

    def _http(self, spec: Data, name: str) -> llb.State:
        _file_info(spec)
        spec |= spec.pop("header", {})
        options = self.options(spec.pop("constraints", {}))
        return llb.http(spec.pop("url"), **spec, **options)

    def _oci_layout(self, spec: Data, name: str) -> llb.State:
        spec.pop("checksum", None)  # the Go client never writes it
        options = self.options(spec.pop("constraints", {}))
        return llb.oci_layout(spec.pop("ref"), **spec, **options)

    def _image_blob(self, spec: Data, name: str) -> llb.State:
        _file_info(spec)
        options = self.options(spec.pop("constraints", {}))
        return llb.image_blob(spec.pop("ref"), **spec, **options)

    def _oci_layout_blob(self, spec: Data, name: str) -> llb.State:
        _file_info(spec)
        options = self.options(spec.pop("constraints", {}))
        return llb.oci_layout_blob(spec.pop("ref"), **spec, **options)

    # --- values

    def _with(self, spec: Data, name: str) -> llb.State:
        state = self.state(spec.pop("from"))
        for setting in spec.pop("set"):
            ((key, value),) = setting.items()
            state = self._set(state, key, value)
        assert not spec, spec
        return state

    def _set(self, state: llb.State, key: str, value: Any) -> llb.State:
        if key == "reset":
            return state.with_values_of(self.state(value))
        if key == "marshal_defaults":
            return state.with_marshal_defaults(**self.options(value))
        return _VALUES[key](state, value)

    # --- processes

    def _run(self, spec: Data, name: str) -> llb.State:
        state = self.state(spec.pop("from"))
        given: list[tuple[str, Any]] = []
        for option in spec.pop("options"):
            given += option.items()
        assert not spec, spec
        arguments: Data = {"mounts": [], "secrets": [], "ssh": [], "devices": []}
        constraints: list[Data] = []
        values: list[tuple[str, Any]] = []
        command: str | list[str] = []
        for key, value in given:
            match key:
                case "args" | "shlex":
                    command = value
                case "valid_exit_codes":
                    arguments["valid_exit_codes"] = value
                case "readonly_root":
                    arguments["readonly_root"] = value
                case "proxy":
                    arguments["proxy"] = llb.Proxy(**value)
                case "cdi_device":
                    arguments["devices"].append(llb.Device(**value))
                case "mount":
                    arguments["mounts"].append(self._mount(value))
                case "secret":
                    arguments["secrets"].append(_secret(value))
                case "ssh":
                    arguments["ssh"].append(_ssh(value))
                case "constraints":
                    constraints.append(value)
                case _:
                    values.append((key, value))
        arguments["mounts"] += [self._mount(_added_mount(mount)) for mount in self.added.get(name, [])]
        arguments |= self.options(*constraints)
        keys = [key for key, _ in values]
        if set(keys) <= set(_RUN_ARGUMENTS) and keys.count("dir") <= 1:
            for key, value in values:
                argument = _RUN_ARGUMENTS[key]
                if key in {"env", "extra_host", "ulimit"}:
                    item = llb.Ulimit(*value) if key == "ulimit" else tuple(value)
                    arguments.setdefault(argument, []).append(item)
                else:
                    arguments[argument] = value
            self.execs[name] = state.run(command, **arguments)
            return self.execs[name]
        inner = state
        for key, value in values:
            inner = self._set(inner, key, value)
        self.execs[name] = inner.run(command, **arguments)
        return state.with_output(self.execs[name])

    def _mount(self, spec: Data) -> llb.Mount:
        spec = dict(spec)
        source = self.state(spec.pop("from", "scratch"))
        arguments: Data = {}
        if "cache" in spec:
            cache = spec.pop("cache")
            arguments |= {"cache_id": cache["id"], "cache_sharing": cache.get("sharing", "shared")}
        if "tmpfs" in spec:
            arguments |= {"is_tmpfs": True, "tmpfs_size": spec.pop("tmpfs").get("size", 0)}
        return llb.Mount(spec.pop("target"), source, **arguments, **spec)

    def _mount_output(self, spec: Data, name: str) -> llb.State:
        self.state(spec["run"])
        return self.execs[spec["run"]].mount(spec["target"])

    def _add_mount(self, spec: Data, name: str) -> llb.State:
        mount = _added_mount(spec)
        self.state(spec["run"])
        return self.state(mount.get("from", "scratch")).with_output(self.execs[spec["run"]].mount(mount["target"]))

    # --- files

    def _file(self, spec: Data, name: str) -> llb.State:
        chains: dict[str, llb.Chain] = {}
        specs: Data = spec.pop("chains", {})

        def chain(key: str) -> llb.Chain:
            if key not in chains:
                chains[key] = llb.Chain(self.state(specs[key]["state"]), actions(specs[key]["actions"]))
            return chains[key]

        def actions(items: list[Data]) -> tuple[Any, ...]:
            return tuple([self._action(item, chain) for item in items])

        done = self.state(spec.pop("from")).file(
            *actions(spec.pop("actions")), **self.options(spec.pop("constraints", {}))
        )
        assert not spec, spec
        return done

    def _action(self, item: Data, chain: Callable[[str], llb.Chain]) -> Any:
        ((kind, given),) = item.items()
        spec = dict(given)
        if "mode" in spec:
            spec["mode"] = int(spec["mode"], 8)
        if "owner" in spec:
            owner = spec["owner"]
            spec["owner"] = owner["spec"] if "spec" in owner else (owner.get("uid", 0), owner.get("gid", 0))
        if "time_ns" in spec:
            spec["created"] = spec.pop("time_ns")
        match kind:
            case "mkdir":
                return llb.Mkdir(**spec)
            case "mkfile":
                return llb.Mkfile(spec.pop("path"), content(spec.pop("data", {"text": ""})), **spec)
            case "symlink":
                return llb.Symlink(**spec)
            case "rm":
                return llb.Rm(**spec)
            case _:
                assert kind == "copy", kind
        source = chain(spec.pop("from_chain")) if "from_chain" in spec else self.state(spec.pop("from"))
        if "mode_str" in spec:
            spec["mode"] = spec.pop("mode_str")
        return llb.Copy(source, **spec)

    # --- the rest

    def _merge(self, spec: Data, name: str) -> llb.State:
        states = [self.state(item) for item in spec["inputs"]]
        return llb.merge(*states, **self.options(spec.get("constraints", {})))

    def _diff(self, spec: Data, name: str) -> llb.State:
        lower, upper = self.state(spec["lower"]), self.state(spec["upper"])
        return llb.diff(lower, upper, **self.options(spec.get("constraints", {})))

    def _requires(self, spec: Data, name: str) -> llb.State:
        states = [self.state(item) for item in spec["deps"]]
        return self.state(spec["from"]).requires(spec["id"], *states)

    def _build(self, spec: Data, name: str) -> llb.State:
        options = self.options(spec.pop("constraints", {}))
        return self.state(spec.pop("from")).build(**spec, **options)

    def _reload(self, spec: Data, name: str) -> llb.State:
        definition = self.marshal(self.state(spec["from"]), spec["marshal"])
        return llb.load(llb.Definition.parse(definition.to_bytes()))


_KINDS: dict[str, Callable[[Graph, Data, str], llb.State]] = {
    "scratch": Graph._scratch,
    "image": Graph._image,
    "local": Graph._local,
    "git": Graph._git,
    "http": Graph._http,
    "oci_layout": Graph._oci_layout,
    "image_blob": Graph._image_blob,
    "oci_layout_blob": Graph._oci_layout_blob,
    "with": Graph._with,
    "run": Graph._run,
    "mount_output": Graph._mount_output,
    "add_mount": Graph._add_mount,
    "file": Graph._file,
    "merge": Graph._merge,
    "diff": Graph._diff,
    "requires": Graph._requires,
    "build": Graph._build,
    "reload": Graph._reload,
}


def platform(spec: Data) -> Platform:
    return Platform(
        spec.get("os", ""),
        spec.get("architecture", ""),
        spec.get("variant", ""),
        spec.get("os_version", ""),
        tuple(spec.get("os_features", ())),
    )


def content(spec: Data) -> bytes:
    """Data of a file: text, base64, or a pattern repeated to a length."""
    if "repeat" in spec:
        pattern = base64.b64decode(spec["repeat"]["base64"])
        length: int = spec["repeat"]["length"]
        return (pattern * (length // len(pattern) + 1))[:length]
    text: str = spec.get("text", "")
    return base64.b64decode(spec["base64"]) if "base64" in spec else text.encode()


def _file_info(spec: Data) -> None:
    if "chmod" in spec:
        spec["chmod"] = int(spec["chmod"], 8)
    if "chown" in spec:
        spec["chown"] = tuple(spec["chown"])


def _secret(given: Data) -> llb.Secret:
    spec = dict(given)
    if "mode" in spec:
        spec["mode"] = int(spec["mode"], 8)
    return llb.Secret(spec.pop("id"), **spec)


def _ssh(given: Data) -> llb.SSH:
    spec = dict(given)
    if "mode" in spec:
        spec["mode"] = int(spec["mode"], 8)
    return llb.SSH(**spec)


def _added_mount(spec: Data) -> Data:
    """The mount in an add_mount, whose keys may stand beside the run's or in an object of their own."""
    rest = {key: value for key, value in spec.items() if key != "run"}
    nested = rest.pop("mount", {})
    return {**rest, **nested}
