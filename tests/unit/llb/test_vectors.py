"""Digests that the Go client v0.32.2 gives for small graphs, written here by hand as a reader would write them."""

from __future__ import annotations

import pytest

from buildkit_py import llb
from buildkit_py.platforms import Platform

ALPINE = llb.image("alpine")
DIGEST = "sha256:" + "a" * 64


def local_context() -> llb.State:
    return llb.local("context", shared_key_hint="context", unique_id="uid")


def everything() -> llb.ExecState:
    return ALPINE.run(
        ["true"],
        mounts=[
            llb.bind("/z"),
            llb.bind("/b", ALPINE, readonly=True, selector="/etc"),
            llb.cache("/c", id="cid", sharing="locked"),
            llb.tmpfs("/t"),
            llb.tmpfs("/t2", size=1024),
        ],
        secrets=[llb.Secret("s1"), llb.Secret("s2", env="ENVSEC")],
        ssh=[llb.SSH("default")],
        hosts={"h": "10.0.0.1"},
        ulimits=[llb.Ulimit("nofile", 1, 2)],
        valid_exit_codes=[0, 1],
        cgroup_parent="cg",
        network="host",
        security="insecure",
        proxy=llb.Proxy(http="http://p"),
        hostname="hn",
        devices=["v.com/g=1"],
    )


def everything_copied() -> llb.State:
    return ALPINE.with_cwd("/wd").file(
        llb.Copy(
            local_context(),
            "src",
            "dest/.",
            mode=0o700,
            follow_symlinks=True,
            dir_contents_only=True,
            attempt_unpack=True,
            create_dest_path=True,
            allow_wildcard=True,
            allow_empty_wildcard=True,
            always_replace_existing_dest_paths=True,
            include_patterns=["i"],
            exclude_patterns=["e"],
            required_paths=["r"],
        ),
        llb.Copy(llb.image("busybox"), "/bin/sh", "/sh", mode="u+x"),
    )


VECTORS: dict[str, tuple[llb.State, str]] = {
    "image": (ALPINE, "a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51"),
    "image for arm64": (
        llb.image("alpine", platform="linux/arm64"),
        "b0d9490e2a3b169a74c6c225835d313171410e0926b667a0c8c5d61f5e6bed1d",
    ),
    "image for arm/v7": (
        llb.image("alpine", platform=Platform("linux", "arm", "v7")),
        "cb4a685375054ef5c04065c4271bbd6aa3ed6f8f6c3792dca109b7f47904b13f",
    ),
    "filter": (
        llb.image("alpine", require=["label=x"]),
        "36754b44e9893cf3b00e185233ad2587c4d0133aba75a68ee3b5b9495e9e8ce6",
    ),
    "tag and digest": (
        llb.image(f"alpine:3.18@{DIGEST}"),
        "6673bba42b18d74a94f3aa95f1862628dfc5682dc88952765fd317e18aeff566",
    ),
    "image options": (
        llb.image("alpine", resolve_mode="pull", record_type="internal", layer_limit=2),
        "aef7a83a2562de60a09d28c8dae6ae422989c86008428613c1ad482567730c9e",
    ),
    "words": (ALPINE.run("echo hi"), "0bca3f14b63ad1ebaad8b9557838b64ec46b4128f3a917db8a46634e370f6bfa"),
    "args": (ALPINE.run(["true"]), "953660fee644301ff966d20c6a83536fe270b4d5d97a505f2c6f9999674c1c23"),
    "exec inherits the platform": (
        llb.image("alpine", platform="linux/arm64").run(["true"]),
        "eb43e8f039c5fcdfe3b577308c264b6a472bb638bb9d6e5a4ec2cf6c3fb07b37",
    ),
    "values": (
        ALPINE.with_env([("A", "1"), ("B", "2"), ("A", "3")])
        .with_cwd("/w")
        .with_cwd("x")
        .with_user("u")
        .run(["sh", "-c", "x"], env={"C": "4"}),
        "3c817344ba533ba135b047c59efe9822a64fdf0dd72f5fb2b0429467867d8fca",
    ),
    "read-only root": (
        ALPINE.run(["true"], readonly_root=True, mounts=[llb.bind("/out")]).mount("/out"),
        "d83cd66eed1fed0c1d7dada4885cb082721d1f145167640655cfcd508d6d1f17",
    ),
    "mkdir": (
        llb.scratch().mkdir("/foo", 0o755),
        "affe1314931f45f2bf32a9189195bb42dfc3c15f1330ec98d56f4b9730b8dee4",
    ),
    "merge": (
        llb.merge(ALPINE, llb.scratch().mkdir("/m", 0o755)),
        "d2df13691295fd50f1f64059d7b9f53f00a60548d36c8f42675308a53ea23888",
    ),
    "diff": (
        llb.diff(ALPINE, ALPINE.run(["true"])),
        "707c6d73f30ffaaca03c579cb020458a7e0695256d526c427cbe7d172f378c84",
    ),
    "diff to scratch": (
        llb.diff(ALPINE, llb.scratch()),
        "60264a9c6f9ec4afc0c3534b8f0e1eb65401af32f34cfb6d7653da540f4e50ab",
    ),
    "file actions": (
        ALPINE.file(
            llb.Mkdir("foo", 0o755, parents=True, owner="nobody:0"),
            llb.Mkfile("/foo/bar", b"data", 0o644, created=1_700_000_000 * 10**9, owner=(0, 0)),
            llb.Symlink("/foo/bar", "/lnk"),
            llb.Rm("/tmp/*", allow_wildcard=True, allow_not_found=True),
        ),
        "60686a75bca1236b5d7a3a77967bc927f827e45ce55b93f29455cba7541260aa",
    ),
    "local": (local_context(), "a20e14ddfe79daabbcb0aff3f1f2580c65a16bdaddc638d0c83c6c20fc1081b4"),
    "copy from local": (
        ALPINE.copy(local_context(), "/src", "/dest/"),
        "dc08beee967967f15327666c88274076d03e8f69a419595dcd261e98bb6a0cc8",
    ),
    "local options": (
        llb.local(
            "context",
            session_id="sess",
            include_patterns=["a", "b<c>"],
            exclude_patterns=["x"],
            follow_paths=["f"],
            shared_key_hint="k",
            differ="none",
            metadata_only=True,
            metadata_only_exceptions=["e"],
        ),
        "247d030b2a1af6b65077737716e62eb0e2dccd76a671e84e6675b57e6771afed",
    ),
    "copy from a chain's result": (
        llb.scratch().copy(llb.Chain(ALPINE, (llb.Mkfile("/a", "x"),)), "/a", "/b"),
        "bf262d6199b8266850197c172a8f5ceac991381d75c714cc871f50055c67349c",
    ),
    "http": (
        llb.http("https://example.com/f.tgz", filename="f", chmod=0o644, chown=(1, 2)),
        "709cd4f21d566f20f727b3122793f591d14d990d10ca535eba7af0b13f7f2792",
    ),
    "git fragment": (
        llb.git("https://github.com/moby/buildkit.git", fragment="v0.11.6:docs"),
        "c21f2290ef76df06a0ac873ddcea7a8194fcf86cc260c263de9770265a83f537",
    ),
    "git options": (
        llb.git(
            "github.com/moby/buildkit",
            ref="main",
            keep_git_dir=True,
            auth_token_secret="tok",
            checksum="abc",
            skip_submodules=True,
        ),
        "3b6ff309b6f85112377ba9ecdc8faf07b1ae59623219465633f88be74b062bef",
    ),
    "git over ssh": (
        llb.git(
            "git@example.invalid:moby/buildkit.git",
            ref="main",
            known_ssh_hosts=["example.invalid ssh-rsa AAA"],
            mount_ssh_sock="sid",
        ),
        "051cca59c6df842d9a6101a96f0adc38bea4bbfbf910c910d7512ec31172d93b",
    ),
    "oci layout": (
        llb.oci_layout(f"not/real@{DIGEST}", session_id="sess", store_id="store"),
        "e2f71e05b123db33b3b5c721f4bba3ae5fdcc8447cca99fa437e66c7fac35d5d",
    ),
    "image blob": (
        llb.image_blob(f"alpine@{DIGEST}", filename="b"),
        "1ce9800405522fda23fc269a733ae9778615c5e25b55196070685ff20cac67aa",
    ),
    "build": (ALPINE.build("x.llb"), "d7555de01b18918ce4651c2fd2296d75bac04b7fe2c6457ffd60773d08c8f907"),
    "requires": (
        ALPINE.requires("id1", llb.image("busybox")),
        "5bc861cc78a70872bf717da38f1086dcdddcc10b4bf65335db39680002904165",
    ),
    "everything an exec has": (
        everything(),
        "ed8fb41497a3a2c0e5407dac937e9165fa264f7254380acec269f4577422bddd",
    ),
    "everything a copy has": (
        everything_copied(),
        "663c3ba4ea55ba39a2411dcf668ac775318c827f34e3cb848dd5dacf8f9d4b2e",
    ),
}

RESULTS: dict[str, tuple[llb.State, str]] = {
    "image": (ALPINE, "91d1ea452bdb17a7987049c214be5a0ebfc499b11003e057978043b827bee403"),
    "args": (ALPINE.run(["true"]), "212e146a2725c0c2db1e78a5815ca7d4c6d30181901e46772e22059cfc6e5da3"),
    "root of everything": (everything(), "4c84ce1a141a1dcaca1bc0ef5a4fa8fa3e76198f5a88088f1f7172710cf896d2"),
    "mount of everything": (
        everything().mount("/z"),
        "bc13d2ec72a5a286e63cbf595f8188bb6ae99ea13c5a1965289c9e2278e316df",
    ),
}


@pytest.mark.golden
@pytest.mark.parametrize("name", VECTORS)
def test_the_result_is_the_known_vertex(name: str) -> None:
    state, digest = VECTORS[name]
    head = llb.marshal(state, platform="linux/amd64").head
    assert head is not None
    assert head.digest == f"sha256:{digest}"


@pytest.mark.golden
@pytest.mark.parametrize("name", RESULTS)
def test_the_terminal_op_is_the_known_one(name: str) -> None:
    state, digest = RESULTS[name]
    assert llb.marshal(state, platform="linux/amd64").terminal == f"sha256:{digest}"
