"""Multi-platform images in registries and layouts: look at them, join, copy, trim, annotate and verify them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_py.imagetools.copying import Copied, CopyRequest, copy
    from buildkit_py.imagetools.creation import Created, CreateRequest, create
    from buildkit_py.imagetools.edit import Edited, EditOptions, annotate, rm_platform
    from buildkit_py.imagetools.format import Template
    from buildkit_py.imagetools.inspection import Image, Inspection, Statement, inspect
    from buildkit_py.imagetools.location import LayoutLocation, Location, parse_location
    from buildkit_py.imagetools.source import Source, encode_digest_file, parse_source, read_source_file
    from buildkit_py.imagetools.text import describe
    from buildkit_py.imagetools.transfer import Traffic
    from buildkit_py.imagetools.verification import Finding, Severity, Verified, VerifyRequest, verify

__all__ = [
    "inspect",
    "Inspection",
    "Image",
    "Statement",
    "describe",
    "Template",
    "create",
    "CreateRequest",
    "Created",
    "copy",
    "CopyRequest",
    "Copied",
    "rm_platform",
    "annotate",
    "EditOptions",
    "Edited",
    "verify",
    "VerifyRequest",
    "Verified",
    "Finding",
    "Severity",
    "Location",
    "LayoutLocation",
    "parse_location",
    "Source",
    "parse_source",
    "read_source_file",
    "encode_digest_file",
    "Traffic",
]

# Loaded at their first use: a command needs the modules of one of these things.
_HOMES = {
    "copying": (
        "Copied",
        "CopyRequest",
        "copy",
    ),
    "creation": (
        "Created",
        "CreateRequest",
        "create",
    ),
    "edit": (
        "Edited",
        "EditOptions",
        "annotate",
        "rm_platform",
    ),
    "format": ("Template",),
    "inspection": (
        "Image",
        "Inspection",
        "Statement",
        "inspect",
    ),
    "location": (
        "LayoutLocation",
        "Location",
        "parse_location",
    ),
    "source": (
        "Source",
        "encode_digest_file",
        "parse_source",
        "read_source_file",
    ),
    "text": ("describe",),
    "transfer": ("Traffic",),
    "verification": (
        "Finding",
        "Severity",
        "Verified",
        "VerifyRequest",
        "verify",
    ),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
