"""What the parts of a graph know of a state, so that they need not import the module that makes states of them."""

from __future__ import annotations

from buildkit_py.llb import check


class StateBase:
    """Base of State, its only one."""

    __slots__ = ()


def is_state(name: str, value: object) -> None:
    """Raise InvalidOption unless value is a State."""
    if not isinstance(value, StateBase):
        raise check.fail(name, value, "a State")
