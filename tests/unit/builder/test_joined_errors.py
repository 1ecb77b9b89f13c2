"""What a build of several platforms raises when more than one of them fails."""

from __future__ import annotations

import pytest

from buildkit_py.builder.build import _joined
from buildkit_py.errors import BuildErrors, ConnectionLost, PeerError, UnsupportedByDaemon


@pytest.mark.parametrize("kind", [ConnectionLost, UnsupportedByDaemon])
def test_a_failure_of_the_daemon_is_told_once(kind: type[ConnectionLost | UnsupportedByDaemon]) -> None:
    """It is the same one for every platform."""
    first, second = kind("gone"), kind("gone")
    assert _joined(BaseExceptionGroup("", [first, second])) is first


def test_failures_of_platforms_are_told_together() -> None:
    errors = [ConnectionLost("gone"), PeerError("other")]
    joined = _joined(BaseExceptionGroup("", [BaseExceptionGroup("", errors[:1]), errors[1]]))
    assert isinstance(joined, BuildErrors)
    assert list(joined.exceptions) == errors


def test_what_is_not_ours_goes_on_as_it_is() -> None:
    """A defect is not called a failed platform."""
    group = BaseExceptionGroup("", [ConnectionLost("gone"), KeyError("defect")])
    assert _joined(group) is group
    alone = KeyError("defect")
    assert _joined(BaseExceptionGroup("", [alone])) is alone
