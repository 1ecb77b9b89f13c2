"""A Dockerfile that is named by its URL: the daemon fetches it, as it does everything else of a build."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from buildkit_py.builder.contexts import is_web
from buildkit_py.builder.request import BuildRequest, plan
from buildkit_py.errors import InvalidOption, SolveError

if TYPE_CHECKING:
    from buildkit_py.builder.build import StatusCallback
    from buildkit_py.client import Client
    from buildkit_py.progress import StatusUpdate
    from buildkit_py.session.attachable import Attachable

MAX_DOCKERFILE_BYTES = 2 << 20


async def fetch_dockerfile(client: Client, request: BuildRequest, on_status: StatusCallback | None) -> BuildRequest:
    """The request with the Dockerfile's content in place of its URL; one without a URL comes back as it is.

    Everything else of the request is checked first. Raises SolveError when the daemon cannot fetch the file, and
    InvalidOption for one that is empty or of more than MAX_DOCKERFILE_BYTES.
    """
    url = request.dockerfile
    if not is_web(url):
        return request
    plan(request)
    from buildkit_py import llb

    attachables: list[Attachable] = []
    if request.source_policy is not None:
        from buildkit_py.session.policy import SourcePolicy

        attachables.append(SourcePolicy(request.source_policy))
    parts = urlsplit(url)
    # Without a password, and without the query, which may hold one.
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    source = llb.http(url, filename="Dockerfile", custom_name=f"[internal] load {shown}")

    def update(status: StatusUpdate) -> None:
        if on_status is not None:
            on_status("", status)

    try:
        content = await client.read_file(
            llb.marshal(source, source_map=False),
            "Dockerfile",
            max_bytes=MAX_DOCKERFILE_BYTES + 1,
            attachables=attachables,
            source_rules=request.source_rules,
            on_status=update,
        )
    except SolveError as error:
        error.hint = f"the daemon cannot fetch the Dockerfile {shown}"
        raise
    if not content.strip():
        raise InvalidOption(f"dockerfile: {shown} is empty")
    if len(content) > MAX_DOCKERFILE_BYTES:
        raise InvalidOption(f"dockerfile: {shown} is more than {MAX_DOCKERFILE_BYTES} bytes")
    return replace(request, dockerfile=content)
