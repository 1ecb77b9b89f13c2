"""From ``--addr`` and the TLS flags to a client."""

from __future__ import annotations

import argparse
from contextlib import AbstractAsyncContextManager

from buildkit_py.client import Client, connect
from buildkit_py.errors import InvalidOption
from buildkit_py.rpc import TLSConfig


def open_client(args: argparse.Namespace) -> AbstractAsyncContextManager[Client]:
    """Connect as the flags say; without any, to the usual places in order."""
    return connect(getattr(args, "addr", None), tls=_tls(args))


def _tls(args: argparse.Namespace) -> TLSConfig | None:
    given = {
        name: getattr(args, f"tls{flag}")
        for name, flag in (("ca", "cacert"), ("cert", "cert"), ("key", "key"))
        if hasattr(args, f"tls{flag}")
    }
    server_name: str | None = getattr(args, "tlsservername", None)
    directory: str | None = getattr(args, "tlsdir", None)
    if directory is not None:
        if given:
            raise InvalidOption("--tlsdir: cannot be combined with --tlscacert, --tlscert or --tlskey")
        return TLSConfig.from_dir(directory, server_name=server_name)
    if not given and server_name is None:
        return None
    return TLSConfig(**given, server_name=server_name)
