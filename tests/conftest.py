"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The library is asyncio only."""
    return "asyncio"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A context whose build needs no base image and runs nothing: one file."""
    context = tmp_path / "scratch"
    context.mkdir()
    (context / "Dockerfile").write_text('FROM scratch\nCOPY file /\nCMD ["/file"]\n')
    (context / "file").write_text("content")
    return context
