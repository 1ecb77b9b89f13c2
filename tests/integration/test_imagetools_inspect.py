"""What ``imagetools inspect`` prints, next to what docker buildx prints."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_py.cli.main import main
from buildkit_py.registry import Registry
from tests.integration.test_imagetools_joins import MULTI, NOBODY, Shelf
from tests.support import peers, servers
from tests.support.contents import PROVENANCE, SPDX, Document, attestation, image, index

pytestmark = pytest.mark.daemon

STATEMENTS = {
    PROVENANCE: {"invocation": {"parameters": {"n": 1, "frontend": "dockerfile.v0"}}, "builder": {"id": "tests"}},
    SPDX: {
        "packages": [{"name": "bash", "versionInfo": "5.1"}, {"name": "zlib", "versionInfo": "1.2"}],
        "SPDXID": "SPDXRef-DOCUMENT",
    },
}


def attested(*platforms: str) -> Document:
    images = [image(platform, text="attested") for platform in platforms]
    # Both forms, in turns.
    said = [attestation(of, artifact=number % 2 == 0, statements=STATEMENTS) for number, of in enumerate(images)]
    return index(*images, *said, annotations={"org.example.a": "<1>"})


@pytest.fixture(scope="module")
def shelf(registry: servers.Registry, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    if peers.buildx() is None:
        pytest.skip("no docker-buildx found (make servers)")
    made = Shelf(registry.host, tmp_path_factory.mktemp("buildx"))

    async def fill() -> None:
        await made.fill()
        async with Registry(credentials=NOBODY) as client:
            await attested("linux/amd64", "linux/arm64").push(client, made.repository, "full")
            await attested("linux/amd64").push(client, made.repository, "one")

    asyncio.run(fill())
    return made


def without_order(text: str) -> list[str]:
    """buildx prints annotations in the random order of a Go map."""
    return sorted(text.splitlines())


TAGS = ["multi", "amd64", "d-amd64", "d-list", "odd", "nested", "windows-list", "artifact", "described", "full"]


@pytest.mark.parametrize("tag", TAGS)
def test_the_text_of_buildx(shelf: Shelf, capsys: pytest.CaptureFixture[str], tag: str) -> None:
    assert main(["imagetools", "inspect", f"{shelf.repository}:{tag}"]) == 0
    theirs, ours = shelf.buildx("inspect", f"{shelf.repository}:{tag}"), capsys.readouterr().out
    assert without_order(ours) == without_order(theirs)
    if tag not in ("full", "described"):
        assert ours == theirs


@pytest.mark.parametrize("suffix", [f"@{MULTI.digest}", f":multi@{MULTI.digest}"])
def test_the_text_of_a_digest(shelf: Shelf, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    assert main(["imagetools", "inspect", shelf.repository + suffix]) == 0
    assert capsys.readouterr().out == shelf.buildx("inspect", shelf.repository + suffix)


@pytest.mark.parametrize("tag", TAGS)
def test_raw_bytes(shelf: Shelf, capfdbinary: pytest.CaptureFixture[bytes], tag: str) -> None:
    """Nothing added, so that they have the digest."""
    assert main(["imagetools", "inspect", "--raw", f"{shelf.repository}:{tag}"]) == 0
    ours = capfdbinary.readouterr().out
    assert ours.decode() == shelf.buildx("inspect", "--raw", f"{shelf.repository}:{tag}")
    assert ours == shelf.raw(f"{shelf.repository}:{tag}")


FORMATS = [
    "{{.Name}}",
    "{{.Manifest}}",
    "{{json .}}",
    "{{json .Manifest}}",
    "{{json .Manifest.Digest}}",
    "digest: {{.Manifest.Digest}}",
    "{{json .Image}}",
    "{{json .Image.Config}}",
    "{{json .Image.Config.Labels}}",
    "{{json .Provenance}}",
    "{{json .Provenance.SLSA}}",
    "{{json .Provenance.SLSA.invocation.parameters}}",
    "{{json .SBOM}}",
    "{{json .SBOM.SPDX}}",
    "{{range .SBOM.SPDX.packages}}{{.name}}@{{.versionInfo}}{{println}}{{end}}",
    "{{range $i, $p := .SBOM.SPDX.packages}}{{if $i}}, {{end}}{{$p.name}}{{end}}",
    '{{range .Manifest.Manifests}}{{if ne .Platform.OS "unknown"}}{{.Digest}} {{.Platform.Variant}} {{end}}{{end}}',
    "{{len .Manifest.Manifests}}",
    '{{printf "%s@%s" .Name .Manifest.Digest}}',
    "{{json (index .Manifest.Manifests 0)}}",
]
OF_MANY = [
    '{{json (index .Image "linux/arm64")}}',
    '{{json (index .Provenance "linux/amd64").SLSA}}',
    '{{(index .SBOM "linux/arm64").SPDX.SPDXID}}',
    "{{range $platform, $image := .Image}}{{$platform}}={{$image.OS}} {{$image.Config.Env}};{{end}}",
]
OF_ONE = ["{{.Image.OS}}/{{.Image.Architecture}}", "{{.Image.Config.Labels}}", "{{with .Image}}{{json .RootFS}}{{end}}"]


@pytest.mark.parametrize(
    ("tag", "template"),
    [("full", text) for text in (*FORMATS, *OF_MANY)]
    + [("one", text) for text in (*FORMATS, *OF_ONE)]
    + [
        ("amd64", text) for text in ("{{json .}}", "{{json .Image}}", "{{json .SBOM}}", "{{json .Provenance}}", *OF_ONE)
    ],
)
def test_formats_of_buildx(shelf: Shelf, capsys: pytest.CaptureFixture[str], tag: str, template: str) -> None:
    """The same, but that a text without a newline gets one here."""
    words = [f"{shelf.repository}:{tag}", "--format", template]
    assert main(["imagetools", "inspect", *words]) == 0
    ours, theirs = capsys.readouterr().out, shelf.buildx("inspect", *words)
    assert ours.endswith("\n")
    if template == "{{.Manifest}}":
        assert without_order(ours) == without_order(theirs)
    else:
        assert ours.removesuffix("\n") == theirs.removesuffix("\n")


def test_json_is_short_for_the_record(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    printed: set[str] = set()
    for text in ("json", "{{json .}}"):
        assert main(["imagetools", "inspect", f"{shelf.repository}:full", "--format", text]) == 0
        printed.add(capsys.readouterr().out)
    assert len(printed) == 1


def test_a_format_is_read_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["imagetools", "inspect", "127.0.0.1:1/none", "--format", "{{.Name"]) == 2
    assert "is not closed" in capsys.readouterr().err
    assert main(["imagetools", "inspect", "127.0.0.1:1/none", "--raw", "--format", "json"]) == 2


def test_layouts_are_inspected_alike(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Formats and raw bytes of a copy on disk are those of the registry."""
    layout = f"layout:{tmp_path / 'copy'}"
    assert main(["imagetools", "copy", f"{shelf.repository}:full", layout]) == 0
    capsys.readouterr()
    for options in (["--format", "{{json .Image}}"], ["--format", "{{json .SBOM}}"], ["--raw"]):
        assert main(["imagetools", "inspect", layout, *options]) == 0
        here = capsys.readouterr().out
        assert main(["imagetools", "inspect", f"{shelf.repository}:full", *options]) == 0
        assert capsys.readouterr().out == here


def test_a_pipe_that_closes(shelf: Shelf) -> None:
    """As ``| head -1`` does: no traceback."""
    command = f"{sys.executable} -m buildkit_py imagetools inspect {shelf.repository}:full | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("Name:")
    assert "Traceback" not in done.stderr
