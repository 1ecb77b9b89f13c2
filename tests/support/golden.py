"""Where golden data is: `tests/data/golden`, or the folder of the same layout that $BUILDKIT_PY_GOLDEN names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

IS_ANOTHER = bool(os.environ.get("BUILDKIT_PY_GOLDEN"))
"""Whether it is a folder of its own, which has what it has."""
GOLDEN = Path(os.environ.get("BUILDKIT_PY_GOLDEN") or Path(__file__).parents[1] / "data" / "golden")


def read(name: str) -> dict[str, Any]:
    """A file of it; empty where another folder does not have the file."""
    path = GOLDEN / name
    if IS_ANOTHER and not path.exists():
        return {}
    fields: dict[str, Any] = json.loads(path.read_bytes())
    return fields
