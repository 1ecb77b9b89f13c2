"""Reach a daemon: addresses, TLS, connections, and gRPC's errors as ours."""

from __future__ import annotations

import os

if "GRPC_VERBOSITY" not in os.environ:
    # gRPC's C core would log to stderr, where progress is drawn. It reads the variable when it is first
    # imported, so child processes need not see it.
    os.environ["GRPC_VERBOSITY"] = "NONE"
    import grpc as _  # noqa: F401

    del os.environ["GRPC_VERBOSITY"]

from buildkit_py.rpc.address import Address, default_addresses
from buildkit_py.rpc.connection import Connection, open_connection
from buildkit_py.rpc.status import (
    exit_code_in,
    map_rpc_error,
    map_solve_error,
    mapped,
    parse_status,
    solve_error,
    status_details,
)
from buildkit_py.rpc.tls import TLSConfig

__all__ = [
    "Address",
    "default_addresses",
    "TLSConfig",
    "Connection",
    "open_connection",
    "map_rpc_error",
    "map_solve_error",
    "mapped",
    "solve_error",
    "parse_status",
    "status_details",
    "exit_code_in",
]
