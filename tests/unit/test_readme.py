"""The Python of README.md is as a strict type checker wants it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.readme import BLOCKS, ROOT


def test_types(tmp_path: Path) -> None:
    """Those who copy it start with code that their own checks take."""
    files = [tmp_path / f"readme_{position}.py" for position in range(len(BLOCKS))]
    for file, block in zip(files, BLOCKS, strict=True):
        file.write_text(block)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout == f"Success: no issues found in {len(files)} source files\n", done.stderr
