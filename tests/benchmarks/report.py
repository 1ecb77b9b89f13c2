"""What a run found, as a table and as JSON."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tests.benchmarks.cases import Aim, Metric, Outcome
from tests.benchmarks.contenders import Sample

PEER = "buildx"
_PACKAGES = ("grpcio", "protobuf", "h2", "oras", "requests")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One aim and what came of it."""

    case: str
    contender: str
    metric: Metric
    ours: float
    peer: float | None
    """Median of the peer; None where it does not do the same."""
    ratio: float | None
    aim: str
    met: bool


def rows(outcome: Outcome) -> list[Row]:
    """One for each aim of the case."""
    return [_row(outcome, aim) for aim in outcome.case.aims]


def machine() -> dict[str, object]:
    """Where and with what this runs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(models) or None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def header(facts: Mapping[str, object]) -> str:
    """The facts as lines."""
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {value}" for name, value in facts.items())


def table(outcome: Outcome) -> str:
    """Medians, with the whole range of what was measured, and whether they meet the aims."""
    lines = [f"{outcome.case.name}: {outcome.case.title}"]
    for name, samples in outcome.samples.items():
        walls = [sample.wall for sample in samples]
        parts = [f"wall {median(walls):7.3f} s ({min(walls):.3f} to {max(walls):.3f}, {len(walls)} runs)"]
        parts += [f"{metric} {_shown(metric, _median(samples, metric))}" for metric in ("cpu", "peak")]
        if samples[0].publish is not None:
            parts.append(f"publish {_shown('publish', _median(samples, 'publish'))}")
        lines.append(f"  {name:7} {', '.join(parts)}")
    lines.append(f"  {'process':8}{'what':8}{'ours':>11}{PEER:>11}{'ratio':>8}  {'aim':12}result")
    for row in rows(outcome):
        peer = "" if row.peer is None else _shown(row.metric, row.peer)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        lines.append(
            f"  {row.contender:8}{row.metric:8}{_shown(row.metric, row.ours):>11}{peer:>11}{ratio:>8}  "
            f"{row.aim:12}{'met' if row.met else 'MISSED'}"
        )
    return "\n".join(lines)


def as_json(facts: Mapping[str, object], outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Everything, every sample included."""
    return {
        "facts": dict(facts),
        "cases": [
            {
                "name": outcome.case.name,
                "title": outcome.case.title,
                "rows": [asdict(row) for row in rows(outcome)],
                "samples": {name: [asdict(sample) for sample in some] for name, some in outcome.samples.items()},
            }
            for outcome in outcomes
        ],
    }


def _row(outcome: Outcome, aim: Aim) -> Row:
    ours = _median(outcome.samples[aim.contender], aim.metric)
    peers = outcome.samples.get(PEER)
    peer = None if peers is None or aim.metric == "publish" else _median(peers, aim.metric)
    measured = ours
    if aim.of_peer:
        assert peer is not None, "an aim that is a multiple needs a peer"
        measured = ours / peer
    return Row(
        case=outcome.case.name,
        contender=aim.contender,
        metric=aim.metric,
        ours=ours,
        peer=peer,
        ratio=None if peer is None else ours / peer,
        aim=f"<= {aim.limit:.1f}x" if aim.of_peer else f"< {_shown(aim.metric, aim.limit)}",
        met=measured <= aim.limit if aim.of_peer else measured < aim.limit,
    )


def _median(samples: Sequence[Sample], metric: Metric) -> float:
    values = [getattr(sample, metric) for sample in samples]
    if metric == "peak":
        # Memory has no noise to be rid of: what counts is how bad it gets.
        return float(max(values))
    return float(median(values))


def _shown(metric: Metric, value: float) -> str:
    return f"{value / 1e6:.0f} MB" if metric == "peak" else f"{value:.3f} s"
