"""Cost of writing and reading definitions, next to what no Python client can do without.

Run: python -m tests.benchmarks.bench_llb

The floor of writing is to serialise the same ops with the protobuf runtime, from messages that are there already,
and to hash them; the floor of reading is to parse the definition and its ops with it, and to hash them. Both run in
the same process, in turns with ours. Times are of the CPU, the best of several runs. Our writing makes the whole
definition: metadata, source locations and digests of inputs, which the floor of ops alone leaves out; the second
floor also serialises the definition's message.

What a vertex costs grows with very large graphs, of the second floor as well: two maps of a definition are written in
the order of digests, so that each entry is fetched from another place, and 100,000 of them are more than a cache holds.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable
from hashlib import sha256

import google.protobuf
from google.protobuf.internal import api_implementation

from buildkit_py import llb
from buildkit_py.pb import ops_pb2

RUNS = 5


def chain(count: int) -> llb.State:
    """An image and processes, each on the result of the one before."""
    state: llb.State = llb.image("busybox")
    for number in range(count - 1):
        state = state.run(["step", str(number)])
    return state


def fan_in() -> llb.State:
    """A merge of 100 merges of 100 processes."""
    base = llb.image("busybox")
    rows = [[base.run(["part", f"{row}.{column}"]) for column in range(100)] for row in range(100)]
    return llb.merge(*[llb.merge(*row) for row in rows])


def files(count: int) -> llb.State:
    """Files of 100 bytes, each written by a vertex of its own."""
    state = llb.scratch()
    for number in range(count):
        state = state.mkfile(f"/file{number}", b"x" * 100)
    return state


GRAPHS: dict[str, Callable[[], llb.State]] = {
    "chain of 1,000": lambda: chain(1_000),
    "chain of 10,000": lambda: chain(10_000),
    "chain of 100,000": lambda: chain(100_000),
    "fan-in 100 x 100": fan_in,
    "5,000 file ops": lambda: files(5_000),
}


def best(work: Callable[[], object]) -> float:
    """Least CPU seconds of several runs."""
    times: list[float] = []
    for _ in range(RUNS):
        gc.collect()
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def write_floor(ops: list[ops_pb2.Op]) -> None:
    for op in ops:
        sha256(op.SerializeToString(deterministic=True)).hexdigest()


def read_floor(data: bytes) -> None:
    message = ops_pb2.Definition.FromString(data)
    for blob in getattr(message, "def"):
        sha256(blob).hexdigest()
        ops_pb2.Op.FromString(blob)


def measure(name: str, make: Callable[[], llb.State]) -> None:
    """One line of the table."""
    start = time.process_time()
    state = make()
    made = time.process_time() - start
    definition = llb.marshal(state, platform="linux/amd64")
    count = len(definition.vertexes)
    ops = [definition.op(vertex.digest) for vertex in definition.vertexes]
    message, data = definition.to_pb(), definition.to_bytes()

    write = best(lambda: llb.marshal(state, platform="linux/amd64").to_bytes())
    plain = best(lambda: llb.marshal(state, platform="linux/amd64", source_map=False).to_bytes())
    floor = best(lambda: write_floor(ops))
    whole = floor + best(lambda: message.SerializeToString(deterministic=True))
    read = best(lambda: llb.Definition.parse(data))
    low = best(lambda: read_floor(data))
    each = [f"{seconds / count * 1e6:6.2f}" for seconds in (made, write, plain, floor, whole, read, low)]
    ratios = [f"{ratio:5.2f}" for ratio in (write / floor, plain / floor, write / whole, read / low)]
    print(f"{name:18}{count:8}  {' '.join(each)}  {' '.join(ratios)}", flush=True)


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, ", end="")
    print(f"protobuf {google.protobuf.__version__} ({api_implementation.Type()}); microseconds of CPU for each vertex")
    print("write: marshal with source lines; plain: without; ops: floor; +def: floor with the definition's message")
    columns = ("make", "write", "plain", "ops", "+def", "read", "floor")
    print(f"{'':18}{'vertexes':>8}  {' '.join([f'{c:>6}' for c in columns])}  w/ops p/ops w/+def read/floor")
    for name, make in GRAPHS.items():
        measure(name, make)


if __name__ == "__main__":
    main()
