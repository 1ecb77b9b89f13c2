"""A long-lived process that builds with the library over one connection, and tells what each build cost.

``python -m tests.benchmarks.warm ADDRESS``: requests come on stdin, one JSON object a line with the fields of a
BuildRequest and how many such builds to run ``at_once``; out go ``wall``, ``cpu``, ``peak`` (bytes, so far) and
``publish``.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

from buildkit_py import BuildRequest, ExporterSpec, build, connect


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main(address: str) -> None:
    async with connect(address) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            fields = json.loads(line)
            at_once = int(fields.pop("at_once"))
            fields["outputs"] = [ExporterSpec.parse(text) for text in fields["outputs"]]
            request = BuildRequest(**fields)
            began, cpu = time.perf_counter(), _cpu()
            async with asyncio.TaskGroup() as tasks:
                builds = [tasks.create_task(build(client, request)) for _ in range(at_once)]
            result = builds[0].result()
            answer = {
                "wall": time.perf_counter() - began,
                "cpu": _cpu() - cpu,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "publish": result.publish_seconds,
            }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
