"""What a build is doing: status updates as values, their fold into steps, and the displays that draw them."""

from __future__ import annotations

from buildkit_py.progress.model import (
    Position,
    ProgressGroup,
    SourceInfo,
    SourceRange,
    StatusUpdate,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
)
from buildkit_py.progress.render import TICK_SECONDS, ProgressMode, Renderer, open_renderer
from buildkit_py.progress.state import (
    BuildProgress,
    Changes,
    LogLine,
    Outcome,
    Step,
    VertexCounts,
    VertexFailure,
    label_name,
    merge_intervals,
)

__all__ = [
    "StatusUpdate",
    "Vertex",
    "VertexStatus",
    "VertexLog",
    "VertexWarning",
    "ProgressGroup",
    "SourceInfo",
    "SourceRange",
    "Position",
    "BuildProgress",
    "Changes",
    "Step",
    "Outcome",
    "LogLine",
    "VertexCounts",
    "VertexFailure",
    "Renderer",
    "ProgressMode",
    "open_renderer",
    "TICK_SECONDS",
    "label_name",
    "merge_intervals",
]
