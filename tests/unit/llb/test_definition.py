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
OTHER = op_blob(identifier="local://y")
RESULT = op_blob(digest_of(SOURCE))
POINTLESS = ops_pb2.Op(
    merge=ops_pb2.MergeOp(inputs=[ops_pb2.MergeInput(input=number) for number in (5, -3, 2**63 - 1)])
).SerializeToString()


def located(index: int) -> bytes:
    message = ops_pb2.Definition.FromString(definition_of(SOURCE, RESULT))
    message.Source.locations[digest_of(SOURCE)].locations.add(sourceIndex=index)
    return message.SerializeToString()


def _varint(number: int) -> bytes:
    digits = b""
    while number > 127:
        digits += bytes((number & 127 | 128,))
        number >>= 7
    return digits + bytes((number,))


def nested(depth: int) -> bytes:
    """Deeper than protobuf reads: Source.infos.definition.Source.infos and so on."""
    data = definition_of(SOURCE, RESULT)
    for _ in range(depth):
        info = b"\x1a" + _varint(len(data)) + data
        source = b"\x12" + _varint(len(info)) + info
        data = definition_of(SOURCE, RESULT) + b"\x1a" + _varint(len(source)) + source
    return data


def cycle(length: int) -> tuple[bytes, ...]:
    """Ops of which each names the next, the last one the first; whatever digest they say, it cannot be theirs."""
    blobs = [op_blob(digest_of(SOURCE), identifier=f"local://{number}") for number in range(length)]
    for number in range(length):
        blobs[number] = op_blob(digest_of(blobs[(number + 1) % length]), identifier=f"local://{number}")
    return tuple(blobs)


HUGE = b"\xff\xff\xff\xff\x07"
"""The largest length that protobuf knows, 2 GiB less one byte."""

# What is refused, and what its message says.
REFUSED = {
    "not protobuf": (b"\xff\xff\xff", "Definition"),
    "cut off": (definition_of(SOURCE, RESULT)[:-1], "Definition"),
    "a length beyond the end": (b"\x0a" + HUGE, "Definition"),
    "a length beyond all numbers": (b"\x0a" + b"\xff" * 9 + b"\x01", "Definition"),
    "a number without end": (b"\x0a" + b"\x80" * 20, "Definition"),
    "field 0": (b"\x02\x00", "Definition"),
    "a group that does not end": (b"\x23", "Definition"),
    "an end without a group": (b"\x24", "Definition"),
    "an op that is not one": (definition_of(b"\xff\xff", RESULT), "op 0"),
    "an op that is cut off": (definition_of(SOURCE[:-1], op_blob(digest_of(SOURCE[:-1]))), "op 0"),
    "an op with a length beyond its end": (definition_of(b"\x1a" + HUGE, op_blob(digest_of(b"\x1a" + HUGE))), "op 0"),
    "an input of a wrong wire type": (definition_of(SOURCE, b"\x08\x01"), "no input"),
    "a last op that is no op": (definition_of(SOURCE, b"\x00"), "op 1"),
    "text that is not UTF-8": (definition_of(b"\x0a\x03\x0a\x01\xff", RESULT), "op 0"),
    "a missing input": (definition_of(SOURCE, op_blob("sha256:" + "0" * 64)), "op 1 needs 'sha256:0000"),
    "an input that is no digest": (definition_of(SOURCE, op_blob("x")), "op 1 needs 'x'"),
    "an input without a digest": (definition_of(SOURCE, b"\x0a\x00"), "op 1 needs ''"),
    "an input in upper case": (definition_of(SOURCE, op_blob(digest_of(SOURCE).upper())), "op 1 needs"),
    "an input by another algorithm": (
        definition_of(SOURCE, op_blob("sha512:" + hashlib.sha512(SOURCE).hexdigest())),
        "op 1 needs",
    ),
    "a result that needs itself": (definition_of(SOURCE, op_blob(digest_of(op_blob("x")))), "op 1 needs"),
    "a cycle of one": (definition_of(*cycle(1), op_blob(digest_of(cycle(1)[0]))), "op 0 needs"),
    "a cycle of two": (definition_of(*cycle(2), op_blob(digest_of(cycle(2)[0]))), "needs"),
    "a cycle of a thousand": (definition_of(*cycle(1000), op_blob(digest_of(cycle(1000)[0]))), "needs"),
    "the result as an input": (definition_of(SOURCE, op_blob(digest_of(RESULT)), RESULT), "op 1 needs"),
    "a negative output": (
        definition_of(SOURCE, op_blob(digest_of(SOURCE), index=-1)),
        "op 1 has an input with index -1",
    ),
    "the most negative output": (
        definition_of(SOURCE, op_blob(digest_of(SOURCE), index=-(2**63))),
        "index -9223372036",
    ),
    "no result": (definition_of(SOURCE), "last op has no input"),
    "a last op without input": (definition_of(SOURCE, SOURCE), "last op has no input"),
    "an empty op": (definition_of(b""), "last op has no input"),
    "metadata of nothing": (b"\x12\x02\x0a\x00", "no ops"),
    "metadata that is cut off": (definition_of(SOURCE, RESULT) + b"\x12\x05\x0a\x00", "Definition"),
    "location in no file": (located(0), "location in a file"),
    "location before the first file": (located(-1), "location in a file"),
    "nested without end": (nested(200), "Definition"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_definition_that_cannot_be_is_refused(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(InvalidDefinition, match=message):
        llb.Definition.parse(data)


# What daemons may refuse, and what can be looked at all the same.
ODD = {
    # Of several results the first is taken, as the daemon does; whatever else the last op says is not read.
    "two results": definition_of(SOURCE, OTHER, op_blob(digest_of(SOURCE), digest_of(OTHER))),
    "a result that does something": definition_of(SOURCE, op_blob(digest_of(SOURCE), identifier="local://y")),
    "ops of a wrong wire type": definition_of(SOURCE, RESULT) + b"\x08\x01",
    "ops that are there twice": definition_of(SOURCE, SOURCE, RESULT),
    "a result that is there twice": definition_of(SOURCE, RESULT, RESULT),
    "an output that is not there": definition_of(SOURCE, op_blob(digest_of(SOURCE), index=7)),
    "the last of all outputs": definition_of(SOURCE, op_blob(digest_of(SOURCE), index=2**63 - 1)),
    "an op that does nothing": definition_of(b"", op_blob(digest_of(b""))),
    "an op of two kinds": definition_of(SOURCE + b"\x12\x00", op_blob(digest_of(SOURCE + b"\x12\x00"))),
    "an exec without anything": definition_of(b"\x12\x00", op_blob(digest_of(b"\x12\x00"))),
    "a file op without actions": definition_of(b"\x22\x00", op_blob(digest_of(b"\x22\x00"))),
    "numbers of inputs that are not there": definition_of(POINTLESS, op_blob(digest_of(POINTLESS))),
    "metadata of what is not there": definition_of(SOURCE, RESULT) + b"\x12\x05\x0a\x01x\x12\x00",
    "locations of what is not there": definition_of(SOURCE, RESULT) + b"\x1a\x07\x0a\x05\x0a\x01x\x12\x00",
    "a field of a wrong wire type": definition_of(SOURCE, RESULT) + b"\x10\x01",
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_can_be_looked_at(name: str) -> None:
    """Whether an op makes sense is for the daemon to say."""
    data = ODD[name]
    definition = llb.Definition.parse(data)
    assert definition.to_bytes() == data
    assert definition.head is not None
    assert definition.head.digest == llb.Definition.parse(data).op(definition.terminal).inputs[0].digest
    assert definition.head.digest in llb.dump_json(definition)
    for look in (llb.dump, llb.graph, lambda given: llb.graph(given, "svg"), lambda given: llb.compare(given, given)):
        assert look(definition)
    assert definition.platform is None
    assert llb.marshal(llb.load(definition)).head == definition.head


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
