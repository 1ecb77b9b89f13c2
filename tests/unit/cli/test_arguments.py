"""The argument matrix of the command line. No daemon is named that exists, so whatever is told here needs none."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_py import __version__
from buildkit_py.cli import main as cli
from buildkit_py.errors import BuildErrors, ConnectFailed, ConnectionLost, SolveError

NOWHERE = "unix:///nonexistent/buildkitd.sock"
COMMANDS = ("build", "run", "solve", "llb", "imagetools", "info", "workers", "du", "prune", "daemon")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDKIT_HOST", NOWHERE)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("BUILDKIT_PROGRESS", raising=False)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A context, which is also the current directory."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_result_that_cannot_be_printed_is_a_failure() -> None:
    """A script that keeps the output in a file learns from the exit code that the disk was full."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "buildkit_py", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    assert done.returncode == 1
    assert done.stderr == "error: not all of the result could be printed: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help goes to stdout, names the command and exits with 0."""
    assert cli.main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: buildkit-py {command} ")
    assert err == ""


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n    {command} " in listed for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"buildkit-py {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["build", "--bogus"], "unrecognized arguments: --bogus"),
        (["build", ".", "other"], "unrecognized arguments: other"),
        (["build", "--progress", "fancy"], "invalid choice: 'fancy'"),
        (["build", "--plat", "linux/arm64"], "unrecognized arguments: --plat"),
        (["build", "-t"], "argument -t/--tag: expected one argument"),
        (["run"], "the following arguments are required: REF"),
        (["run", "alpine", "echo", "hi"], "unrecognized arguments: echo hi"),
        (["imagetools"], "the following arguments are required: ACTION"),
        (["imagetools", "inspect"], "the following arguments are required: REF"),
        (["info", "--format", "yaml"], "invalid choice: 'yaml'"),
        (["info", "extra"], "unrecognized arguments: extra"),
        (["daemon", "restart"], "invalid choice: 'restart'"),
    ],
)
def test_words_that_no_command_takes(words: list[str], needle: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, nothing on stdout, exit code 2. Options are not guessed from their beginning."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert needle in line
    assert line.endswith(" --help shows what it takes")
    known = words[:1] if words and words[0] in COMMANDS else []
    assert "; " + " ".join(["buildkit-py", *known]) in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--platform", "linux/"], "platform 'linux/': '' is no architecture"),
        (["--platform", "linux/arm46"], "platform linux/arm46: unknown architecture 'arm46'"),
        (["--platform", "plan8/amd64"], "platform plan8/amd64: unknown operating system 'plan8'"),
        (["--platform", "a/b/c/d"], "platform 'a/b/c/d': expected at most os/architecture/variant"),
        (["--platform", ""], "empty platform"),
        (["--platform", "linux/arm64", "--platform", "arm64"], "linux/arm64"),
        (["--platform", "linux/arm,linux/arm/v7"], "linux/arm/v7"),
        (["-t", "Upper"], "reference 'Upper': repository name must be in lower case"),
        (["-t", "a:b:c"], "reference 'a:b:c': not valid"),
        (["-t", f"a@sha256:{'0' * 64}"], "a name to write cannot have a digest"),
        (["-t", ""], "reference '': not valid"),
        (["--push"], "push: needs at least one tag"),
        (["-o", "type=zip,dest=x"], "unknown type 'zip'; expected one of cacheonly, docker, image, local, oci"),
        (["-o", "type=oci,tar=false"], "output type=oci: dest is missing"),
        (["-o", "type=oci", "-o", "-"], "two outputs have the same destination"),
        (["--push=maybe"], "argument --push: expected true or false, not 'maybe'"),
        (["--add-host", "a:1.2.3.4,b"], "add-host 'b': expected NAME:ADDRESS"),
        (["-o", "type=oci,dest="], "dest is empty"),
        (["-o", "type=oci,dest=x,dest=y"], "'dest' is given twice"),
        (["-o", "dest=x"], "unknown type ''"),
        (["-o", 'type=oci,"dest=x'], "output 'type=oci,\"dest=x'"),
        (["-o", "type=image,dest=x"], "output type=image: dest is not used by this type"),
        (["-o", "x", "-o", "type=oci,dest=x"], "two outputs have the same destination"),
        (["--build-arg", "=x"], "--build-arg '=x': expected NAME=VALUE"),
        (["--build-context", "alpine"], "--build-context 'alpine': expected NAME=VALUE"),
        (["--build-context", "a=missing"], "build context a: missing does not exist"),
        (["--build-context", "a=ftp://host/"], "build context a: unknown scheme"),
        (["--label", "=x"], "--label '=x': expected NAME=VALUE"),
        (["--annotation", "x"], "--annotation 'x': expected NAME=VALUE"),
        (["--attest", "mode=min"], "--attest 'mode=min': type=... is missing"),
        (["--attest", "type=signature"], "attestation 'signature': expected provenance or sbom"),
        (["--cache-to", "type=local"], "cache-to type=local: dest=DIRECTORY is missing"),
        (["--secret", "src=x"], "secret: id=... is missing"),
        (["--secret", "id=x,src=missing"], "secret x: missing does not exist"),
        (["--ssh", "x=missing"], "ssh x: missing: No such file or directory"),
        (["--build-context", "a=oci-layout://."], "this is no OCI layout"),
        (["--cache-from", "type=tape"], "unknown type 'tape'"),
        (["-f", "Missing"], "Dockerfile: Missing does not exist; name another with --file"),
        (["-f", "."], "is not a file"),
        (["--metadata-file", "missing/file"], "missing/file: its directory does not exist"),
        (["--iidfile", "."], ".: is a directory"),
        (["--progress", "tty"], "progress 'tty': the output is not a terminal; use auto or plain"),
        (["missing"], "context: missing does not exist"),
        (["Dockerfile"], "context: Dockerfile is not a directory"),
        ([""], "context: must not be empty"),
        (["--addr", "bogus"], "invalid daemon address 'bogus': expected unix:///"),
        (["--addr", "tcp://host"], "tcp://host"),
        (["--tlscacert", "ca.pem"], "TLS is for tcp"),
        (["--addr", "tcp://localhost:1", "--tlscacert", "missing.pem"], "missing.pem"),
        (["--addr", "tcp://localhost:1", "--tlscert", "Dockerfile"], "key"),
        (["--tlsdir", ".", "--tlscacert", "x"], "--tlsdir: cannot be combined with --tlscacert"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words_of_a_build(words: list[str], line: str, context: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the word and what was expected, exit code 2, and no need of a daemon to say so."""
    before = sorted(context.rglob("*"))
    assert cli.main(["build", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (said,) = err.splitlines()
    assert said.startswith("error: ")
    assert line in said
    assert sorted(context.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "Upper"], "reference 'Upper': repository name must be in lower case"),
        (["run", "a", "--platform", "linux/arm46"], "unknown architecture 'arm46'"),
        (["run", "a", "--platform", "arm64", "--platform", "linux/arm64"], "linux/arm64"),
        (["run", "a", "-e", "X"], "env 'X': expected NAME=VALUE"),
        (["imagetools", "inspect", "a@sha256:12"], "reference 'a@sha256:12'"),
        (["imagetools", "inspect", ""], "reference '': not valid"),
        (["prune", "--keep-duration", "5x"], "--keep-duration '5x': expected a duration"),
        (["prune", "--max-used-space", "-1"], "--max-used-space '-1': expected a size"),
        (["--addr", "", "info"], "invalid daemon address ''"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words_of_the_others(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As for a build."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (said,) = err.splitlines()
    assert said.startswith("error: ")
    assert line in said


def test_good_words_reach_the_daemon(context: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The counterpart of the tables above: what is right fails only for want of a daemon, with exit code 1."""
    words = ["--platform", "linux/arm64,linux/amd64", "-t", "localhost:5000/a:b", "--push", "-o", "type=oci,dest=x"]
    assert cli.main(["build", *words, "--label", "a", "--build-arg", "B"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: cannot connect to {NOWHERE}: there is no such socket\n"
    assert sorted(path.name for path in context.iterdir()) == ["Dockerfile"]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--push"], "push", True),
        (["--push=true"], "push", True),
        (["--push=0"], "push", False),
        (["--push", "--push=false"], "push", False),
        (["--push=F", "--push"], "push", True),
        (["-q"], "quiet", True),
        (["-q=false"], "quiet", False),
        (["-q=1", "."], "quiet", True),
        (["--no-cache=false"], "no_cache", False),
        (["--pull=T"], "pull", True),
        (["--load=False"], "load", False),
        (["--check=t"], "check", True),
        ([], "push", False),
        (["--progress", ""], "progress", "auto"),
    ],
)
def test_switches(
    words: list[str],
    field: str,
    value: object,
    context: Path,
    recorded: Callable[[str, Callable[[], object]], list[object]],
) -> None:
    """As docker buildx reads them: a value only after =, the last one counts, and what follows is the context."""
    seen = recorded("build", lambda: None)
    assert cli.main(["build", *words]) == 0
    assert getattr(seen[0], field) == value
    assert getattr(seen[0], "context") == "."  # noqa: B009  # the namespace has no type


def test_words_that_say_nothing(context: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script passes "$NAME" of what is not set; as with docker buildx, that is as if the flag were not there."""
    names = "--cache-from --cache-to -o --secret --ssh --annotation --build-context --allow --target --network -f"
    names += " --cgroup-parent --iidfile --metadata-file --progress --provenance --sbom --call --add-host"
    words = [word for name in f"{names} --no-cache-filter".split() for word in (name, "")]
    assert cli.main(["build", "--rm", "--force-rm=false", "--compress", *words]) == 1
    assert capsys.readouterr().err == f"error: cannot connect to {NOWHERE}: there is no such socket\n"


def test_where_the_daemon_is_may_stand_before_or_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--addr", "unix:///other", "info"], ["info", "--addr", "unix:///other"]):
        assert cli.main(words) == 1
        assert "unix:///other" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--debug", "info"], ["info", "--debug"], ["info", "-D"]])
def test_debug_adds_the_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before the line, which stays the last one."""
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: ")


# What a command makes of arguments and errors, seen through a command that only records them


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], list[object]]:
    """Replace a command's work; returns the list of the arguments that it got."""

    def install(command: str, work: Callable[[], object]) -> list[object]:
        seen: list[object] = []

        async def execute(args: object) -> int:
            seen.append(args)
            work()
            return 0

        monkeypatch.setattr(importlib.import_module(f"buildkit_py.cli.{command}"), "execute", execute)
        return seen

    return install


@pytest.mark.parametrize(
    ("words", "platforms", "rest"),
    [
        (["a"], [], ()),
        (["a", "--platform", "arm64"], ["arm64"], ()),
        (["--platform", "arm64", "a", "--", "x", "--platform", "y"], ["arm64"], ("x", "--platform", "y")),
        (["a", "--platform", "arm64", "--", "-x", "--", "z"], ["arm64"], ("-x", "--", "z")),
        (["a", "--"], [], ()),
        (["a", "--", "--help"], [], ("--help",)),
    ],
)
def test_run_passes_on_what_follows_two_dashes(
    words: list[str],
    platforms: list[str],
    rest: tuple[str, ...],
    recorded: Callable[[str, Callable[[], object]], list[object]],
) -> None:
    """Options of ours stand on either side of the reference; nothing after -- is read as one."""
    seen = recorded("run", lambda: None)
    assert cli.main(["run", *words]) == 0
    (args,) = seen
    assert getattr(args, "reference") == "a"  # noqa: B009  # the namespace has no type
    assert getattr(args, "platform") == platforms  # noqa: B009
    assert getattr(args, "rest") == rest  # noqa: B009


def _raising(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConnectFailed("cannot connect"), 1, "error: cannot connect\n"),
        (SolveError("UNKNOWN", "it failed", platform="linux/arm64"), 1, "error: linux/arm64: it failed\n"),
        (BuildErrors("2", [ConnectionLost("one"), ConnectionLost("two")]), 1, "error: one\nerror: two\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: Permission denied: /x\n"),
        (
            ExceptionGroup("g", [OSError(28, "No space left on device"), ConnectionLost("one")]),
            1,
            "error: No space left on device\nerror: one\n",
        ),
        (KeyError("x"), 1, "error: unexpected KeyError: 'x'; --debug shows where. Please report it as a bug\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_in_a_line_each(
    error: BaseException,
    code: int,
    said: str,
    recorded: Callable[[str, Callable[[], object]], list[object]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever a command raises, there is no traceback; a bug is called one."""
    recorded("state", _raising(error))
    assert cli.main(["info"]) == code
    assert capsys.readouterr() == ("", said)


def test_an_interrupt_while_a_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imports take a good part of a short command's time."""
    monkeypatch.setattr(importlib, "import_module", lambda _: _raising(KeyboardInterrupt())())
    assert cli.main(["info"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_the_module_of_another_command_is_not_imported() -> None:
    """Start-up time is what users feel."""
    program = "import sys, buildkit_py.cli.main as cli; cli.main(['info']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    imported = done.stdout.decode().split()
    assert "buildkit_py.cli.state" in imported
    assert "buildkit_py.cli.build" not in imported
