"""Wrong use fails when the call is made, with the argument named. Each public argument is here at least once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from buildkit_py import llb
from buildkit_py.errors import InvalidOption
from buildkit_py.platforms import Platform

# Wrong on purpose, so without types.
L: Any = llb
BASE: Any = llb.image("alpine")
DIGEST = "sha256:" + "a" * 64
ARM64 = Platform("linux", "arm64")
EMPTY = llb.Definition.empty()

# (what is called, the argument that the message names)
TABLE: list[tuple[str, Callable[[], object], str]] = [
    ("image no text", lambda: L.image(1), "ref"),
    ("image empty", lambda: L.image(""), "ref"),
    ("image upper case", lambda: L.image("Busybox"), "ref"),
    ("image resolve_mode", lambda: L.image("a", resolve_mode="never"), "resolve_mode"),
    ("image internal", lambda: L.image("a", internal="yes"), "internal"),
    ("image layer_limit", lambda: L.image("a", layer_limit=0), "layer_limit"),
    ("image checksum", lambda: L.image("a", checksum="md5:1"), "checksum"),
    ("image digest", lambda: L.image("a", digest="x"), "digest"),
    ("image config", lambda: L.image("a", config="{"), "config"),
    ("local name", lambda: L.local(""), "name"),
    ("local session_id", lambda: L.local("a", session_id=1), "session_id"),
    ("local include_patterns", lambda: L.local("a", include_patterns="*.go"), "include_patterns"),
    ("local exclude_patterns", lambda: L.local("a", exclude_patterns=[1]), "exclude_patterns[0]"),
    ("local follow_paths", lambda: L.local("a", follow_paths=b"x"), "follow_paths"),
    ("local shared_key_hint", lambda: L.local("a", shared_key_hint=None), "shared_key_hint"),
    ("local differ", lambda: L.local("a", differ="all"), "differ"),
    ("local differ_required", lambda: L.local("a", differ_required=True), "differ_required"),
    ("local metadata_only", lambda: L.local("a", metadata_only=1), "metadata_only"),
    ("local exceptions", lambda: L.local("a", metadata_only_exceptions=["x"]), "metadata_only_exceptions"),
    ("local unique_id", lambda: L.local("a", unique_id=""), "unique_id"),
    ("git url", lambda: L.git("ftp://host/x"), "url"),
    ("git url with a space", lambda: L.git("https://host/a b"), "url"),
    ("git url without host", lambda: L.git("https:///x"), "url"),
    ("git url port", lambda: L.git("https://host:port/x"), "url"),
    ("git ref", lambda: L.git("h/x", ref=1), "ref"),
    ("git subdir", lambda: L.git("h/x", subdir=1), "subdir"),
    ("git fragment", lambda: L.git("h/x", fragment=1), "fragment"),
    ("git keep_git_dir", lambda: L.git("h/x", keep_git_dir=1), "keep_git_dir"),
    ("git auth_token_secret", lambda: L.git("h/x", auth_token_secret=1), "authtokensecret"),
    ("git auth_header_secret", lambda: L.git("h/x", auth_header_secret=1), "authheadersecret"),
    ("git known_ssh_hosts", lambda: L.git("h/x", known_ssh_hosts="line"), "known_ssh_hosts"),
    ("git mount_ssh_sock", lambda: L.git("h/x", mount_ssh_sock=1), "mount_ssh_sock"),
    ("git checksum", lambda: L.git("h/x", checksum=1), "checksum"),
    ("git skip_submodules", lambda: L.git("h/x", skip_submodules="no"), "skip_submodules"),
    ("git mtime", lambda: L.git("h/x", mtime="now"), "mtime"),
    ("git fetch_by_commit", lambda: L.git("h/x", fetch_by_commit=1), "fetch_by_commit"),
    ("git bundle", lambda: L.git("h/x", bundle="x", checksum="a"), "bundle"),
    ("git bundle alone", lambda: L.git("h/x", bundle="oci-layout+blob://x@y"), "checksum"),
    ("git bundle_session_id", lambda: L.git("h/x", bundle_session_id="x"), "bundle_session_id"),
    ("git bundle_store_id", lambda: L.git("h/x", bundle_store_id="x"), "bundle_store_id"),
    ("git checkout_bundle", lambda: L.git("h/x", checkout_bundle=True, subdir="d"), "checkout_bundle"),
    ("http url", lambda: L.http("ftp://host/x"), "url"),
    ("http checksum", lambda: L.http("http://h/x", checksum="x"), "checksum"),
    ("http filename", lambda: L.http("http://h/x", filename="../x"), "filename"),
    ("http chmod", lambda: L.http("http://h/x", chmod="0644"), "chmod"),
    ("http chown", lambda: L.http("http://h/x", chown=1), "chown"),
    ("http chown numbers", lambda: L.http("http://h/x", chown=(-1, 0)), "chown"),
    ("http auth_header_secret", lambda: L.http("http://h/x", auth_header_secret=1), "auth_header_secret"),
    ("http accept", lambda: L.http("http://h/x", accept=1), "accept"),
    ("http user_agent", lambda: L.http("http://h/x", user_agent=1), "user_agent"),
    ("http signature", lambda: L.http("http://h/x", signature=b"x"), "signature"),
    ("http signature_public_key", lambda: L.http("http://h/x", signature_public_key=b"x"), "signature_public_key"),
    ("oci_layout ref", lambda: L.oci_layout("a:1"), "ref"),
    ("oci_layout session_id", lambda: L.oci_layout(f"a@{DIGEST}", session_id=1), "session_id"),
    ("oci_layout store_id", lambda: L.oci_layout(f"a@{DIGEST}", store_id=1), "store_id"),
    ("oci_layout layer_limit", lambda: L.oci_layout(f"a@{DIGEST}", layer_limit=True), "layer_limit"),
    ("image_blob tagged", lambda: L.image_blob(f"a:1@{DIGEST}"), "ref"),
    ("image_blob without digest", lambda: L.image_blob("a"), "ref"),
    ("image_blob filename", lambda: L.image_blob(f"a@{DIGEST}", filename=1), "filename"),
    ("image_blob chmod", lambda: L.image_blob(f"a@{DIGEST}", chmod=-1), "chmod"),
    ("image_blob chown", lambda: L.image_blob(f"a@{DIGEST}", chown=(1,)), "chown"),
    ("oci_layout_blob ref", lambda: L.oci_layout_blob("a"), "ref"),
    ("oci_layout_blob filename", lambda: L.oci_layout_blob(f"a@{DIGEST}", filename="/"), "filename"),
    ("oci_layout_blob chmod", lambda: L.oci_layout_blob(f"a@{DIGEST}", chmod=0o10000), "chmod"),
    ("oci_layout_blob chown", lambda: L.oci_layout_blob(f"a@{DIGEST}", chown=None), "chown"),
    ("oci_layout_blob session_id", lambda: L.oci_layout_blob(f"a@{DIGEST}", session_id=1), "session_id"),
    ("oci_layout_blob store_id", lambda: L.oci_layout_blob(f"a@{DIGEST}", store_id=1), "store_id"),
    ("option platform", lambda: L.image("a", platform="amiga"), "platform"),
    ("option platform type", lambda: L.image("a", platform=1), "platform"),
    ("option require", lambda: L.image("a", require="x==y"), "require"),
    ("option require empty", lambda: L.image("a", require=[""]), "require"),
    ("option custom_name", lambda: L.image("a", custom_name=1), "custom_name"),
    ("option description", lambda: L.image("a", description={"k": 1}), "description"),
    ("option ignore_cache", lambda: L.image("a", ignore_cache="yes"), "ignore_cache"),
    ("option export_cache", lambda: L.image("a", export_cache=None), "export_cache"),
    ("option progress_group", lambda: L.image("a", progress_group="g"), "progress_group"),
    ("option progress_group id", lambda: L.image("a", progress_group=L.ProgressGroup(id="")), "progress_group.id"),
    ("option resources", lambda: L.image("a", resources=1), "resources"),
    ("option locations", lambda: L.image("a", locations=[1]), "locations[0]"),
    ("with_env", lambda: BASE.with_env("A=1"), "variables"),
    ("with_env value", lambda: BASE.with_env({"A": 1}), "variables['A']"),
    ("with_env name", lambda: BASE.with_env({"A=B": "1"}), "variables"),
    ("with_env surrogate", lambda: BASE.with_env({"A": "\ud800"}), "variables['A']"),
    ("without_env", lambda: BASE.without_env(1), "names[0]"),
    ("with_cwd", lambda: BASE.with_cwd(None), "path"),
    ("with_user", lambda: BASE.with_user(0), "user"),
    ("with_hostname", lambda: BASE.with_hostname(1), "hostname"),
    ("with_network", lambda: BASE.with_network("bridge"), "network"),
    ("with_security", lambda: BASE.with_security("none"), "security"),
    ("with_host name", lambda: BASE.with_host("", "1.2.3.4"), "hosts"),
    ("with_host address", lambda: BASE.with_host("h", "1.2.3"), "hosts"),
    ("with_host zone", lambda: BASE.with_host("h", "fe80::1%eth0"), "hosts"),
    ("with_ulimit name", lambda: BASE.with_ulimit("files", 1, 2), "Ulimit(name)"),
    ("with_ulimit soft", lambda: BASE.with_ulimit("nofile", "1", 2), "Ulimit(soft)"),
    ("with_ulimit hard", lambda: BASE.with_ulimit("nofile", 1, 2**64), "Ulimit(hard)"),
    ("with_cgroup_parent", lambda: BASE.with_cgroup_parent(1), "cgroup_parent"),
    ("with_platform", lambda: BASE.with_platform("a/b/c/d"), "platform"),
    ("with_image_config type", lambda: BASE.with_image_config([]), "config"),
    ("with_image_config text", lambda: BASE.with_image_config(b"\xff"), "config"),
    ("with_image_config env", lambda: BASE.with_image_config({"config": {"Env": "A=1"}}), "Env"),
    ("with_image_config depth", lambda: BASE.with_image_config("[" * 100_000), "config"),
    ("with_output", lambda: BASE.with_output("x"), "other"),
    ("with_values_of", lambda: BASE.with_values_of(None), "other"),
    ("with_marshal_defaults", lambda: BASE.with_marshal_defaults(platform=1), "platform"),
    ("run empty", lambda: BASE.run([]), "command"),
    ("run blank", lambda: BASE.run("  # nothing"), "command"),
    ("run open quote", lambda: BASE.run("echo 'x"), "command"),
    ("run last backslash", lambda: BASE.run("echo \\"), "command"),
    ("run number", lambda: BASE.run(1), "command"),
    ("run NUL", lambda: BASE.run(["a\0b"]), "command"),
    ("run env", lambda: BASE.run("x", env=["A=1"]), "env"),
    ("run cwd", lambda: BASE.run("x", cwd=1), "cwd"),
    ("run user", lambda: BASE.run("x", user=0), "user"),
    ("run hostname", lambda: BASE.run("x", hostname=0), "hostname"),
    ("run network", lambda: BASE.run("x", network="x"), "network"),
    ("run security", lambda: BASE.run("x", security="x"), "security"),
    ("run hosts", lambda: BASE.run("x", hosts=["h:1.2.3.4"]), "hosts"),
    ("run ulimits", lambda: BASE.run("x", ulimits=[("nofile", 1, 2)]), "ulimits[0]"),
    ("run cgroup_parent", lambda: BASE.run("x", cgroup_parent=1), "cgroup_parent"),
    ("run valid_exit_codes", lambda: BASE.run("x", valid_exit_codes=["0"]), "valid_exit_codes"),
    ("run readonly_root", lambda: BASE.run("x", readonly_root=1), "readonly_root"),
    ("run proxy", lambda: BASE.run("x", proxy="http://p"), "proxy"),
    ("run devices", lambda: BASE.run("x", devices=[1]), "devices[0]"),
    ("run mounts", lambda: BASE.run("x", mounts=["/x"]), "mounts[0]"),
    ("run same mount twice", lambda: BASE.run("x", mounts=[L.bind("/a"), L.tmpfs("/a")]), "mounts"),
    ("run secrets", lambda: BASE.run("x", secrets="id"), "secrets"),
    ("run secret type", lambda: BASE.run("x", secrets=[1]), "secrets[0]"),
    ("run ssh", lambda: BASE.run("x", ssh=["default"]), "ssh[0]"),
    ("mount unknown", lambda: BASE.run("x").mount("/x"), "target"),
    ("mount of a cache", lambda: BASE.run("x", mounts=[L.cache("/c")]).mount("/c"), "target"),
    ("mount of a tmpfs", lambda: BASE.run("x", mounts=[L.tmpfs("/c")]).mount("/c"), "target"),
    ("mount without output", lambda: BASE.run("x", mounts=[L.bind("/c", no_output=True)]).mount("/c"), "target"),
    ("Mount target", lambda: L.Mount(""), "Mount(target)"),
    ("Mount root", lambda: L.Mount("/"), "Mount(target"),
    ("Mount source", lambda: L.Mount("/a", "scratch"), "Mount(source)"),
    ("Mount readonly", lambda: L.Mount("/a", readonly=1), "Mount(readonly)"),
    ("Mount selector", lambda: L.Mount("/a", selector=1), "Mount(selector)"),
    ("Mount no_output", lambda: L.Mount("/a", no_output=1), "Mount(no_output)"),
    ("Mount content_cache", lambda: L.Mount("/a", content_cache="maybe"), "Mount(content_cache)"),
    ("Mount cache_id", lambda: L.Mount("/a", cache_id=1), "Mount(cache_id)"),
    ("Mount cache_sharing", lambda: L.Mount("/a", cache_sharing="x"), "Mount(cache_sharing)"),
    ("Mount is_tmpfs", lambda: L.Mount("/a", is_tmpfs=1), "Mount(is_tmpfs)"),
    ("Mount tmpfs_size", lambda: L.Mount("/a", tmpfs_size=1), "Mount(tmpfs_size"),
    ("Mount both", lambda: L.Mount("/a", cache_id="x", is_tmpfs=True), "cache_id"),
    ("Mount tmpfs source", lambda: L.Mount("/a", BASE, is_tmpfs=True), "Mount(source)"),
    ("bind target", lambda: L.bind("a\0"), "target"),
    ("bind source", lambda: L.bind("/a", 1), "source"),
    ("bind readonly", lambda: L.bind("/a", readonly=1), "readonly"),
    ("bind selector", lambda: L.bind("/a", selector=None), "selector"),
    ("bind no_output", lambda: L.bind("/a", no_output=None), "no_output"),
    ("bind content_cache", lambda: L.bind("/a", content_cache=True), "content_cache"),
    ("cache target", lambda: L.cache(""), "target"),
    ("cache id", lambda: L.cache("/a", id=""), "id"),
    ("cache sharing", lambda: L.cache("/a", sharing="all"), "sharing"),
    ("cache source", lambda: L.cache("/a", source=1), "source"),
    ("cache selector", lambda: L.cache("/a", selector=1), "selector"),
    ("cache readonly", lambda: L.cache("/a", readonly=1), "readonly"),
    ("tmpfs target", lambda: L.tmpfs(1), "target"),
    ("tmpfs size", lambda: L.tmpfs("/a", size=-1), "tmpfs_size"),
    ("Secret id", lambda: L.Secret(""), "Secret(id)"),
    ("Secret target", lambda: L.Secret("a", target=""), "Secret(target)"),
    ("Secret env", lambda: L.Secret("a", env=""), "Secret(env)"),
    ("Secret uid", lambda: L.Secret("a", uid=-1), "Secret(uid)"),
    ("Secret gid", lambda: L.Secret("a", gid="0"), "Secret(gid)"),
    ("Secret mode", lambda: L.Secret("a", mode="0400"), "Secret(mode)"),
    ("Secret optional", lambda: L.Secret("a", optional=0), "Secret(optional)"),
    ("SSH id", lambda: L.SSH(1), "SSH(id)"),
    ("SSH target", lambda: L.SSH(target=1), "SSH(target)"),
    ("SSH uid", lambda: L.SSH(uid=2**32), "SSH(uid)"),
    ("SSH gid", lambda: L.SSH(gid=-1), "SSH(gid)"),
    ("SSH mode", lambda: L.SSH(mode=0o77777), "SSH(mode)"),
    ("SSH optional", lambda: L.SSH(optional=""), "SSH(optional)"),
    ("Device name", lambda: L.Device(""), "Device(name)"),
    ("Device optional", lambda: L.Device("d", optional=1), "Device(optional)"),
    *[
        (f"Proxy {name}", lambda name=name: L.Proxy(**{name: 1}), f"Proxy({name})")
        for name in ("http", "https", "ftp", "no", "all")
    ],
    ("ProgressGroup id", lambda: L.ProgressGroup(id=1), "ProgressGroup(id)"),
    ("ProgressGroup name", lambda: L.ProgressGroup(id="a", name=1), "ProgressGroup(name)"),
    ("ProgressGroup weak", lambda: L.ProgressGroup(id="a", weak=1), "ProgressGroup(weak)"),
    *[
        (f"LinuxResources {name}", lambda name=name: L.LinuxResources(**{name: []}), f"LinuxResources({name})")
        for name in ("memory", "memory_swap", "cpu_shares", "cpu_period", "cpu_quota", "cpuset_cpus", "cpuset_mems")
    ],
    ("SourceFile filename", lambda: L.SourceFile(1, b""), "SourceFile(filename)"),
    ("SourceFile data", lambda: L.SourceFile("f", "text"), "SourceFile(data)"),
    ("SourceFile language", lambda: L.SourceFile("f", b"", 1), "SourceFile(language)"),
    ("SourceFile state", lambda: L.SourceFile("f", b"", "", 1), "SourceFile(state)"),
    ("Location source", lambda: L.Location("f", ()), "Location(source)"),
    ("Location ranges", lambda: L.Location(L.SourceFile("f", b""), (1,)), "Location(ranges)"),
    *[
        (
            f"Range {name}",
            lambda name=name: L.Range(**{"start_line": 1, "end_line": 1, name: -1}),
            f"Range({name})",
        )
        for name in ("start_line", "end_line", "start_character", "end_character")
    ],
    ("file nothing", lambda: BASE.file(), "actions"),
    ("file no action", lambda: BASE.file("mkdir"), "actions[0]"),
    ("mkdir path", lambda: BASE.mkdir(""), "mkdir(path)"),
    ("mkdir mode", lambda: BASE.mkdir("/a", "0755"), "mkdir(mode)"),
    ("mkdir parents", lambda: BASE.mkdir("/a", parents=1), "mkdir(parents)"),
    ("mkdir owner", lambda: BASE.mkdir("/a", owner=0), "mkdir(owner)"),
    ("mkdir owner numbers", lambda: BASE.mkdir("/a", owner=(0, -1)), "mkdir(owner)"),
    ("mkdir created", lambda: BASE.mkdir("/a", created=datetime(2020, 1, 1)), "mkdir(created)"),
    ("mkfile path", lambda: BASE.mkfile(None), "mkfile(path)"),
    ("mkfile data", lambda: BASE.mkfile("/a", 1), "mkfile(data)"),
    ("mkfile mode", lambda: BASE.mkfile("/a", b"", True), "mkfile(mode)"),
    ("mkfile owner", lambda: BASE.mkfile("/a", owner=""), "mkfile(owner)"),
    ("mkfile created", lambda: BASE.mkfile("/a", created="now"), "mkfile(created)"),
    ("symlink oldpath", lambda: BASE.symlink("", "/a"), "symlink(oldpath)"),
    ("symlink newpath", lambda: BASE.symlink("/a", "\0"), "symlink(newpath)"),
    ("symlink owner", lambda: BASE.symlink("/a", "/b", owner=[]), "symlink(owner)"),
    ("symlink created", lambda: BASE.symlink("/a", "/b", created=2**70), "symlink(created)"),
    ("rm path", lambda: BASE.rm(""), "rm(path)"),
    ("rm allow_not_found", lambda: BASE.rm("/a", allow_not_found=1), "rm(allow_not_found)"),
    ("rm allow_wildcard", lambda: BASE.rm("/a", allow_wildcard=1), "rm(allow_wildcard)"),
    ("copy source", lambda: BASE.copy("alpine", "/a", "/b"), "copy(source)"),
    ("copy src", lambda: BASE.copy(BASE, 1, "/b"), "copy(src)"),
    ("copy dest", lambda: BASE.copy(BASE, "/a", "\0"), "copy(dest)"),
    ("copy mode", lambda: BASE.copy(BASE, "/a", "/b", mode=-1), "copy(mode)"),
    ("copy empty mode", lambda: BASE.copy(BASE, "/a", "/b", mode=""), "copy(mode)"),
    ("copy owner", lambda: BASE.copy(BASE, "/a", "/b", owner=1), "copy(owner)"),
    ("copy created", lambda: BASE.copy(BASE, "/a", "/b", created=1.5), "copy(created)"),
    *[
        (f"copy {name}", lambda name=name: BASE.copy(BASE, "/a", "/b", **{name: "x"}), f"copy({name})")
        for name in (
            "follow_symlinks",
            "dir_contents_only",
            "include_patterns",
            "exclude_patterns",
            "required_paths",
            "attempt_unpack",
            "create_dest_path",
            "allow_wildcard",
            "allow_empty_wildcard",
            "always_replace_existing_dest_paths",
        )
    ],
    ("Chain state", lambda: L.Chain("x", (L.Rm("/a"),)), "Chain(state)"),
    ("Chain actions", lambda: L.Chain(BASE, ()), "Chain(actions)"),
    ("requires id", lambda: BASE.requires("", BASE), "id"),
    ("requires states", lambda: BASE.requires("x", 1), "states[0]"),
    ("requires of scratch", lambda: L.scratch().requires("x", BASE), "requires"),
    ("build filename", lambda: BASE.build(1), "filename"),
    ("build of scratch", lambda: L.scratch().build(), "build"),
    ("merge", lambda: L.merge([BASE, BASE]), "states[0]"),
    ("diff lower", lambda: L.diff(1, BASE), "lower"),
    ("diff upper", lambda: L.diff(BASE, None), "upper"),
    ("marshal state", lambda: L.marshal("x"), "state"),
    ("marshal no platform", lambda: L.marshal(BASE), "platform"),
    ("marshal platform", lambda: L.marshal(BASE, platform=1), "platform"),
    ("marshal unique_id", lambda: L.marshal(BASE, platform="linux/amd64", unique_id=""), "unique_id"),
    ("marshal source_map", lambda: L.marshal(BASE, platform="linux/amd64", source_map=1), "source_map"),
    ("marshal daemon_caps", lambda: L.marshal(BASE, platform="linux/amd64", daemon_caps=1), "daemon_caps"),
    ("ImageConfig env", lambda: L.ImageConfig(env=["A=1"]), "ImageConfig(env)"),
    ("ImageConfig env name", lambda: L.ImageConfig(env={"A=": "1"}), "ImageConfig(env)"),
    ("ImageConfig entrypoint", lambda: L.ImageConfig(entrypoint="sh -c"), "ImageConfig(entrypoint)"),
    ("ImageConfig cmd", lambda: L.ImageConfig(cmd=[1]), "ImageConfig(cmd)[0]"),
    ("ImageConfig labels", lambda: L.ImageConfig(labels={"": "1"}), "ImageConfig(labels)"),
    ("ImageConfig user", lambda: L.ImageConfig(user=0), "ImageConfig(user)"),
    ("ImageConfig working_dir", lambda: L.ImageConfig(working_dir="app"), "ImageConfig(working_dir)"),
    ("ImageConfig exposed_ports", lambda: L.ImageConfig(exposed_ports="80"), "ImageConfig(exposed_ports)"),
    ("ImageConfig port", lambda: L.ImageConfig(exposed_ports=["65536"]), "ImageConfig(exposed_ports)"),
    ("ImageConfig protocol", lambda: L.ImageConfig(exposed_ports=["80/icmp"]), "ImageConfig(exposed_ports)"),
    ("ImageConfig volumes", lambda: L.ImageConfig(volumes=[""]), "ImageConfig(volumes)"),
    ("ImageConfig stop_signal", lambda: L.ImageConfig(stop_signal=9), "ImageConfig(stop_signal)"),
    ("ImageConfig extra", lambda: L.ImageConfig(extra={"Cmd": []}), "ImageConfig(extra)"),
    ("ImageConfig extra value", lambda: L.ImageConfig(extra={"X": object()}), "ImageConfig(extra)"),
    ("ImageConfig base", lambda: L.ImageConfig(base="{"), "ImageConfig(base)"),
    ("ImageConfig base Env", lambda: L.ImageConfig(base={"config": {"Env": "A=1"}}), "ImageConfig(base)"),
    ("PlatformDefinition platform", lambda: L.PlatformDefinition("linux", EMPTY), "PlatformDefinition(platform)"),
    ("PlatformDefinition definition", lambda: L.PlatformDefinition(ARM64, b""), "PlatformDefinition(definition)"),
    ("PlatformDefinition config", lambda: L.PlatformDefinition(ARM64, EMPTY, "{}"), "PlatformDefinition(config)"),
    ("marshal_platforms graph", lambda: L.marshal_platforms(BASE, [ARM64]), "graph"),
    ("marshal_platforms result", lambda: L.marshal_platforms(lambda _: None, [ARM64]), "graph(platform)"),
    ("marshal_platforms config", lambda: L.marshal_platforms(lambda _: BASE, [ARM64], {}), "config"),
    ("marshal_platforms platforms", lambda: L.marshal_platforms(lambda _: BASE, ["linux"]), "platforms[0]"),
    ("emit graph", lambda: L.emit(BASE, "linux/arm64"), "graph"),
    ("emit platforms", lambda: L.emit(lambda _: BASE, []), "platforms"),
    ("emit platform", lambda: L.emit(lambda _: BASE, "a/b/c/d"), "platforms"),
    ("emit config", lambda: L.emit(lambda _: BASE, "linux/arm64", config={"Cmd": []}), "config"),
    ("emit file", lambda: L.emit(lambda _: BASE, "linux/arm64", file="out"), "file"),
    ("parse_definitions", lambda: L.parse_definitions("{}"), "data"),
    ("load", lambda: L.load(b""), "definition"),
    ("parse", lambda: L.Definition.parse("text"), "data"),
    ("graph format", lambda: L.graph(L.Definition.empty(), "png"), "format"),
]


@pytest.mark.parametrize(("call", "argument"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_wrong_use_names_the_argument(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        call()
    assert argument in str(caught.value)


def test_an_unknown_option_is_a_type_error() -> None:
    """As for any Python function; the message lists what there is."""
    with pytest.raises(TypeError, match=r"colour.*custom_name"):
        L.image("a", colour="red")


def test_chains_cannot_be_nested_without_end() -> None:
    def nested(depth: int) -> llb.Chain:
        chain = llb.Chain(BASE, (llb.Rm("/a"),))
        for _ in range(depth):
            chain = llb.Chain(BASE, (llb.Copy(chain, "/a", "/b"),))
        return chain

    assert BASE.copy(nested(10), "/b", "/c") is not None
    with pytest.raises(InvalidOption, match="deep"):
        nested(1000)


def test_messages_have_no_password() -> None:
    with pytest.raises(InvalidOption) as caught:
        llb.git("https://user:hunter2@host:port/x")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidOption) as caught:
        llb.http("ftp://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


def test_every_argument_of_every_public_function_is_in_the_table() -> None:
    """A new argument without a row here fails."""
    exempt = {"self", "options", "cls", "values", "output", "marshal_defaults", "enabled", "indent"}
    said = " ".join(name.replace("[0]", "") + " " + argument for name, _, argument in TABLE)
    missing: list[str] = []
    functions = [getattr(llb, name) for name in llb.__all__]
    functions += [member for name, member in inspect.getmembers(llb.State, inspect.isfunction) if name[0] != "_"]
    looking = {llb.dump, llb.dump_json, llb.compare, llb.capture_source}
    outcomes = {llb.Comparison, llb.VertexChange, llb.FieldChange, llb.Vertex, llb.Input, llb.Definition, llb.ExecState}
    for function in functions:
        if function in looking | outcomes or function in {
            llb.VertexOptions,
            llb.CallOptions,
            llb.Format,
            llb.State.on_output,
        }:
            continue
        for name in inspect.signature(function).parameters:
            if name not in exempt and name not in said:
                missing.append(f"{function.__name__}({name})")
    assert missing == []
