"""Builds as programs: make a graph of states, marshal it, and look at what is in a definition.

>>> from buildkit_py import llb
>>> base = llb.image("alpine:3.20")
>>> built = base.run("make -C /src", mounts=[llb.bind("/src", llb.local("context"), readonly=True)])
>>> definition = llb.marshal(built, platform="linux/arm64")
>>> [vertex.kind for vertex in definition.vertexes]
['source', 'source', 'exec']

Nothing here talks to a daemon, and nothing is built until a definition is solved.
"""

from buildkit_py.llb.capture import capture_source
from buildkit_py.llb.compare import Comparison, FieldChange, VertexChange, compare
from buildkit_py.llb.config import ImageConfig
from buildkit_py.llb.definition import Definition, Input, Vertex
from buildkit_py.llb.dump import dump, dump_json
from buildkit_py.llb.emit import PlatformDefinition, emit, marshal_platforms, parse_definitions
from buildkit_py.llb.fileop import Chain, Copy, Mkdir, Mkfile, Rm, Symlink
from buildkit_py.llb.graph import Format, graph
from buildkit_py.llb.loading import load
from buildkit_py.llb.marshal import marshal
from buildkit_py.llb.mounts import SSH, Device, Mount, Proxy, Secret, Ulimit, bind, cache, tmpfs
from buildkit_py.llb.sources import git, http, image, image_blob, local, oci_layout, oci_layout_blob
from buildkit_py.llb.state import ExecState, State, diff, merge, scratch
from buildkit_py.llb.vertex import (
    CallOptions,
    LinuxResources,
    Location,
    ProgressGroup,
    Range,
    SourceFile,
    VertexOptions,
)

__all__ = [
    # sources
    "scratch",
    "image",
    "local",
    "git",
    "http",
    "oci_layout",
    "image_blob",
    "oci_layout_blob",
    # states and what is done to them
    "State",
    "ExecState",
    "merge",
    "diff",
    "Mkdir",
    "Mkfile",
    "Symlink",
    "Rm",
    "Copy",
    "Chain",
    # what a process sees
    "Mount",
    "bind",
    "cache",
    "tmpfs",
    "Secret",
    "SSH",
    "Device",
    "Proxy",
    "Ulimit",
    # options of vertexes
    "VertexOptions",
    "CallOptions",
    "ProgressGroup",
    "LinuxResources",
    "SourceFile",
    "Location",
    "Range",
    "capture_source",
    # definitions
    "marshal",
    "load",
    "Definition",
    "Vertex",
    "Input",
    # definitions for several platforms
    "ImageConfig",
    "PlatformDefinition",
    "marshal_platforms",
    "emit",
    "parse_definitions",
    # looking at them
    "dump",
    "dump_json",
    "graph",
    "Format",
    "compare",
    "Comparison",
    "VertexChange",
    "FieldChange",
]
