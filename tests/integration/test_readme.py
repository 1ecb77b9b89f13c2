"""The Python of README.md runs as it stands."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.servers import Registry

pytestmark = pytest.mark.daemon

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_there_is_python_in_the_readme() -> None:
    """So that the test below cannot pass by finding nothing."""
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme(
    block: str,
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
    printed = capsys.readouterr().out
    assert "linux/arm/v7 sha256:" in printed or "linux/arm64" in printed
