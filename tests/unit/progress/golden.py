"""Golden texts under tests/data/progress."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(__file__).parents[2] / "data" / "progress"


def assert_golden(name: str, text: str) -> None:
    """Compare with the file, or write it where ``$BUILDKIT_PY_UPDATE_GOLDEN`` is set."""
    path = DATA / name
    if os.environ.get("BUILDKIT_PY_UPDATE_GOLDEN"):
        path.write_text(text, newline="")
    with path.open(newline="") as file:
        assert text == file.read()
