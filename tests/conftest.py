"""Fixtures for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with something else is no failure of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


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


@pytest.fixture(scope="session", autouse=True)
def heeded_interrupts() -> None:
    """A shell starts what it runs in the background with SIGINT ignored; tests of interrupts need it heeded."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
