"""The index that ``imagetools create`` makes, byte for byte that of docker buildx; and where it is not, why.

Deliberate differences, each with a test below: two sources for one platform are an error; with ``--append`` the new
image takes the place of the old one, alone it leaves what is there, and a tag with Docker's types can be appended to;
a platform that is asked for and is not there is an error; the version of a Windows image comes along; annotations turn
a Docker list into an OCI index instead of getting lost; a descriptor that says its media type is looked for by its
digest alone; hosts that an entry's URLs name are not asked; an annotation for one platform does not stumble over an
entry that has none, finds a platform that is spelt otherwise, and is an error where there is none; an index gets its
media type.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from buildkit_py.cli.main import main
from buildkit_py.digest import Digest
from buildkit_py.oci import OCI_INDEX, Index
from buildkit_py.registry import Registry, StaticCredentials
from tests.support import peers, servers
from tests.support.contents import Document, artifact, attestation, image, index

pytestmark = pytest.mark.daemon

NOBODY = StaticCredentials({})
_SECONDS = 60


@dataclass(frozen=True)
class Join:
    """One command line; ``{r}`` is the repository with all the images, ``{o}`` another one with some."""

    name: str
    sources: Sequence[str]
    options: Sequence[str] = ()
    lone: bool = False
    """The result is a manifest, not an index."""
    children: int | None = None
    """How many entries the result has, where that is what the case is about."""
    onto: Document | None = None
    """What the tag has, to which a join appends; two images where nothing is said."""
    files: dict[str, str] = field(default_factory=dict)
    """Files to write first, by the name that ``{f}/NAME`` refers to."""


AMD64, ARM64, ARMV7 = image("linux/amd64"), image("linux/arm64"), image("linux/arm/v7")
D_AMD64, D_ARM64 = image("linux/amd64", docker=True), image("linux/arm64", docker=True)
V8 = image("linux/arm64/v8", text="v8")
SIGNED = image("linux/amd64", text="with annotations", annotations={"org.example.in": "the manifest"})
WINDOWS = image("windows/amd64", os_version="10.0.20348.2000")
ATTESTED_AMD64 = index(image("linux/amd64", text="attested"), attestation(image("linux/amd64", text="attested")))
ATTESTED_ARM64 = index(
    image("linux/arm64", text="attested"), attestation(image("linux/arm64", text="attested"), artifact=False)
)
MULTI = index(AMD64, ARM64, ARMV7)
ODD = index(
    AMD64,
    ARM64,
    raw=json.dumps(
        {"manifests": [dict(AMD64.entry), dict(ARM64.entry)], "x-unknown": [1, {"b": None}], "mediaType": OCI_INDEX}
        | {"schemaVersion": 2, "annotations": {"a": "\N{SNOWMAN} <&>"}},
        indent=7,
    ).encode(),
)
ANNOTATED = index(AMD64, ARM64, annotations={"org.example.of": "the index"})
DESCRIBED = index(AMD64, ARM64, entries=[{**AMD64.entry, "annotations": {"a": "old", "b": "1"}}, {**ARM64.entry}])
DESCRIBED_TOO = index(AMD64, ARM64, entries=[{**AMD64.entry, "annotations": {"a": "new", "c": "2"}}, {**ARM64.entry}])
D_LIST = index(D_AMD64, D_ARM64, docker=True)
NESTED = index(MULTI, ARMV7)
ARTIFACT = artifact()
WINDOWS_LIST = index(WINDOWS, image("windows/amd64", os_version="10.0.26100.1"))

_AMD64_WITHOUT_PLATFORM = {key: value for key, value in AMD64.entry.items() if key != "platform"}
_WINDOWS_PLATFORM = {"os": "windows", "architecture": "amd64", "os.version": "10.0.1", "os.features": ["win32k"]}
ODDITIES: dict[str, Document] = {
    "a-list-of-oci-images": index(AMD64, ARM64, docker=True),
    "an-index-of-docker-images": index(D_AMD64, D_ARM64),
    "an-index-of-both": index(D_AMD64, ARM64),
    "nested-twice": index(NESTED, AMD64),
    "one-platform-twice": index(AMD64, image("linux/amd64", text="other"), ARM64),
    "one-entry-twice": index(AMD64, AMD64),
    "no-platform": index(AMD64, ARM64, entries=[_AMD64_WITHOUT_PLATFORM, ARM64.entry]),
    "an-unknown-platform": index(
        AMD64,
        ARTIFACT,
        entries=[AMD64.entry, {**ARTIFACT.entry, "platform": {"os": "unknown", "architecture": "unknown"}}],
    ),
    "an-artifact": index(ARTIFACT),
    "a-variant": index(V8, AMD64),
    "features-of-the-os": index(WINDOWS, entries=[{**WINDOWS.entry, "platform": _WINDOWS_PLATFORM}]),
    "urls": index(AMD64, entries=[{**AMD64.entry, "urls": ["https://example.org/image"]}]),
    "data": index(AMD64, entries=[{**AMD64.entry, "data": base64.b64encode(AMD64.raw).decode()}]),
    "unknown-fields": index(AMD64, entries=[{**AMD64.entry, "x-field": {"a": 1}}]),
    "unknown-fields-of-platforms": index(
        AMD64,
        entries=[{**AMD64.entry, "platform": {"os": "linux", "architecture": "amd64", "features": ["sse4"], "z": 1}}],
    ),
    "a-type-of-artifact": index(AMD64, entries=[{**AMD64.entry, "artifactType": "application/x-foo"}]),
    "about-another": index(
        AMD64,
        ARM64,
        raw=json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "artifactType": "application/x-foo",
                "manifests": [dict(AMD64.entry), dict(ARM64.entry)],
                "subject": {key: AMD64.entry[key] for key in ("mediaType", "digest", "size")},
            }
        ).encode(),
    ),
    "nothing": index(raw=json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()),
    "no-type": index(
        AMD64, ARM64, raw=json.dumps({"schemaVersion": 2, "manifests": [dict(AMD64.entry), dict(ARM64.entry)]}).encode()
    ),
}
_OTHERS = (
    *("linux/riscv64", "linux/s390x", "linux/386", "linux/arm/v5", "linux/arm/v6", "linux/amd64/v2", "linux/arm64/v9"),
    *("freebsd/amd64", "wasi/wasm"),
)
OTHERS = {platform.replace("/", "-"): image(platform) for platform in _OTHERS}

CONTENT: dict[str, Document] = {
    "amd64": AMD64,
    "arm64": ARM64,
    "armv7": ARMV7,
    "d-amd64": D_AMD64,
    "d-arm64": D_ARM64,
    "v8": V8,
    "signed": SIGNED,
    "windows": WINDOWS,
    "attested-amd64": ATTESTED_AMD64,
    "attested-arm64": ATTESTED_ARM64,
    "multi": MULTI,
    "odd": ODD,
    "annotated": ANNOTATED,
    "described": DESCRIBED,
    "described-too": DESCRIBED_TOO,
    "d-list": D_LIST,
    "nested": NESTED,
    "artifact": ARTIFACT,
    "windows-list": WINDOWS_LIST,
    **ODDITIES,
    **OTHERS,
}


def _said(document: Document, **more: object) -> str:
    """A descriptor as a source. buildx looks for one with a media type at the tag ``latest``; see below."""
    return json.dumps({key: value for key, value in {**document.entry, **more}.items() if key != "mediaType"})


JOINS = [
    Join("two images", ["{r}:amd64", "{r}:arm64"], children=2),
    Join("three images", ["{r}:amd64", "{r}:arm64", "{r}:armv7"], children=3),
    Join("order is that of the sources", ["{r}:armv7", "{r}:amd64", "{r}:arm64"]),
    Join("one image becomes an index", ["{r}:amd64"], children=1),
    Join("one image stays one", ["{r}:amd64"], ["--prefer-index=false"], lone=True),
    Join("one index stays what it is", ["{r}:multi"]),
    Join("one index stays what it is, odd bytes included", ["{r}:odd"]),
    Join("one Docker list stays what it is", ["{r}:d-list"]),
    Join("one index with attestations", ["{r}:attested-amd64"]),
    Join("an index and an image", ["{r}:d-list", "{r}:armv7"], children=3),
    Join("an image that the index has", ["{r}:multi", "{r}:amd64"], children=3),
    Join("the same image three times", ["{r}:amd64", "{r}:amd64", "{r}:amd64"], children=1),
    Join("two indexes of one image with attestations", ["{r}:attested-amd64", "{r}:attested-arm64"], children=4),
    Join("attestations and an image without", ["{r}:attested-amd64", "{r}:arm64"], children=3),
    Join("Docker images make a list", ["{r}:d-amd64", "{r}:d-arm64"], children=2),
    Join("one Docker image makes a list", ["{r}:d-amd64"], children=1),
    Join("Docker and OCI images make an OCI index", ["{r}:d-amd64", "{r}:arm64"], children=2),
    Join("annotations of a source index are of that index", ["{r}:annotated", "{r}:armv7"], children=3),
    Join("annotations of equal entries are united", ["{r}:described", "{r}:described-too"], children=2),
    Join("a manifest's own annotations stay in it", ["{r}:signed", "{r}:arm64"]),
    Join("a variant that normalises away", ["{r}:v8", "{r}:amd64"]),
    Join("an index within an index stays within", ["{r}:nested", "{r}:amd64"]),
    Join("index annotation", ["{r}:amd64", "{r}:arm64"], ["--annotation", "index:org.example.a=1"]),
    Join(
        "several annotations, sorted, escaped as Go does",
        ["{r}:amd64", "{r}:arm64"],
        ["--annotation", "index:z=<b>&\N{SNOWMAN}\N{LINE SEPARATOR}", "--annotation", "index:a=2=3"],
    ),
    Join("annotations on all entries", ["{r}:amd64", "{r}:arm64"], ["--annotation", "manifest-descriptor:a=1"]),
    Join(
        "annotations on one entry",
        ["{r}:amd64", "{r}:arm64"],
        ["--annotation", "manifest-descriptor[linux/arm64]:a=1", "--annotation", "index:b=2"],
    ),
    Join("both levels at once", ["{r}:amd64"], ["--annotation", "index,manifest-descriptor:a=1"]),
    Join("annotations join those of an index", ["{r}:annotated"], ["--annotation", "index:b=2"]),
    Join("one platform of an index", ["{r}:multi"], ["--platform", "linux/arm64"], children=1),
    Join("two platforms of an index", ["{r}:multi"], ["--platform", "linux/arm64,linux/amd64"], children=2),
    Join("one platform, equally spelt", ["{r}:multi"], ["--platform", "linux/arm"], children=1),
    Join(
        "a platform takes its attestations along",
        ["{r}:attested-amd64", "{r}:attested-arm64"],
        ["--platform", "linux/arm64"],
        children=2,
    ),
    Join("all platforms change nothing", ["{r}:odd"], ["--platform", "linux/arm64,linux/amd64"]),
    Join("a platform of a single image", ["{r}:amd64"], ["--platform", "linux/amd64", "--prefer-index=false"], True),
    Join("a digest alone", [str(AMD64.digest), "{r}:arm64"], children=2),
    Join("a reference by digest", ["{r}@" + str(ARM64.digest), "{r}:amd64"]),
    Join("a tag and a digest", ["{r}:arm64@" + str(ARM64.digest)]),
    Join("a descriptor", [_said(ARMV7), "{r}:arm64"], children=2),
    Join("a descriptor with annotations", [_said(ARMV7, annotations={"a": "1"}), "{r}:arm64"]),
    Join("a descriptor's platform counts", [_said(ARM64, platform={"os": "linux", "architecture": "arm64"})]),
    Join("another repository", ["{o}:amd64", "{r}:arm64"], children=2),
    Join("a file", ["{r}:arm64"], ["--file", "{f}/entry.json"], children=2, files={"entry.json": _said(AMD64)}),
    Join("append to a tag", ["{r}:armv7"], ["--append"], children=3),
    Join("append what is there", ["{r}:amd64"], ["--append"], children=2),
    Join("append to a manifest", ["{r}:arm64"], ["--append"], children=2, onto=SIGNED),
    Join("append to attestations", ["{r}:attested-arm64"], ["--append"], children=4, onto=ATTESTED_AMD64),
    Join("two files", [], ["--file", "{f}/1", "--file", "{f}/2"], files={"1": _said(AMD64), "2": _said(ARM64)}),
    Join("a descriptor with URLs", [_said(ARMV7, urls=["https://example.org/image"]), "{r}:arm64"]),
    Join("a descriptor with fields of its own", [_said(ARMV7, x=1, artifactType="x/y"), "{r}:arm64"]),
    Join("a descriptor of size 0", [_said(ARMV7, size=0), "{r}:arm64"]),
    Join("a descriptor of an index, with annotations", [_said(MULTI, annotations={"a": "b"})]),
    Join(
        "a descriptor with another variant",
        [_said(ARMV7, platform={"os": "linux", "architecture": "arm", "variant": "v6"})],
    ),
    Join("two variants of one architecture", ["{r}:linux-amd64-v2", "{r}:amd64"], children=2),
    Join("many platforms", [f"{{r}}:{tag}" for tag in OTHERS], children=len(OTHERS)),
    Join("the later annotation of a key", ["{r}:amd64"], ["--annotation", "index:a=1", "--annotation", "index:a=2"]),
    Join("an empty annotation", ["{r}:amd64"], ["--annotation", "index:a="]),
    Join("platforms by their other names", ["{r}:multi"], ["-p", "aarch64", "-p", "x86_64"], children=2),
    Join("a variant that is the default", ["{r}:multi"], ["-p", "linux/arm64/v8"], children=1),
    *(Join(f"{tag} alone", [f"{{r}}:{tag}"]) for tag in ODDITIES if tag != "urls"),
    *(Join(f"{tag} and an image", [f"{{r}}:{tag}", "{r}:linux-riscv64"]) for tag in ODDITIES if tag != "urls"),
    *(
        Join(f"{tag}, a platform", [f"{{r}}:{tag}"], ["--platform", "linux/amd64"])
        for tag in ODDITIES
        if tag not in {"urls", "an-artifact", "features-of-the-os", "no-platform", "no-type", "nothing"}
    ),
    *(
        Join(f"{tag}, annotations", [f"{{r}}:{tag}"], ["--annotation", "index,manifest-descriptor:k=v"])
        for tag in ODDITIES
        if tag not in {"urls", "an-index-of-docker-images", "nothing"}
    ),
]


class Shelf:
    """The registry with everything that is joined, and both programs."""

    def __init__(self, host: str, folder: Path) -> None:
        self.host = host
        self.repository = f"{host}/joins/images"
        self.other = f"{host}/joins/other"
        self._folder = folder
        self._numbers = iter(range(1_000_000))

    async def fill(self) -> None:
        async with Registry(credentials=NOBODY) as registry:
            for tag, document in CONTENT.items():
                await document.push(registry, self.repository, tag)
            await AMD64.push(registry, self.other, "amd64")

    def words(self, items: Sequence[str], files: Path | None = None) -> list[str]:
        """Words of a command line with the places filled in."""
        found: list[str] = []
        for item in items:
            for place, name in (("{r}", self.repository), ("{o}", self.other), ("{f}", str(files))):
                item = item.replace(place, name) if item.startswith(place) else item
            found.append(item)
        return found

    def target(self, join: Join) -> str:
        """A reference that nothing has been written to, but what a join appends to."""
        reference = f"{self.repository}:out-{next(self._numbers)}"
        if "--append" in join.options:
            asyncio.run(self._put(join.onto or index(AMD64, ARM64), reference))
        return reference

    async def _put(self, document: Document, reference: str) -> None:
        async with Registry(credentials=NOBODY) as registry:
            await document.push(registry, self.repository, reference.rpartition(":")[2])

    def raw(self, reference: str) -> bytes:
        """What the reference names."""

        async def fetch() -> bytes:
            async with Registry(credentials=NOBODY) as registry:
                return (await registry.fetch_manifest(reference))[0]

        return asyncio.run(fetch())

    def buildx(self, *words: str) -> str:
        """Output of ``docker buildx imagetools``; fails the test when that fails."""
        done = self.try_buildx(*words)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def try_buildx(self, *words: str) -> subprocess.CompletedProcess[str]:
        binary = peers.buildx()
        assert binary is not None
        env = {"PATH": os.defpath, "HOME": str(self._folder), "DOCKER_CONFIG": str(self._folder)}
        return subprocess.run(
            [binary, "imagetools", *words],
            env={**env, "DOCKER_HOST": f"unix://{self._folder}/none.sock"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def shelf(registry: servers.Registry, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    if peers.buildx() is None:
        pytest.skip("no docker-buildx found (make servers)")
    made = Shelf(registry.host, tmp_path_factory.mktemp("buildx"))
    asyncio.run(made.fill())
    return made


@pytest.mark.parametrize("join", JOINS, ids=lambda join: join.name)
def test_the_same_bytes_as_buildx(shelf: Shelf, tmp_path: Path, join: Join, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in join.files.items():
        (tmp_path / name).write_text(text)
    theirs, mine = shelf.target(join), shelf.target(join)
    words = [*shelf.words(join.options, tmp_path), *shelf.words(join.sources)]
    shelf.buildx("create", "-t", theirs, *words)
    assert main(["imagetools", "create", "-t", mine, *words]) == 0
    raw = shelf.raw(mine)
    assert raw.decode() == shelf.raw(theirs).decode()
    assert capsys.readouterr().out == f"{Digest.of(raw)}\n"
    if join.children is not None:
        assert len(Index.parse(raw).manifests) == join.children


def both(shelf: Shelf, *words: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """How a dry run of each ends; ours prints to the test's own stdout."""
    filled = shelf.words(words)
    return shelf.try_buildx("create", "--dry-run", *filled), main(["imagetools", "create", "--dry-run", *filled])


def test_a_dry_run_prints_what_would_be_written(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """The same text as buildx, which is the index and a newline; and no tag is needed."""
    theirs, code = both(shelf, "{r}:amd64", "{r}:arm64", "--annotation", "index:a=1")
    assert (theirs.returncode, code) == (0, 0)
    assert capsys.readouterr().out == theirs.stdout


def test_an_annotation_without_a_level(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither guesses where it goes; ours says what to write, before any request."""
    theirs, code = both(shelf, "{r}:amd64", "{r}:arm64", "--annotation", "org.example.a=1")
    assert (theirs.returncode, code) == (1, 2)
    assert "not supported yet" in theirs.stderr
    assert "expected index:, manifest: or manifest-descriptor: before KEY=VALUE" in capsys.readouterr().err


def test_tags_of_several_repositories(shelf: Shelf) -> None:
    """One command writes the same to all of them, as buildx does."""
    theirs, mine = (
        [f"{shelf.repository}:{who}-1", f"{shelf.repository}:{who}-2", f"{shelf.host}/joins/{who}:3"]
        for who in ("theirs", "mine")
    )
    sources = shelf.words(["{r}:attested-amd64", "{r}:arm64"])
    shelf.buildx("create", *(word for tag in theirs for word in ("-t", tag)), *sources)
    assert main(["imagetools", "create", *(word for tag in mine for word in ("-t", tag)), *sources]) == 0
    assert len({shelf.raw(tag) for tag in (*theirs, *mine)}) == 1


@pytest.mark.parametrize("words", [[], ["{r}:linux-riscv64"], ["--platform", "linux/amd64"]], ids=" ".join)
def test_differs_urls_of_entries(shelf: Shelf, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Both keep them. To copy the image buildx asks whatever host they name; here it is the registry that is asked."""
    theirs, code = both(shelf, "{r}:urls", *words)
    assert (theirs.returncode, code) == (0, 0)
    assert capsys.readouterr().out == theirs.stdout
    assert "https://example.org/image" in theirs.stdout
    assert main(["imagetools", "create", "-t", f"{shelf.host}/joins/urls:1", *shelf.words(["{r}:urls", *words])]) == 0


@pytest.mark.parametrize("document", [D_AMD64, D_LIST], ids=["manifest", "list"])
def test_differs_append_to_a_docker_tag(shelf: Shelf, capsys: pytest.CaptureFixture[str], document: Document) -> None:
    """Both mean the same; buildx does not get it past Distribution, which it asks for one type alone."""
    target = shelf.target(Join("", [], ["--append"], onto=document))
    words = ["--append", "-t", target, "{r}:armv7"]
    theirs, code = both(shelf, *words)
    assert (theirs.returncode, code) == (0, 0)
    assert capsys.readouterr().out == theirs.stdout
    assert shelf.try_buildx("create", *shelf.words(words)).returncode == 1
    assert main(["imagetools", "create", *shelf.words(words)]) == 0
    assert shelf.raw(target) + b"\n" == theirs.stdout.encode()


def test_differs_append_nothing(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """What the tag has, unchanged; buildx wants another source."""
    target = shelf.target(Join("", [], ["--append"], onto=ODD))
    theirs, code = both(shelf, "--append", "-t", target)
    assert (theirs.returncode, code) == (1, 0)
    assert capsys.readouterr().out == f"{ODD.raw.decode()}\n"


def test_an_annotation_for_nothing(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    _, code = both(shelf, "{r}:nothing", "--annotation", "manifest-descriptor:k=v")
    assert code == 1
    assert "annotation manifest-descriptor:k: there is no image for it" in capsys.readouterr().err


def test_differs_an_index_without_media_type(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx makes another one without; some registries (ECR) do not take that."""
    theirs, code = both(shelf, "{r}:no-type", "--platform", "linux/amd64")
    assert code == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept == {**json.loads(theirs.stdout), "mediaType": OCI_INDEX}


def test_differs_a_platform_beside_an_entry_without(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx keeps entries that name no platform and calls that enough; here the platform itself has to be there."""
    theirs, code = both(shelf, "{r}:no-platform", "--platform", "linux/amd64")
    assert (theirs.returncode, code) == (0, 1)
    assert "there is no image for linux/amd64; there is linux/arm64" in capsys.readouterr().err


def test_differs_an_annotation_for_an_equal_platform(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx does not see that linux/arm64/v8 is linux/arm64, nor that nothing is for linux/s390x."""
    for platform, expected in (("linux/arm64/v8", 0), ("linux/s390x", 1)):
        option = f"manifest-descriptor[{platform}]:a=1"
        theirs, code = both(shelf, "{r}:amd64", "{r}:arm64", "--annotation", option)
        printed = capsys.readouterr()
        assert (theirs.returncode, code, "annotations" in theirs.stdout) == (0, expected, False)
        assert ("annotations" in printed.out) == (expected == 0)


def test_differs_two_images_for_one_platform(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx keeps both, and clients pull the first; here it is an error that says what to do."""
    theirs, code = both(shelf, "{r}:amd64", "{r}:signed")
    assert len(Index.parse(theirs.stdout.strip().encode()).manifests) == 2
    assert code == 1
    assert "both have an image for linux/amd64" in capsys.readouterr().err


def test_differs_append_replaces(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx puts the new image behind the old one, where nobody finds it; here it takes its place."""
    target = shelf.target(Join("", [], ["--append"]))
    theirs, code = both(shelf, "--append", "-t", target, "{r}:signed")
    assert [entry.digest for entry in Index.parse(theirs.stdout.strip().encode()).manifests] == [
        AMD64.digest,
        ARM64.digest,
        SIGNED.digest,
    ]
    printed = capsys.readouterr()
    assert code == 0
    entries = Index.parse(printed.out.strip().encode()).manifests
    assert [entry.digest for entry in entries] == [SIGNED.digest, ARM64.digest]
    assert f"linux/amd64: {AMD64.digest} is replaced by {SIGNED.digest}" in printed.err


def test_differs_a_platform_that_is_not_there(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx makes an index without it."""
    theirs, code = both(shelf, "{r}:multi", "--platform", "linux/arm64,linux/s390x")
    assert len(Index.parse(theirs.stdout.strip().encode()).manifests) == 1
    assert code == 1
    assert "there is no image for linux/s390x" in capsys.readouterr().err


def test_differs_the_version_of_windows(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx leaves it out, and clients cannot choose."""
    theirs, code = both(shelf, "{r}:windows")
    assert code == 0
    (lost,) = Index.parse(theirs.stdout.strip().encode()).manifests
    (kept,) = Index.parse(capsys.readouterr().out.strip().encode()).manifests
    assert lost.platform is not None
    assert kept.platform is not None
    assert (lost.platform.os_version, kept.platform.os_version) == ("", "10.0.20348.2000")


def test_differs_annotations_of_docker_images(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx drops them without a word."""
    theirs, code = both(shelf, "{r}:d-amd64", "{r}:d-arm64", "--annotation", "index:a=1")
    assert code == 0
    lost, kept = json.loads(theirs.stdout), json.loads(capsys.readouterr().out)
    assert "annotations" not in lost
    assert (kept["annotations"], kept["mediaType"]) == ({"a": "1"}, OCI_INDEX)


def test_differs_a_whole_descriptor(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """buildx wants the tag latest to be there, whatever it is."""
    theirs, code = both(shelf, json.dumps(ARMV7.entry), "{r}:arm64")
    assert theirs.returncode == 1
    assert "latest: not found" in theirs.stderr
    assert code == 0
    assert len(Index.parse(capsys.readouterr().out.strip().encode()).manifests) == 2


def test_differs_an_annotation_for_one_platform_beside_an_artifact(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, code = both(shelf, "{r}:nested", "--annotation", "manifest-descriptor[linux/arm/v7]:a=1")
    assert theirs.returncode != 0
    assert code == 0
    entries = Index.parse(capsys.readouterr().out.strip().encode()).manifests
    assert [dict(entry.annotations) for entry in entries] == [{}, {"a": "1"}]
