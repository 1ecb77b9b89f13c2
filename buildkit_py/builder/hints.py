"""What to try when a solve failed for a reason that this library knows more about than the daemon says."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence

from buildkit_py.errors import BuildKitError, SolveError, UnsupportedByDaemon
from buildkit_py.platforms import Platform
from buildkit_py.progress import StatusUpdate
from buildkit_py.records import Worker

_REFUSED = re.compile(
    r"\b(?:401 Unauthorized|403 Forbidden|authorization failed|insufficient_scope|no basic auth credentials|denied)\b"
)
_HOST = re.compile(r"https?://([A-Za-z0-9.\-]+(?::\d+)?|\[[0-9A-Fa-f:]+\](?::\d+)?)/")
_NO_PLATFORM = re.compile(r"(?:^|: )(\S+): failed to resolve source metadata for .*: no match for platform in manifest")
_NO_AGENT = re.compile(r'no SSH key "([^"]+)" forwarded from the client')
_NO_EXPORTER = re.compile(r'exporter "([a-z]+)" could not be found')
_NO_CACHE_EXPORTER = re.compile(r'unknown cache exporter: "([^"]+)"')
_NO_CACHE_IMPORTER = re.compile(r"unknown cache importer: (\S+)")
_PLAIN_HTTP = "server gave HTTP response to HTTPS client"


def check_exporters(error: SolveError, address: str) -> None:
    """Raise UnsupportedByDaemon where the solve failed, before it began, for an exporter that the daemon lacks."""
    if cache := _NO_CACHE_EXPORTER.search(error.message):
        raise UnsupportedByDaemon(f"cache-to type={cache[1]}: the daemon at {address} has no such caches") from error
    lacking = _NO_EXPORTER.search(error.message)
    if lacking is None:
        return
    what = f'the daemon at {address} has no exporter "{lacking[1]}"'
    if address.startswith("docker://"):
        what = (
            f"the engine at {address} has the classic image store, and so cannot push images or export layouts "
            f'(no exporter "{lacking[1]}"); turn on its containerd image store'
        )
    raise UnsupportedByDaemon(what) from error


def missing_cache(update: StatusUpdate) -> str:
    """The type of a cache that the daemon cannot import, by what it says of the step; it builds without it. Or ""."""
    for vertex in update.vertexes:
        if found := _NO_CACHE_IMPORTER.search(vertex.error):
            return found[1]
    return ""


async def hint_for(
    error: SolveError, platform: Platform | None, workers: Callable[[], Coroutine[object, object, Sequence[Worker]]]
) -> str:
    """One line of advice, or "". workers is asked only where its answer helps."""
    if "exec format error" in "\n".join((error.message, *error.log_tail)):
        return await _emulation_hint(platform, workers)
    if "string field contains invalid UTF-8" in error.message:
        return "this daemon does not take names that are not UTF-8; leave them out by a pattern in .dockerignore"
    if found := _NO_AGENT.search(error.message):
        return f"forward an agent (--ssh {found[1]}) or a key (--ssh {found[1]}=FILE)"
    if found := _NO_PLATFORM.search(error.message):
        wanted = "the daemon's platform" if platform is None else str(platform)
        return (
            f"{found[1]} is not made for {wanted}; buildkit-py imagetools inspect {found[1]} lists what it is made for"
        )
    host = _HOST.search(error.message)
    if _PLAIN_HTTP in error.message:
        name = host[1] if host else "the registry"
        return f"{name} speaks plain HTTP: name it as insecure in the daemon's configuration"
    if host and _REFUSED.search(error.message):
        return f"log in first (docker login {host[1]}), or pass credentials that may do this"
    return ""


async def _emulation_hint(
    platform: Platform | None, workers: Callable[[], Coroutine[object, object, Sequence[Worker]]]
) -> str:
    try:
        found = await workers()
    except BuildKitError:
        return ""
    return found[0].emulation_hint(platform) if found else ""
