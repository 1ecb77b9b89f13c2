"""``python -m buildkit_py``."""

from __future__ import annotations

from buildkit_py.cli.main import entry

entry()
