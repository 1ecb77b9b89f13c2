"""What an exec vertex sees besides its root: directories, secrets and agents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from buildkit_py.errors import InvalidOption
from buildkit_py.llb import check
from buildkit_py.llb.base import is_state

if TYPE_CHECKING:
    from buildkit_py.llb.state import State

Sharing = Literal["shared", "private", "locked"]
ContentCache = Literal["default", "on", "off"]

SHARING = {"shared": 0, "private": 1, "locked": 2}
CONTENT_CACHE = {"default": 0, "on": 1, "off": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Mount:
    """A directory that an exec vertex sees; bind(), cache() and tmpfs() make the usual kinds."""

    target: str
    """Where it is mounted; a relative one is the daemon's to resolve."""
    source: State | None = None
    """What is in it at first; None is nothing."""
    readonly: bool = False
    selector: str = ""
    """Directory inside of source that is mounted, instead of all of it."""
    no_output: bool = False
    """Drop what the exec writes to it."""
    content_cache: ContentCache = "default"
    cache_id: str = ""
    """Makes it a cache: a directory that outlives the build, under this id."""
    cache_sharing: Sharing = "shared"
    """What happens to builds that use the same cache at the same time."""
    is_tmpfs: bool = False
    tmpfs_size: int = 0
    """Most bytes that a tmpfs may hold; 0 leaves it to the daemon."""

    def __post_init__(self) -> None:
        check.path("Mount(target)", self.target)
        if self.source is not None:
            is_state("Mount(source)", self.source)
        check.text("Mount(selector)", self.selector)
        check.text("Mount(cache_id)", self.cache_id)
        check.choice("Mount(content_cache)", self.content_cache, CONTENT_CACHE)
        check.choice("Mount(cache_sharing)", self.cache_sharing, SHARING)
        for name in ("readonly", "no_output", "is_tmpfs"):
            check.boolean(f"Mount({name})", getattr(self, name))
        check.integer("Mount(tmpfs_size)", self.tmpfs_size, (0, check.INT64[1]))
        if self.target == "/":
            raise InvalidOption("Mount(target='/'): the root is the state that run() is called on")
        if self.is_tmpfs and self.cache_id:
            raise InvalidOption(f"Mount(is_tmpfs=True, cache_id={self.cache_id!r}): expected one of them")
        if self.cache_sharing != "shared" and not self.cache_id:
            raise InvalidOption(f"Mount(cache_sharing={self.cache_sharing!r}): needs cache_id")
        if self.tmpfs_size and not self.is_tmpfs:
            raise InvalidOption(f"Mount(tmpfs_size={self.tmpfs_size}): needs is_tmpfs=True")
        if self.is_tmpfs and self.source is not None and self.source.output is not None:
            raise InvalidOption("Mount(source): a tmpfs starts empty")

    @property
    def has_output(self) -> bool:
        """Whether what is written to it can be used afterwards."""
        return not (self.no_output or self.readonly or self.cache_id or self.is_tmpfs)


def bind(
    target: str,
    source: State | None = None,
    *,
    readonly: bool = False,
    selector: str = "",
    no_output: bool = False,
    content_cache: ContentCache = "default",
) -> Mount:
    """Mount a state, or an empty directory; what is written to it is ExecState.mount(target)."""
    return Mount(target, source, readonly, selector, no_output, content_cache)


def cache(
    target: str,
    *,
    id: str | None = None,  # the field's word
    sharing: Sharing = "shared",
    source: State | None = None,
    selector: str = "",
    readonly: bool = False,
) -> Mount:
    """Mount a directory that the daemon keeps between builds, under id, which is target where not given."""
    cache_id = check.path("target", target) if id is None else check.filled("id", id)
    return Mount(target, source, readonly, selector, cache_id=cache_id, cache_sharing=sharing)


def tmpfs(target: str, *, size: int = 0) -> Mount:
    """Mount an empty directory that lives in memory and ends with the exec."""
    return Mount(target, is_tmpfs=True, tmpfs_size=size)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret of the session, as a file, an environment variable, or both."""

    id: str
    target: str | None = None
    """File to mount it as; /run/secrets/<id> where neither target nor env is given."""
    env: str | None = None
    """Environment variable to set to it."""
    uid: int = 0
    gid: int = 0
    mode: int = 0o400
    optional: bool = False
    """Go on without it where the session has none."""

    def __post_init__(self) -> None:
        check.filled("Secret(id)", self.id)
        if self.env is not None:
            check.variables("Secret(env)", [(self.env, "")])
        if self.target is not None:
            check.path("Secret(target)", self.target)
        elif self.env is None:
            object.__setattr__(self, "target", f"/run/secrets/{self.id}")
        _check_file("Secret", self.uid, self.gid, self.mode, self.optional)


@dataclass(frozen=True, slots=True)
class SSH:
    """Agent of the session, as a socket; SSH_AUTH_SOCK names the first one."""

    id: str = ""
    """Which of the session's agents; "" is the default one."""
    target: str = ""
    """Where the socket is; "" is a place of its own under /run/buildkit."""
    uid: int = 0
    gid: int = 0
    mode: int = 0o600
    optional: bool = False
    """Go on without it where the session has none."""

    def __post_init__(self) -> None:
        check.text("SSH(id)", self.id)
        if check.text("SSH(target)", self.target):
            check.path("SSH(target)", self.target)
        _check_file("SSH", self.uid, self.gid, self.mode, self.optional)


def _check_file(owner: str, uid: int, gid: int, mode: int, optional: bool) -> None:
    check.integer(f"{owner}(uid)", uid, check.UINT32)
    check.integer(f"{owner}(gid)", gid, check.UINT32)
    check.mode(f"{owner}(mode)", mode)
    check.boolean(f"{owner}(optional)", optional)


@dataclass(frozen=True, slots=True)
class Device:
    """A CDI device, such as vendor.com/gpu=0."""

    name: str
    optional: bool = False

    def __post_init__(self) -> None:
        check.filled("Device(name)", self.name)
        check.boolean("Device(optional)", self.optional)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Proxies that a process is told of, in variables that do not change the cache key."""

    http: str = ""
    https: str = ""
    ftp: str = ""
    no: str = ""
    """Hosts to reach without a proxy, with commas between them."""
    all: str = ""

    def __post_init__(self) -> None:
        for name in ("http", "https", "ftp", "no", "all"):
            check.text(f"Proxy({name})", getattr(self, name))


RLIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A resource limit of the processes, such as nofile."""

    name: str
    soft: int
    hard: int

    def __post_init__(self) -> None:
        check.choice("Ulimit(name)", self.name, RLIMITS)
        check.integer("Ulimit(soft)", self.soft)
        check.integer("Ulimit(hard)", self.hard)
