"""What a vertex is called where nobody named it: the same as in the daemon's progress."""

from __future__ import annotations

from collections.abc import Callable

from buildkit_py.pb import ops_pb2

_MAX_NAME = 2000


def kind_of(op: ops_pb2.Op) -> str:
    """Which member of the oneof is there; "unknown" for one that this library does not know."""
    return op.WhichOneof("op") or "unknown"


def vertex_name(op: ops_pb2.Op, op_of: Callable[[str], ops_pb2.Op]) -> str:
    """Name of a vertex by what it does. Source: moby/buildkit solver/llbsolver/vertex.go.

    Differs from the daemon's where merges are merged: there each name holds all names below it, which grows
    without bound; here the inner ones are named by their kind alone.
    """
    match kind_of(op):
        case "merge":
            names = [_input_name(op, given.input, op_of) for given in op.merge.inputs]
            name = f"merge ({', '.join(names)})"
        case "diff":
            lower = _input_name(op, op.diff.lower.input, op_of)
            upper = _input_name(op, op.diff.upper.input, op_of)
            name = f"diff ({lower}) -> ({upper})"
        case _:
            name = _simple_name(op)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 3] + "..."


def _simple_name(op: ops_pb2.Op) -> str:
    match kind_of(op):
        case "source":
            return op.source.identifier
        case "exec":
            return " ".join(op.exec.meta.args)
        case "file":
            return ", ".join([_action_name(action) for action in op.file.actions])
        case "passthrough":
            return f"passthrough {op.passthrough.id}"
        case kind:
            return kind


def _input_name(op: ops_pb2.Op, position: int, op_of: Callable[[str], ops_pb2.Op]) -> str:
    if not 0 <= position < len(op.inputs):
        return "scratch"
    return _simple_name(op_of(op.inputs[position].digest))


def _action_name(action: ops_pb2.FileAction) -> str:
    match action.WhichOneof("action"):
        case "mkdir":
            return f"mkdir {action.mkdir.path}"
        case "mkfile":
            return f"mkfile {action.mkfile.path}"
        case "symlink":
            return f"symlink {action.symlink.newpath} -> {action.symlink.oldpath}"
        case "rm":
            return f"rm {action.rm.path}"
        case "copy":
            return f"copy {action.copy.src} {action.copy.dest}"
        case _:
            return "unknown"
