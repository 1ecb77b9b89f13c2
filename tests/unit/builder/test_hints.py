"""Advice for failures that the daemon explains badly."""

from __future__ import annotations

import pytest

from buildkit_py.builder.hints import hint_for
from buildkit_py.errors import ConnectionLost, SolveError
from buildkit_py.platforms import Platform
from buildkit_py.records import Worker

ARM64 = Platform("linux", "arm64")


async def workers() -> tuple[Worker, ...]:
    return (Worker(id="w", labels={}, platforms=(Platform("linux", "amd64"),), gc_policy=(), version=None),)


async def lost() -> tuple[Worker, ...]:
    raise ConnectionLost("gone")


async def test_a_platform_that_cannot_run_names_those_that_can() -> None:
    """The kernel's words may stand in the message or in what the step printed."""
    for error in (
        SolveError("UNKNOWN", "exec /bin/sh: exec format error"),
        SolveError("UNKNOWN", "exit code: 1", log_tail=["exec /bin/sh: exec format error"]),
    ):
        hint = await hint_for(error, ARM64, workers)
        assert "does not say that it can run linux/arm64; it says linux/amd64" in hint
        assert "binfmt" in hint
    assert await hint_for(SolveError("UNKNOWN", "exec format error"), ARM64, lost) == ""


@pytest.mark.parametrize(
    ("message", "needle"),
    [
        ("failed to push: 401 Unauthorized: https://reg.example:5000/v2/x", "docker login reg.example:5000"),
        ("Head https://r.io/v2/x: denied: no access", "docker login r.io"),
        ('Get "https://r.io/v2/": http: server gave HTTP response to HTTPS client', "r.io speaks plain HTTP"),
        (
            "r.io/x:1: failed to resolve source metadata for r.io/x:1: no match for platform in manifest: not found",
            "r.io/x:1 is not made for linux/arm64; buildkit-py imagetools inspect r.io/x:1",
        ),
        ("failed to unmarshal: string field contains invalid UTF-8", "names that are not UTF-8"),
        ("permission denied: /etc", ""),
        ("exit code: 1", ""),
    ],
)
async def test_registries(message: str, needle: str) -> None:
    """Refused credentials, missing TLS, a platform that an image lacks; a denied file is none of them."""
    hint = await hint_for(SolveError("UNKNOWN", message), ARM64, workers)
    assert needle in hint
    assert bool(hint) == bool(needle)
