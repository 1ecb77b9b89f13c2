"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import guardian

# A machine that is busy with something else is no failure of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("BUILDKIT_PY_SLOW", "0") in ("", "0"):
        skip = pytest.mark.skip(reason="slow: set BUILDKIT_PY_SLOW=1")
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(skip)


def pytest_unconfigure() -> None:
    guardian.close()


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
    """A shell starts what it runs in the background with SIGINT ignored, nohup with SIGHUP, and what is ignored stays
    so in a child; tests of interrupts need children that heed both."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # ignored here still, but for a child it is as if never set
