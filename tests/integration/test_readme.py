"""The Python of README.md runs as it stands."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.readme import BLOCKS, ROOT
from tests.support.servers import Registry

pytestmark = pytest.mark.daemon

_DIGEST = "sha256:[0-9a-f]{64}"
PRINTED = (
    "".join(rf"{platform} {_DIGEST} \d+/\d+ cached\n" for platform in ("linux/amd64", "linux/arm64", "linux/arm/v7")),
    r"DaemonInfo\(.*\) \['linux/\w+'.*\]\n",
    "".join(rf"{platform} {_DIGEST}\n" for platform in ("linux/amd64", "linux/arm64")),
)


@pytest.mark.parametrize(("block", "printed"), list(zip(BLOCKS, PRINTED, strict=True)), ids=range(len(BLOCKS)))
def test_readme(
    block: str,
    printed: str,
    daemon_address: str,
    registry: Registry,
    base_images: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only what is of the place changes: the daemon, the registry, and where the base images come from."""
    example = tmp_path / "examples" / "hello-arch"
    shutil.copytree(ROOT / "examples" / "hello-arch", example)
    dockerfile = example / "Dockerfile"
    text = dockerfile.read_text()
    for name, value in sorted(base_images.items(), reverse=True):
        text = re.sub(rf"^FROM {name}(?=\s)", f"FROM {value.removeprefix('docker-image://')}", text, flags=re.MULTILINE)
    dockerfile.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUILDKIT_HOST", daemon_address)
    assert "localhost:5000" in BLOCKS[0]
    block = block.replace("localhost:5000", registry.host)
    alpine = base_images["alpine"].removeprefix("docker-image://")
    block = block.replace('llb.image("alpine")', f"llb.image({alpine!r})")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert re.fullmatch(printed, capsys.readouterr().out)
