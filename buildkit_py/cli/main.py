"""Entry of the command line: find the command, run it, turn errors into lines and exit codes.

Exit codes: 0 done, 1 the build or a server failed, 2 bad usage, 128 and its number where a signal ended it: 130 for
an interrupt.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

from buildkit_py.cli import signals
from buildkit_py.cli.parsers import Parser, Subcommands
from buildkit_py.errors import (
    BuildKitError,
    InvalidAddress,
    InvalidDigest,
    InvalidOption,
    InvalidPlatform,
    InvalidReference,
    without_credentials,
)

if TYPE_CHECKING:
    from io import TextIOWrapper

_INTERRUPTED = 130
_USAGE_ERRORS = (InvalidAddress, InvalidDigest, InvalidOption, InvalidPlatform, InvalidReference)

_COMMANDS = {
    "build": ("build", "build a Dockerfile for one platform or many"),
    "run": ("run", "run an image of a registry on the daemon, per platform"),
    "solve": ("solve", "build graphs that programs wrote, for one platform or many"),
    "llb": ("llb", "look at definitions: dump, draw and compare them"),
    "imagetools": ("imagetools", "look at images and indexes in a registry"),
    "info": ("state", "print the daemon's version"),
    "workers": ("state", "list the daemon's workers and their platforms"),
    "du": ("state", "list the daemon's cache records"),
    "prune": ("state", "delete cache records"),
    "daemon": ("daemon", "start, show or stop a private local daemon"),
}
"""Module and help line by command."""
_PASSES_ON = frozenset({"run"})
"""Commands that pass on what follows ``--``, as ``args.rest``."""


class _CommandModule(Protocol):
    def configure(self, name: str, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        ...

    async def execute(self, args: argparse.Namespace) -> int:
        """Run the command; the exit code."""
        ...


def entry() -> NoReturn:
    """Console script."""
    signals.install()
    _open_streams()
    # Where programs are started by a fork (credential helpers, on macOS) gRPC's care for forks may abort the child.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    gc.disable()  # until the command runs: what is imported is there to stay
    code = main()
    # All has been cleared. A thread may still wait for a disk or a name server; the user does not. Nor for the
    # interpreter to take its modules down, which is a tenth of a cached build.
    os._exit(code if _flush() else code or 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Prints the result to stdout and all else to stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace()
    try:
        parser, modules, rest = _parser(words)
        _, unknown = parser.parse_known_args(words[: len(words) - len(rest)], args)
        if unknown:
            command = f"{parser.prog} {args.command}"
            parser.exit(
                2, f"error: unrecognized arguments: {' '.join(unknown)}; {command} --help shows what it takes\n"
            )
        args.rest = tuple(rest[1:])
        if not gc.isenabled():  # as entry() has it
            gc.freeze()
            gc.enable()
        return signals.run(modules[args.command].execute(args))
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    except signals.Ended as ended:
        _say(str(ended))
        return ended.exit_code
    except KeyboardInterrupt:  # without entry()
        _say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout or stderr is gone; keep the interpreter from complaining about it at exit.
        _flush()
        return 1
    except Exception as error:
        if getattr(args, "debug", False):
            import traceback

            traceback.print_exc()
        _report(error, logs_shown=bool(getattr(args, "logs_shown", False)))
        return 2 if isinstance(error, _USAGE_ERRORS) else 1


def _parser(words: Sequence[str]) -> tuple[argparse.ArgumentParser, dict[str, _CommandModule], Sequence[str]]:
    """The parser, the module of the command by its name, and the words from ``--`` on where they are not ours.

    Only the module of the command that is called gets imported: start-up time is what users feel.
    """
    shared = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = shared.add_argument_group("daemon")
    group.add_argument("--addr", metavar="ADDR", help="daemon, such as unix:///run/buildkit/buildkitd.sock")
    group.add_argument("--tlscacert", metavar="FILE", help="CA certificate of the daemon")
    group.add_argument("--tlscert", metavar="FILE", help="client certificate")
    group.add_argument("--tlskey", metavar="FILE", help="client key")
    group.add_argument("--tlsdir", metavar="DIR", help="directory with ca.pem, cert.pem and key.pem")
    group.add_argument("--tlsservername", metavar="NAME", help="name that the daemon's certificate must have")
    group.add_argument("-D", "--debug", action="store_true", help="print tracebacks")
    parser = Parser(
        prog="buildkit-py",
        description="Native client of BuildKit.",
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = Subcommands(parser, dest="command", metavar="COMMAND")
    called = {word for word in words if word in _COMMANDS}
    command_word = next((word for word in words if word in _COMMANDS), None)
    rest = words[words.index("--") :] if command_word in _PASSES_ON and "--" in words else ()
    modules: dict[str, _CommandModule] = {}
    for name, (module, help_line) in _COMMANDS.items():
        configure: Callable[[argparse.ArgumentParser], object] | None = None
        if name in called:
            modules[name] = cast("_CommandModule", importlib.import_module(f"buildkit_py.cli.{module}"))
            configure = partial(modules[name].configure, name)
        commands.add(name, help_line, configure, parents=[shared])
    return parser, modules, rest


def _version() -> str:
    from buildkit_py import __version__

    return f"buildkit-py {__version__}"


def _report(error: BaseException, *, logs_shown: bool) -> None:
    """Errors of the library and of files in a line each; anything else is a bug, and is called one."""
    if isinstance(error, BaseExceptionGroup):
        for member in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            _report(member, logs_shown=logs_shown)
    elif isinstance(error, BuildKitError):
        from buildkit_py.cli.report import error_text

        _say(error_text(error, logs_shown=logs_shown))
    elif isinstance(error, OSError):
        _say(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    else:
        _say(f"error: unexpected {type(error).__name__}: {error}; --debug shows where. Please report it as a bug")


def _open_streams() -> None:
    """Make all three streams usable; those that were closed before we began read nothing, and refuse a result.

    Otherwise the next socket would get the number of a stream, and whatever is printed would go there.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # for the life of the process
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    # What the encoding of the locale lacks is no reason to fail.
    cast("TextIOWrapper", sys.stdout).reconfigure(errors="backslashreplace")


def _say(text: str) -> None:
    """Print to stderr what may come from strangers, without what a terminal would act upon, and without passwords."""
    text = without_credentials(text)
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody reads it any more
        return


def _flush() -> bool:
    """Write out what is buffered, and whether that worked; a stream that takes nothing is pointed at nothing."""
    whole = True
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed before we began
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            whole = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not isinstance(error, BrokenPipeError):
                _say(f"error: not all of the result could be printed: {getattr(error, 'strerror', None) or error}")
    return whole
