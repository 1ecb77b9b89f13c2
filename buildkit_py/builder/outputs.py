"""Outputs on this machine: staged while the solves run, in place once all have succeeded, gone otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from buildkit_py.options import ExporterSpec

if TYPE_CHECKING:
    from buildkit_py.builder.destinations import Output
    from buildkit_py.builder.request import Plan
    from buildkit_py.oci import Descriptor
    from buildkit_py.platforms import Platform
    from buildkit_py.session.filesend import FileSend, Target


def check_outputs(plan: Plan) -> None:
    """Raise InvalidOption for an output of this machine that cannot be written. Blocks shortly, makes nothing."""
    if plan.exports.files:
        from buildkit_py.builder.destinations import open_output

        for export in plan.exports.files:
            open_output(export, plan)


class ClientOutputs:
    """The outputs of a plan that go to this machine. Leaving the context removes what was not published."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._outputs: list[Output] = []

    async def __aenter__(self) -> Self:
        """Stage every output; InvalidOption for a destination that cannot be written, before any solve."""
        if not self._plan.exports.files:
            return self
        # Most builds push, or keep what they make with the daemon.
        from buildkit_py.builder.destinations import open_output

        try:
            for export in self._plan.exports.files:
                self._outputs.append(await asyncio.to_thread(open_output, export, self._plan))
        except BaseException:
            await self._discard()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._discard()

    def add(self, output: Output) -> None:
        """One more, which is discarded with the others."""
        self._outputs.append(output)

    def exporters(self, platform: Platform | None) -> tuple[tuple[ExporterSpec, Target], ...]:
        """What the solve of one platform is asked to export here, and where that goes."""
        return tuple(
            (output.exporter(platform), target)
            for output in self._outputs
            if (target := output.target(platform)) is not None
        )

    async def publish(self, order: Sequence[Platform | None]) -> Descriptor | None:
        """Put all outputs in place; the root of the first that is an image."""
        roots = [await output.publish(order) for output in self._outputs]
        return next((root for root in roots if root is not None), None)

    async def _discard(self) -> None:
        for output in self._outputs:
            await output.discard()


def receiver(exporters: Sequence[tuple[ExporterSpec, Target]]) -> FileSend | None:
    """Receives what exporters send that come first among those of a solve; None where there is none."""
    if not exporters:
        return None
    from buildkit_py.session.filesend import FileSend

    return FileSend({position: target for position, (_, target) in enumerate(exporters)})
