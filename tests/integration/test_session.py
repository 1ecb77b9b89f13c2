"""The session against a real daemon: what grpc-go makes of our server."""

from __future__ import annotations

import asyncio
import time

import pytest

from buildkit_py.errors import SessionClosed
from buildkit_py.rpc import open_connection
from buildkit_py.session.server import Session, open_session
from buildkit_py.session.tunnel import open_tunnel

pytestmark = pytest.mark.daemon

HEALTH_CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
def address(daemon_address: str) -> str:
    """Address of the daemon under test."""
    return daemon_address


async def test_health_checks_are_answered_until_the_session_is_closed(address: str) -> None:
    """The daemon checks every 5 s; one unanswered check shows as a failure or as no second one."""
    session = Session([])
    async with open_connection(address) as connection:
        began = time.monotonic()
        async with open_session(connection, session):
            assert time.monotonic() - began < 5
            async with asyncio.timeout(30):
                while session.calls.get(HEALTH_CHECK, 0) < 2:
                    await asyncio.sleep(0.1)
            assert session.failure is None
            closing = time.monotonic()
        assert time.monotonic() - closing < 2, "the daemon did not take the goodbye"
    assert session.failure is None
    assert session.closed.is_set()


async def test_a_session_that_the_daemon_kills_says_so(address: str) -> None:
    """With a test hook of v0.30 it kills after one second without an answer; older daemons know none."""
    session = Session([])
    hook = ("x-buildkit-session-health-custom-timeout", "1000")
    async with (
        open_connection(address) as connection,
        open_tunnel(connection, (*session.metadata(), hook)) as stream,
        session.serve(stream),
    ):
        async with asyncio.timeout(30):
            while not session.calls.get(HEALTH_CHECK):
                await asyncio.sleep(0.05)
        began = time.monotonic()
        await asyncio.sleep(2.5)
        if session.calls[HEALTH_CHECK] < 3:
            pytest.skip("the daemon does not know the hook")
        time.sleep(4)  # the loop is blocked, so that no check is answered
        async with asyncio.timeout(5):
            await session.wait_closed()
        assert time.monotonic() - began < 10
        assert isinstance(session.failure, SessionClosed)
