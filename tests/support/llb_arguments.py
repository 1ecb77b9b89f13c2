"""Every public argument of buildkit_py.llb: two values that differ, and values that are refused.

Tests take from here that wrong use names the argument, and that changing one argument changes what is downstream
and no more. That nothing is missing is checked against the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from buildkit_py import llb
from buildkit_py.platforms import Platform

# Wrong on purpose in places, so without types.
L: Any = llb

ALPINE: Any = llb.image("alpine")
OTHER: Any = llb.image("busybox")
DATA: Any = llb.scratch().mkfile("/data", "data")
FILES = (ALPINE, OTHER, DATA)
"""What the values below are made from."""

DIGEST, OTHER_DIGEST = "sha256:" + "a" * 64, "sha256:" + "b" * 64
COMMIT = "a" * 40
ARM64 = Platform("linux", "arm64")
EMPTY = llb.Definition.empty()


class Argument:
    """Two values that make different vertexes, and those that are refused."""

    def __init__(
        self,
        one: object,
        other: object,
        *refused: object,
        named: str = "",
        digested: bool = True,
        carried: bool = False,
        beside: Mapping[str, object] | None = None,
    ) -> None:
        """named is what messages call it; carried means that it shows in the next process; beside is needed with it."""
        self.values = (one, other)
        self.refused = refused
        self.named = named
        self.digested = digested
        self.carried = carried
        self.beside = beside or {}


def refused(*values: object, named: str = "") -> Argument:
    """An argument of a call that makes no vertex."""
    return Argument(None, None, *values, named=named)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that is called with arguments."""

    function: Any
    call: Callable[..., Any]
    """With keyword arguments; gives a state, if it makes vertexes."""
    arguments: Mapping[str, Argument]
    needs: Mapping[str, object] = field(default_factory=dict)
    """Arguments that it cannot do without."""
    named: str = "{}"
    """What messages call an argument."""
    makes_vertexes: bool = True


def flag(**options: Any) -> Argument:
    return Argument(False, True, 1, "yes", None, **options)


def text(*wrong: object, **options: Any) -> Argument:
    return Argument("a", "b", 1, b"a", "\ud800", *wrong, **options)


def texts(**options: Any) -> Argument:
    return Argument(["a"], ["b"], "a", b"a", [1], {"a": "b"}, 1, **options)


def number(*wrong: object, **options: Any) -> Argument:
    return Argument(1, 2, "1", 1.0, True, *wrong, **options)


def mode(**options: Any) -> Argument:
    return Argument(0o600, 0o644, "0644", -1, 0o10000, True, **options)


def carried(argument: Argument) -> Argument:
    argument.carried = True
    return argument


def _run(**options: Any) -> Any:
    """A process with one more output, which is there whatever becomes of the root."""
    options = {"mounts": (), **options}
    return L.State.run(ALPINE, **(options | {"mounts": [llb.bind("/out"), *options["mounts"]]})).mount("/out")


def _mounted(make: Any) -> Callable[..., Any]:
    return lambda **options: _run(command=["true"], mounts=[make(**options)])


def _with(argument: str, make: Any, *, listed: bool = True) -> Callable[..., Any]:
    """A process that has what is made as this argument."""

    def call(**options: Any) -> Any:
        made = make(**options)
        return _run(command=["true"], **{argument: [made] if listed else made})

    return call


def _changed(method: Any) -> Callable[..., Any]:
    return lambda **options: method(ALPINE, **options)


ENV = Argument({"A": "1"}, {"A": "2"}, "A=1", ["A=1"], {"A": 1}, {"A=B": "1"}, {"A": "\ud800"}, {"A": "\0"}, {1: "1"})
NETWORK = Argument("host", "none", "bridge", 1)
SECURITY = Argument("sandbox", "insecure", "none", 1)
IMAGE_CONFIG = Argument(
    {"config": {"Env": ["A=1"]}},
    '{"config": {"Env": ["A=2"]}}',
    *([], 1, "{", b"\xff", {"config": {"Env": "A=1"}}, {"config": []}, {"config": {"WorkingDir": 1}}, "[" * 100_000),
    carried=True,
)
OWNER = Argument("a", "b:c", 0, "", (0, -1), (1,), [], "\ud800")
CREATED = Argument(0, 1, datetime(2020, 1, 1), "now", 2**70, 1.5, True)
PATH = Argument("/a", "/b", "", None, 1, "a\0", "\ud800")
CHOWN = Argument((1, 2), (1, 3), 1, None, (1,), (-1, 0), (0, 2**32), ("a", "b"))
FILENAME = text("../x", "/", "..", "a/b")
LIMIT = number(0, -1, 2**31)
STORES = {"session_id": text(), "store_id": text()}
BLOB_REF = Argument(f"a@{DIGEST}", f"a@{OTHER_DIGEST}", "a", f"a:1@{DIGEST}", "", 1)
SSH_URL = {"url": "git@h.example:r.git"}
BUNDLE = {"checksum": COMMIT, "bundle": f"oci-layout+blob://x@{DIGEST}"}
KEY = {"signature_public_key": "key"}
ULIMIT = {
    "name": Argument("nofile", "core", "files", 1),
    "soft": number(2**63),
    "hard": number(2**63),
}
MKDIR = {"path": PATH, "mode": mode(), "parents": flag(), "owner": OWNER, "created": CREATED}
MKFILE = {
    "path": PATH,
    "data": Argument(b"a", "b", 1, None, "\ud800"),
    "mode": mode(),
    "owner": OWNER,
    "created": CREATED,
}
SYMLINK = {"oldpath": PATH, "newpath": PATH, "owner": OWNER, "created": CREATED}
RM = {"path": PATH, "allow_not_found": flag(), "allow_wildcard": flag()}
COPY = {
    "source": Argument(OTHER, DATA, "alpine", None),
    "src": Argument("/a", "/b", 1, None, "a\0"),
    "dest": Argument("/a", "/b", 1, None, "a\0"),
    "mode": Argument(0o600, "u+x,go=", -1, 0o10000, "", "rwx", "u+x,", "10000", "u", "888", True),
    "owner": OWNER,
    "created": CREATED,
    **{
        name: flag()
        for name in (
            *("follow_symlinks", "dir_contents_only", "attempt_unpack", "create_dest_path", "allow_wildcard"),
            *("allow_empty_wildcard", "always_replace_existing_dest_paths"),
        )
    },
    **{name: texts() for name in ("include_patterns", "exclude_patterns", "required_paths")},
}
BIND = {
    "target": Argument("/m", "/n", "", 1, "a\0", "/", named="target"),
    "source": Argument(OTHER, DATA, 1, "scratch"),
    "readonly": flag(),
    "selector": text(),
    "no_output": flag(),
    "content_cache": Argument("on", "off", True, "maybe"),
}
OPTIONS: Mapping[str, Argument] = {
    "platform": Argument("linux/arm64", "linux/arm/v7", "amiga", 1, Platform("linux", "\ud800")),
    "require": Argument(["a==b"], ["c==d"], "a==b", [""], [1]),
    "custom_name": text(digested=False),
    "description": Argument({"k": "1"}, {"k": "2"}, {"k": 1}, "k=1", {"": "1"}, digested=False),
    "ignore_cache": flag(digested=False),
    "export_cache": Argument(True, False, None, 1, digested=False),
    "progress_group": Argument(
        llb.ProgressGroup(id="a"), llb.ProgressGroup(id="b"), "g", llb.ProgressGroup(id=""), digested=False
    ),
    "resources": Argument(llb.LinuxResources(memory=1), llb.LinuxResources(memory=2), 1, {"memory": 1}, digested=False),
    "locations": Argument(
        [llb.Location(llb.SourceFile("a", b""), ())],
        [llb.Location(llb.SourceFile("b", b""), ())],
        *([1], "a"),
        digested=False,
    ),
}
"""Arguments of all calls that make vertexes."""

SUBJECTS: Mapping[str, Subject] = {
    "scratch": Subject(function=llb.scratch, call=llb.scratch, arguments={}),
    "image": Subject(
        function=llb.image,
        call=L.image,
        needs={"ref": "alpine"},
        arguments={
            "ref": Argument("alpine:1", "alpine:2", 1, "", "Busybox", "a b"),
            "resolve_mode": Argument("pull", "local", "never", 1),
            "record_type": Argument("internal", "frontend", "source.local", True),
            "layer_limit": LIMIT,
            "checksum": Argument(DIGEST, OTHER_DIGEST, "md5:1", 1),
            "digest": Argument(DIGEST, OTHER_DIGEST, "a", 1),
            "config": IMAGE_CONFIG,
        },
    ),
    "local": Subject(
        function=llb.local,
        call=L.local,
        needs={"name": "context"},
        arguments={
            "name": text(""),
            "session_id": text(),
            "include_patterns": texts(),
            "exclude_patterns": texts(),
            "follow_paths": texts(),
            "shared_key_hint": text(),
            "differ": Argument("none", "metadata", "all", 1),
            "differ_required": flag(digested=False, beside={"differ": "none"}),
            "metadata_only": flag(),
            "metadata_only_exceptions": texts(beside={"metadata_only": True}),
            "unique_id": text(""),
        },
    ),
    "git": Subject(
        function=llb.git,
        call=L.git,
        needs={"url": "https://h.example/r.git"},
        arguments={
            "url": Argument(
                *("https://h/a", "https://h/b", "ftp://h/x", "https://h/a b", "https:///x", "https://h:port/x", "", 1)
            ),
            "ref": text("-a"),
            "subdir": text(),
            "fragment": text(),
            "keep_git_dir": flag(),
            "auth_token_secret": text(),
            "auth_header_secret": text(),
            "known_ssh_hosts": texts(beside=SSH_URL),
            "mount_ssh_sock": text(beside=SSH_URL),
            "checksum": text("xyz"),
            "skip_submodules": flag(),
            "mtime": Argument("checkout", "commit", "now", 1),
            "fetch_by_commit": flag(beside={"checksum": COMMIT}),
            "bundle": Argument(
                f"docker-image+blob://a@{DIGEST}",
                f"oci-layout+blob://a@{DIGEST}",
                *("a", 1, "docker-image+blob://a", f"docker-image://a@{DIGEST}", "oci-layout+blob://a@sha512:1"),
                beside={"checksum": COMMIT},
            ),
            "bundle_session_id": text(beside=BUNDLE),
            "bundle_store_id": text(beside=BUNDLE),
            "checkout_bundle": flag(),
            "signature_public_key": text(),
            "reject_expired_keys": flag(beside=KEY),
            "require_signed_tag": flag(beside=KEY),
            "ignore_signed_tag": flag(beside=KEY),
        },
    ),
    "http": Subject(
        function=llb.http,
        call=L.http,
        needs={"url": "https://h.example/f"},
        arguments={
            "url": Argument("https://h/a", "http://h/a", "ftp://h/x", "", 1),
            "checksum": Argument(DIGEST, OTHER_DIGEST, "a", 1),
            "filename": FILENAME,
            "chmod": mode(),
            "chown": CHOWN,
            "auth_header_secret": text(),
            "accept": text(),
            "user_agent": text(),
            "signature": text(beside={"signature_public_key": "key"}),
            "signature_public_key": text(beside={"signature": "signature"}),
        },
    ),
    "oci_layout": Subject(
        function=llb.oci_layout,
        call=L.oci_layout,
        needs={"ref": f"a@{DIGEST}"},
        arguments={
            "ref": Argument(f"a@{DIGEST}", f"b@{DIGEST}", "a:1", "", 1, "a@b"),
            **STORES,
            "layer_limit": LIMIT,
        },
    ),
    "image_blob": Subject(
        function=llb.image_blob,
        call=L.image_blob,
        needs={"ref": f"a@{DIGEST}"},
        arguments={"ref": BLOB_REF, "filename": FILENAME, "chmod": mode(), "chown": CHOWN},
    ),
    "oci_layout_blob": Subject(
        function=llb.oci_layout_blob,
        call=L.oci_layout_blob,
        needs={"ref": f"a@{DIGEST}"},
        arguments={"ref": BLOB_REF, "filename": FILENAME, "chmod": mode(), "chown": CHOWN, **STORES},
    ),
    "State.with_env": Subject(
        function=llb.State.with_env,
        call=_changed(L.State.with_env),
        arguments={"variables": Argument(*ENV.values, *ENV.refused, carried=True)},
    ),
    "State.without_env": Subject(
        function=llb.State.without_env,
        call=lambda names: ALPINE.with_env({"a": "1", "b": "1"}).without_env(*names),
        arguments={"names": Argument(["a"], ["b"], [1], carried=True)},
    ),
    "State.with_cwd": Subject(
        function=llb.State.with_cwd, call=_changed(L.State.with_cwd), arguments={"path": carried(text())}
    ),
    "State.with_user": Subject(
        function=llb.State.with_user, call=_changed(L.State.with_user), arguments={"user": carried(text())}
    ),
    "State.with_hostname": Subject(
        function=llb.State.with_hostname, call=_changed(L.State.with_hostname), arguments={"hostname": carried(text())}
    ),
    "State.with_network": Subject(
        function=llb.State.with_network,
        call=_changed(L.State.with_network),
        arguments={"network": Argument(*NETWORK.values, *NETWORK.refused, carried=True)},
    ),
    "State.with_security": Subject(
        function=llb.State.with_security,
        call=_changed(L.State.with_security),
        arguments={"security": Argument(*SECURITY.values, *SECURITY.refused, carried=True)},
    ),
    "State.with_host": Subject(
        function=llb.State.with_host,
        call=_changed(L.State.with_host),
        needs={"name": "h", "address": "10.0.0.1"},
        named="hosts",
        arguments={
            "name": carried(text("")),
            "address": Argument("10.0.0.1", "::1", "10.0.0", "fe80::1%eth0", "h", 1, carried=True),
        },
    ),
    "State.with_ulimit": Subject(
        function=llb.State.with_ulimit,
        call=_changed(L.State.with_ulimit),
        needs={"name": "nofile", "soft": 1, "hard": 1},
        named="Ulimit({})",
        arguments={name: Argument(*a.values, *a.refused, carried=True) for name, a in ULIMIT.items()},
    ),
    "State.with_cgroup_parent": Subject(
        function=llb.State.with_cgroup_parent,
        call=_changed(L.State.with_cgroup_parent),
        arguments={"cgroup_parent": carried(text())},
    ),
    "State.with_platform": Subject(
        function=llb.State.with_platform,
        call=_changed(L.State.with_platform),
        arguments={"platform": Argument("linux/arm64", ARM64.parse("linux/arm/v7"), "a/b/c/d", 1, carried=True)},
    ),
    "State.with_image_config": Subject(
        function=llb.State.with_image_config,
        call=_changed(L.State.with_image_config),
        arguments={"config": IMAGE_CONFIG},
    ),
    "State.with_output": Subject(
        function=llb.State.with_output,
        call=_changed(L.State.with_output),
        arguments={"other": Argument(OTHER, DATA, "a", None, carried=True)},
    ),
    "State.with_values_of": Subject(
        function=llb.State.with_values_of,
        call=_changed(L.State.with_values_of),
        arguments={"other": Argument(OTHER.with_user("a"), OTHER.with_user("b"), "a", None, carried=True)},
    ),
    "State.with_marshal_defaults": Subject(
        function=llb.State.with_marshal_defaults, call=_changed(L.State.with_marshal_defaults), arguments={}
    ),
    "State.run": Subject(
        function=llb.State.run,
        call=_run,
        needs={"command": ["true"]},
        arguments={
            "command": Argument("a 'b c'", ["a"], [], "  # nothing", "echo 'x", "echo \\", 1, ["a\0b"], [1], b"a"),
            "env": ENV,
            "cwd": text(),
            "user": text(),
            "hostname": text(),
            "network": NETWORK,
            "security": SECURITY,
            "hosts": Argument({"h": "1.2.3.4"}, [("h", "1.2.3.5")], ["h:1.2.3.4"], {"h": "1"}, {"": "1.2.3.4"}, 1),
            "ulimits": Argument([llb.Ulimit("core", 1, 2)], [llb.Ulimit("core", 1, 3)], [("core", 1, 2)], "core=1", 1),
            "cgroup_parent": text(),
            "valid_exit_codes": Argument([1], [0, 1], ["0"], [2**31], [True], 1),
            "readonly_root": flag(),
            "proxy": Argument(llb.Proxy(), llb.Proxy(http="a"), "http://p", {"http": "a"}),
            "devices": Argument(["a"], [llb.Device("b")], [1], "a", 1),
            "mounts": Argument([llb.tmpfs("/a")], [llb.tmpfs("/b")], ["/a"], [llb.tmpfs("/out")]),
            "secrets": Argument(["a"], [llb.Secret("b")], "a", [1], 1),
            "ssh": Argument([llb.SSH("a")], [llb.SSH("b")], ["a"], "a", 1),
        },
    ),
    "ExecState.mount": Subject(
        function=llb.ExecState.mount,
        call=lambda target: ALPINE.run(["true"], mounts=[llb.bind("/a"), llb.bind("/b"), llb.tmpfs("/c")]).mount(
            target
        ),
        makes_vertexes=False,
        arguments={"target": refused("/d", "/c", 1)},
    ),
    "State.file": Subject(
        function=llb.State.file,
        call=lambda actions, **options: ALPINE.file(*actions, **options),
        needs={"actions": [llb.Rm("/a")]},
        arguments={"actions": Argument([llb.Rm("/a")], [llb.Rm("/b")], [], ["rm /a"], [1])},
    ),
    "State.mkdir": Subject(
        function=llb.State.mkdir,
        call=_changed(L.State.mkdir),
        needs={"path": "/a"},
        named="mkdir({})",
        arguments=MKDIR,
    ),
    "State.mkfile": Subject(
        function=llb.State.mkfile,
        call=_changed(L.State.mkfile),
        needs={"path": "/a"},
        named="mkfile({})",
        arguments=MKFILE,
    ),
    "State.symlink": Subject(
        function=llb.State.symlink,
        call=_changed(L.State.symlink),
        needs={"oldpath": "/x", "newpath": "/y"},
        named="symlink({})",
        arguments=SYMLINK,
    ),
    "State.rm": Subject(
        function=llb.State.rm, call=_changed(L.State.rm), needs={"path": "/a"}, named="rm({})", arguments=RM
    ),
    "State.copy": Subject(
        function=llb.State.copy,
        call=_changed(L.State.copy),
        needs={"source": OTHER, "src": "/x", "dest": "/y"},
        named="copy({})",
        arguments=COPY,
    ),
    "Mkdir": Subject(
        function=llb.Mkdir,
        call=lambda **given: ALPINE.file(L.Mkdir(**given)),
        needs={"path": "/a"},
        named="mkdir({})",
        arguments=MKDIR,
    ),
    "Mkfile": Subject(
        function=llb.Mkfile,
        call=lambda **given: ALPINE.file(L.Mkfile(**given)),
        needs={"path": "/a"},
        named="mkfile({})",
        arguments=MKFILE,
    ),
    "Symlink": Subject(
        function=llb.Symlink,
        call=lambda **given: ALPINE.file(L.Symlink(**given)),
        needs={"oldpath": "/x", "newpath": "/y"},
        named="symlink({})",
        arguments=SYMLINK,
    ),
    "Rm": Subject(
        function=llb.Rm,
        call=lambda **given: ALPINE.file(L.Rm(**given)),
        needs={"path": "/a"},
        named="rm({})",
        arguments=RM,
    ),
    "Copy": Subject(
        function=llb.Copy,
        call=lambda **given: ALPINE.file(L.Copy(**given)),
        needs={"source": OTHER, "src": "/x", "dest": "/y"},
        named="copy({})",
        arguments=COPY,
    ),
    "Chain": Subject(
        function=llb.Chain,
        call=lambda **given: ALPINE.copy(L.Chain(**given), "/a", "/b"),
        needs={"state": OTHER, "actions": (llb.Rm("/a"),)},
        named="Chain({})",
        arguments={
            "state": Argument(OTHER, DATA, "a", None),
            "actions": Argument((llb.Rm("/a"),), (llb.Rm("/b"),), (), ("rm",), 1),
        },
    ),
    "State.requires": Subject(
        function=llb.State.requires,
        call=lambda states, **given: ALPINE.requires(given.pop("id"), *states, **given),
        needs={"id": "x", "states": [OTHER]},
        arguments={"id": text(""), "states": Argument([OTHER], [DATA], [1], [OTHER, None])},
    ),
    "State.build": Subject(function=llb.State.build, call=_changed(L.State.build), arguments={"filename": text()}),
    "merge": Subject(
        function=llb.merge,
        call=lambda states, **options: L.merge(*states, **options),
        needs={"states": [ALPINE, OTHER]},
        arguments={"states": Argument([ALPINE, OTHER], [ALPINE, DATA], [1], [[ALPINE, OTHER]], [ALPINE, None])},
    ),
    "diff": Subject(
        function=llb.diff,
        call=L.diff,
        needs={"lower": ALPINE, "upper": OTHER},
        arguments={"lower": Argument(ALPINE, DATA, 1, None), "upper": Argument(OTHER, DATA, 1, None)},
    ),
    "Mount": Subject(
        function=llb.Mount,
        call=_mounted(L.Mount),
        needs={"target": "/m"},
        named="Mount({}",
        arguments={
            **BIND,
            "cache_id": text(),
            "cache_sharing": Argument("private", "locked", "all", 1, beside={"cache_id": "x"}),
            "is_tmpfs": flag(),
            "tmpfs_size": number(-1, 2**63, beside={"is_tmpfs": True}),
        },
    ),
    "bind": Subject(function=llb.bind, call=_mounted(L.bind), needs={"target": "/m"}, named="Mount({}", arguments=BIND),
    "cache": Subject(
        function=llb.cache,
        call=_mounted(L.cache),
        needs={"target": "/m"},
        arguments={
            **{name: BIND[name] for name in ("target", "source", "readonly", "selector")},
            "id": text(""),
            "sharing": Argument("private", "locked", "all", 1),
        },
    ),
    "tmpfs": Subject(
        function=llb.tmpfs,
        call=_mounted(L.tmpfs),
        needs={"target": "/m"},
        named="Mount({}",
        arguments={"target": BIND["target"], "size": number(-1, 2**63, named="tmpfs_size")},
    ),
    "Secret": Subject(
        function=llb.Secret,
        call=_with("secrets", L.Secret),
        needs={"id": "x"},
        named="Secret({})",
        arguments={
            "id": text(""),
            "target": Argument("/a", "/b", "", 1, "\0"),
            "env": text("", "A=B", "\0"),
            "uid": number(-1, 2**32),
            "gid": number(-1, 2**32),
            "mode": mode(),
            "optional": flag(),
        },
    ),
    "SSH": Subject(
        function=llb.SSH,
        call=_with("ssh", L.SSH),
        named="SSH({})",
        arguments={
            "id": text(),
            "target": text("\0"),
            "uid": number(-1, 2**32),
            "gid": number(-1, 2**32),
            "mode": mode(),
            "optional": flag(),
        },
    ),
    "Device": Subject(
        function=llb.Device,
        call=_with("devices", L.Device),
        needs={"name": "x"},
        named="Device({})",
        arguments={"name": text(""), "optional": flag()},
    ),
    "Proxy": Subject(
        function=llb.Proxy,
        call=_with("proxy", L.Proxy, listed=False),
        named="Proxy({})",
        arguments={name: text() for name in ("http", "https", "ftp", "no", "all")},
    ),
    "Ulimit": Subject(
        function=llb.Ulimit,
        call=_with("ulimits", L.Ulimit),
        needs={"name": "nofile", "soft": 1, "hard": 1},
        named="Ulimit({})",
        arguments=ULIMIT,
    ),
    "ProgressGroup": Subject(
        function=llb.ProgressGroup,
        call=_with("progress_group", L.ProgressGroup, listed=False),
        needs={"id": "x"},
        named="ProgressGroup({})",
        arguments={"id": text(digested=False), "name": text(digested=False), "weak": flag(digested=False)},
    ),
    "LinuxResources": Subject(
        function=llb.LinuxResources,
        call=_with("resources", L.LinuxResources, listed=False),
        named="LinuxResources({})",
        arguments={
            **{name: number(2**63, digested=False) for name in ("memory", "memory_swap", "cpu_quota")},
            **{name: number(-1, 2**64, digested=False) for name in ("cpu_shares", "cpu_period")},
            **{name: text(digested=False) for name in ("cpuset_cpus", "cpuset_mems")},
        },
    ),
    "SourceFile": Subject(
        function=llb.SourceFile,
        call=lambda **given: _run(command=["true"], locations=[llb.Location(L.SourceFile(**given), ())]),
        needs={"filename": "f", "data": b""},
        named="SourceFile({})",
        arguments={
            "filename": text(digested=False),
            "data": Argument(b"a", b"b", "a", None, digested=False),
            "language": text(digested=False),
            "state": Argument(OTHER, DATA, 1, "a", digested=False),
        },
    ),
    "Location": Subject(
        function=llb.Location,
        call=lambda **given: _run(command=["true"], locations=[L.Location(**given)]),
        needs={"source": llb.SourceFile("f", b""), "ranges": ()},
        named="Location({})",
        arguments={
            "source": Argument(llb.SourceFile("a", b""), llb.SourceFile("b", b""), "a", None, digested=False),
            "ranges": Argument((), (llb.Range(start_line=1, end_line=1),), (1,), 1, digested=False),
        },
    ),
    "Range": Subject(
        function=llb.Range,
        call=lambda **given: _run(
            command=["true"], locations=[llb.Location(llb.SourceFile("f", b""), (L.Range(**given),))]
        ),
        needs={"start_line": 1, "end_line": 1},
        named="Range({})",
        arguments={
            name: number(-1, 2**31, digested=False)
            for name in ("start_line", "end_line", "start_character", "end_character")
        },
    ),
    "marshal": Subject(
        function=llb.marshal,
        call=L.marshal,
        needs={"state": ALPINE, "platform": ARM64},
        makes_vertexes=False,
        arguments={
            "state": refused("a", None, EMPTY),
            "unique_id": refused("", 1),
            "daemon_caps": refused(1, "exec.meta.base"),
            "source_map": refused(1, None),
        },
    ),
    "ImageConfig": Subject(
        function=llb.ImageConfig,
        call=L.ImageConfig,
        named="ImageConfig({})",
        makes_vertexes=False,
        arguments={
            "env": refused(*ENV.refused),
            "entrypoint": refused("sh -c", [1], 1),
            "cmd": refused("sh -c", [1], 1),
            "labels": refused({"": "1"}, {"a": 1}, "a=1"),
            "user": refused(0, b"a"),
            "working_dir": refused("app", 1),
            "exposed_ports": refused("80", ["65536"], ["80/icmp"], ["0"], [80]),
            "volumes": refused("/data", [""], [1]),
            "stop_signal": refused(9),
            "extra": refused({"Cmd": []}, {"X": object()}, 1, "["),
            "base": refused("{", 1, {"config": {"Env": "A=1"}}, {"config": []}, "[]"),
        },
    ),
    "PlatformDefinition": Subject(
        function=llb.PlatformDefinition,
        call=L.PlatformDefinition,
        needs={"platform": ARM64, "definition": EMPTY},
        named="PlatformDefinition({})",
        makes_vertexes=False,
        arguments={"platform": refused("linux", None), "definition": refused(b"", None), "config": refused("{}", {})},
    ),
    "marshal_platforms": Subject(
        function=llb.marshal_platforms,
        call=L.marshal_platforms,
        needs={"graph": lambda _: ALPINE, "platforms": [ARM64]},
        makes_vertexes=False,
        arguments={
            "graph": refused(ALPINE, None, lambda _: None),
            "platforms": refused(["linux"], "linux/arm64", ARM64, 1),
            "config": refused({}, "{}", lambda _: {}),
        },
    ),
    "emit": Subject(
        function=llb.emit,
        call=L.emit,
        needs={"graph": lambda _: ALPINE, "platforms": "linux/arm64"},
        makes_vertexes=False,
        arguments={
            "graph": refused(ALPINE, None),
            "platforms": refused([], "", "a/b/c/d", [1], 1),
            "config": refused({"Cmd": []}),
            "file": refused("out", 1),
        },
    ),
    "parse_definitions": Subject(
        function=llb.parse_definitions,
        call=L.parse_definitions,
        makes_vertexes=False,
        arguments={"data": refused("{}", None)},
    ),
    "Definition.parse": Subject(
        function=llb.Definition.parse,
        call=L.Definition.parse,
        makes_vertexes=False,
        arguments={"data": refused("text", None, [1])},
    ),
    "load": Subject(
        function=llb.load, call=L.load, makes_vertexes=False, arguments={"definition": refused(b"", None, ALPINE)}
    ),
    "dump": Subject(
        function=llb.dump, call=L.dump, makes_vertexes=False, arguments={"definition": refused(b"", None, ALPINE)}
    ),
    "dump_json": Subject(
        function=llb.dump_json,
        call=L.dump_json,
        needs={"definition": EMPTY},
        makes_vertexes=False,
        arguments={"definition": refused(b"", None, ALPINE), "indent": refused("  ", -1, True)},
    ),
    "graph": Subject(
        function=llb.graph,
        call=L.graph,
        needs={"definition": EMPTY},
        makes_vertexes=False,
        arguments={"definition": refused(b"", None, ALPINE), "format": refused("png", None)},
    ),
    "compare": Subject(
        function=llb.compare,
        call=L.compare,
        needs={"before": EMPTY, "after": EMPTY},
        makes_vertexes=False,
        arguments={"before": refused(b"", None), "after": refused(ALPINE, None)},
    ),
    "capture_source": Subject(
        function=llb.capture_source,
        call=L.capture_source,
        makes_vertexes=False,
        arguments={"enabled": refused(1, None)},
    ),
}

VERTEXES = [
    *("image", "local", "git", "http", "oci_layout", "image_blob", "oci_layout_blob", "State.run", "State.file"),
    *("State.mkdir", "State.mkfile", "State.symlink", "State.rm", "State.copy", "State.requires", "State.build"),
    *("merge", "diff"),
]
"""Subjects that take the options of a vertex."""
FOR_A_PLATFORM = {"image", "oci_layout", "State.run", "State.build"}
"""Of these the platform is part of the vertex."""
