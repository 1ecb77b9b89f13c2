"""File vertexes: a chain of actions on the files of a state, without running anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from buildkit_py.errors import InvalidOption
from buildkit_py.llb import check, wire
from buildkit_py.llb.base import is_state
from buildkit_py.llb.execop import position_of
from buildkit_py.llb.ops import FILE, Call, Op, Output
from buildkit_py.llb.paths import absolute, absolute_target, clean, join
from buildkit_py.llb.vertex import Settings

if TYPE_CHECKING:
    from buildkit_py.llb.state import State

Owner: TypeAlias = "str | tuple[int, int]"
"""``user[:group]`` of names or numbers, looked up in the state that is changed; or (uid, gid)."""
Created: TypeAlias = "datetime | int | None"
"""An aware datetime, or Unix time in nanoseconds. None leaves it to the daemon."""

_MAX_NESTING = 64
_ID = re.compile(r"[+-]?[0-9]{1,10}")
_MODE_CLAUSE = "[ugoa]*(?:[-+=][rwxXstugo]*)+"
_SYMBOLIC_MODE = re.compile(f"0*[0-7]{{1,4}}|{_MODE_CLAUSE}(?:,{_MODE_CLAUSE})*")


@dataclass(frozen=True, slots=True, eq=False)
class Mkdir:
    """Make a directory. Of mode the permission bits count."""

    path: str
    mode: int = 0o755
    parents: bool = False
    """Make missing directories above it too, and accept one that is there already."""
    owner: Owner | None = None
    created: Created = None

    def __post_init__(self) -> None:
        check.path("mkdir(path)", self.path)
        check.mode("mkdir(mode)", self.mode)
        check.boolean("mkdir(parents)", self.parents)
        _check_owner("mkdir(owner)", self.owner)
        check.nanoseconds("mkdir(created)", self.created)

    def encode(self, cwd: str, base: int) -> bytes:
        """The action's bytes; see FileAction."""
        return wire.blob(
            b"\x32",
            wire.text(b"\x0a", absolute(cwd, self.path))
            + wire.number(b"\x10", self.mode & 0o777)
            + wire.flag(b"\x18", self.parents)
            + _encode_owner(b"\x22", self.owner, base)
            + wire.number(b"\x28", check.nanoseconds("created", self.created)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Mkfile:
    """Write a file. Of mode the permission bits count; text is written as UTF-8."""

    path: str
    data: bytes | str = b""
    mode: int = 0o644
    owner: Owner | None = None
    created: Created = None

    def __post_init__(self) -> None:
        check.path("mkfile(path)", self.path)
        if not isinstance(self.data, bytes):
            check.text("mkfile(data)", self.data, "bytes or text")
        check.mode("mkfile(mode)", self.mode)
        _check_owner("mkfile(owner)", self.owner)
        check.nanoseconds("mkfile(created)", self.created)

    def encode(self, cwd: str, base: int) -> bytes:
        """The action's bytes; see FileAction."""
        data = self.data.encode() if isinstance(self.data, str) else self.data
        return wire.blob(
            b"\x2a",
            wire.text(b"\x0a", absolute(cwd, self.path))
            + wire.number(b"\x10", self.mode & 0o777)
            + (wire.blob(b"\x1a", data) if data else b"")
            + _encode_owner(b"\x22", self.owner, base)
            + wire.number(b"\x28", check.nanoseconds("created", self.created)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Symlink:
    """Make newpath a symbolic link to oldpath. Both are taken as they are written."""

    oldpath: str
    newpath: str
    owner: Owner | None = None
    created: Created = None

    def __post_init__(self) -> None:
        check.path("symlink(oldpath)", self.oldpath)
        check.path("symlink(newpath)", self.newpath)
        _check_owner("symlink(owner)", self.owner)
        check.nanoseconds("symlink(created)", self.created)

    def encode(self, cwd: str, base: int) -> bytes:
        """The action's bytes; see FileAction."""
        return wire.blob(
            b"\x42",
            wire.text(b"\x0a", self.oldpath)
            + wire.text(b"\x12", self.newpath)
            + _encode_owner(b"\x1a", self.owner, base)
            + wire.number(b"\x20", check.nanoseconds("created", self.created)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Rm:
    """Remove a file or a directory with all that is in it."""

    path: str
    allow_not_found: bool = False
    allow_wildcard: bool = False

    def __post_init__(self) -> None:
        check.path("rm(path)", self.path)
        check.boolean("rm(allow_not_found)", self.allow_not_found)
        check.boolean("rm(allow_wildcard)", self.allow_wildcard)

    def encode(self, cwd: str, base: int) -> bytes:
        """The action's bytes; see FileAction."""
        return wire.blob(
            b"\x3a",
            wire.text(b"\x0a", absolute(cwd, self.path))
            + wire.flag(b"\x10", self.allow_not_found)
            + wire.flag(b"\x18", self.allow_wildcard),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Actions on another state, whose result is copied from without becoming a vertex of its own."""

    state: State
    actions: tuple[Action, ...]
    nesting: int = field(init=False, default=0)
    """How many chains are inside of each other."""

    def __post_init__(self) -> None:
        actions = check_actions("Chain(actions)", self.actions)
        is_state("Chain(state)", self.state)
        sources = [action.source for action in actions if isinstance(action, Copy)]
        inner = [source.nesting for source in sources if isinstance(source, Chain)]
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "nesting", 1 + max(inner, default=0))
        if self.nesting > _MAX_NESTING:
            raise InvalidOption(f"Chain(actions): chains are more than {_MAX_NESTING} deep in each other")


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """Copy files from a state, or from what a chain of actions made of one.

    A relative src is seen from the working directory of where it comes from, a relative dest from that of the
    state that is changed. A trailing "/" or "/." of dest is kept, since it makes dest a directory.
    """

    source: State | Chain
    src: str
    dest: str
    mode: int | str | None = None
    """Bits, or changes to them as chmod takes them, such as "u+x"; None keeps what the files have."""
    owner: Owner | None = None
    """None keeps the owner that the files have."""
    created: Created = None
    follow_symlinks: bool = False
    dir_contents_only: bool = False
    """Of a directory, copy what is in it."""
    include_patterns: Iterable[str] = ()
    exclude_patterns: Iterable[str] = ()
    required_paths: Iterable[str] = ()
    """Fail where one of these absolute paths is not there."""
    attempt_unpack: bool = False
    """Unpack archives as ADD does."""
    create_dest_path: bool = False
    """Make missing directories above dest."""
    allow_wildcard: bool = False
    allow_empty_wildcard: bool = False
    """A wildcard that matches nothing is no failure."""
    always_replace_existing_dest_paths: bool = False
    """Put a file where a directory is, and the other way around."""

    def __post_init__(self) -> None:
        if not isinstance(self.source, Chain):
            is_state("copy(source)", self.source)
        if "\0" in check.text("copy(src)", self.src, "a path"):
            raise check.fail("copy(src)", self.src, "a path without NUL")
        if "\0" in check.text("copy(dest)", self.dest, "a path"):
            raise check.fail("copy(dest)", self.dest, "a path without NUL")
        if isinstance(self.mode, str):
            if not _SYMBOLIC_MODE.fullmatch(self.mode):
                raise check.fail("copy(mode)", self.mode, "permission bits, or changes such as 'u+x,go-w'")
        elif self.mode is not None:
            check.mode("copy(mode)", self.mode)
        _check_owner("copy(owner)", self.owner)
        check.nanoseconds("copy(created)", self.created)
        for name in ("include_patterns", "exclude_patterns", "required_paths"):
            object.__setattr__(self, name, check.texts(f"copy({name})", getattr(self, name)))
        for name in _COPY_FLAGS:
            check.boolean(f"copy({name})", getattr(self, name))

    @property
    def source_state(self) -> State:
        """Where it copies from."""
        return self.source.state if isinstance(self.source, Chain) else self.source

    def encode(self, cwd: str, base: int) -> bytes:
        """The action's bytes; see FileAction."""
        src = clean(self.src)
        flags = [wire.flag(tag, getattr(self, name)) for name, tag in _COPY_FLAGS.items()]
        mode = -1 if self.mode is None else 0 if isinstance(self.mode, str) else self.mode
        return wire.blob(
            b"\x22",
            wire.text(b"\x0a", join("/" if src.startswith("/") else self.source_state.cwd, src))
            + wire.text(b"\x12", absolute_target(cwd, self.dest))
            + _encode_owner(b"\x1a", self.owner, base)
            + wire.number(b"\x20", mode)
            + b"".join(flags[:-1])
            + wire.number(b"\x58", check.nanoseconds("created", self.created))
            + wire.texts(b"\x62", self.include_patterns)
            + wire.texts(b"\x6a", self.exclude_patterns)
            + flags[-1]
            + (wire.text(b"\x7a", self.mode) if isinstance(self.mode, str) else b"")
            + wire.texts(b"\x82\x01", self.required_paths),
        )


# Options of a copy that are on or off, in the order of their numbers; the last comes after the patterns.
_COPY_FLAGS = {
    "follow_symlinks": b"\x28",
    "dir_contents_only": b"\x30",
    "attempt_unpack": b"\x38",
    "create_dest_path": b"\x40",
    "allow_wildcard": b"\x48",
    "allow_empty_wildcard": b"\x50",
    "always_replace_existing_dest_paths": b"\x70",
}

Action: TypeAlias = "Mkdir | Mkfile | Symlink | Rm | Copy"


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """An action in its place. Numbers from len(inputs) on are results of earlier steps."""

    action: Action
    cwd: str
    base: int
    """Input that the state of the action is; -1 for none."""
    follows: int | None
    """Step whose result it changes; None where it starts from base."""
    source: int = -1
    """Input that is copied from; -1 for none."""
    source_step: int | None = None
    """Step whose result is copied from."""

    def encode(self, inputs: int, mapping: Sequence[int] | None, is_last: bool) -> bytes:
        """The action as a field of FileOp; inputs says how many there are."""

        def place(position: int) -> int:
            return position if mapping is None or position < 0 else mapping[position]

        base = place(self.base)
        first = base if self.follows is None else inputs + self.follows
        second = place(self.source) if self.source_step is None else inputs + self.source_step
        return wire.blob(
            b"\x12",
            wire.number(b"\x08", first)
            + wire.number(b"\x10", second)
            + wire.number(b"\x18", 0 if is_last else -1)
            + self.action.encode(self.cwd, base),
        )


class FileOp(Op):
    """Actions on the files of a state, each on the result of the one before."""

    __slots__ = ("_steps",)

    def __init__(self, state: State, actions: Sequence[Action], settings: Settings) -> None:
        inputs: list[Output] = []
        self._steps: list[_Step] = []
        self._add(state, actions, inputs, {})
        dependencies = list(_outputs_from_the_last(state, actions))
        super().__init__(settings, ["file.base"], inputs, dependencies)
        self.fixed_body = self._encode(None)

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        return self._encode(mapping)

    def _add(self, state: State, actions: Sequence[Action], inputs: list[Output], chains: dict[Chain, int]) -> int:
        """Add steps for these actions and for chains that they copy from; return the last one's number."""
        last: int | None = None
        for action in actions:
            base = position_of(state.output, inputs)
            step = _Step(action, state.cwd, base, last)
            if isinstance(action, Copy):
                if isinstance(action.source, Chain):
                    chain = action.source
                    if chain not in chains:
                        chains[chain] = self._add(chain.state, chain.actions, inputs, chains)
                    step = _Step(action, state.cwd, base, last, source_step=chains[chain])
                else:
                    source = position_of(action.source.output, inputs)
                    step = _Step(action, state.cwd, base, last, source=source)
            last = len(self._steps)
            self._steps.append(step)
        assert last is not None  # there is always an action
        return last

    def _encode(self, mapping: Sequence[int] | None) -> bytes:
        count = len(self.inputs) if mapping is None else len(set(mapping))
        last = len(self._steps) - 1
        actions = [step.encode(count, mapping, index == last) for index, step in enumerate(self._steps)]
        return wire.blob(FILE, b"".join(actions))


def check_actions(name: str, actions: object) -> tuple[Action, ...]:
    """File actions, at least one."""
    items = check.several(name, actions)
    if not items:
        raise InvalidOption(f"{name}: expected at least one action")
    checked: list[Action] = []
    for index, item in enumerate(items):
        if not isinstance(item, (Mkdir, Mkfile, Symlink, Rm, Copy)):
            raise check.fail(f"{name}[{index}]", item, "Mkdir, Mkfile, Symlink, Rm or Copy")
        checked.append(item)
    return tuple(checked)


def _outputs_from_the_last(state: State, actions: Sequence[Action]) -> Iterator[Output]:
    """Outputs in the order in which they come in a definition: what the last action needs comes first."""
    for action in reversed(actions):
        if state.output is not None:
            yield state.output
        if isinstance(action, Copy):
            if isinstance(action.source, Chain):
                yield from _outputs_from_the_last(action.source.state, action.source.actions)
            elif action.source.output is not None:
                yield action.source.output


def _check_owner(name: str, owner: object) -> None:
    if owner is None:
        return
    if isinstance(owner, str):
        check.filled(name, owner, "user[:group] or (uid, gid)")
        return
    for number in check.pair(name, owner, "user[:group] or (uid, gid)"):
        check.integer(name, number, check.UINT32)


def _encode_owner(tag: bytes, owner: Owner | None, base: int) -> bytes:
    """The ChownOpt message; names are looked up in the input that base is."""
    if owner is None:
        return b""
    if isinstance(owner, str):
        user, colon, group = owner.partition(":")
        parts = [(b"\x0a", _number_or_name(user))]
        if colon:
            parts.append((b"\x12", _number_or_name(group)))
    else:
        parts = [(b"\x0a", owner[0]), (b"\x12", owner[1])]
    return wire.blob(tag, b"".join([wire.blob(part, _encode_user(who, base)) for part, who in parts]))


def _number_or_name(who: str) -> int | str:
    if who in {"", "root"}:
        return 0
    if _ID.fullmatch(who) and check.INT32[0] <= int(who) <= check.INT32[1]:
        return int(who) & 0xFFFFFFFF
    return who


def _encode_user(who: int | str, base: int) -> bytes:
    if isinstance(who, int):
        return b"\x10" + wire.varint(who)  # a member of a oneof is written even when it is zero
    return wire.blob(b"\x0a", wire.text(b"\x0a", who) + wire.number(b"\x10", base))
