"""A toolchain image, built from scratch: a compiler, what it needs to run, and nothing else.

Run: python examples/llb/toolchain.py linux/amd64 linux/arm64 | buildkit-py solve -t localhost:5000/toolchain --push

What to look at: an image that starts from the empty filesystem and gets its files from another one; a process
that works in a mount which was empty at first, and of which only the mount is used; several file actions in one
vertex; a test of the result, which is a vertex of its own; and that what the state says of environment and
directory becomes the image's.
"""

from __future__ import annotations

import argparse

from buildkit_py import llb
from buildkit_py.platforms import Platform

# The config of an image is not part of its filesystem, so what the process needs of it is said here.
PATH = "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

COLLECT = """
set -e
root=$(go env GOROOT)
mkdir -p /out/usr/local/go
for part in bin lib pkg src VERSION go.env; do
    if [ -e "$root/$part" ]; then cp -aL "$root/$part" /out/usr/local/go/; fi
done
"""


def compiler(source: llb.State) -> llb.State:
    """The Go tree of an image, wherever that has it, under /usr/local/go."""
    return source.run(
        ["sh", "-c", COLLECT],
        env={"PATH": PATH},
        network="none",
        mounts=[llb.bind("/out")],
        custom_name="collect the compiler",
    ).mount("/out")


def system(source: llb.State) -> llb.State:
    """A root with a shell, the libraries that programs load, and the files that they look for."""
    return llb.scratch().file(
        llb.Mkdir("/etc"),
        llb.Mkdir("/root", 0o700),
        llb.Mkdir("/tmp", 0o777),  # noqa: S108  # of the image, not of this machine
        llb.Mkdir("/work"),
        llb.Mkfile("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        llb.Copy(source, "/bin", "/bin"),
        llb.Copy(source, "/lib*", "/", allow_wildcard=True),
        custom_name="make a root",
    )


def build(platform: Platform, golang: str = "golang:alpine") -> llb.State:
    """The image for one platform."""
    source = llb.image(golang, platform=platform)
    image = system(source).with_platform(platform).copy(compiler(source), "/", "/", dir_contents_only=True)
    # Processes from here on, and those of the image, start with this.
    image = image.with_env({"PATH": PATH, "GOROOT": "/usr/local/go"}).with_cwd("/work")
    # An exec whose changes are the image's: it fails the build if the compiler does not work.
    return image.run(
        ["sh", "-c", "go version > /etc/toolchain"],
        env={"HOME": "/root"},
        network="none",
        custom_name="try the compiler",
    )


CONFIG = llb.ImageConfig(cmd=["go", "version"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the definitions of a toolchain image.")
    parser.add_argument("platforms", nargs="*", default=["linux/amd64"])
    parser.add_argument("--golang", default="golang:alpine", help="image to take the compiler from")
    args = parser.parse_args()
    llb.emit(lambda platform: build(platform, args.golang), args.platforms, config=CONFIG)


if __name__ == "__main__":
    main()
