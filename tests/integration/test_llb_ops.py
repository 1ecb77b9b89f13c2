"""Every op, solved on a real daemon: what the golden bytes cannot say is whether they mean what we think."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from buildkit_py import ExporterSpec, GraphRequest, SolveRequest, build, connect, features, llb
from buildkit_py.client import MAX_REQUEST_BYTES
from buildkit_py.errors import InvalidOption, SolveError, UnsupportedByDaemon
from buildkit_py.oci import Index, Manifest, parse_manifest_or_index
from buildkit_py.options import SecretSpec, SSHSpec
from buildkit_py.registry import Registry
from buildkit_py.session.content import BlobStore, ContentStores
from buildkit_py.session.directory import DirectoryTarget
from buildkit_py.session.filesend import FileSend
from tests.support import git_server, openssh, servers

pytestmark = pytest.mark.daemon


@pytest.fixture
def alpine(base_images: Mapping[str, str]) -> str:
    return base_images["alpine"].removeprefix("docker-image://")


@pytest.fixture
def files_of(daemon_address: str, tmp_path: Path) -> Any:
    """Solves a state and gives its files, by path; links as "-> target"."""
    return partial(solve, daemon_address, tmp_path)


async def solve(address: str, folder: Path, state: llb.State, **fields: Any) -> dict[str, str]:
    out = folder / f"out-{uuid.uuid4().hex}"
    outputs = [ExporterSpec(type="local", dest=str(out))]
    async with connect(address) as client:
        await build(client, GraphRequest(graph=lambda _: state, outputs=outputs, attestations={}, **fields))
    return tree(out)


def tree(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes().decode(errors="replace")
    return found


def shell(script: str) -> list[str]:
    return ["sh", "-ec", script]


async def test_file_actions(files_of: Any, capabilities: frozenset[str]) -> None:
    """All five, with their options, chained and alone; an action that the daemon lacks is refused."""
    links = features.SYMLINK.capability in capabilities
    if not links:
        with pytest.raises(UnsupportedByDaemon, match="symlink"):
            await files_of(llb.scratch().symlink("a", "/b"))
    link = llb.Symlink("e/x.txt", "/d/link") if links else llb.Mkfile("/d/link", "x")
    shown = "-> e/x.txt" if links else "x"
    source = llb.scratch().file(
        llb.Mkdir("/d/e", 0o700, parents=True),
        llb.Mkfile("/d/e/x.txt", "x"),
        llb.Mkfile("/d/e/y.log", "y"),
        llb.Mkfile("/d/z.txt", "z"),
        link,
    )
    state = (
        llb.scratch()
        .with_cwd("/w")
        .file(
            llb.Mkdir("/w"),
            llb.Mkfile("one", b"1", 0o600, owner=(0, 0), created=0),
            llb.Mkfile("two", "2"),
            llb.Rm("two"),
            llb.Rm("/absent", allow_not_found=True),
            llb.Rm("/w/n*", allow_wildcard=True),
            llb.Copy(source, "/d", "/plain"),
            llb.Copy(source, "/d", "/contents/", dir_contents_only=True, create_dest_path=True, mode=0o755),
            llb.Copy(source, "/d/*/*.txt", "/wild/", allow_wildcard=True, create_dest_path=True, owner="0:0"),
            llb.Copy(source, "/d/q*", "/", allow_wildcard=True, allow_empty_wildcard=True),
            llb.Copy(source, "/d", "/only", include_patterns=["**/*.txt"], exclude_patterns=["z.txt"]),
            llb.Copy(source, "/d/link", "/followed", follow_symlinks=True, created=1_700_000_000_000_000_000),
            llb.Copy(llb.Chain(source, (llb.Mkfile("/made", "of a chain"),)), "/made", "/chained"),
        )
    )
    assert await files_of(state) == {
        "chained": "of a chain",
        "contents/e/x.txt": "x",
        "contents/e/y.log": "y",
        "contents/link": shown,
        "contents/z.txt": "z",
        "followed": "x",
        "only/e/x.txt": "x",
        "plain/e/x.txt": "x",
        "plain/e/y.log": "y",
        "plain/link": shown,
        "plain/z.txt": "z",
        "w/one": "1",
        "wild/x.txt": "x",
    }


@pytest.mark.parametrize(
    ("feature", "options"),
    [
        (features.MODE_IN_WORDS, {"mode": "u=rw,go=r"}),
        (features.REPLACED_DESTINATION, {"always_replace_existing_dest_paths": True}),
        (features.REQUIRED_PATHS, {"include_patterns": ["f"], "required_paths": ["/f"]}),
    ],
    ids=lambda value: value.name if isinstance(value, features.Feature) else "",
)
async def test_copies_of_later_daemons(
    files_of: Any, capabilities: frozenset[str], feature: features.Feature, options: dict[str, Any]
) -> None:
    """They mean what they say, or are refused: a daemon that does not know them would copy all the same."""
    state = llb.scratch().copy(llb.scratch().mkfile("/f", "copied"), "/", "/", **options)
    if feature.capability not in capabilities:
        with pytest.raises(UnsupportedByDaemon, match=f"{feature.name}: .*BuildKit {feature.since}"):
            await files_of(state)
        return
    assert await files_of(state) == {"f": "copied"}


async def test_mounts_of_each_kind(files_of: Any, alpine: str) -> None:
    """Bind, read-only, with a selector, without output, cache, tmpfs; and outputs other than the root."""
    base = llb.image(alpine)
    data = llb.scratch().file(llb.Mkdir("/sub"), llb.Mkfile("/sub/f", "data"))
    ran = base.run(
        shell(
            "cat /ro/sub/f > /out/ro; cat /sel/f > /out/sel; ! touch /ro/x; echo gone > /gone/x; echo kept >> /cache/x;"
            "df -P /tmp1 | grep -q tmpfs; test $(df -P -k /tmp2 | tail -1 | awk '{print $2}') = 1024;"
            "echo more >> /rw/sub/f; ! touch /root-is-read-only"
        ),
        readonly_root=True,
        mounts=[
            llb.bind("/out"),
            llb.bind("/ro", data, readonly=True),
            llb.bind("/sel", data, selector="sub", readonly=True),
            llb.bind("/rw", data),
            llb.bind("/gone", no_output=True),
            llb.cache("/cache", id="test-llb-ops", sharing="locked"),
            llb.tmpfs("/tmp1"),
            llb.tmpfs("/tmp2", size=1 << 20),
        ],
    )
    again = base.run(
        shell("cat /cache/x > /out/cache"),
        mounts=[llb.cache("/cache", id="test-llb-ops", sharing="shared"), llb.bind("/out", ran.mount("/out"))],
    )
    state = again.mount("/out").copy(ran.mount("/rw"), "/sub/f", "/rw").copy(ran.mount("/ro"), "/sub/f", "/ro2")
    assert await files_of(state) == {"cache": "kept\n", "ro": "data", "ro2": "data", "rw": "datamore\n", "sel": "data"}


async def test_what_a_process_starts_with(files_of: Any, alpine: str, capabilities: frozenset[str]) -> None:
    """Environment, directory, user, host name, hosts, limits, proxies, exit codes, and no network."""
    state = (
        llb.image(alpine)
        .with_env({"A": "state", "B": "state"})
        .with_cwd("/tmp")
        .with_hostname("thishost")
        .with_host("there", "10.1.2.3")
        .with_ulimit("nofile", 100, 200)
    )
    script = (
        "{ echo $A $B; pwd; id -u; hostname; grep there /etc/hosts | tr '\\t' ' '; ulimit -n; "
        "echo $http_proxy $no_proxy; ls /sys/class/net; } > /out/o/said; exit "
    )
    code = 3
    codes: list[int] | None = [code]
    if "exec.validexitcode" not in capabilities:
        code, codes = 0, None
        with pytest.raises(UnsupportedByDaemon, match=r"lacks exec\.validexitcode"):
            await files_of(state.run(["false"], valid_exit_codes=[1]))
    out = llb.scratch().file(llb.Mkdir("/o", owner=(65534, 65534)))
    final = state.run(
        shell(f"{script}{code}"),
        env={"B": "run"},
        user="65534",
        network="none",
        valid_exit_codes=codes,
        proxy=llb.Proxy(http="http://proxy", no="local"),
        mounts=[llb.bind("/out", out)],
    )
    said = (await files_of(final.mount("/out")))["o/said"].splitlines()
    assert said == ["state run", "/tmp", "65534", "thishost", "10.1.2.3 there", "100", "http://proxy local", "lo"]


async def test_secrets_and_agents(files_of: Any, alpine: str, tmp_path: Path) -> None:
    """As a file with its mode and owner, as a variable, as both; an agent's socket; what is optional may be absent."""
    agent = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(agent))
        listening.listen()
        ran = llb.image(alpine).run(
            shell(
                "cat /run/secrets/a > /out/a; echo -n $B > /out/b; cat /both > /out/both; echo -n $BOTH >> /out/both;"
                "stat -c '%a %u %g' /both > /out/mode; test -S $SSH_AUTH_SOCK && echo -n $SSH_AUTH_SOCK > /out/agent;"
                "stat -c %a /agent >> /out/mode; ! test -e /absent"
            ),
            mounts=[llb.bind("/out")],
            secrets=[
                "a",
                llb.Secret("b", env="B"),
                llb.Secret("c", target="/both", env="BOTH", uid=1, gid=2, mode=0o440),
                llb.Secret("absent", target="/absent", optional=True),
            ],
            ssh=[llb.SSH(target="/agent", mode=0o660), llb.SSH("absent", optional=True)],
        )
        secrets = [SecretSpec(id=name, value=name.upper().encode()) for name in ("a", "b", "c")]
        found = await files_of(ran.mount("/out"), secrets=secrets, ssh=[SSHSpec(paths=[agent])])
    assert found == {"a": "A", "b": "B", "both": "CC", "mode": "440 1 2\n660\n", "agent": "/agent"}


async def test_agents_sign(files_of: Any, alpine: str, tmp_path: Path) -> None:
    """Each socket leads to the keys of its id, which sign in the build and cannot be removed there."""
    openssh.copy_programs(tmp_path / "tools")
    keys = [openssh.new_key(tmp_path / name) for name in ("one", "two", "other")]
    state = llb.image(alpine).copy(llb.local("tools"), "/", "/", dir_contents_only=True)
    ran = state.run(
        shell(f"{openssh.SIGN}; SSH_AUTH_SOCK=/run/other ssh-add -L > /o/other"),
        mounts=[llb.bind("/o")],
        ssh=[llb.SSH(), llb.SSH("other", target="/run/other", mode=0o600)],
    )
    with openssh.run_agent(tmp_path / "agent", [tmp_path / "one", tmp_path / "two"]):
        agents = [SSHSpec(paths=[tmp_path / "agent"]), SSHSpec(id="other", paths=[tmp_path / "other"])]
        found = await files_of(ran.mount("/o"), locals={"tools": tmp_path / "tools"}, ssh=agents)
    signed = tmp_path / "signed"
    signed.mkdir()
    for name, content in found.items():
        (signed / name).write_text(content)
    openssh.verify(signed, keys[:2])
    assert found["other"].split()[1] == keys[2]


MODES = [({"network": "host"}, "network.host"), ({"security": "insecure"}, "security.insecure")]


@pytest.mark.parametrize(("options", "entitlement"), MODES, ids=["network", "security"])
async def test_modes_that_must_be_allowed(
    permissive_daemon: str, alpine: str, tmp_path: Path, options: dict[str, Any], entitlement: str
) -> None:
    """Refused where it is not asked for, and run where it is."""
    script = "ls /sys/class/net > /out/net; grep CapEff /proc/self/status | tr -d '\\t' > /out/caps"
    state = llb.image(alpine).run(shell(script), mounts=[llb.bind("/out")], **options).mount("/out")
    with pytest.raises(SolveError, match="not allowed"):
        await solve(permissive_daemon, tmp_path, state)
    found = await solve(permissive_daemon, tmp_path, state, allow=[entitlement])
    is_admin = bool(int(found["caps"].strip().removeprefix("CapEff:"), 16) & 1 << 21)  # CAP_SYS_ADMIN
    assert is_admin == (entitlement == "security.insecure")
    if entitlement == "network.host":  # which a buildkitd without plugins for networks gives to all
        assert found["net"].split() == sorted(name for _, name in socket.if_nameindex())


@pytest.mark.parametrize(("options", "entitlement"), MODES, ids=["network", "security"])
async def test_modes_that_the_daemon_does_not_allow(
    fresh_daemon: servers.PrivateDaemon, tmp_path: Path, options: dict[str, Any], entitlement: str
) -> None:
    """One without settings says so; but for dockerd, which allows the network of the host."""
    state = llb.scratch().run(["true"], **options)
    expected = "not allowed by build daemon configuration"
    if fresh_daemon.kind == "dockerd" and entitlement == "network.host":
        expected = "true"  # which is not there to be run
    with pytest.raises(SolveError, match=expected):
        await solve(fresh_daemon.address, tmp_path, state, allow=[entitlement])


@pytest.fixture
def with_device(permissive_daemon: str, alpine: str, tmp_path: Path) -> Any:
    """Runs a process with a device, and gives what is there of it."""

    async def run(device: llb.Device | str, **fields: Any) -> dict[str, str]:
        script = "echo $DEVICE > /out/env; cd /dev; ls toy free 2>/dev/null > /out/nodes || true"
        state = llb.image(alpine).run(shell(script), mounts=[llb.bind("/out")], devices=[device])
        return await solve(permissive_daemon, tmp_path, state.mount("/out"), no_cache=True, **fields)

    return run


@pytest.fixture
def devices(capabilities: frozenset[str]) -> bool:
    """Whether the daemon knows devices, as those of v0.20 do."""
    return "exec.meta.cdi" in capabilities


async def test_devices(with_device: Any, devices: bool) -> None:
    """A CDI device is there with what its specification says; one that is optional may be absent."""
    if not devices:
        for device in ("example.org/free=one", llb.Device("example.org/absent=one", optional=True)):
            with pytest.raises(UnsupportedByDaemon, match=r"lacks exec\.meta\.cdi"):
                await with_device(device)
        return
    assert await with_device("example.org/free=one") == {"env": "free\n", "nodes": "free\n"}
    assert await with_device(llb.Device("example.org/absent=one", optional=True)) == {"env": "\n", "nodes": ""}
    with pytest.raises(SolveError, match="absent"):
        await with_device("example.org/absent=one")
    with pytest.raises(SolveError, match="not allowed"):
        await with_device("example.org/toy=one")


@pytest.mark.parametrize("allowed", ["device", "device=example.org/toy"])
async def test_devices_that_must_be_allowed(with_device: Any, allowed: str, devices: bool) -> None:
    if not devices:
        with pytest.raises(UnsupportedByDaemon, match="lacks entitlement device"):
            await with_device("example.org/toy=one", allow=[allowed])
        return
    try:
        assert await with_device("example.org/toy=one", allow=[allowed]) == {"env": "toy\n", "nodes": "toy\n"}
    except SolveError as error:
        if "not allowed by build daemon configuration" not in error.message:
            raise
        pytest.skip("this daemon cannot be told to allow devices")


async def test_merge_diff_and_requires(files_of: Any, alpine: str) -> None:
    base = llb.scratch().file(llb.Mkfile("/kept", "base"), llb.Mkfile("/gone", "base"), llb.Mkfile("/changed", "base"))
    upper = base.file(llb.Rm("/gone"), llb.Mkfile("/changed", "upper"), llb.Mkfile("/new", "upper"))
    other = llb.scratch().file(llb.Mkfile("/gone", "other"), llb.Mkfile("/extra", "other"))
    delta = llb.diff(base, upper)
    merged = llb.merge(base, other, delta)
    assert await files_of(merged) == {"changed": "upper", "extra": "other", "kept": "base", "new": "upper"}


async def test_a_state_that_requires_another(files_of: Any, alpine: str, capabilities: frozenset[str]) -> None:
    """Its files are its own, and the other one was built."""
    good = llb.image(alpine).run(["true"])
    state = llb.scratch().mkfile("/f", "own")
    if "passthroughop" not in capabilities:
        with pytest.raises(UnsupportedByDaemon, match="lacks passthroughop"):
            await files_of(state.requires("checked", good))
        return
    assert await files_of(state.requires("checked", good)) == {"f": "own"}
    with pytest.raises(SolveError, match="exit code: 1"):
        await files_of(state.requires("unchecked", llb.image(alpine).run(["false"])))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[git_server.Server]:
    """A file, and a repository with two commits, over HTTP."""
    root = tmp_path / "served"
    root.mkdir()
    (root / "file.txt").write_text("from the web")
    with git_server.serve_directory(root) as server:
        yield server


async def test_http(files_of: Any, served: git_server.Server) -> None:
    """Its name, its mode; and a checksum that is right or is not."""
    url = f"{served.url}/file.txt"
    digest = hashlib.sha256(b"from the web").hexdigest()
    state = llb.http(url, filename="renamed", chmod=0o600, chown=(1, 2), checksum=f"sha256:{digest}")
    assert await files_of(state) == {"renamed": "from the web"}
    with pytest.raises(SolveError, match="digest mismatch"):
        await files_of(llb.http(url, checksum="sha256:" + "0" * 64))


async def test_git(files_of: Any, served: git_server.Server, capabilities: frozenset[str]) -> None:
    """A tag, a directory of it, the .git directory, and a commit that is checked."""
    if git_server.find_git_server() is None:
        pytest.skip("git cannot serve repositories here")
    work = served.root / "work"
    (work / "sub").mkdir(parents=True)
    git_server.git(work, "init", "-q", "-b", "main")
    (work / "sub" / "f").write_text("first")
    git_server.git(work, "add", ".")
    git_server.git(work, "commit", "-q", "-m", "first")
    git_server.git(work, "tag", "v1")
    (work / "sub" / "f").write_text("second")
    git_server.git(work, "commit", "-q", "-a", "-m", "second")
    commit = git_server.git(work, "rev-parse", "HEAD")
    git_server.git(work, "clone", "-q", "--bare", str(work), str(served.root / "r.git"))
    url = f"{served.url}/r.git"
    assert await files_of(llb.git(url, ref="v1")) == {"sub/f": "first"}
    assert await files_of(llb.git(url, ref="main", subdir="sub")) == {"f": "second"}
    checked = "source.git.checksum" in capabilities
    kept = await files_of(llb.git(url, ref="main", keep_git_dir=True, checksum=commit if checked else ""))
    assert kept["sub/f"] == "second"
    assert ".git/HEAD" in kept
    with pytest.raises(SolveError if checked else UnsupportedByDaemon, match="checksum"):
        await files_of(llb.git(url, ref="v1", checksum=commit))


async def test_git_signatures(
    capabilities: frozenset[str], files_of: Any, served: git_server.Server, tmp_path: Path
) -> None:
    """By a commit or a tag, with the key that is meant; what is not signed is refused."""
    if git_server.find_git_server() is None:
        pytest.skip("git cannot serve repositories here")
    if "source.git.signatureverify" not in capabilities:
        with pytest.raises(UnsupportedByDaemon, match=r"lacks source\.git\.signatureverify"):
            await files_of(llb.git(f"{served.url}/r.git", signature_public_key="key"))
        return
    keys: dict[str, str] = {}
    for name in ("one", "two"):
        openssh.new_key(tmp_path / name)
        keys[name] = (tmp_path / f"{name}.pub").read_text()
    work = served.root / "work"
    work.mkdir()
    git_server.git(work, "init", "-q", "-b", "main")
    signing = ["-c", "gpg.format=ssh", "-c", f"user.signingkey={tmp_path / 'one'}"]
    git_server.git(work, *signing, "commit", "-q", "--allow-empty", "-m", "not signed")
    git_server.git(work, "branch", "unsigned")
    (work / "f").write_text("signed")
    git_server.git(work, "add", "f")
    git_server.git(work, *signing, "commit", "-q", "-S", "-m", "signed by one")
    git_server.git(work, *signing, "-c", f"user.signingkey={tmp_path / 'two'}", "tag", "-s", "-m", "by two", "v1")
    git_server.git(work, "clone", "-q", "--bare", str(work), str(served.root / "r.git"))

    async def fetched(ref: str, key: str, **options: Any) -> dict[str, str]:
        state = llb.git(f"{served.url}/r.git", ref=ref, signature_public_key=keys[key], **options)
        found = await files_of(state, no_cache=True)
        assert isinstance(found, dict)
        return found

    for ref, key, options in (
        ("main", "one", {}),
        ("v1", "two", {"require_signed_tag": True}),
        ("v1", "one", {}),  # the tag is not signed by it, but the commit is
        ("v1", "one", {"ignore_signed_tag": True}),
    ):
        assert await fetched(ref, key, **options) == {"f": "signed"}
    for ref, key, options, message in (
        ("unsigned", "one", {}, "not signed"),
        ("main", "two", {}, "signature"),
        ("main", "one", {"require_signed_tag": True}, "signed tag required"),
        ("v1", "one", {"require_signed_tag": True}, "signature"),
        ("v1", "two", {"ignore_signed_tag": True}, "signature"),
    ):
        with pytest.raises(SolveError, match=message):
            await fetched(ref, key, **options)


async def test_http_signatures(
    capabilities: frozenset[str], files_of: Any, served: git_server.Server, tmp_path: Path
) -> None:
    """An OpenPGP signature of the file, by the key that is meant."""
    if shutil.which("gpg") is None:
        pytest.skip("no gpg on this machine")
    if "source.http.signatureverify" not in capabilities:
        with pytest.raises(UnsupportedByDaemon, match=r"lacks source\.http\.signatureverify"):
            await files_of(llb.http(f"{served.url}/file.txt", signature="s", signature_public_key="key"))
        return
    gpg = ["gpg", "--homedir", str(tmp_path / "gnupg"), "--batch", "--passphrase", "", "--armor"]
    (tmp_path / "gnupg").mkdir(mode=0o700)

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    try:
        for name in ("one", "two"):
            run(*gpg, "--quick-generate-key", f"{name}@example.org", "ed25519", "sign", "never")
        one, two = (run(*gpg, "--export", f"{name}@example.org") for name in ("one", "two"))
        by_one = ["--local-user", "one@example.org", "--detach-sign", "--output", "-"]
        signature = run(*gpg, *by_one, str(served.root / "file.txt"))
    finally:
        subprocess.run(["gpgconf", "--homedir", str(tmp_path / "gnupg"), "--kill", "all"], check=False, timeout=60)
    url = f"{served.url}/file.txt"
    good = llb.http(url, signature=signature, signature_public_key=one)
    assert await files_of(good) == {"file.txt": "from the web"}
    with pytest.raises(SolveError, match="signature"):
        await files_of(llb.http(url, signature=signature, signature_public_key=two))


async def test_a_definition_inside_the_build(files_of: Any) -> None:
    """A build op solves what a file of its input says."""
    inner = llb.marshal(llb.scratch().mkfile("/inner", "made by the inner graph")).to_bytes()
    assert await files_of(llb.scratch().mkfile("/buildkit.llb.definition", inner).build()) == {
        "inner": "made by the inner graph"
    }
    assert await files_of(llb.scratch().mkfile("/named", inner).build("named")) == {"inner": "made by the inner graph"}


async def test_images_by_digest_layers_and_blobs(files_of: Any, alpine: str, capabilities: frozenset[str]) -> None:
    """A checksum that is right or is not, the lowest layers alone, and a blob as a file."""
    async with Registry() as registry:
        raw, root = await registry.fetch_manifest(alpine)
        index = parse_manifest_or_index(raw, root.media_type)
        assert isinstance(index, Index)
        raw, child = await registry.fetch_manifest(f"{alpine.rpartition(':')[0]}@{index.images[0].digest}")
        manifest = parse_manifest_or_index(raw, child.media_type)
        assert isinstance(manifest, Manifest)
        config = manifest.config.digest
    checked = "source.image.checksum" in capabilities
    state = llb.image(alpine, checksum=root.digest if checked else None, layer_limit=1, resolve_mode="pull")
    assert "etc/passwd" in await files_of(llb.scratch().copy(state, "/etc/passwd", "/etc/", create_dest_path=True))
    pinned = llb.image(alpine, digest=root.digest)
    assert "etc/passwd" in await files_of(llb.scratch().copy(pinned, "/etc/passwd", "/etc/", create_dest_path=True))
    with pytest.raises(SolveError if checked else UnsupportedByDaemon):
        await files_of(llb.image(alpine, checksum="sha256:" + "0" * 64))
    blob = llb.image_blob(f"{alpine.rpartition(':')[0]}@{config}", filename="config.json")
    if "source.imageblob" not in capabilities:
        with pytest.raises(UnsupportedByDaemon, match=r"lacks source\.imageblob"):
            await files_of(blob)
        return
    found = await files_of(blob)
    assert hashlib.sha256(found["config.json"].encode()).hexdigest() == config.hex


async def test_an_oci_layout(daemon_address: str, files_of: Any, tmp_path: Path) -> None:
    """An image of this machine, as a source of a graph."""
    layout, out = tmp_path / "layout", tmp_path / "unpacked"
    async with connect(daemon_address) as client:
        made = await build(
            client,
            GraphRequest(
                graph=lambda _: llb.scratch().mkfile("/f", "in a layout"),
                outputs=[ExporterSpec(type="oci", dest=f"{layout}/")],
                attestations={},
            ),
        )
        assert made.descriptor is not None
        state = llb.oci_layout(f"example/image@{made.descriptor.digest}", store_id="mine")
        platform = (await client.workers())[0].platforms[0]
        request = SolveRequest(
            definition=llb.marshal(state, platform=platform), exporters=[ExporterSpec(type="local", dest=str(out))]
        )
        stores = ContentStores({"oci:mine": BlobStore(layout)})
        await client.solve(request, attachables=[stores, FileSend({0: DirectoryTarget(out)})])
    assert tree(out) == {"f": "in a layout"}


async def test_the_largest_definition(daemon_address: str) -> None:
    """Daemons take 16 MiB; what is larger is refused here, with what to do about it, before anything is sent.

    Older ones take 4 MiB, and the refusal is theirs, with the same advice.
    """
    async with connect(daemon_address) as client:

        def sized(size: int) -> llb.Definition:
            """A definition of that many bytes."""
            around = len(llb.marshal(llb.scratch().mkfile("/f", bytes(1 << 23)), source_map=False).to_bytes()) - (
                1 << 23
            )
            made = llb.marshal(llb.scratch().mkfile("/f", bytes(size - around)), source_map=False)
            assert len(made.to_bytes()) == size
            return made

        if await client.supports("file.copy.alwaysreplaceexistingdestpaths"):  # of v0.14, as is the limit
            assert (await client.solve(sized(MAX_REQUEST_BYTES - 200))).total >= 1
        else:
            assert (await client.solve(sized((4 << 20) - 200))).total >= 1
            with pytest.raises(InvalidOption, match=r"^request: .*this daemon takes at most 4,194,304 .* llb\.local"):
                await client.solve(sized(MAX_REQUEST_BYTES - 200))
        for size, what in ((MAX_REQUEST_BYTES, "request"), (MAX_REQUEST_BYTES + 1, "definition")):
            with pytest.raises(InvalidOption, match=rf"^{what}: .*at most 16,777,216 at once; .* llb\.local"):
                await client.solve(sized(size))
