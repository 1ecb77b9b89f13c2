"""Laws of graphs: reading is the inverse of writing, order of making does not count, a change goes downstream only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildkit_py import llb
from buildkit_py.errors import BuildKitError
from tests.support.llb_arguments import FILES, FOR_A_PLATFORM, OPTIONS, SUBJECTS, VERTEXES, Argument

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")


@dataclass(frozen=True)
class Node:
    """A vertex to be made: what it does, one word that goes into it, and which earlier ones it needs."""

    kind: str
    word: str
    inputs: tuple[int, ...]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
KINDS = st.sampled_from(["image", "local", "http", "run", "mount", "mkfile", "copy", "merge", "diff", "requires"])


@st.composite
def plans(draw: st.DrawFn, *, size: int = 12) -> tuple[Node, ...]:
    """Nodes in an order in which they can be made; the last is the result. Each word is used once."""
    count = draw(st.integers(1, size))
    nodes = [Node("image", "w00", ())]
    for number in range(1, count):
        inputs = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3))
        nodes.append(Node(draw(KINDS), f"w{number:02}", tuple(inputs)))
    return tuple(nodes)


def make(node: Node, states: list[llb.State]) -> llb.State:
    """One vertex; those of sources have no inputs."""
    first, second = states[0] if states else llb.scratch(), states[-1] if states else llb.scratch()
    match node.kind:
        case "image":
            return llb.image(f"alpine:{node.word}")
        case "local":
            return llb.local(node.word, exclude_patterns=[node.word])
        case "http":
            return llb.http(f"https://example.test/{node.word}")
        case "run":
            return first.run(["do", node.word], env={"K": node.word})
        case "mount":
            mounts = [llb.bind(f"/{number}", state, readonly=number > 0) for number, state in enumerate(states)]
            return llb.image("tools").run(["do", node.word], mounts=mounts).mount("/0")
        case "mkfile":
            return first.mkfile(f"/{node.word}", node.word, owner=f"{node.word}:0")
        case "copy":
            return first.copy(second, f"/{node.word}", "/x")
        case "merge":
            return llb.merge(*states, llb.scratch().mkdir(f"/{node.word}"))
        case "diff":
            return llb.diff(first, second.mkdir(f"/{node.word}"))
        case _:
            return first.requires(node.word, *states)


def build(plan: tuple[Node, ...], order: list[int] | None = None, *, share: bool = True) -> llb.State:
    """Make the nodes in an order that respects their inputs; without share each use makes its inputs again."""
    if not share:
        return _again(plan, len(plan) - 1)
    states: dict[int, llb.State] = {}
    for number in order or range(len(plan)):
        states[number] = make(plan[number], [states[given] for given in plan[number].inputs])
    return states[len(plan) - 1]


def _again(plan: tuple[Node, ...], number: int) -> llb.State:
    node = plan[number]
    needs = () if node.kind in {"image", "local", "http"} else node.inputs
    return make(node, [_again(plan, given) for given in needs])


def marshal(state: llb.State) -> llb.Definition:
    return llb.marshal(state, platform="linux/amd64", unique_id="fixed", source_map=False)


@given(plans(), st.sampled_from(PLATFORMS))
def test_reading_is_the_inverse_of_writing(plan: tuple[Node, ...], platform: str) -> None:
    definition = llb.marshal(build(plan), platform=platform)
    again = llb.Definition.parse(definition.to_bytes())
    assert again == definition
    assert again.vertexes == definition.vertexes
    assert again.head == definition.head
    loaded = llb.marshal(llb.load(again))
    assert loaded.terminal == definition.terminal
    assert {v.digest: v.data for v in loaded.vertexes} == {v.digest: v.data for v in definition.vertexes}


@given(plans(), st.randoms(use_true_random=False))
def test_the_order_of_making_does_not_count(plan: tuple[Node, ...], source: random.Random) -> None:
    waiting, order = set(range(len(plan))), list[int]()
    while waiting:
        ready = sorted(number for number in waiting if not waiting & set(plan[number].inputs))
        order.append(source.choice(ready))
        waiting.remove(order[-1])
    assert marshal(build(plan, order)) == marshal(build(plan))


@given(plans(size=7))
def test_what_is_made_twice_is_there_once(plan: tuple[Node, ...]) -> None:
    """States that were made apart but are the same are one vertex, and one input where inputs are shared."""
    assert marshal(build(plan, share=False)) == marshal(build(plan))


@given(plans(), st.data())
def test_a_change_changes_what_is_downstream_and_no_more(plan: tuple[Node, ...], data: st.DataObject) -> None:
    """Changing one word changes its vertex and all that needs it; everything else keeps its digest."""
    place = data.draw(st.integers(0, len(plan) - 1))
    changed = (*plan[:place], Node(plan[place].kind, "changed", plan[place].inputs), *plan[place + 1 :])
    before, after = marshal(build(plan)), marshal(build(changed))

    def own(definition: llb.Definition, word: str) -> set[str]:
        """Vertexes that have the word in them; no digest has one, since w is not a hex digit."""
        return {v.digest for v in definition.vertexes if word.encode() in v.data}

    touched = downstream(before, own(before, plan[place].word))
    old, new = {v.digest for v in before.vertexes}, {v.digest for v in after.vertexes}
    assert old - new == touched
    assert new - old == downstream(after, own(after, "changed"))


def surrounded(state: llb.State, seed: str) -> llb.State:
    """A random graph over the state and what arguments are made of, all of which is needed for the result."""
    source = random.Random(seed)
    kinds = ["run", "mount", "mkfile", "copy", "merge", "diff", "requires"]
    states = [*FILES, state]
    for number in range(12):
        given = source.sample(states, k=source.randint(1, 2))
        states.append(make(Node(source.choice(kinds), f"w{number:02}", (0,)), given))
    return llb.merge(*states)


def changed(subject: str, argument: Argument, name: str) -> tuple[llb.State, llb.State]:
    """A vertex with the one value of an argument, and with the other."""
    described = SUBJECTS[subject]
    made = [described.call(**{**described.needs, **argument.beside, name: value}) for value in argument.values]
    first, second = [state.run(["after"]) if argument.carried else state for state in made]
    return first, second


def changes_what_is_downstream(first: llb.State, second: llb.State, *, digested: bool, seed: str) -> None:
    """Or, of what is no part of a vertex, no digest, but what is said of the vertex."""
    before, after = marshal(surrounded(first, seed)), marshal(surrounded(second, seed))
    old, new = {v.digest for v in before.vertexes}, {v.digest for v in after.vertexes}
    assert before != after
    if not digested:
        assert old == new
        return
    heads = [marshal(state).head for state in (first, second)]
    own, other = [{head.digest} for head in heads if head is not None]
    assert own != other
    assert old - new == downstream(before, own)
    assert new - old == downstream(after, other)


ARGUMENTS = [(subject, name) for subject, d in SUBJECTS.items() if d.makes_vertexes for name in d.arguments]


@pytest.mark.parametrize(("subject", "name"), ARGUMENTS)
def test_each_argument_changes_what_is_downstream_and_no_more(subject: str, name: str) -> None:
    argument = SUBJECTS[subject].arguments[name]
    first, second = changed(subject, argument, name)
    changes_what_is_downstream(first, second, digested=argument.digested, seed=f"{subject} {name}")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("subject", VERTEXES)
def test_each_option_of_each_vertex_does_so_too(subject: str, name: str) -> None:
    """Where something runs or is chosen by the platform, that is part of the vertex; elsewhere it has no effect."""
    argument = OPTIONS[name]
    first, second = changed(subject, argument, name)
    if name == "platform" and subject not in FOR_A_PLATFORM:
        # Only what runs on the result is told.
        assert marshal(first) == marshal(second)
        return
    if name == "platform":
        # What follows in the surroundings would inherit it.
        first, second = llb.scratch().with_output(first), llb.scratch().with_output(second)
    changes_what_is_downstream(first, second, digested=argument.digested, seed=f"{subject} {name}")


@pytest.mark.parametrize("name", sorted(llb.CallOptions.__optional_keys__))
def test_the_options_of_a_marshal_call_reach_the_vertexes_that_do_not_say_it_themselves(name: str) -> None:
    local, own = llb.local("context"), llb.image("alpine", platform="linux/s390x")
    state = llb.merge(local, own, llb.image("alpine").run(["true"], mounts=[llb.bind("/src", local)]))
    options: list[Any] = [{"platform": "linux/amd64", "unique_id": "fixed", name: v} for v in OPTIONS[name].values]
    before, after = [llb.marshal(state, **given) for given in options]
    old, new = {v.digest for v in before.vertexes}, {v.digest for v in after.vertexes}
    assert before != after
    if name == "platform":
        says = {v.digest for v in before.vertexes if v.platform and v.platform.architecture == "arm64"}
        assert old - new == downstream(before, says)
    elif name == "require":
        assert not old & new
    else:
        assert old == new


def test_the_id_of_a_build_reaches_its_local_directories_alone() -> None:
    local, own = llb.local("context"), llb.local("context", unique_id="own")
    state = llb.merge(own, llb.image("alpine"), own.mkdir("/a"), local.mkdir("/b"))
    before, after = [llb.marshal(state, platform="linux/amd64", unique_id=value) for value in ("a", "b")]
    (changed_source,) = [v.digest for v in before.vertexes if b"local.unique\x12\x01a" in v.data]
    old, new = {v.digest for v in before.vertexes}, {v.digest for v in after.vertexes}
    assert old - new == downstream(before, {changed_source})


def downstream(definition: llb.Definition, digests: set[str]) -> set[str]:
    found = set(digests)
    for digest in definition.walk():
        if any(given.digest in found for given in definition.vertex(digest).inputs):
            found.add(digest)
    return found


@given(WORDS, WORDS)
def test_any_text_goes_in_and_comes_out(first: str, second: str) -> None:
    state = llb.image("alpine").with_user(first).run([first, second], custom_name=second, description={first: second})
    definition = marshal(state)
    (vertex,) = [vertex for vertex in definition.vertexes if vertex.kind == "exec"]
    op = definition.op(vertex.digest)
    assert list(op.exec.meta.args) == [first, second]
    assert op.exec.meta.user == first
    assert vertex.description[first] == second
    assert vertex.name == second
    for text in (llb.dump(definition), llb.graph(definition), llb.graph(definition, "mermaid")):
        assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _read(data)


BASE = marshal(build((Node("image", "a", ()), Node("run", "b", (0,)), Node("copy", "c", (0, 1))))).to_bytes()


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_definition_is_read_or_refused(damage: list[tuple[int, int]]) -> None:
    data = bytearray(BASE)
    for place, value in damage:
        data[place] = value
    _read(bytes(data))


def _read(data: bytes) -> None:
    """All that can be asked of a definition answers or raises an error of ours."""
    try:
        definition = llb.Definition.parse(data)
        assert definition.to_bytes() == data
        llb.dump(definition)
        llb.dump_json(definition)
        llb.graph(definition, "svg")
        llb.compare(definition, llb.Definition.parse(BASE))
        llb.marshal(llb.load(definition))
    except BuildKitError:
        return


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_random_large_graph_is_the_same_each_time(platform: str) -> None:
    """Two hundred vertexes with shared parts, twice."""
    source = random.Random(7)
    kinds = ["run", "mount", "mkfile", "copy", "merge", "diff", "requires"]
    nodes = [Node("image", "w0", ())]
    for number in range(1, 200):
        nodes.append(Node(source.choice(kinds), f"w{number}", tuple(source.choices(range(number), k=2))))
    first, second = (llb.marshal(build(tuple(nodes)), platform=platform, source_map=False) for _ in range(2))
    assert first == second
