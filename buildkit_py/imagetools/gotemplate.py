"""Templates in the language of Go's text/template, as far as formats of docker's tools use it. Pure.

Text, fields, variables, pipelines, ``if``, ``with`` and ``range`` with ``else``, trim markers, comments, and the
functions json, index, len, print, printf, println, eq, ne, lt, le, gt, ge, and, or, not. No templates within templates.
Source: Go, text/template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from buildkit_py.errors import ImageError, InvalidOption
from buildkit_py.imagetools.govalues import FUNCTIONS, Nil, Record, Value, member_of, printed, truth

MAX_OUTPUT_CHARS = 64 << 20
"""Loops over a stranger's SBOM end somewhere."""
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Output:
    pipe: _Pipe


@dataclass(frozen=True, slots=True)
class _Block:
    """if, with or range."""

    word: str
    pipe: _Pipe
    body: tuple[_Node, ...]
    otherwise: tuple[_Node, ...]


_Node: TypeAlias = "_Text | _Output | _Block"


@dataclass(frozen=True, slots=True)
class _Pipe:
    """Commands, each with what the one before it gave; and the variables that take the result."""

    variables: tuple[str, ...]
    declares: bool
    commands: tuple[tuple[_Operand, ...], ...]


@dataclass(frozen=True, slots=True)
class _Operand:
    """A literal, field chain, variable, function or pipe in parentheses, with the fields asked of it."""

    kind: str
    value: object
    chain: tuple[str, ...] = ()


_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
_COMMENT = re.compile(r"\s*/\*.*\*/\s*", re.DOTALL)
_TOKEN = re.compile(
    r"""\s+
    | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    | (?P<number>[+-]?\d+(?:\.\d+)?)
    | (?P<variable>\$\w*)
    | (?P<field>\.\w+)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<mark>:=|[=|(),.])
    """,
    re.VERBOSE,
)
_LITERALS: Mapping[str, object] = {"true": True, "false": False, "nil": None}


@dataclass(frozen=True, slots=True)
class _Lexeme:
    kind: str
    text: str
    spaced: bool
    """Whether a space, or nothing, stands before it."""


def _lexemes(text: str) -> Iterator[_Lexeme]:
    position, spaced = 0, True
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidOption(f"unexpected {text[position : position + 10]!r}")
        position = match.end()
        if match.lastgroup is not None:
            yield _Lexeme(match.lastgroup, match[0], spaced)
        spaced = match.lastgroup is None


class _Parser:
    """Turns the text of one template into nodes."""

    def __init__(self, text: str) -> None:
        self._pieces = list(self._split(text))
        self._position = 0

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        """("text", ...) and ("action", ...) in turns; comments are left out, and what markers trim."""
        position, trim = 0, False
        for match in _ACTION.finditer(text):
            before = text[position : match.start()]
            before = before.lstrip() if trim else before
            yield "text", before.rstrip() if match[1] else before
            position, trim = match.end(), bool(match[3])
            if not _COMMENT.fullmatch(match[2]):
                yield "action", match[2]
        rest = text[position:]
        if "{{" in rest:
            raise InvalidOption("an action is not closed by }}")
        yield "text", rest.lstrip() if trim else rest

    def parse(self) -> tuple[_Node, ...]:
        nodes, end = self._nodes(0)
        if end:
            raise InvalidOption(f"{{{{{end}}}}} without a beginning")
        return nodes

    def _nodes(self, depth: int) -> tuple[tuple[_Node, ...], str]:
        """Nodes up to ``end`` or ``else``, and that action; "" at the end of the text."""
        if depth > _MAX_DEPTH:
            raise InvalidOption("blocks are nested too deeply")
        found: list[_Node] = []
        while self._position < len(self._pieces):
            kind, text = self._pieces[self._position]
            self._position += 1
            if kind == "text":
                found += [_Text(text)] if text else []
                continue
            words = text.split()
            if words[:1] in (["end"], ["else"]):
                return tuple(found), " ".join(words)
            if words[:1] in (["if"], ["with"], ["range"]):
                found.append(self._block(words[0], text.strip()[len(words[0]) :], depth))
            else:
                found.append(_Output(_pipe(text)))
        return tuple(found), ""

    def _block(self, word: str, condition: str, depth: int) -> _Block:
        pipe = _pipe(condition, in_range=word == "range")
        body, end = self._nodes(depth + 1)
        otherwise: tuple[_Node, ...] = ()
        if end.startswith("else"):
            nested = end.removeprefix("else").strip()
            if nested:
                kind, _, rest = nested.partition(" ")
                if kind != word or word == "range":
                    raise InvalidOption(f"{{{{{end}}}}} after {word}")
                return _Block(word, pipe, body, (self._block(word, rest, depth + 1),))
            otherwise, end = self._nodes(depth + 1)
        if end != "end":
            raise InvalidOption(f"{{{{{word}}}}} is not closed by {{{{end}}}}")
        return _Block(word, pipe, body, otherwise)


def _pipe(text: str, *, in_range: bool = False) -> _Pipe:
    reader = _PipeReader(list(_lexemes(text)))
    pipe = reader.pipe(0, in_range=in_range)
    if reader.rest:
        raise InvalidOption(f"unexpected {reader.rest[0].text!r}")
    return pipe


class _PipeReader:
    def __init__(self, lexemes: list[_Lexeme]) -> None:
        self.rest = lexemes

    def _peek(self) -> str:
        return self.rest[0].text if self.rest else ""

    def pipe(self, depth: int, *, in_range: bool = False) -> _Pipe:
        if depth > _MAX_DEPTH:
            raise InvalidOption("parentheses are nested too deeply")
        variables, declares = self._variables(in_range=in_range)
        commands = [self._command(depth)]
        while self._peek() == "|":
            self.rest.pop(0)
            commands.append(self._command(depth))
        return _Pipe(variables, declares, tuple(commands))

    def _variables(self, *, in_range: bool) -> tuple[tuple[str, ...], bool]:
        kinds = [item.kind if item.kind == "variable" else item.text for item in self.rest[:4]]
        if kinds[:1] == ["variable"] and kinds[1:2] in ([":="], ["="]):
            name, mark = self.rest[0].text, self.rest[1].text
            del self.rest[:2]
            return (name,), mark == ":="
        if in_range and kinds[:1] == ["variable"] and kinds[1:4] == [",", "variable", ":="]:
            names = (self.rest[0].text, self.rest[2].text)
            del self.rest[:4]
            return names, True
        return (), False

    def _command(self, depth: int) -> tuple[_Operand, ...]:
        operands: list[_Operand] = []
        while self.rest and self._peek() not in ("|", ")"):
            operands.append(self._operand(depth))
        if not operands:
            raise InvalidOption("a command is missing")
        return tuple(operands)

    def _operand(self, depth: int) -> _Operand:
        item = self.rest.pop(0)
        chain: list[str] = []
        match item.kind:
            case "string":
                operand = _Operand("literal", _unquoted(item.text))
            case "number":
                operand = _Operand("literal", float(item.text) if "." in item.text else int(item.text))
            case "variable":
                operand = _Operand("variable", item.text)
            case "field":
                operand, chain = _Operand("dot", None), [item.text[1:]]
            case "word" if item.text in _LITERALS:
                operand = _Operand("literal", _LITERALS[item.text])
            case "word":
                if item.text not in FUNCTIONS and item.text not in ("and", "or"):
                    raise InvalidOption(f"there is no function {item.text}; {', '.join((*FUNCTIONS, 'and', 'or'))}")
                operand = _Operand("function", item.text)
            case _ if item.text == ".":
                operand = _Operand("dot", None)
            case _ if item.text == "(":
                operand = _Operand("pipe", self.pipe(depth + 1))
                if self._peek() != ")":
                    raise InvalidOption("( is not closed")
                self.rest.pop(0)
            case _:
                raise InvalidOption(f"unexpected {item.text!r}")
        while self.rest and self.rest[0].kind == "field" and not self.rest[0].spaced:
            chain.append(self.rest.pop(0).text[1:])
        return _Operand(operand.kind, operand.value, tuple(chain))


def _unquoted(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    try:
        return cast("str", json.loads(text.replace("\\'", "'")))
    except ValueError:
        raise InvalidOption(f"{text} is no string") from None


@dataclass(slots=True)
class _Scope:
    """Variables of the blocks around, the innermost last."""

    root: Value
    frames: list[dict[str, Value]] = field(default_factory=list[dict[str, Value]])

    def get(self, name: str) -> Value:
        if name == "$":
            return self.root
        for frame in reversed(self.frames):
            if name in frame:
                return frame[name]
        raise ImageError(f"format: there is no variable {name}")

    def set(self, name: str, value: Value, *, declares: bool) -> None:
        frame = next((item for item in reversed(self.frames) if name in item), None)
        if declares or frame is None:
            frame = self.frames[-1]
        frame[name] = value


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """A template that was read."""

    nodes: tuple[_Node, ...]

    @classmethod
    def parse(cls, text: str) -> GoTemplate:
        """Raises InvalidOption for what is not in the language, or not in the part of it that is known."""
        try:
            return cls(_Parser(text).parse())
        except InvalidOption as error:
            raise InvalidOption(f"format {text[:200]!r}: {error}") from None

    def fields(self) -> frozenset[str]:
        """The first names of all field chains; "" where a whole record is asked for."""
        found: set[str] = set()
        _names(self.nodes, found)
        return frozenset(found)

    def fill(self, data: Value) -> str:
        """The text for this data; ImageError where it asks for what cannot be."""
        filler = _Filler(data)
        filler.nodes(self.nodes, data)
        return "".join(filler.parts)


def _names(nodes: Sequence[_Node], found: set[str]) -> None:
    for node in nodes:
        if isinstance(node, _Text):
            continue
        _names_of_pipe(node.pipe, found)
        if isinstance(node, _Block):
            _names((*node.body, *node.otherwise), found)


def _names_of_pipe(pipe: _Pipe, found: set[str]) -> None:
    for command in pipe.commands:
        for operand in command:
            if isinstance(operand.value, _Pipe):
                _names_of_pipe(operand.value, found)
            elif operand.kind == "dot" or (operand.kind, operand.value) == ("variable", "$"):
                found.add(operand.chain[0] if operand.chain else "")


class _Filler:
    """One run of a template."""

    def __init__(self, root: Value) -> None:
        self.parts: list[str] = []
        self._size = 0
        self._scope = _Scope(root, [{}])

    def nodes(self, nodes: Sequence[_Node], dot: Value) -> None:
        for node in nodes:
            match node:
                case _Text():
                    self._write(node.text)
                case _Output():
                    value = self._pipe(node.pipe, dot)
                    if not node.pipe.variables:
                        self._write(printed(value))
                case _Block("range"):
                    self._range(node, dot)
                case _Block():
                    self._scope.frames.append({})
                    value = self._pipe(node.pipe, dot)
                    chosen = node.body if truth(value) else node.otherwise
                    self.nodes(chosen, value if node.word == "with" and chosen is node.body else dot)
                    self._scope.frames.pop()

    def _write(self, text: str) -> None:
        self._size += len(text)
        if self._size > MAX_OUTPUT_CHARS:
            raise ImageError(f"format: more than {MAX_OUTPUT_CHARS} characters")
        self.parts.append(text)

    def _range(self, block: _Block, dot: Value) -> None:
        self._scope.frames.append({})
        value = self._pipe(_Pipe((), False, block.pipe.commands), dot)
        pairs: list[tuple[Value, Value]]
        match value:
            case list():
                pairs = list(enumerate(cast("list[Value]", value)))
            case dict() if not isinstance(value, Record):
                pairs = sorted(cast("dict[str, Value]", value).items())
            case None | Nil():
                pairs = []
            case _:
                raise ImageError(f"format: range can't iterate over {printed(value)[:100]}")
        names = block.pipe.variables
        for key, item in pairs:
            self._scope.frames.append(dict(zip(names, (key, item) if len(names) == 2 else (item,), strict=False)))
            self.nodes(block.body, item)
            self._scope.frames.pop()
        if not pairs:
            self.nodes(block.otherwise, dot)
        self._scope.frames.pop()

    def _pipe(self, pipe: _Pipe, dot: Value) -> Value:
        value: Value = None
        for position, command in enumerate(pipe.commands):
            value = self._command(command, dot, [value] if position else [])
        for name in pipe.variables:
            self._scope.set(name, value, declares=pipe.declares)
        return value

    def _command(self, command: Sequence[_Operand], dot: Value, last: list[Value]) -> Value:
        first, *rest = command
        if first.kind != "function":
            if rest or last:
                raise ImageError("format: something that is no function is given arguments")
            return self._operand(first, dot)
        name = cast("str", first.value)
        if name in ("and", "or"):
            # In turn, and no further than to what decides.
            value: Value = None
            for operand in rest:
                value = self._operand(operand, dot)
                if truth(value) is (name == "or"):
                    return value
            return last[0] if last else value
        result = FUNCTIONS[name](*(self._operand(operand, dot) for operand in rest), *last)
        return member_of(result, first.chain)

    def _operand(self, operand: _Operand, dot: Value) -> Value:
        match operand.kind:
            case "literal":
                value = operand.value
            case "variable":
                value = self._scope.get(cast("str", operand.value))
            case "pipe":
                value = self._pipe(cast("_Pipe", operand.value), dot)
            case "function":
                value = FUNCTIONS[cast("str", operand.value)]()
            case _:
                value = dot
        return member_of(value, operand.chain)


__all__ = ["GoTemplate"]
