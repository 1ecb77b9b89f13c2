"""Definitions that were received: read right, or refused with one clear error, however they are made."""

from __future__ import annotations

import hashlib
import sys

import pytest

from buildkit_py import llb
from buildkit_py.errors import InvalidDefinition, InvalidOption
from buildkit_py.pb import ops_pb2


def digest_of(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def op_blob(*inputs: str, index: int = 0, identifier: str = "") -> bytes:
    op = ops_pb2.Op(inputs=[ops_pb2.Input(digest=digest, index=index) for digest in inputs])
    if identifier:
        op.source.identifier = identifier
    return op.SerializeToString()


def definition_of(*blobs: bytes) -> bytes:
    message = ops_pb2.Definition()
    getattr(message, "def").extend(blobs)
    return message.SerializeToString()


SOURCE = op_blob(identifier="local://x")
RESULT = op_blob(digest_of(SOURCE))


def located(index: int) -> bytes:
    message = ops_pb2.Definition.FromString(definition_of(SOURCE, RESULT))
    message.Source.locations[digest_of(SOURCE)].locations.add(sourceIndex=index)
    return message.SerializeToString()


REFUSED = {
    "not protobuf": b"\xff\xff\xff",
    "cut off": definition_of(SOURCE, RESULT)[:-1],
    "op that is not one": definition_of(b"\xff\xff", RESULT),
    "op that is cut off": definition_of(SOURCE[:-1], op_blob(digest_of(SOURCE[:-1]))),
    "text that is not UTF-8": definition_of(b"\x0a\x03\x0a\x01\xff", RESULT),
    "missing input": definition_of(SOURCE, op_blob("sha256:" + "0" * 64)),
    "input that is no digest": definition_of(SOURCE, op_blob("x")),
    "result that needs itself": definition_of(SOURCE, op_blob(digest_of(op_blob("x")))),
    "negative output": definition_of(SOURCE, op_blob(digest_of(SOURCE), index=-1)),
    "no result": definition_of(SOURCE),
    "last op without input": definition_of(SOURCE, SOURCE),
    "metadata of nothing": b"\x12\x02\x0a\x00",
    "location in no file": located(0),
    "location before the first file": located(-1),
    # Deeper than protobuf reads: Source.infos.definition.Source.infos and so on.
    "nested without end": b"",
}


def nested(depth: int) -> bytes:
    data = definition_of(SOURCE, RESULT)
    for _ in range(depth):
        message = ops_pb2.Definition.FromString(definition_of(SOURCE, RESULT)).SerializeToString()
        info = b"\x1a" + _varint(len(data)) + data
        source = b"\x12" + _varint(len(info)) + info
        data = message + b"\x1a" + _varint(len(source)) + source
    return data


def _varint(number: int) -> bytes:
    digits = b""
    while number > 127:
        digits += bytes((number & 127 | 128,))
        number >>= 7
    return digits + bytes((number,))


REFUSED["nested without end"] = nested(200)


@pytest.mark.parametrize("name", REFUSED)
def test_a_definition_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InvalidDefinition):
        llb.Definition.parse(REFUSED[name])


def test_an_invalid_definition_is_an_invalid_option() -> None:
    """Whoever catches bad input catches this too."""
    assert issubclass(InvalidDefinition, InvalidOption)


def test_unknown_fields_survive() -> None:
    """Fields of a later schema, in the definition, in an op and in metadata."""
    unknown = b"\xa2\x06\x03new"
    source = SOURCE + unknown
    data = definition_of(source, op_blob(digest_of(source))) + unknown
    definition = llb.Definition.parse(data)
    assert definition.to_bytes() == data
    assert definition.vertexes[0].data == source
    loaded = llb.marshal(llb.load(definition))
    assert loaded.vertexes[0].data == source


def test_an_op_of_a_later_schema_is_unknown() -> None:
    later = b"\x4a\x02\x08\x01"
    definition = llb.Definition.parse(definition_of(later, op_blob(digest_of(later))))
    (vertex,) = definition.vertexes
    assert (vertex.kind, vertex.name) == ("unknown", "unknown")
    assert "unknown" in llb.dump(definition)
    assert '"kind": "unknown"' in llb.dump_json(definition)


def test_any_order_and_repeated_or_unused_ops_are_read() -> None:
    """The daemon takes these, so we do; each vertex is listed once."""
    other = op_blob(identifier="local://y")
    top = op_blob(digest_of(SOURCE), digest_of(SOURCE), identifier="local://z")
    definition = llb.Definition.parse(definition_of(top, other, SOURCE, SOURCE, op_blob(digest_of(top))))
    assert [vertex.name for vertex in definition.vertexes] == ["local://z", "local://y", "local://x"]
    assert [definition.vertex(digest).name for digest in definition.walk()] == ["local://x", "local://z"]
    head = llb.marshal(llb.load(definition)).head
    assert head == definition.head


def test_a_huge_map_is_read() -> None:
    message = ops_pb2.Definition.FromString(definition_of(SOURCE, RESULT))
    entry = message.metadata[digest_of(SOURCE)]
    for number in range(50_000):
        entry.description[f"k{number}"] = "v"
        entry.caps[f"c{number}"] = True
    definition = llb.Definition.parse(message.SerializeToString())
    (vertex,) = definition.vertexes
    assert len(vertex.description) == len(vertex.caps) == 50_000


def chain(count: int) -> llb.State:
    state = llb.scratch()
    for number in range(count):
        state = state.mkdir(f"/d{number}")
    return state


def test_a_chain_of_100000_vertexes() -> None:
    """Nothing here recurses: making, marshalling, reading, walking and loading it all work."""
    count = 100_000
    assert count > 10 * sys.getrecursionlimit()
    definition = llb.marshal(chain(count))
    again = llb.Definition.parse(definition.to_bytes())
    assert again == definition
    assert sum(1 for _ in again.walk()) == count
    assert llb.marshal(llb.load(again)).terminal == definition.terminal


def test_a_long_chain_can_be_looked_at() -> None:
    """Neither do drawing, listing and comparing."""
    count = 5 * sys.getrecursionlimit()
    state = chain(count)
    definition = llb.marshal(state)
    assert llb.graph(definition).count("->") == count
    assert llb.graph(definition, "svg").count("<path") == count + 1  # and the arrow's head
    assert llb.dump(definition).count("mkdir") == count
    compared = llb.compare(definition, llb.marshal(state.mkdir("/e")))
    assert (len(compared.changes), compared.downstream, compared.shared) == (1, 0, count)
    elsewhere = llb.compare(definition, llb.marshal(llb.scratch().mkdir("/other")))
    assert elsewhere.shared == 0


def test_merges_of_merges_have_short_names() -> None:
    """Each would hold all names below it twice, which doubles at every level."""
    state: llb.State = llb.image("alpine").run("true")
    for _ in range(100):
        state = llb.merge(state, state)
    assert max(len(vertex.name) for vertex in llb.marshal(state, platform="linux/amd64").vertexes) < 2001


def test_scratch_is_empty() -> None:
    definition = llb.Definition.parse(b"")
    assert definition.is_scratch
    assert definition.head is None
    assert definition.vertexes == ()
    assert definition == llb.marshal(llb.scratch())
    assert llb.load(definition).is_scratch
    assert llb.dump(definition) == "scratch\n"
    assert "scratch" in llb.graph(definition)
    assert llb.graph(definition, "svg").startswith("<svg")


def test_loading_keeps_metadata_locations_and_files() -> None:
    """Also of a file that was fetched by a build of its own, and of a vertex with two used outputs."""
    file = llb.SourceFile("Dockerfile", b"FROM x\n", "Dockerfile", llb.local("dockerfile", unique_id="u"))
    place = llb.Location(file, (llb.Range(start_line=1, end_line=1, end_character=4),))
    made = llb.image("alpine").run(
        "make",
        mounts=[llb.bind("/a"), llb.bind("/b")],
        platform="linux/arm64",
        custom_name="made",
        ignore_cache=True,
        export_cache=False,
        progress_group=llb.ProgressGroup(id="g", name="group", weak=True),
        resources=llb.LinuxResources(memory=1, cpuset_cpus="0"),
        locations=[place],
    )
    state = llb.scratch().file(llb.Copy(made.mount("/a"), "/", "/"), llb.Copy(made, "/", "/"))
    definition = llb.marshal(state, platform="linux/amd64", unique_id="u")
    loaded = llb.load(llb.Definition.parse(definition.to_bytes()))
    again = llb.marshal(loaded)
    (vertex,) = [vertex for vertex in again.vertexes if vertex.kind == "exec"]
    assert vertex.name == "made"
    assert vertex.ignore_cache
    assert vertex.export_cache is False
    assert vertex.progress_group == llb.ProgressGroup(id="g", name="group", weak=True)
    assert vertex.resources == llb.LinuxResources(memory=1, cpuset_cpus="0")
    # Once for each output that is used, as in the Go client.
    assert [place.ranges for place in vertex.locations] == [place.ranges, place.ranges]
    assert [file.filename for file in again.source_files][:1] == [file.filename for file in definition.source_files][:1]
    assert [nested is not None for nested in again.source_definitions].count(True) == 1


def test_a_loaded_state_is_for_the_platform_of_its_vertex() -> None:
    definition = llb.marshal(llb.image("alpine"), platform="linux/arm64")
    assert str(llb.load(definition).platform) == "linux/arm64"
