"""A cross-compiled program: the compiler runs on the daemon's own platform, the result is for another one.

Run: python examples/llb/cross_compile.py linux/amd64 linux/arm/v7 | \\
         buildkit-py solve --local context=examples/hello-arch -t localhost:5000/hello --push

What to look at: one state is fixed to the builder's platform, so that no emulator runs a compiler; the source is a
directory of the client, mounted and not copied; and the final image is for the platform of the marshal call.
"""

from __future__ import annotations

import argparse

from buildkit_py import llb
from buildkit_py.platforms import Platform

# The config of an image is not part of its filesystem, so what the compiler needs of it is said here.
PATH = "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GO_ARCHITECTURES = {"386", "amd64", "arm", "arm64", "ppc64le", "riscv64", "s390x"}


def go_env(target: Platform) -> dict[str, str]:
    """How Go is told what to compile for."""
    if target.architecture not in GO_ARCHITECTURES:
        raise SystemExit(f"no Go compiler for {target}")
    env = {"PATH": PATH, "CGO_ENABLED": "0", "GOOS": target.os, "GOARCH": target.architecture}
    if target.architecture == "arm":
        env["GOARM"] = target.variant.removeprefix("v") or "7"
    return env


def program(target: Platform, builder: str, golang: str) -> llb.State:
    """A directory with the compiled program."""
    source = llb.local("context", exclude_patterns=[".git"], shared_key_hint="hello")
    compiled = llb.image(golang, platform=builder).run(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", "/out/hello", "."],
        cwd="/src",
        env=go_env(target),
        mounts=[
            llb.bind("/src", source, readonly=True),
            llb.bind("/out"),
            llb.cache("/root/.cache/go-build", id="go-build"),
        ],
        custom_name=f"compile for {target}",
    )
    return compiled.mount("/out")


def build(
    platform: Platform, builder: str = "linux/amd64", golang: str = "golang:alpine", base: str = "alpine"
) -> llb.State:
    """The image for one platform, compiled on another; "context" is a directory with a Go program."""
    return llb.image(base).copy(program(platform, builder, golang), "/hello", "/usr/local/bin/hello", mode=0o755)


CONFIG = llb.ImageConfig(cmd=["/usr/local/bin/hello"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the definitions of a cross-compiled image.")
    parser.add_argument("platforms", nargs="*", default=["linux/arm64"])
    parser.add_argument("--builder", default="linux/amd64", help="platform that the compiler runs on")
    parser.add_argument("--golang", default="golang:alpine", help="image with the compiler")
    parser.add_argument("--base", default="alpine", help="image to put the program into")
    args = parser.parse_args()
    llb.emit(lambda platform: build(platform, args.builder, args.golang, args.base), args.platforms, config=CONFIG)


if __name__ == "__main__":
    main()
