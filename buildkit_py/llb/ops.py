"""One class per op: what a vertex does, ready to be written into a definition.

An op never changes. Its part of the message is encoded when it is made, so that text which has no encoded
form is found then, and so that marshalling a graph again costs little; only the digests of its inputs, the
platform and the filters come from the marshal call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from buildkit_py.llb import wire
from buildkit_py.llb.capture import Caller, find_caller
from buildkit_py.llb.vertex import NO_SETTINGS, Location, Metadata, Settings
from buildkit_py.platforms import Platform

# Tags of the members of Op.op.
EXEC, SOURCE, FILE, BUILD = b"\x12", b"\x1a", b"\x22", b"\x2a"
MERGE, DIFF, PASSTHROUGH = b"\x32", b"\x3a", b"\x42"


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One of the filesystems that a vertex makes."""

    op: Op
    index: int = 0
    platform: Platform | None = None
    """What states made from this are for, where the vertex was given a platform of its own."""

    def is_same(self, other: Output) -> bool:
        return self is other or (self.op is other.op and self.index == other.index)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What ops have to know of the marshal call."""

    platform: Platform | None
    unique_id: str
    """Marks this build's local directories, so that builds which run at once do not share them."""
    daemon_caps: Container[str] | None
    """Capabilities that the daemon has; None where they are not known."""


class Op(ABC):
    """What a vertex does."""

    __slots__ = ("caller", "dependencies", "inputs", "metadata_and_caps", "settings")

    writes_platform = False
    """Whether the platform is part of the vertex, as it is where something runs or is chosen by it."""
    shares_inputs = True
    """Whether inputs with the same digest and index are one input."""

    def __init__(
        self,
        settings: Settings,
        caps: Iterable[str],
        inputs: Sequence[Output],
        dependencies: Iterable[Output] | None = None,
    ) -> None:
        self.settings = settings
        self.inputs = tuple(inputs)
        """In the order of Op.inputs, the same output once if they are shared."""
        order = self.inputs if dependencies is None else dependencies
        self.dependencies = tuple(dict.fromkeys([output.op for output in order]))[::-1]
        """Ops that come earlier in a definition, the first of them last."""
        self.metadata_and_caps: tuple[Metadata, tuple[str, ...]] = (settings.metadata, tuple(sorted(set(caps))))
        self.caller: Caller | None = None if settings.locations else find_caller()

    @property
    def platform(self) -> Platform | None:
        """What it is for; None leaves it to the marshal call."""
        return self.settings.platform

    @property
    def locations(self) -> tuple[Location, ...]:
        return self.settings.locations

    @abstractmethod
    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        """The member of Op.op with its tag; mapping says which input each of self.inputs has become."""

    def caps(self, call: Call) -> tuple[Metadata, tuple[str, ...]]:
        """Own metadata, and capabilities that the daemon must have."""
        del call
        return self.metadata_and_caps


class LoadedOp(Op):
    """A vertex of a definition that was read: its bytes are used as they are."""

    __slots__ = ("_locations", "_platform", "data", "has_metadata")

    def __init__(
        self,
        data: bytes,
        inputs: Sequence[Output],
        metadata: Metadata,
        caps: Iterable[str],
        has_metadata: bool,
        platform: Platform | None,
        locations: tuple[Location, ...],
    ) -> None:
        super().__init__(NO_SETTINGS, (), inputs)
        self.caller = None
        self.metadata_and_caps = (metadata, tuple(sorted(set(caps))))
        self.data = data
        self.has_metadata = has_metadata
        self._platform = platform
        self._locations = locations

    @property
    def platform(self) -> Platform | None:
        return self._platform

    @property
    def locations(self) -> tuple[Location, ...]:
        return self._locations

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        raise NotImplementedError("bytes of a definition that was read are not made again")


class SourceOp(Op):
    """Something that comes from outside: an image, a repository, a directory of the client."""

    __slots__ = ("_body", "attrs", "identifier", "unique_id", "writes_platform")

    def __init__(
        self,
        identifier: str,
        attrs: Mapping[str, str],
        settings: Settings,
        caps: Iterable[str],
        *,
        unique_id: str | None = None,
    ) -> None:
        self.identifier = identifier
        self.attrs = attrs
        self.writes_platform = identifier.startswith(("docker-image://", "oci-layout://"))
        self.unique_id = unique_id
        """Of a local directory; None where it is the marshal call's."""
        is_unique = identifier.startswith("local://") and "local.session" not in attrs
        super().__init__(settings, [*caps, "source.local.unique"] if is_unique else caps, ())
        if is_unique and unique_id:
            self.attrs = {**attrs, "local.unique": unique_id}
        self._body = None if is_unique and not unique_id else self._encode(self.attrs)

    @property
    def needs_unique_id(self) -> bool:
        return self._body is None

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        return self._body or self._encode({**self.attrs, "local.unique": call.unique_id})

    def _encode(self, attrs: Mapping[str, str]) -> bytes:
        return wire.blob(SOURCE, wire.text(b"\x0a", self.identifier) + wire.text_map(b"\x12", attrs.items()))


class MergeOp(Op):
    """Filesystems laid over each other, the last on top."""

    __slots__ = ()

    shares_inputs = False

    def __init__(self, inputs: Sequence[Output], settings: Settings) -> None:
        super().__init__(settings, ["mergeop"], inputs)

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        positions = [wire.blob(b"\x0a", wire.number(b"\x08", index)) for index in range(len(self.inputs))]
        return wire.blob(MERGE, b"".join(positions))


class DiffOp(Op):
    """What upper has that lower has not."""

    __slots__ = ("_body",)

    shares_inputs = False

    def __init__(self, lower: Output, upper: Output | None, settings: Settings) -> None:
        super().__init__(settings, ["diffop"], [lower] if upper is None else [lower, upper])
        upper_position = wire.number(b"\x08", -1 if upper is None else 1)
        self._body = wire.blob(DIFF, wire.blob(b"\x0a", b"") + wire.blob(b"\x12", upper_position))

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        return self._body


class PassthroughOp(Op):
    """A filesystem as it is, once others have been built too."""

    __slots__ = ("_body",)

    shares_inputs = False

    def __init__(self, name: str, inputs: Sequence[Output], settings: Settings) -> None:
        super().__init__(settings, ["passthroughop"], inputs)
        self._body = wire.blob(PASSTHROUGH, wire.text(b"\x0a", name) + wire.blob(b"\x12", b"\x00"))

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        return self._body


class BuildOp(Op):
    """A build whose definition is a file of another state."""

    __slots__ = ("_body",)

    writes_platform = True

    def __init__(self, source: Output, filename: str, settings: Settings) -> None:
        super().__init__(settings, ["source.buildop.llbfilename"], [source])
        definition_input = wire.blob(b"\x0a", b"buildkit.llb.definition") + wire.blob(b"\x12", b"")
        attrs = [("llbbuild.filename", filename)] if filename else []
        self._body = wire.blob(
            BUILD,
            wire.number(b"\x08", -1) + wire.blob(b"\x12", definition_input) + wire.text_map(b"\x22", attrs),
        )

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        return self._body
