"""Graphs solved on a real daemon: the examples from program to running image, failures, size, outputs."""

from __future__ import annotations

import json
import runpy
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buildkit_py import (
    BuildRequest,
    ExporterSpec,
    GraphRequest,
    Platform,
    RunRequest,
    StatusUpdate,
    build,
    connect,
    llb,
    run,
    sync,
)
from buildkit_py.builder import BuildResult
from buildkit_py.errors import BuildErrors, SolveError
from buildkit_py.llb.execop import DEFAULT_PATH
from buildkit_py.oci import ImageConfig, Index, Manifest, parse_manifest_or_index
from buildkit_py.registry import Registry
from tests.support.servers import Registry as RegistryServer

pytestmark = pytest.mark.daemon

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def bases(base_images: Mapping[str, str], registry: RegistryServer, daemon_address: str) -> dict[str, str]:
    """References of alpine and golang:alpine; Go is where the real image has it."""
    names = {name: context.removeprefix("docker-image://") for name, context in base_images.items()}
    golang = f"{registry.host}/base/golang-llb"
    with sync.connect(daemon_address) as client:
        client.build(
            GraphRequest(
                graph=lambda _: llb.image(names["golang:alpine"]).run(
                    ["ln", "-s", "/usr/lib/go-1.19", "/usr/local/go"]
                ),
                platforms=PLATFORMS,
                tags=[golang],
                push=True,
            )
        )
    return {"alpine": names["alpine"], "golang": golang}


@pytest.fixture
def name(registry: RegistryServer, request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    return f"{registry.host}/{request.node.name.lower().replace('[', '-').replace(']', '')}"


async def solve(address: str, **fields: Any) -> BuildResult:
    async with connect(address) as client:
        return await build(client, GraphRequest(**fields))


async def fetch(reference: str) -> tuple[Index, dict[str, ImageConfig]]:
    """An index, and the config of each platform."""
    async with Registry() as client:
        raw, descriptor = await client.fetch_manifest(reference)
        index = parse_manifest_or_index(raw, descriptor.media_type)
        assert isinstance(index, Index)
        configs: dict[str, ImageConfig] = {}
        for entry in index.images:
            raw, _ = await client.fetch_manifest(f"{reference.partition('@')[0]}@{entry.digest}")
            manifest = parse_manifest_or_index(raw, entry.media_type)
            assert isinstance(manifest, Manifest)
            config = await client.fetch_blob_bytes(reference, manifest.config, 1 << 20)
            configs[str(entry.platform)] = ImageConfig.parse(config)
    return index, configs


async def printed(address: str, reference: str, *args: str) -> dict[str, str]:
    """What each platform of an index prints when it is run."""
    output: dict[str, str] = {}

    def keep(platform: Platform, stream: int, data: bytes) -> None:
        del stream
        output[str(platform)] = output.get(str(platform), "") + data.decode()

    async with connect(address) as client, Registry() as registry:
        ran = await run(client, RunRequest(reference=reference, args=args), registry=registry, on_output=keep)
    assert [result.exit_code for result in ran] == [0] * len(ran), output
    return output


@dataclass(frozen=True, kw_only=True)
class Example:
    """One of examples/llb, and what its image is to print."""

    name: str
    images: Mapping[str, str]
    """Argument of build() by the name of the image that it gets."""
    directories: Mapping[str, Path]
    args: tuple[str, ...]
    output: str
    """With {machine} for the architecture."""


_GO = {"golang": "golang"}
EXAMPLE_RUNS = [
    Example(name="toolchain", images=_GO, directories={}, args=(), output="go version go1.19.8 linux/{machine}\n"),
    Example(
        name="cross_compile",
        images=_GO | {"alpine": "base"},
        directories={"context": EXAMPLES / "hello-arch"},
        args=(),
        output="Hello, {machine}!\n",
    ),
    Example(
        name="merge_diff",
        images={"alpine": "base"},
        directories={},
        args=("sh", "-c", "count /etc/tools; cat /etc/tools"),
        output="1\ngreet\ntoday\ncount\n",
    ),
]


@pytest.mark.timeout(400)  # two platforms are emulated, and the first example waits for the base images
@pytest.mark.parametrize("example", EXAMPLE_RUNS, ids=lambda example: example.name)
async def test_an_example_runs_on_three_platforms(
    daemon_address: str, bases: Mapping[str, str], name: str, example: Example
) -> None:
    """One index, as a Dockerfile build gives it, of which each platform runs."""
    module = runpy.run_path(str(EXAMPLES / "llb" / f"{example.name}.py"))
    parameters = {parameter: bases[image] for image, parameter in example.images.items()}
    result = await solve(
        daemon_address,
        graph=lambda platform: module["build"](platform, **parameters),
        config=module["CONFIG"],
        locals=example.directories,
        platforms=PLATFORMS,
        tags=[name],
        push=True,
    )
    index, configs = await fetch(name)
    assert result.descriptor is not None
    assert index.digest == result.descriptor.digest
    assert [str(entry.platform) for entry in index.images] == list(PLATFORMS)
    assert [entry.attests for entry in index.attestations] == [str(entry.digest) for entry in index.images]
    assert {str(config.platform) for config in configs.values()} == set(PLATFORMS)
    output = await printed(daemon_address, name, *example.args)
    machines = {"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "arm"}
    assert output == {platform: example.output.format(machine=machines[platform]) for platform in PLATFORMS}


async def test_an_image_is_like_that_of_a_dockerfile(
    daemon_address: str, bases: Mapping[str, str], name: str, tmp_path: Path
) -> None:
    """Said in either way, the same config and the same files come out."""
    (tmp_path / "Dockerfile").write_text(
        "FROM base\nENV A=1 B='x y'\nWORKDIR /app\nRUN echo $A > out\nUSER nobody\nEXPOSE 80 53/udp\nVOLUME /data\n"
        'LABEL one=1 two="2 <&>"\nSTOPSIGNAL SIGINT\nENTRYPOINT ["/bin/cat"]\nCMD ["out"]\n'
    )
    config = llb.ImageConfig(
        user="nobody",
        exposed_ports=["80", "53/udp"],
        volumes=["/data"],
        labels={"one": "1", "two": "2 <&>"},
        stop_signal="SIGINT",
        entrypoint=["/bin/cat"],
        cmd=["out"],
    )

    def graph(_: Platform) -> llb.State:
        state = llb.image(bases["alpine"], config={"config": {"Env": ["PATH=" + DEFAULT_PATH]}})
        state = state.with_env({"A": "1", "B": "x y"}).with_cwd("/app").mkdir("/app")
        return state.run(["/bin/sh", "-c", "echo $A > out"])

    async with connect(daemon_address) as client:
        base = {"base": f"docker-image://{bases['alpine']}"}
        shared: dict[str, Any] = {"platforms": ["linux/amd64", "linux/arm64"], "push": True}
        await build(client, BuildRequest(context=tmp_path, build_contexts=base, tags=[f"{name}:file"], **shared))
        await build(client, GraphRequest(graph=graph, config=config, tags=[f"{name}:graph"], **shared))
    (theirs, expected), (ours, configs) = await fetch(f"{name}:file"), await fetch(f"{name}:graph")
    assert [entry.platform for entry in ours.manifests] == [entry.platform for entry in theirs.manifests]
    assert [dict(entry.annotations or {}).keys() for entry in ours.manifests] == [
        dict(entry.annotations or {}).keys() for entry in theirs.manifests
    ]
    assert ours.media_type == theirs.media_type
    for platform, wanted in expected.items():
        said = json.loads(wanted.raw)["config"]
        del said["ArgsEscaped"]  # says something of Windows alone
        assert json.loads(configs[platform].raw)["config"] == said
        assert len(configs[platform].diff_ids) == len(wanted.diff_ids)
    assert await printed(daemon_address, f"{name}:graph") == {"linux/amd64": "1\n", "linux/arm64": "1\n"}


async def test_the_context_crosses_once(
    daemon_address: str, bases: Mapping[str, str], tmp_path: Path, name: str
) -> None:
    """All platforms read one and the same vertex, also where each exports to this machine."""
    context, out = tmp_path / "context", tmp_path / "out"
    context.mkdir()
    (context / "file").write_text(name)
    (context / "left-out").write_text("x")
    seen: dict[str, set[str]] = {}

    def on_status(label: str, update: StatusUpdate) -> None:
        for vertex in update.vertexes:
            if vertex.name == "the context":
                seen.setdefault(vertex.digest, set()).add(label)

    def graph(platform: Platform) -> llb.State:
        source = llb.local("src", exclude_patterns=["left-out"], custom_name="the context")
        return llb.image(bases["alpine"]).copy(source, "/", "/src/").mkfile("/for", str(platform))

    request = GraphRequest(
        graph=graph,
        locals={"src": context},
        platforms=PLATFORMS,
        outputs=[ExporterSpec(type="local", dest=str(out))],
        attestations={},
    )
    async with connect(daemon_address) as client:
        await build(client, request, on_status=on_status)
    assert list(seen.values()) == [set(PLATFORMS)]
    for platform in PLATFORMS:
        root = out / platform.replace("/", "_")
        assert (root / "src" / "file").read_text() == name
        assert not (root / "src" / "left-out").exists()
        assert (root / "for").read_text() == platform


def test_from_code_without_asyncio(daemon_address: str, tmp_path: Path) -> None:
    """Also a definition alone, and a graph that is for the daemon's own platform."""
    state = llb.scratch().mkfile("/greeting", "hello\n")
    with sync.connect(daemon_address) as client:
        own = client.workers()[0].platforms[0]
        assert client.solve(llb.marshal(state)).total >= 1
        result = client.build(
            GraphRequest(
                graph=lambda platform: state.mkfile("/for", str(platform)),
                outputs=[ExporterSpec(type="tar", dest=str(tmp_path / "out.tar"))],
            )
        )
    assert [entry.platform for entry in result.platforms] == [own]
    with tarfile.open(tmp_path / "out.tar") as archive:
        found = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        assert {path: file.read() for path, file in found.items() if file} == {
            "greeting": b"hello\n",
            "for": str(own).encode(),
        }


async def test_scratch_is_an_image_without_layers(daemon_address: str, name: str) -> None:
    """Nothing to do is a result, too."""
    config = llb.ImageConfig(labels={"empty": "yes"})
    await solve(
        daemon_address, graph=lambda _: llb.scratch(), config=config, platforms=PLATFORMS, tags=[name], push=True
    )
    _, configs = await fetch(name)
    assert set(configs) == set(PLATFORMS)
    assert {made.labels["empty"] for made in configs.values()} == {"yes"}
    assert {made.diff_ids for made in configs.values()} == {()}


async def test_a_layout_has_the_platforms_and_configs(daemon_address: str, tmp_path: Path) -> None:
    """Also where nothing is pushed."""
    result = await solve(
        daemon_address,
        graph=lambda platform: llb.scratch().mkfile("/for", str(platform)),
        config=llb.ImageConfig(cmd=["/for"]),
        platforms=PLATFORMS,
        outputs=[ExporterSpec(type="oci", dest=f"{tmp_path}/layout/")],
    )
    assert result.descriptor is not None
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    index = parse_manifest_or_index((blobs / result.descriptor.digest.hex).read_bytes(), result.descriptor.media_type)
    assert isinstance(index, Index)
    assert [str(entry.platform) for entry in index.images] == list(PLATFORMS)
    for entry in index.images:
        manifest = parse_manifest_or_index((blobs / entry.digest.hex).read_bytes(), entry.media_type)
        assert isinstance(manifest, Manifest)
        config = ImageConfig.parse((blobs / manifest.config.digest.hex).read_bytes())
        assert (config.platform, config.cmd) == (entry.platform, ("/for",))


UUID = ["/bin/sh", "-c", "cat /proc/sys/kernel/random/uuid > /id"]


@pytest.mark.parametrize("no_cache", [False, True])
async def test_what_the_daemon_keeps_of_several_platforms(
    daemon_address: str, bases: Mapping[str, str], name: str, no_cache: bool
) -> None:
    """One image, made of what was just built, as a push has it; steps that are never cached run but once."""

    def graph(platform: Platform) -> llb.State:
        ran = llb.image(bases["alpine"]).run(UUID, ignore_cache=True)
        return llb.scratch().copy(ran, "/id", "/id").mkfile("/for", str(platform))

    seen: dict[str, set[str]] = {}

    def on_status(label: str, update: StatusUpdate) -> None:
        for vertex in update.vertexes:
            if vertex.name.startswith("/bin/sh") and vertex.completed is not None and not vertex.cached:
                seen.setdefault(label, set()).add(vertex.digest)

    fields: dict[str, Any] = {
        "graph": graph,
        "config": llb.ImageConfig(cmd=["/for"]),
        "platforms": PLATFORMS[:2],
        "tags": [name],
    }
    async with connect(daemon_address) as client:
        kept = await build(
            client,
            GraphRequest(**fields, no_cache=no_cache, outputs=[ExporterSpec(type="image")]),
            on_status=on_status,
        )
        assert {label: len(digests) for label, digests in seen.items()} == dict.fromkeys(PLATFORMS[:2], 1)
        assert kept.references == ()
        assert kept.descriptor is not None
        raw = await client.read_blob(kept.descriptor.digest, 1 << 20)
        index = parse_manifest_or_index(raw, kept.descriptor.media_type)
        assert isinstance(index, Index)
        assert [str(entry.platform) for entry in index.images] == list(PLATFORMS[:2])
        assert [entry.attests for entry in index.attestations] == [str(entry.digest) for entry in index.images]
        layers: set[str] = set()
        for entry, found in zip(index.images, kept.platforms, strict=True):
            assert (found.manifest, len(found.attestations)) == (entry, 1)
            manifest = parse_manifest_or_index(await client.read_blob(entry.digest, 1 << 20), entry.media_type)
            assert isinstance(manifest, Manifest)
            config = ImageConfig.parse(await client.read_blob(manifest.config.digest, 1 << 20))
            assert (config.platform, config.cmd) == (entry.platform, ("/for",))
            layers |= {str(layer.digest) for layer in manifest.layers}
        assert len(layers) == 4  # the ids differ


async def test_a_platform_that_fails_leaves_nothing_kept(daemon_address: str, bases: Mapping[str, str]) -> None:
    """Its error is that of any build, and the daemon is not asked to join anything."""
    labels: set[str] = set()

    def graph(platform: Platform) -> llb.State:
        state = llb.image(bases["alpine"], platform="linux/amd64").with_platform(platform)
        return state.run(["/bin/sh", "-c", f"exit {0 if platform.architecture == 'amd64' else 9}"])

    request = GraphRequest(graph=graph, platforms=PLATFORMS[:2], outputs=[ExporterSpec(type="image")])
    async with connect(daemon_address) as client:
        with pytest.raises(SolveError, match="exit code: 9") as caught:
            await build(client, request, on_status=lambda label, _: labels.add(label))
    assert caught.value.platform == "linux/arm64"
    assert "" not in labels


async def test_a_failure_shows_the_line_of_the_program(
    daemon_address: str, bases: Mapping[str, str], tmp_path: Path
) -> None:
    """Its neighbours, too; whichever kind of vertex it is, on each platform that failed."""
    program = tmp_path / "mybuild.py"
    program.write_text(
        "from buildkit_py import llb\n"
        "def build(base):\n"
        "    state = llb.image(base)\n"
        "    state = state.run('sh -c \"echo about to fail; exit 7\"')\n"
        "    return state.mkdir('/never')\n"
        "def copy(base):\n"
        "    return llb.scratch().copy(llb.image(base), '/nowhere', '/')\n"
    )
    module = runpy.run_path(str(program))
    with pytest.raises((SolveError, BuildErrors)) as caught:
        await solve(daemon_address, graph=lambda _: module["build"](bases["alpine"]), platforms=PLATFORMS[:2])
    for failed in caught.value.exceptions if isinstance(caught.value, BuildErrors) else [caught.value]:
        assert isinstance(failed, SolveError)
        assert failed.exit_code == 7
        assert failed.log_tail == ("about to fail",)
        assert [snippet.excerpt().splitlines() for snippet in failed.sources] == [
            [
                f"{program}:4",
                "--------------------",
                "   2 |     def build(base):",
                "   3 |         state = llb.image(base)",
                "   4 | >>>     state = state.run('sh -c \"echo about to fail; exit 7\"')",
                "   5 |         return state.mkdir('/never')",
                "   6 |     def copy(base):",
                "--------------------",
            ]
        ]
    with pytest.raises(SolveError, match="nowhere") as copied:
        await solve(daemon_address, graph=lambda _: module["copy"](bases["alpine"]))
    assert [snippet.ranges for snippet in copied.value.sources] == [((7, 7),)]
    was = llb.capture_source(False)
    try:
        with pytest.raises(SolveError, match="exit code: 7") as plain:
            await solve(daemon_address, graph=lambda _: module["build"](bases["alpine"]))
    finally:
        llb.capture_source(was)
    assert plain.value.sources == ()


@pytest.mark.timeout(400)  # a daemon writes to its databases, and waits for the disk, at each vertex
async def test_two_thousand_vertexes(daemon_address: str, tmp_path: Path) -> None:
    """50 files, and 39 times 50 merges of what was there with one more of the files, brought together at the end."""
    leaves = [llb.scratch().mkfile(f"/{number}", f"file {number}") for number in range(50)]
    states = leaves
    for turn in range(1, 40):
        states = [llb.merge(state, leaves[(number + turn) % 50]) for number, state in enumerate(states)]
    result = llb.scratch().file(*[llb.Copy(state, "/", f"/{number}/") for number, state in enumerate(states)])
    assert len(llb.marshal(result).vertexes) == 2_001
    out = tmp_path / "out"
    outputs = [ExporterSpec(type="local", dest=str(out))]
    built = await solve(daemon_address, graph=lambda _: result, outputs=outputs, attestations={})
    assert built.platforms[0].total >= 2_001
    for number in range(50):
        expected = {str(other % 50): f"file {other % 50}" for other in range(number, number + 40)}
        assert {path.name: path.read_text() for path in (out / str(number)).iterdir()} == expected
