"""Exporters that are chosen when the result of a solve is known.

Source: moby/buildkit v0.32, session/exporter and solver/llbsolver/export.go.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from buildkit_py.options import ExporterSpec
from buildkit_py.session.attachable import FIND_EXPORTERS, Call, Handler, only_message

FINALIZE_EXPORT = "/moby.exporter.v1.Exporter/FinalizeExport"

ExporterChooser: TypeAlias = Callable[
    [Mapping[str, bytes], Sequence[str]], "Sequence[ExporterSpec] | Awaitable[Sequence[ExporterSpec]]"
]
"""Gets the result's metadata, such as ``containerimage.config``, and the ids of its refs; gives further exporters.
Runs on the event loop. Streams of these exporters have the positions that follow those of the request."""


class SessionExporter:
    """Chooses exporters for the solves of its session, and keeps what they answered."""

    def __init__(self, choose: ExporterChooser) -> None:
        self._choose = choose
        self.response: Mapping[str, str] | None = None
        """What all exporters of the solve answered, once they are done; older daemons do not tell."""

    def methods(self) -> Mapping[str, Handler]:
        """See Attachable."""
        return {FIND_EXPORTERS: self._find, FINALIZE_EXPORT: self._finalize}

    async def _find(self, call: Call) -> None:
        from buildkit_py.pb import exporter_pb2  # hardly anybody asks

        request = exporter_pb2.FindExportersRequest.FromString(await only_message(call))
        given = self._choose(MappingProxyType(dict(request.metadata)), tuple(request.refs))
        chosen = await given if inspect.isawaitable(given) else given
        reply = exporter_pb2.FindExportersResponse(
            exporters=[exporter_pb2.ExporterRequest(Type=spec.type, Attrs=dict(spec.attrs)) for spec in chosen]
        )
        await call.send(reply.SerializeToString())

    async def _finalize(self, call: Call) -> None:
        from buildkit_py.pb import exporter_pb2

        request = exporter_pb2.FinalizeExportRequest.FromString(await only_message(call))
        self.response = MappingProxyType(dict(request.exporter_response))
        await call.send(b"")


__all__ = ["ExporterChooser", "SessionExporter"]
