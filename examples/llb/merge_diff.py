"""Tools as independent layers: each is installed beside the others, and all are laid over the base.

Run: python examples/llb/merge_diff.py linux/arm64 | buildkit-py llb graph --format svg > graph.svg
     python examples/llb/merge_diff.py linux/amd64 linux/arm64 | buildkit-py solve -t localhost:5000/tools --push

What to look at: the installs do not wait for each other, and changing one leaves the layers of the others as they
are, which no chain of RUN lines can do. A diff is what an install changed; a merge puts diffs over the base without
copying files.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from buildkit_py import llb
from buildkit_py.platforms import Platform

TOOLS = {
    "greet": 'echo "Hello from $(uname -m)"',
    "today": "date -u +%F",
    "count": 'ls "${1:-.}" | wc -l',
}

# Stands for any installer, such as a package manager: it runs on the base and changes it.
INSTALL = """
set -e
mkdir -p /usr/local/bin
printf '#!/bin/sh\\n%s\\n' "$SCRIPT" > "/usr/local/bin/$TOOL"
chmod 755 "/usr/local/bin/$TOOL"
"""


def installed(base: llb.State, tool: str, script: str) -> llb.State:
    """What installing a tool changes."""
    after = base.run(
        ["sh", "-c", INSTALL],
        env={"TOOL": tool, "SCRIPT": script},
        network="none",
        custom_name=f"install {tool}",
        progress_group=llb.ProgressGroup(id="tools", name="tools"),
    )
    return llb.diff(base, after, custom_name=f"files of {tool}")


def build(platform: Platform, tools: Mapping[str, str] = TOOLS, base: str = "alpine") -> llb.State:
    """The image for one platform: the base with all tools, and a file that lists them."""
    image = llb.image(base, platform=platform)
    listed = llb.scratch().file(
        llb.Mkdir("/etc"),
        llb.Mkfile("/etc/tools", "".join([f"{tool}\n" for tool in tools])),
    )
    layers = [installed(image, tool, script) for tool, script in tools.items()]
    return llb.merge(image, *layers, listed, custom_name="all tools")


CONFIG = llb.ImageConfig(cmd=["/usr/local/bin/greet"], labels={"tools": " ".join(TOOLS)})


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the definitions of an image of merged layers.")
    parser.add_argument("platforms", nargs="*", default=["linux/amd64"])
    parser.add_argument("--base", default="alpine", help="image to install the tools on")
    args = parser.parse_args()
    llb.emit(lambda platform: build(platform, base=args.base), args.platforms, config=CONFIG)


if __name__ == "__main__":
    main()
