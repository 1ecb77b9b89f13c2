"""What is public is listed, and what is listed exists."""

from __future__ import annotations

import importlib
import inspect

import pytest

import buildkit_py
from buildkit_py import errors


@pytest.mark.parametrize(
    "name",
    ["buildkit_py", "buildkit_py.errors", "buildkit_py.registry", "buildkit_py.sync", "buildkit_py.builder"],
)
def test_every_listed_name_exists(name: str) -> None:
    """And none is listed twice."""
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for item in module.__all__:
        assert getattr(module, item) is not None


def test_every_error_is_listed_and_drawn() -> None:
    """In __all__, and in the tree of the module's docstring."""
    classes = {name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)}
    assert classes <= set(errors.__all__)
    for name in classes:
        assert name in (errors.__doc__ or "")


def test_importing_the_package_is_quiet_and_has_a_version() -> None:
    """The version is that of the distribution."""
    from importlib.metadata import version

    assert buildkit_py.__version__ == version("buildkit-py")


@pytest.mark.parametrize(
    "name",
    [
        *("buildkit_py", "buildkit_py.errors", "buildkit_py.registry", "buildkit_py.sync", "buildkit_py.builder"),
        *("buildkit_py.llb", "buildkit_py.imagetools", "buildkit_py.progress", "buildkit_py.daemon", "buildkit_py.rpc"),
    ],
)
def test_everything_public_states_its_contract(name: str) -> None:
    """Classes, functions and methods have a docstring; what a dataclass writes by itself is none."""
    module = importlib.import_module(name)
    silent: list[str] = []
    for item in module.__all__:
        value = getattr(module, item)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not value.__doc__ or value.__doc__.startswith(f"{item}("):
            silent.append(item)
        for member, found in vars(value).items() if inspect.isclass(value) else ():
            function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
            ours = inspect.isfunction(function) and function.__module__.startswith("buildkit_py")
            if ours and not member.startswith("_") and not function.__doc__:
                silent.append(f"{item}.{member}")
    assert silent == []
