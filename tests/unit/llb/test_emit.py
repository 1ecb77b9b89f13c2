"""Definitions for several platforms, and the stream in which programs hand them over."""

from __future__ import annotations

import base64
import io
import json

import pytest

from buildkit_py import llb
from buildkit_py.errors import InvalidDefinition, InvalidOption
from buildkit_py.platforms import Platform

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
ONE = base64.b64encode(llb.marshal(llb.image("alpine"), platform="linux/arm64").to_bytes()).decode()


def emitted(graph: llb.State, *platforms: str, config: llb.ImageConfig | None = None) -> bytes:
    file = io.BytesIO()
    llb.emit(lambda _: graph, platforms, config=config, file=file)
    return file.getvalue()


def line(**fields: object) -> bytes:
    return json.dumps({"platform": "linux/arm64", "definition": ONE} | fields).encode() + b"\n"


def test_what_is_emitted_is_read_back() -> None:
    data = emitted(llb.image("alpine").run("x"), "linux/arm64,amd64", config=llb.ImageConfig(cmd=["é<&>"]))
    made = llb.parse_definitions(data)
    assert isinstance(made, tuple)
    assert [item.platform for item in made] == [ARM64, AMD64]
    assert [item.definition.platform for item in made] == [ARM64, AMD64]
    assert b"".join([item.to_line() for item in made]) == data
    assert json.loads(made[0].config or b"")["config"]["Cmd"] == ["é<&>"]
    assert len(data.splitlines()) == 2


def test_streams_can_be_joined() -> None:
    """As shells do."""
    parts = [emitted(llb.image("alpine"), platform) for platform in ("linux/arm64", "linux/amd64")]
    made = llb.parse_definitions(parts[0] + b"\n" + parts[1].rstrip(b"\n"))
    assert isinstance(made, tuple)
    assert [item.platform for item in made] == [ARM64, AMD64]


def test_a_definition_alone_is_one() -> None:
    definition = llb.marshal(llb.image("alpine"), platform="linux/arm64")
    assert llb.parse_definitions(definition.to_bytes()) == definition
    assert llb.parse_definitions(b"") == llb.Definition.empty()


def test_nothing_is_emitted_where_one_platform_fails() -> None:
    """So that a reader never takes a part for the whole."""

    def graph(platform: Platform) -> llb.State:
        if platform == AMD64:
            raise RuntimeError("not for this one")
        return llb.image("alpine")

    file = io.BytesIO()
    with pytest.raises(RuntimeError):
        llb.emit(graph, ["linux/arm64", "linux/amd64"], file=file)
    assert file.getvalue() == b""


def test_local_directories_are_the_same_for_all_platforms() -> None:
    """So that each crosses once; two calls do not share them."""
    state = llb.image("alpine").copy(llb.local("context"), "/", "/")

    def local_vertex(item: llb.PlatformDefinition) -> str:
        return next(vertex.digest for vertex in item.definition.vertexes if vertex.name == "local://context")

    first, second = llb.marshal_platforms(lambda _: state, [ARM64, AMD64])
    (third,) = llb.marshal_platforms(lambda _: state, [ARM64])
    assert local_vertex(first) == local_vertex(second) != local_vertex(third)


def test_a_state_for_another_platform_is_refused() -> None:
    """Its image would say that it is for what it is not; a program may say that it is meant."""
    state = llb.image("alpine", platform="linux/amd64")
    with pytest.raises(InvalidOption, match=r"linux/arm64 is for linux/amd64"):
        llb.marshal_platforms(lambda _: state, [ARM64])
    (made,) = llb.marshal_platforms(lambda platform: state.with_platform(platform), [ARM64])
    assert json.loads(made.config or b"")["architecture"] == "arm64"


def test_a_graph_may_give_definitions() -> None:
    """With a config of their own or without; one for another platform is refused."""
    definition = llb.marshal(llb.image("alpine"), platform=ARM64)
    (made,) = llb.marshal_platforms(lambda _: definition, [ARM64], llb.ImageConfig(cmd=["x"]))
    assert made.definition == definition
    assert json.loads(made.config or b"")["config"]["Cmd"] == ["x"]
    own = llb.PlatformDefinition(ARM64, definition, b'{"config":{"Cmd":["own"]}}')
    (made,) = llb.marshal_platforms(lambda _: own, [ARM64], llb.ImageConfig(cmd=["x"]))
    assert json.loads(made.config or b"") == {"config": {"Cmd": ["own"]}, "architecture": "arm64", "os": "linux"}
    with pytest.raises(InvalidOption, match=r"asked for linux/amd64"):
        llb.marshal_platforms(lambda _: own, [AMD64])
    wrong = llb.PlatformDefinition(ARM64, definition, b'{"architecture":"amd64","os":"linux"}')
    with pytest.raises(InvalidOption, match=r"is for linux/amd64"):
        llb.marshal_platforms(lambda _: wrong, [ARM64])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "line 1"),
        (b"{}\n", "platform is not a string"),
        (line(platform=1), "platform is not a string"),
        (line(platform="a/b/c/d"), "line 1"),
        (line(platform="amiga/m68k"), "amiga"),
        (line(definition="?"), "base64"),
        (line(definition="AAAA"), "not a Definition message"),
        (line(definition=None), "definition is not a string"),
        (line(config="x"), "config is not an object"),
        (line(extra=1), "unknown field 'extra'"),
        (line() + line(), "line 2 of the definitions: linux/arm64 is there twice"),
        (line() + line(platform="linux/arm64/v8"), "twice"),
        (line() + line()[:40], "line 2"),
        (b'{"platform":' + b"[" * 100_000, "line 1"),
        (b"\xff\xfe", "Definition"),
        (b"#!/bin/sh\n", "Definition"),
        (b"[1]", "Definition"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_other_data_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        llb.parse_definitions(data)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("state", "platform"),
    [
        (llb.scratch(), None),
        (llb.image("a"), "linux/arm/v7"),
        (llb.image("a", platform="linux/s390x"), "linux/s390x"),
        (llb.local("a"), None),
        (llb.scratch().mkfile("/a"), None),
        (llb.image("a").mkfile("/a").mkdir("/b"), "linux/arm/v7"),
        (llb.image("a").copy(llb.image("b", platform="linux/s390x"), "/x", "/y"), "linux/arm/v7"),
        (llb.scratch().copy(llb.image("b", platform="linux/s390x"), "/x", "/y"), None),
        (llb.merge(llb.image("a"), llb.image("b", platform="linux/s390x")), "linux/arm/v7"),
        (llb.diff(llb.image("a"), llb.image("a").run("x")), "linux/arm/v7"),
        (llb.image("a").run("x", mounts=[llb.bind("/o")], platform="linux/s390x").mount("/o"), "linux/s390x"),
        (llb.image("a").requires("id", llb.image("b", platform="linux/s390x")), "linux/arm/v7"),
    ],
    ids=range(12),
)
def test_the_platform_of_a_result(state: llb.State, platform: str | None) -> None:
    """That of the vertex it is, or is a change of."""
    made = llb.marshal(state, platform="linux/arm/v7").platform
    assert (None if made is None else str(made)) == platform


def test_local_names() -> None:
    """Of what the result needs, each once; one that names its session is for that to have."""
    wanted = llb.local("b", exclude_patterns=["x"]).mkdir("/x").copy(llb.local("a"), "/", "/")
    state: llb.State = llb.image("i").run("x", mounts=[llb.bind("/s", wanted), llb.bind("/t", llb.local("b"))])
    state = state.copy(llb.local("c", session_id="other"), "/", "/")
    assert set(llb.marshal(state, platform=ARM64).local_names) == {"a", "b"}


def test_without_cache() -> None:
    """Every vertex runs again; digests, names and all else stay."""
    state = llb.image("alpine").run("x", custom_name="a name", ignore_cache=False).mkdir("/x")
    definition = llb.marshal(state, platform=ARM64)
    again = definition.without_cache()
    assert [vertex.digest for vertex in again.vertexes] == [vertex.digest for vertex in definition.vertexes]
    assert all(vertex.ignore_cache for vertex in again.vertexes)
    assert [vertex.name for vertex in again.vertexes] == [vertex.name for vertex in definition.vertexes]
    assert [vertex.locations for vertex in again.vertexes] == [vertex.locations for vertex in definition.vertexes]
    assert again.without_cache() == again
    assert llb.Definition.empty().without_cache() == llb.Definition.empty()
