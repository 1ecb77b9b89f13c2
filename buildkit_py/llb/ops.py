"""One class per op: what a vertex does, ready to be written into a definition.

An op never changes. Its part of the message is encoded when it is made, so that text which has no encoded
form is found then, and so that marshalling a graph again costs little; only the digests of its inputs, the
platform and the filters come from the marshal call.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from buildkit_py.llb import wire
from buildkit_py.llb.capture import Caller, find_caller
from buildkit_py.llb.vertex import Entry, Location, Settings, entry
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


class Op:
    """What a vertex does."""

    __slots__ = ("caller", "dependencies", "entry", "fixed_body", "inputs", "locations", "platform", "require")

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
        """dependencies are the inputs in the order in which they come in a definition, if that is another one."""
        self.inputs = tuple(inputs)
        """In the order of Op.inputs, the same output once if they are shared."""
        order = self.inputs if dependencies is None else dependencies
        self.dependencies = tuple(dict.fromkeys([output.op for output in order]))[::-1]
        """Ops that come earlier in a definition, the first of them last."""
        self.platform = settings.platform
        """What it is for; None leaves it to the marshal call."""
        self.require = settings.require
        self.locations = settings.locations
        self.caller: Caller | None = None if settings.locations else find_caller()
        self.entry = entry(settings.metadata, caps)
        """What is said of it, and the capabilities that it needs of any daemon."""
        self.fixed_body: bytes | None = None
        """What body() gives where no inputs fell together and the daemon's capabilities are not known."""

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        """The member of Op.op with its tag.

        mapping says which input each of self.inputs has become, where states that were made apart turned out to
        be the same; None says that each is its own.
        """
        del call, mapping
        assert self.fixed_body is not None  # ops that have none have their own body()
        return self.fixed_body

    def entry_for(self, call: Call) -> Entry:
        """As entry, for the daemon of a call."""
        del call
        return self.entry


class LoadedOp(Op):
    """A vertex of a definition that was read: its bytes are used as they are."""

    __slots__ = ("data", "has_metadata")

    def __init__(
        self,
        data: bytes,
        inputs: Sequence[Output],
        entry: Entry | None,
        platform: Platform | None,
        locations: tuple[Location, ...],
    ) -> None:
        super().__init__(Settings(platform=platform, locations=locations), (), inputs)
        self.caller = None
        self.data = data
        self.has_metadata = entry is not None
        self.entry = entry or self.entry


class SourceOp(Op):
    """Something that comes from outside: an image, a repository, a directory of the client."""

    __slots__ = ("attrs", "identifier", "unique_id", "writes_platform")

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
        self.fixed_body = None if is_unique and not unique_id else self._encode(self.attrs)

    def body(self, call: Call, mapping: Sequence[int] | None) -> bytes:
        return self.fixed_body or self._encode({**self.attrs, "local.unique": call.unique_id})

    def _encode(self, attrs: Mapping[str, str]) -> bytes:
        return wire.blob(SOURCE, wire.text(b"\x0a", self.identifier) + wire.text_map(b"\x12", attrs.items()))


class MergeOp(Op):
    """Filesystems laid over each other, the last on top."""

    __slots__ = ()

    shares_inputs = False

    def __init__(self, inputs: Sequence[Output], settings: Settings) -> None:
        super().__init__(settings, ["mergeop"], inputs)
        positions = [wire.blob(b"\x0a", wire.number(b"\x08", index)) for index in range(len(inputs))]
        self.fixed_body = wire.blob(MERGE, b"".join(positions))


class DiffOp(Op):
    """What upper has that lower has not."""

    __slots__ = ()

    shares_inputs = False

    def __init__(self, lower: Output, upper: Output | None, settings: Settings) -> None:
        super().__init__(settings, ["diffop"], [lower] if upper is None else [lower, upper])
        upper_position = wire.number(b"\x08", -1 if upper is None else 1)
        self.fixed_body = wire.blob(DIFF, wire.blob(b"\x0a", b"") + wire.blob(b"\x12", upper_position))


class PassthroughOp(Op):
    """A filesystem as it is, once others have been built too."""

    __slots__ = ()

    shares_inputs = False

    def __init__(self, name: str, inputs: Sequence[Output], settings: Settings) -> None:
        super().__init__(settings, ["passthroughop"], inputs)
        self.fixed_body = wire.blob(PASSTHROUGH, wire.text(b"\x0a", name) + wire.blob(b"\x12", b"\x00"))


class BuildOp(Op):
    """A build whose definition is a file of another state."""

    __slots__ = ()

    writes_platform = True

    def __init__(self, source: Output, filename: str, settings: Settings) -> None:
        super().__init__(settings, ["source.buildop.llbfilename"], [source])
        definition_input = wire.blob(b"\x0a", b"buildkit.llb.definition") + wire.blob(b"\x12", b"")
        attrs = [("llbbuild.filename", filename)] if filename else []
        self.fixed_body = wire.blob(
            BUILD,
            wire.number(b"\x08", -1) + wire.blob(b"\x12", definition_input) + wire.text_map(b"\x22", attrs),
        )
