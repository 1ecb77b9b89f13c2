"""Dumps, drawings and comparisons, against files of our own; REWRITE_GOLDEN=1 writes them again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from buildkit_py import llb

DATA = Path(__file__).parents[2] / "data" / "llb"


def sample(command: str = "make install", *, platform: str = "linux/arm64", extra: bool = False) -> llb.Definition:
    """A graph with something of everything that is shown, and names that need escaping."""
    place = llb.Location(llb.SourceFile("build.py", b"", "Python"), (llb.Range(start_line=3, end_line=4),))
    base = llb.image("alpine:3.20", custom_name='base "quoted" <&>\nsecond line \\ end', locations=[place])
    context = llb.local("context", exclude_patterns=[".git"])
    built = base.run(
        command,
        mounts=[llb.bind("/src", context, readonly=True), llb.bind("/out"), llb.cache("/root/.cache")],
        require=["gpu==yes"],
        ignore_cache=True,
        progress_group=llb.ProgressGroup(id="g", name="compile"),
    )
    runtime = llb.image("alpine:3.20", platform="linux/amd64", export_cache=False)
    final = llb.merge(runtime, llb.scratch().copy(built.mount("/out"), "/", "/"))
    if extra:
        final = final.mkdir("/var/lib/app")
    return llb.marshal(final, platform=platform, unique_id="fixed", source_map=False)


def check(name: str, text: str) -> None:
    path = DATA / name
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_dump() -> None:
    check("dump.txt", llb.dump(sample()))


def test_dump_json() -> None:
    text = llb.dump_json(sample())
    check("dump.json", text)
    assert json.loads(llb.dump_json(sample(), indent=None)) == json.loads(text)


@pytest.mark.parametrize("form", ["dot", "mermaid", "svg"])
def test_graph(form: llb.Format) -> None:
    check(f"graph.{form}", llb.graph(sample(), form))


def test_the_svg_is_well_formed_and_shows_all() -> None:
    root = ElementTree.fromstring(llb.graph(sample(), "svg"))
    texts = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("make install" in text for text in texts)
    assert any('"quoted" <&>\\nsecond' in text for text in texts)
    assert "result" in texts


def test_comparing_a_changed_argument() -> None:
    """Only the vertex whose argument changed is listed; what needs it is counted."""
    compared = llb.compare(sample(), sample("make all install"))
    check("compare.txt", str(compared))
    (change,) = compared.changes
    assert [field.path for field in change.fields] == ["exec.meta.args[1]", "exec.meta.args[2]"]
    assert (compared.downstream, compared.shared) == (2, 3)


def test_comparing_equal_graphs() -> None:
    compared = llb.compare(sample(), sample())
    assert compared.is_equal
    assert str(compared) == "no difference, 6 vertexes\n"


def test_comparing_an_added_and_a_removed_vertex() -> None:
    added = llb.compare(sample(), sample(extra=True))
    assert [(change.before, change.name) for change in added.changes] == [("", "mkdir /var/lib/app")]
    removed = llb.compare(sample(extra=True), sample())
    assert [(change.after, change.name) for change in removed.changes] == [("", "mkdir /var/lib/app")]
    assert added.downstream == removed.downstream == 0


def test_comparing_another_platform() -> None:
    """Of the six vertexes two say the platform, and one of these is fixed to another."""
    compared = llb.compare(sample(), sample(platform="linux/arm/v7"))
    assert [[str(field) for field in change.fields] for change in compared.changes] == [
        ['platform: "linux/arm64" -> "linux/arm/v7"']
    ] * 2


def test_comparing_another_output_of_the_same_vertex() -> None:
    made = llb.image("alpine").run("make", mounts=[llb.bind("/a"), llb.bind("/b")])
    one, two = (llb.marshal(made.mount(target), platform="linux/amd64") for target in ("/a", "/b"))
    (change,) = llb.compare(one, two).changes
    assert [field.path for field in change.fields] == ["result"]


def test_comparing_swapped_inputs() -> None:
    """Both have the same vertexes but for the merge, whose inputs changed places."""
    one, two = llb.image("alpine"), llb.image("busybox")
    first, second = (llb.marshal(llb.merge(*s), platform="linux/amd64") for s in ((one, two), (two, one)))
    (change,) = llb.compare(first, second).changes
    assert [field.path for field in change.fields] == ["inputs[0]", "inputs[1]"]


def test_comparing_with_scratch() -> None:
    compared = llb.compare(llb.Definition.empty(), sample())
    assert len(compared.changes) == 6
    assert all(not change.before for change in compared.changes)
    assert llb.compare(llb.Definition.empty(), llb.Definition.empty()).is_equal
