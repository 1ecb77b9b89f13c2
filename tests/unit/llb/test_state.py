"""What flows along from state to state, and what does not."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime

import pytest

from buildkit_py import llb
from buildkit_py.pb import ops_pb2
from buildkit_py.platforms import Platform

BASE = llb.image("alpine")


def exec_of(state: llb.State, platform: str = "linux/amd64") -> ops_pb2.Op:
    """The op of the last exec."""
    definition = llb.marshal(state, platform=platform)
    return definition.op([vertex.digest for vertex in definition.vertexes if vertex.kind == "exec"][-1])


def file_actions(state: llb.State) -> list[ops_pb2.FileAction]:
    definition = llb.marshal(state, platform="linux/amd64")
    return list(definition.op(definition.vertexes[-1].digest).file.actions)


def test_the_example_of_the_package() -> None:
    assert doctest.testmod(llb).failed == 0
    assert doctest.testmod(llb).attempted > 0


def test_states_never_change() -> None:
    before = BASE.with_env({"A": "1"})
    before.with_env({"A": "2"}).with_cwd("/x").run("true")
    assert before.env == {"A": "1"}
    assert before.cwd == "/"
    with pytest.raises(AttributeError):
        before.output = None  # type: ignore[misc]  # that it cannot be set is the point


def test_a_variable_that_is_set_again_moves_to_the_end() -> None:
    state = BASE.with_env({"A": "1", "B": "2"}).with_env({"A": "3"})
    assert list(state.env.items()) == [("B", "2"), ("A", "3")]
    assert state.without_env("B", "unknown").env == {"A": "3"}


def test_values_of_one_run_are_for_it_alone() -> None:
    state = BASE.with_cwd("/w").with_user("u")
    after = state.run("true", env={"A": "1"}, cwd="sub", user="other", hostname="h")
    meta = exec_of(after).exec.meta
    assert (list(meta.env), meta.cwd, meta.user, meta.hostname) == (["A=1"], "/w/sub", "other", "h")
    assert (after.env, after.cwd, after.user) == ({}, "/w", "u")


def test_hosts_and_limits_are_added_to_those_of_the_state() -> None:
    state = BASE.with_host("a", "::1").with_ulimit("core", 0, 0)
    meta = exec_of(state.run("true", hosts={"b": "::ffff:1.2.3.4"}, ulimits=[llb.Ulimit("cpu", 1, 2)])).exec.meta
    assert [(host.Host, host.IP) for host in meta.extraHosts] == [("a", "::1"), ("b", "1.2.3.4")]
    assert [limit.Name for limit in meta.ulimit] == ["core", "cpu"]


def test_no_exit_codes_are_as_if_none_were_given() -> None:
    assert llb.marshal(BASE.run("x", valid_exit_codes=[]), platform="linux/amd64", source_map=False) == llb.marshal(
        BASE.run("x"), platform="linux/amd64", source_map=False
    )


def test_an_image_config_sets_environment_directory_and_platform() -> None:
    config = {
        "os": "linux",
        "architecture": "arm",
        "config": {"Env": ["PATH=/bin", "=x", "EMPTY"], "WorkingDir": "app", "User": "nobody", "Cmd": ["sh"]},
    }
    state = llb.image("alpine", config=config, digest="sha256:" + "b" * 64)
    assert state.env == {"PATH": "/bin", "EMPTY": ""}
    assert (state.cwd, state.user, str(state.platform)) == ("/app", "", "linux/arm/v7")
    (vertex,) = llb.marshal(state, platform="linux/amd64").vertexes
    assert vertex.name == "docker-image://docker.io/library/alpine:latest@sha256:" + "b" * 64
    assert llb.image("alpine@sha256:" + "a" * 64, digest="sha256:" + "b" * 64).output is not None


@pytest.mark.parametrize(
    ("own", "state_platform", "expected"),
    [
        (None, None, "linux/amd64"),
        (None, "linux/arm64", "linux/arm64"),
        ("linux/s390x", "linux/arm64", "linux/s390x"),
    ],
)
def test_the_nearest_platform_counts(own: str | None, state_platform: str | None, expected: str) -> None:
    state = BASE if state_platform is None else BASE.with_platform(state_platform)
    made = state.run("true") if own is None else state.run("true", platform=own)
    assert str(Platform.from_pb(exec_of(made).platform)) == expected
    # What was said for one exec goes on with its result.
    assert str(Platform.from_pb(exec_of(made.run("false")).platform)) == expected


def test_a_mount_that_is_read_only_is_its_source() -> None:
    other = llb.image("busybox")
    made = BASE.run("true", mounts=[llb.bind("/m", other, readonly=True)])
    assert made.mount("/m").output is other.output
    assert BASE.run("true", readonly_root=True).output is BASE.output


def test_mount_outputs_have_no_values() -> None:
    made = BASE.with_env({"A": "1"}).with_cwd("/w").run("make", mounts=[llb.bind("/out")])
    assert (made.mount("/out").env, made.mount("/out").cwd) == ({}, "/")


def test_old_daemons_are_told_the_path() -> None:
    """Only when it is known that the daemon would not set it, not over a PATH of one's own, not on Windows."""
    default = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def env(state: llb.State, platform: str, caps: set[str] | None) -> list[str]:
        definition = llb.marshal(state, platform=platform, daemon_caps=caps)
        return list(definition.op(definition.vertexes[-1].digest).exec.meta.env)

    made = BASE.run("true", ssh=[llb.SSH()])
    agent = "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"
    assert env(made, "linux/amd64", None) == [agent]
    assert env(made, "linux/amd64", {"exec.meta.setsdefaultpath"}) == [agent]
    assert env(made, "linux/amd64", set()) == [agent, default]
    assert env(made, "windows/amd64", set()) == [agent]
    assert env(BASE.run("true", env={"PATH": "/x"}), "linux/amd64", set()) == ["PATH=/x"]


def test_equal_inputs_that_were_made_apart_become_one() -> None:
    """In an exec, in a file vertex and in its chains: positions follow."""
    first, second, third = (llb.image("alpine") for _ in range(3))
    made = first.run("true", mounts=[llb.bind("/a", llb.image("busybox")), llb.bind("/b", second)])
    op = exec_of(made)
    assert len(op.inputs) == 2
    assert [mount.input for mount in op.exec.mounts] == [0, 1, 0]
    chain = llb.Chain(third, (llb.Mkdir("/x", owner="u"),))
    actions = file_actions(first.file(llb.Copy(second, "/a", "/b"), llb.Copy(chain, "/x", "/y")))
    assert [(action.input, action.secondaryInput) for action in actions] == [(0, 0), (0, -1), (1, 2)]
    assert actions[1].mkdir.owner.user.byName.input == 0


def test_a_chain_that_is_copied_twice_is_there_once() -> None:
    chain = llb.Chain(BASE, (llb.Mkfile("/a"),))
    actions = file_actions(llb.scratch().file(llb.Copy(chain, "/a", "/b"), llb.Copy(chain, "/a", "/c")))
    assert [action.WhichOneof("action") for action in actions] == ["mkfile", "copy", "copy"]


@pytest.mark.parametrize(
    ("owner", "user", "group"),
    [
        ("root", 0, None),
        ("1:2", 1, 2),
        ("app:0", "app", 0),
        ("app:", "app", 0),
        (":staff", 0, "staff"),
        ("4294967296", "4294967296", None),
        ((1, 2), 1, 2),
    ],
)
def test_owners(owner: str | tuple[int, int], user: int | str, group: int | str | None) -> None:
    (action,) = file_actions(BASE.mkdir("/d", owner=owner))
    found: list[int | str | None] = []
    for name in ("user", "group"):
        message: ops_pb2.UserOpt = getattr(action.mkdir.owner, name)
        is_there = action.mkdir.owner.HasField(name)
        found.append(None if not is_there else message.byName.name if message.HasField("byName") else message.byID)
    assert found == [user, group]


def test_times_are_nanoseconds() -> None:
    moment = datetime(2020, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    (action,) = file_actions(BASE.mkdir("/d", created=moment))
    assert action.mkdir.timestamp == 1_577_836_800_000_001_000
    (unset,) = file_actions(BASE.mkdir("/d"))
    assert unset.mkdir.timestamp == -1


def test_what_cannot_be_an_op_is_a_state_already() -> None:
    scratch = llb.scratch()
    assert llb.merge().is_scratch
    assert llb.merge(scratch, BASE) is BASE
    assert llb.diff(scratch, BASE) is BASE
    assert llb.diff(scratch, scratch).is_scratch
    assert BASE.requires("x") is BASE


def test_local_directories_are_unique_to_a_build() -> None:
    """Unless that is said otherwise: two builds at once must not get each other's files."""
    first, second = (llb.marshal(llb.local("context"), source_map=False) for _ in range(2))
    assert first != second
    fixed = [llb.marshal(llb.local("context"), source_map=False, unique_id="u") for _ in range(2)]
    assert fixed[0] == fixed[1]


def test_the_call_comes_before_the_vertex_and_the_state_before_the_call() -> None:
    state = llb.image("alpine", require=["c"], description={"k": "vertex"}).with_marshal_defaults(
        platform="linux/arm64", require=["a"], description={"k": "state", "s": "1"}
    )
    (vertex,) = llb.marshal(state, require=["b"], description={"k": "call", "t": "2"}).vertexes
    assert vertex.require == ("a", "b", "c")
    assert vertex.description == {"k": "vertex", "s": "1", "t": "2"}
    assert str(vertex.platform) == "linux/arm64"


def test_a_description_of_the_call_does_not_leak_from_vertex_to_vertex() -> None:
    state = llb.image("alpine", custom_name="base").run("true")
    first, second = llb.marshal(state, platform="linux/amd64", description={"build": "1"}).vertexes
    assert (first.name, second.name) == ("base", "true")
    assert second.description == {"build": "1"}


def test_reprs_are_short() -> None:
    state: llb.State = BASE
    for _ in range(50):
        state = state.run("true")
    assert len(repr(state)) < 80
    assert len(repr(llb.marshal(state, platform="linux/amd64"))) < 120
