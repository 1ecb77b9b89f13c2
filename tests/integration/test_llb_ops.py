"""Every op, solved on a real daemon: what the golden bytes cannot say is whether they mean what we think."""

from __future__ import annotations

import hashlib
import socket
import uuid
from collections.abc import Iterator, Mapping
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
from tests.support import git_server

pytestmark = pytest.mark.daemon


@pytest.fixture
def alpine(base_images: Mapping[str, str]) -> str:
    return base_images["alpine"].removeprefix("docker-image://")


@pytest.fixture
def files_of(daemon_address: str, tmp_path: Path) -> Any:
    """Solves a state and gives its files, by path; links as "-> target"."""

    async def solve(state: llb.State, **fields: Any) -> dict[str, str]:
        out = tmp_path / f"out-{uuid.uuid4().hex}"
        outputs = [ExporterSpec(type="local", dest=str(out))]
        async with connect(daemon_address) as client:
            await build(client, GraphRequest(graph=lambda _: state, outputs=outputs, attestations={}, **fields))
        return tree(out)

    return solve


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


@pytest.mark.parametrize(
    ("options", "entitlement"),
    [({"network": "host"}, "network.host"), ({"security": "insecure"}, "security.insecure")],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_modes_that_must_be_allowed(
    files_of: Any, alpine: str, options: dict[str, Any], entitlement: str
) -> None:
    """Refused where it is not asked for; where the daemon allows it at all, it runs once it is."""
    script = "ls /sys/class/net > /out/net; grep CapEff /proc/self/status | tr -d '\\t' > /out/caps"
    state = llb.image(alpine).run(shell(script), mounts=[llb.bind("/out")], **options).mount("/out")
    with pytest.raises(SolveError, match="not allowed"):
        await files_of(state)
    try:
        found = await files_of(state, allow=[entitlement])
    except SolveError as error:
        if "not allowed by build daemon configuration" in error.message:
            pytest.skip(f"this daemon never allows {entitlement}")
        raise
    if entitlement == "network.host":
        assert found["net"].split() == sorted(name for _, name in socket.if_nameindex())
    else:
        assert int(found["caps"].strip().removeprefix("CapEff:"), 16) & 1 << 21  # CAP_SYS_ADMIN


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
    """Daemons take 16 MiB; what is larger is refused here, with what to do about it, before anything is sent."""
    async with connect(daemon_address) as client:

        def sized(size: int) -> llb.Definition:
            """A definition of that many bytes."""
            around = len(llb.marshal(llb.scratch().mkfile("/f", bytes(1 << 23)), source_map=False).to_bytes()) - (
                1 << 23
            )
            made = llb.marshal(llb.scratch().mkfile("/f", bytes(size - around)), source_map=False)
            assert len(made.to_bytes()) == size
            return made

        assert (await client.solve(sized(MAX_REQUEST_BYTES - 200))).total >= 1
        for size, what in ((MAX_REQUEST_BYTES, "request"), (MAX_REQUEST_BYTES + 1, "definition")):
            with pytest.raises(InvalidOption, match=rf"^{what}: .*at most 16,777,216 at once; .* llb\.local"):
                await client.solve(sized(size))
