"""Contexts and Dockerfiles that come as streams, such as on standard input: looked at before anything else."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace

from buildkit_py import tarstream
from buildkit_py.builder.contexts import Context, DockerfileSource
from buildkit_py.builder.request import BuildRequest
from buildkit_py.errors import InvalidOption, ProtocolError
from buildkit_py.session.upload import Readable, Replay

MAX_DOCKERFILE_BYTES = 16 << 20
_HEAD_BYTES = 1024
# What the Dockerfile frontend unpacks. Source: moby/buildkit, frontend/dockerui/context.go.
_COMPRESSED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00")


async def open_streams(request: BuildRequest) -> BuildRequest:
    """The request with its streams looked at: an archive becomes a Replay, anything else is a Dockerfile.

    Waits for the streams. Raises InvalidOption for streams that are empty, cannot be read, or are both the context
    and the Dockerfile. A request without streams comes back as it is.
    """
    if request.context == "-" and request.dockerfile == "-":
        raise InvalidOption("dockerfile: standard input cannot be both the context and the Dockerfile")
    dockerfile = request.dockerfile
    if _is_stream(dockerfile) and not isinstance(dockerfile, bytes):
        dockerfile = await _whole(_replay(dockerfile))
    context = request.context
    if not _is_stream(context):
        if dockerfile is request.dockerfile:
            return request
        return replace(request, context=context, dockerfile=dockerfile)
    stream = _replay(context)
    head = await _head(stream)
    if not head:
        raise InvalidOption(f"context: {stream.what} is empty; expected a tar archive or a Dockerfile")
    if is_archive(head):
        return replace(request, context=stream, dockerfile=dockerfile)
    if dockerfile is not None:
        raise InvalidOption(f"dockerfile: one is given, and {stream.what} is no tar archive but a Dockerfile too")
    return replace(request, context=None, dockerfile=await _whole(stream))


def is_archive(head: bytes) -> bool:
    """Whether the daemon would unpack what begins so: a tar archive, also one compressed by gzip, bzip2 or xz."""
    if head.startswith(_COMPRESSED):
        return True
    block = head[: tarstream.BLOCK]
    if len(block) < tarstream.BLOCK or not any(block):
        return False
    try:
        tarstream.TarReader().feed(block)
    except ProtocolError:
        return False
    return True


def _is_stream(source: Context | DockerfileSource) -> bool:
    return (
        source == "-"
        or isinstance(source, bytes)
        or (source is not None and not isinstance(source, (str, os.PathLike, Replay)))
    )


def _replay(source: Context | DockerfileSource) -> Replay:
    if source == "-":
        return Replay(sys.stdin.buffer)
    if isinstance(source, bytes):
        return Replay(io.BytesIO(source), what="the content")
    assert source is not None
    assert not isinstance(source, (str, os.PathLike, Replay))
    stream: Readable = source
    return Replay(stream, what="the stream")


async def _head(stream: Replay) -> bytes:
    try:
        return await stream.head(_HEAD_BYTES)
    except OSError as error:
        raise InvalidOption(f"{stream.what} cannot be read: {error.strerror or error}") from error


async def _whole(stream: Replay) -> bytes:
    try:
        content = await stream.head(MAX_DOCKERFILE_BYTES + 1)
    except OSError as error:
        raise InvalidOption(f"{stream.what} cannot be read: {error.strerror or error}") from error
    if not content.strip():
        raise InvalidOption(f"dockerfile: {stream.what} is empty")
    if len(content) > MAX_DOCKERFILE_BYTES:
        raise InvalidOption(f"dockerfile: {stream.what} is more than {MAX_DOCKERFILE_BYTES} bytes")
    return content
