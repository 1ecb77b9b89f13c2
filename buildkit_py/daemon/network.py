"""A bridge for the containers of one private dockerd, with three firewall rules of its own.

dockerd can do this itself, but its chains and docker0 are the machine's: each dockerd that starts flushes what the
others wrote. So ours runs with ``iptables`` off, on a bridge that is made here and bears the daemon's tag.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import itertools
import logging
import shlex
import shutil
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from buildkit_py.daemon.processes import run

_log = logging.getLogger(__name__)

SUBNETS = ipaddress.IPv4Network("10.213.0.0/16")
"""Where the /24 of a bridge is taken from; docker's own pools are 172.16.0.0/12 and 192.168.0.0/16."""

# Source: Linux, include/uapi/linux/sockios.h and if.h.
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_SIOCBRADDBR, _SIOCBRDELBR = 0x89A0, 0x89A1
_IFF_UP = 1


def make_bridge(name: str) -> ipaddress.IPv4Network:
    """Make a bridge that is up, in a subnet that no route of this machine uses; the gateway is its first host.

    Raise OSError when the kernel refuses, or no subnet is free.
    """
    subnet = free_subnet(name, used_networks(Path("/proc/net/route").read_text()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(control, _SIOCBRADDBR, name.encode() + b"\0")
        try:
            fcntl.ioctl(control, _SIOCSIFADDR, _with_address(name, subnet[1]))
            fcntl.ioctl(control, _SIOCSIFNETMASK, _with_address(name, subnet.netmask))
            _set_up(control, name, up=True)
        except OSError:
            remove_bridge(name)
            raise
    return subnet


def remove_bridge(name: str) -> None:
    """Remove the bridge, if there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            _set_up(control, name, up=False)
            fcntl.ioctl(control, _SIOCBRDELBR, name.encode() + b"\0")
        except OSError as error:
            if error.errno not in {errno.ENODEV, errno.ENXIO}:
                raise


async def add_rules(name: str, subnet: ipaddress.IPv4Network, path: str) -> None:
    """Let containers on the bridge reach other networks; where that cannot be, say so in the log and go on."""
    iptables = shutil.which("iptables", path=path)
    if iptables is None:
        _log.warning("no iptables on this machine: RUN steps reach no network but this host")
        return
    comment = ("-m", "comment", "--comment", name)
    established = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
    for rule in (
        ("-t", "nat", "-A", "POSTROUTING", "-s", str(subnet), "!", "-o", name, *comment, "-j", "MASQUERADE"),
        # First, because the policy of FORWARD is DROP where an engine of the machine made it so.
        ("-I", "FORWARD", "-i", name, "!", "-o", name, *comment, "-j", "ACCEPT"),
        ("-I", "FORWARD", "-o", name, *established, *comment, "-j", "ACCEPT"),
    ):
        code, output = await run([iptables, "-w", "5", *rule])
        if code:
            _log.warning("RUN steps reach no network but this host: iptables: %s", output)
            return


async def remove_rules(name: str, path: str) -> None:
    """Remove every rule that bears the bridge's name."""
    iptables = shutil.which("iptables", path=path)
    if iptables is None:
        return
    for table in ("nat", "filter"):
        code, output = await run([iptables, "-w", "5", "-t", table, "-S"])
        for rule in tagged_rules(output, name) if code == 0 else ():
            await run([iptables, "-w", "5", "-t", table, "-D", *rule])


def tagged_rules(listing: str, name: str) -> list[list[str]]:
    """Chain and specification of each rule with the comment, from what ``iptables -S`` prints."""
    rules = (shlex.split(line) for line in listing.splitlines() if line.startswith("-A "))
    return [rule[1:] for rule in rules if ("--comment", name) in itertools.pairwise(rule)]


def used_networks(routes: str) -> list[ipaddress.IPv4Network]:
    """Destinations of the routes in ``/proc/net/route``, the default route left out."""
    networks: list[ipaddress.IPv4Network] = []
    for line in routes.splitlines()[1:]:
        fields = line.split()
        # Addresses are printed as the machine's integers; all that run containers are little-endian or s390x.
        destination, mask = (socket.inet_ntoa(struct.pack("=I", int(fields[i], 16))) for i in (1, 7))
        if mask != "0.0.0.0":  # noqa: S104  # a netmask, not an address to listen on
            networks.append(ipaddress.IPv4Network(f"{destination}/{mask}", strict=False))
    return networks


def free_subnet(name: str, used: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """A /24 that overlaps none of the networks; where the search begins depends on the name.

    Two daemons that start at the same moment so rarely look at the same one first.
    """
    taken = list(used)
    subnets = list(SUBNETS.subnets(new_prefix=24))
    first = sum(name.encode()) % len(subnets)
    for subnet in (*subnets[first:], *subnets[:first]):
        if not any(subnet.overlaps(network) for network in taken):
            return subnet
    raise OSError(errno.EADDRNOTAVAIL, f"every network in {SUBNETS} is in use")


def _with_address(name: str, address: ipaddress.IPv4Address) -> bytes:
    """A struct ifreq with an IPv4 address."""
    return struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, address.packed)


def _set_up(control: socket.socket, name: str, *, up: bool) -> None:
    answer: bytes = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sh22x", name.encode(), 0))
    flags: int = struct.unpack_from("h", answer, 16)[0]
    flags = flags | _IFF_UP if up else flags & ~_IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags))
