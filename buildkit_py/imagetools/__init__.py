"""Multi-platform images in registries and layouts: look at them, join, copy, trim, annotate and verify them."""

from __future__ import annotations

from buildkit_py.imagetools.copy import Copied, CopyRequest, copy
from buildkit_py.imagetools.create import Created, CreateRequest, create
from buildkit_py.imagetools.edit import Edited, EditOptions, annotate, rm_platform
from buildkit_py.imagetools.format import Template
from buildkit_py.imagetools.inspect import Image, Inspection, Statement, inspect
from buildkit_py.imagetools.location import LayoutLocation, Location, parse_location
from buildkit_py.imagetools.source import Source, encode_digest_file, parse_source, read_source_file
from buildkit_py.imagetools.text import describe
from buildkit_py.imagetools.transfer import Traffic
from buildkit_py.imagetools.verify import Finding, Severity, Verified, VerifyRequest, verify

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
