"""``buildkit-py llb``: files and pipes, one definition or several."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from buildkit_py import llb
from buildkit_py.cli import main as cli

PLATFORMS = ["linux/amd64", "linux/arm64"]


class _Stdin:
    """Standard input that is a pipe with these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


def state(command: str) -> llb.State:
    return llb.image("alpine").run(command)


def stream(command: str = "make", platforms: list[str] = PLATFORMS) -> bytes:
    file = io.BytesIO()
    llb.emit(lambda _: state(command), platforms, file=file)
    return file.getvalue()


def one(command: str = "make", platform: str = "linux/arm64") -> bytes:
    return llb.marshal(state(command), platform=platform).to_bytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with some definitions."""
    monkeypatch.chdir(tmp_path)
    contents = {
        "one": one(),
        "other": one("make test"),
        "amd64": one(platform="linux/amd64"),
        "two": stream(),
        "two-other": stream("make test"),
        "less": stream(platforms=["linux/arm64"]),
        "empty": b"",
        "text": b"#!/bin/sh\n",
    }
    for name, data in contents.items():
        Path(name).write_bytes(data)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_dump(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one definition what the library says; of several that, under the platform of each."""
    definition = llb.Definition.parse(one())
    assert cli.main(["llb", "dump", "one"]) == 0
    assert capsys.readouterr() == (llb.dump(definition), "")
    assert cli.main(["llb", "dump", "--json", "one"]) == 0
    assert capsys.readouterr().out == llb.dump_json(definition)
    for args in ([], ["-"]):
        monkeypatch.setattr("sys.stdin", _Stdin(one()))
        assert cli.main(["llb", "dump", *args]) == 0
        assert capsys.readouterr().out == llb.dump(definition)
    assert cli.main(["llb", "dump", "two"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("==")] == [f"== {name}" for name in PLATFORMS]
    assert cli.main(["llb", "dump", "--platform", "linux/arm64", "two"]) == 0
    assert capsys.readouterr().out == f"== linux/arm64\n{llb.dump(definition)}"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("form", ["dot", "mermaid", "svg"])
def test_graph(form: llb.Format, capsys: pytest.CaptureFixture[str]) -> None:
    expected = llb.graph(llb.Definition.parse(one()), form)
    assert cli.main(["llb", "graph", "--format", form, "one"]) == 0
    assert capsys.readouterr() == (expected, "")
    assert cli.main(["llb", "graph", "--format", form, "--platform", "linux/arm64", "two"]) == 0
    assert capsys.readouterr().out == expected
    assert cli.main(["llb", "graph", "--format", form, "less"]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("args", "code", "lines"),
    [
        (["one", "one"], 0, ["no difference, 2 vertexes"]),
        (["one", "less"], 0, ["no difference, 2 vertexes"]),
        (["two", "two"], 0, ["== linux/amd64", "no difference, 2 vertexes"]),
        (["one", "other"], 1, ['    exec.meta.args[1]: (none) -> "test"']),
        (["one", "amd64"], 1, ['    platform: "linux/arm64" -> "linux/amd64"']),
        (["two", "two-other"], 1, ["== linux/arm64", '    exec.meta.args[1]: (none) -> "test"']),
        (["two", "two-other", "--platform", "linux/arm64"], 1, ["== linux/arm64"]),
        (["two", "less"], 1, ["== linux/amd64", "only in two", "no difference, 2 vertexes"]),
        (["less", "two"], 1, ["== linux/amd64", "only in two", "no difference, 2 vertexes"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_diff(args: list[str], code: int, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code says whether there is a difference, in text as in JSON."""
    assert cli.main(["llb", "diff", *args]) == code
    out = capsys.readouterr().out.splitlines()
    assert set(lines) <= set(out)
    assert cli.main(["llb", "diff", "--json", *args]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["equal"] is (code == 0)


@pytest.mark.usefixtures("folder")
def test_diff_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["llb", "diff", "--json", "one", "other"]) == 1
    document = json.loads(capsys.readouterr().out)
    ((change,),) = [list(result["changes"]) for result in document["definitions"].values()]
    assert change["fields"] == [{"path": "exec.meta.args[1]", "before": None, "after": "test"}]
    assert document["only"] == {}
    assert document["definitions"][""]["shared"] == 1


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["dump", "empty"], "empty"),
        (["dump", "text"], "text: definition"),
        (["dump", "--platform", "linux/s390x", "two"], "linux/amd64, linux/arm64"),
        (["dump", "--platform", "a/b/c/d", "two"], "a/b/c/d"),
        (["dump", "--platform", "linux/arm64", "one"], "--platform"),
        (["graph", "two"], "--platform"),
        (["graph", "--format", "png", "one"], "--format"),
        (["diff", "one"], "B"),
        (["diff", "-", "-"], "standard input"),
        (["look"], "look"),
        ([], "ACTION"),
    ],
    ids=" ".join,
)
def test_bad_usage(args: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what is wrong, and exit code 2."""
    assert cli.main(["llb", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err


@pytest.mark.usefixtures("folder")
def test_other_failures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there; a pipe from a program that failed; a terminal, where no program writes."""
    assert cli.main(["llb", "dump", "nowhere"]) == 1
    assert capsys.readouterr().err == "error: No such file or directory: nowhere\n"
    monkeypatch.setattr("sys.stdin", _Stdin(b""))
    assert cli.main(["llb", "dump"]) == 2
    assert "did the program" in capsys.readouterr().err
    terminal = _Stdin(b"")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert cli.main(["llb", "dump"]) == 2
    assert "terminal" in capsys.readouterr().err
