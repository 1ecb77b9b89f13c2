"""Going on from a definition that was read."""

from __future__ import annotations

from buildkit_py.llb import check
from buildkit_py.llb.definition import Definition
from buildkit_py.llb.ops import LoadedOp, Output
from buildkit_py.llb.state import State, of_output
from buildkit_py.llb.vertex import SourceFile
from buildkit_py.platforms import Platform


def load(definition: Definition) -> State:
    """The state that a definition describes. Its vertexes keep their bytes when they are marshalled again.

    Environment, directory and so on are not part of a definition, so the state has none of them; what it is
    for is known where its vertex says so.
    """
    check.instance("definition", definition, Definition, "a Definition")
    head = definition.head
    if head is None:
        return State()
    files = _files(definition)
    platforms = {digest: _platform(definition, digest) for digest in definition.walk()}
    # A vertex of which several outputs are used is there once for each, as it is in the Go client: its
    # source locations are then written as often.
    outputs: dict[tuple[str, int], Output] = {}
    wanted: dict[str, set[int]] = {head.digest: {head.index}}
    for digest in platforms:
        for given in definition.op(digest).inputs:
            wanted.setdefault(given.digest, set()).add(given.index)
    for digest in platforms:
        inputs = [outputs[given.digest, given.index] for given in definition.op(digest).inputs]
        said, locations = definition.entry(digest), definition.locations(digest, files)
        for index in wanted[digest]:
            op = LoadedOp(definition.data(digest), inputs, said, platforms[digest], locations)
            outputs[digest, index] = Output(op, index, platforms[digest])
    return of_output(outputs[head.digest, head.index])


def _platform(definition: Definition, digest: str) -> Platform | None:
    op = definition.op(digest)
    return Platform.from_pb(op.platform) if op.HasField("platform") else None


def _files(definition: Definition) -> tuple[SourceFile, ...]:
    """Source files, with the states that they came from."""
    files: list[SourceFile] = []
    for file, nested in zip(definition.source_files, definition.source_definitions, strict=True):
        state = None if nested is None else load(nested)
        files.append(SourceFile(file.filename, file.data, file.language, state))
    return tuple(files)
