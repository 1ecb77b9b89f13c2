"""``buildkit-py solve``: bad input is told of without a daemon."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from buildkit_py import llb
from buildkit_py.cli import main as cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with definitions of one platform and of two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUILDKIT_HOST", "unix:///nonexistent/buildkitd.sock")
    state = llb.image("alpine").copy(llb.local("src"), "/", "/")
    (tmp_path / "one").write_bytes(llb.marshal(state, platform="linux/arm64").to_bytes())
    with (tmp_path / "two").open("wb") as file:
        llb.emit(lambda _: state, ["linux/arm64", "linux/amd64"], file=file)
    contradiction = io.BytesIO()
    llb.emit(lambda _: state, "linux/arm64", file=contradiction)
    (tmp_path / "contradiction").write_bytes(contradiction.getvalue().replace(b'"arm64"', b'"amd64"'))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "config").write_text("[]")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["one"], "'src'"),
        (["two", "--local", "other=."], "those given are: other"),
        (["two", "--local", "src=nowhere"], "nowhere"),
        (["two", "--local", "src"], "--local 'src'"),
        (["empty"], "empty is empty"),
        (["contradiction", "--local", "src=."], "is for linux/amd64"),
        (["one", "--local", "src=.", "--platform", "linux/arm64,linux/amd64"], "one definition"),
        (["two", "--local", "src=.", "--platform", "linux/s390x"], "linux/arm64, linux/amd64"),
        (["one", "--local", "src=.", "--platform", "linux/amd46"], "amd46"),
        (["one", "--local", "src=.", "--push"], "tag"),
        (["one", "--local", "src=.", "-o", "type=rar"], "rar"),
        (["one", "--local", "src=.", "--image-config", "config"], "ImageConfig(base)"),
        (["one", "--local", "src=.", "--secret", "src=x"], "id"),
        (["one", "--local", "src=.", "--ssh", "=x"], "ssh"),
        (["one", "--local", "src=.", "--cache-to", "type=floppy"], "floppy"),
        (["one", "--local", "src=.", "--metadata-file", "nowhere/m.json"], "nowhere"),
        (["one", "--local", "src=.", "--digest-file", "d.json"], "--push"),
        (["one", "--target", "x"], "--target"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage(args: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and one line that says what is wrong."""
    assert cli.main(["solve", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err


@pytest.mark.usefixtures("folder")
def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["nowhere"], ["one", "--local", "src=.", "--image-config", "nowhere"]):
        assert cli.main(["solve", *args]) == 1
        assert capsys.readouterr().err == "error: No such file or directory: nowhere\n"
