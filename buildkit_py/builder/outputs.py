"""Outputs on this machine: staged while the solves run, in place once all have succeeded, gone otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from buildkit_py.builder.request import Plan
from buildkit_py.options import ExporterSpec

if TYPE_CHECKING:
    from buildkit_py.builder.destinations import Output
    from buildkit_py.oci import Descriptor
    from buildkit_py.platforms import Platform
    from buildkit_py.session.filesend import FileSend


def check_outputs(plan: Plan) -> None:
    """Raise InvalidOption for an output of this machine that cannot be written. Blocks shortly, makes nothing."""
    for spec in plan.outputs:
        _open(spec, plan)


class ClientOutputs:
    """The outputs of a plan that go to this machine. Leaving the context removes what was not published."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._outputs: list[Output | None] = []

    @property
    def exporters(self) -> tuple[ExporterSpec, ...]:
        """What each solve is asked to export, in the order of the outputs."""
        return tuple(_exporter(spec, platforms=bool(self._plan.platforms)) for spec in self._plan.outputs)

    async def __aenter__(self) -> Self:
        """Stage every output; InvalidOption for a destination that cannot be written, before any solve."""
        try:
            for spec in self._plan.outputs:
                self._outputs.append(await asyncio.to_thread(_open, spec, self._plan))
        except BaseException:
            await self._discard()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._discard()

    def attachable(self, platform: Platform | None, *, first_exporter: int) -> FileSend | None:
        """Receives the exports of one platform's solve; None where all stays with the daemon."""
        targets = {
            first_exporter + position: output.target(platform)
            for position, output in enumerate(self._outputs)
            if output is not None
        }
        if not targets:
            return None
        from buildkit_py.session.filesend import FileSend

        return FileSend(targets)

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        """Put all outputs in place; the root of the first that is an image."""
        roots = [await output.publish(order) for output in self._outputs if output is not None]
        return next((root for root in roots if root is not None), None)

    async def _discard(self) -> None:
        for output in self._outputs:
            if output is not None:
                await output.discard()


def _exporter(spec: ExporterSpec, *, platforms: bool) -> ExporterSpec:
    """Without what a daemon would do for one of the platforms alone, and is done here for all of them.

    A layout is merged of streams, files go into directories by platform, and what is not exported is deleted once.
    """
    ours = {"oci": ["tar"], "local": ["mode", *(["platform-split"] if platforms else [])]}.get(spec.type, ())
    return ExporterSpec(type=spec.type, attrs={key: value for key, value in spec.attrs.items() if key not in ours})


def _open(spec: ExporterSpec, plan: Plan) -> Output | None:
    if spec.dest is None:
        return None
    # Most builds push, or keep what they make with the daemon.
    from buildkit_py.builder.destinations import open_output

    return open_output(spec, spec.dest, plan)
