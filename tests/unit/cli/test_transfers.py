"""Counts of files in the progress of a build."""

from __future__ import annotations

import io

import pytest

from buildkit_py.builder.transfers import TransferCounts
from buildkit_py.cli.transfers import TransferProgress
from buildkit_py.progress import StatusUpdate, Vertex, open_renderer

NAMES = {
    "context": "[internal] load build context",
    "dockerfile": "[internal] load build definition from My.Dockerfile",
    "deps": "[context deps] load from client",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("mode", "shown"), [("plain", True), ("rawjson", False)])
def test_long_transfers_are_counted_at_their_step(name: str, mode: str, shown: bool) -> None:
    """And those that end at once are not; programs have the daemon's words alone."""
    now, stream = 1000.0, io.StringIO()
    renderer = open_renderer(mode, stream, env={}, clock=lambda: now)
    progress = TransferProgress(renderer.update, lambda: now)
    vertex = Vertex(digest="sha256:1", name=NAMES[name], started_ns=int(now * 1e9))
    progress.on_status("", StatusUpdate(vertexes=(vertex,)))
    progress.on_transfer(TransferCounts(name=name, visited=3, listed=3))
    progress.on_transfer(TransferCounts(name="other", visited=1))
    renderer.tick()
    assert "seen" not in stream.getvalue()
    for visited in (20_000, 40_000):
        now += 10
        counts = TransferCounts(
            name=name, visited=visited, listed=12_345, requested=500, files_sent=120, bytes_sent=4_500_000
        )
        progress.on_transfer(counts)
        renderer.tick()
    now += 10
    progress.on_transfer(TransferCounts(name=name, visited=50_000, done=True))
    progress.on_transfer(TransferCounts(name=name, visited=1))
    renderer.finish(failed=False)
    text = stream.getvalue()
    assert ("#1 20,000 entries seen, 12,345 listed, 120 of 500 files sent, 4.50MB" in text) is shown
    assert ("#1 50,000 entries seen" in text) is shown
    assert "#1 1 entries" not in text
