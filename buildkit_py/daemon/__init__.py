"""A private daemon on this machine, started from binaries that are found here: for demos, tests and trying out.

All that it has lies in one state directory, but for its sockets: they are in a short directory below ``/run``,
because the path of a unix socket has at most 107 bytes. It shares nothing with other daemons: own data, own process
group, own cgroup, and for dockerd an own bridge with own rules, so that several run side by side with the machine's.
"""

from __future__ import annotations

from buildkit_py.daemon.launch import (
    DaemonKind,
    DaemonOptions,
    DaemonStatus,
    default_state_dir,
    find_daemon,
    start,
    status,
    stop,
)

__all__ = [
    "DaemonKind",
    "DaemonOptions",
    "DaemonStatus",
    "default_state_dir",
    "find_daemon",
    "start",
    "status",
    "stop",
]
