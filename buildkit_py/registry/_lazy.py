"""Modules that others import and hardly ever use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType


class _Later(ModuleType):
    """Stands in for a module, which is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def loaded_at_first_use(name: str) -> Generator[None]:
    """Whoever imports the module within this gets one that loads at its first use; afterwards all is as it was."""
    if name in sys.modules:
        yield
        return
    # Not importlib.util.LazyLoader: its modules load as soon as a second import statement meets them.
    later = sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is later:
            del sys.modules[name]


__all__ = ["loaded_at_first_use"]
