"""Wrong use fails when the call is made, with the argument named. Each public argument is here at least once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from buildkit_py import llb
from buildkit_py.errors import InvalidOption
from tests.support.llb_arguments import ALPINE as BASE
from tests.support.llb_arguments import DIGEST, OPTIONS, SUBJECTS, VERTEXES, Argument, L

ROWS = [
    (subject, name, position)
    for subject, described in SUBJECTS.items()
    for name, argument in described.arguments.items()
    for position in range(len(argument.refused))
]
OPTION_ROWS = [
    (subject, name, position)
    for subject in VERTEXES
    for name, argument in OPTIONS.items()
    for position in range(len(argument.refused))
]


def refuse(subject: str, name: str, argument: Argument, value: object) -> str:
    """The message when this is given for the argument."""
    described = SUBJECTS[subject]
    with pytest.raises(InvalidOption) as caught:
        described.call(**{**described.needs, **argument.beside, name: value})
    return str(caught.value)


@pytest.mark.parametrize(("subject", "name", "position"), ROWS)
def test_wrong_use_names_the_argument(subject: str, name: str, position: int) -> None:
    argument = SUBJECTS[subject].arguments[name]
    wanted = SUBJECTS[subject].named.format(argument.named or name)
    assert wanted in refuse(subject, name, argument, argument.refused[position])


@pytest.mark.parametrize(("subject", "name", "position"), OPTION_ROWS)
def test_so_do_the_options_of_every_vertex(subject: str, name: str, position: int) -> None:
    assert name in refuse(subject, name, OPTIONS[name], OPTIONS[name].refused[position])


@pytest.mark.parametrize("name", sorted(llb.CallOptions.__optional_keys__))
def test_so_do_those_of_a_marshal_call(name: str) -> None:
    for value in OPTIONS[name].refused:
        with pytest.raises(InvalidOption, match=name):
            L.marshal(BASE, **{"platform": "linux/amd64", name: value})
        with pytest.raises(InvalidOption, match=name):
            BASE.with_marshal_defaults(**{name: value})


# Arguments that do not go together: (what is called, what the message names).
TOGETHER: Mapping[str, tuple[Callable[[], object], str]] = {
    "differ_required alone": (lambda: L.local("a", differ_required=True), "differ_required"),
    "metadata_only_exceptions alone": (
        lambda: L.local("a", metadata_only_exceptions=["x"]),
        "metadata_only_exceptions",
    ),
    "bundle without checksum": (lambda: L.git("h/x", bundle=f"oci-layout+blob://x@{DIGEST}"), "checksum"),
    "bundle_session_id alone": (lambda: L.git("h/x", bundle_session_id="x"), "bundle_session_id"),
    "bundle_store_id alone": (lambda: L.git("h/x", bundle_store_id="x"), "bundle_store_id"),
    "checkout_bundle and subdir": (lambda: L.git("h/x", checkout_bundle=True, subdir="d"), "checkout_bundle"),
    "checkout_bundle and keep_git_dir": (lambda: L.git("h/x", checkout_bundle=True, keep_git_dir=True), "keep_git_dir"),
    "fetch_by_commit of a branch": (lambda: L.git("h/x", ref="main", fetch_by_commit=True), "fetch_by_commit"),
    "fetch_by_commit of part of a commit": (lambda: L.git("h/x", checksum="abc", fetch_by_commit=True), "checksum"),
    "require_signed_tag alone": (lambda: L.git("h/x", require_signed_tag=True), "require_signed_tag"),
    "ignore_signed_tag alone": (lambda: L.git("h/x", ignore_signed_tag=True), "ignore_signed_tag"),
    "reject_expired_keys alone": (lambda: L.git("h/x", reject_expired_keys=True), "reject_expired_keys"),
    "a signed tag that is required and ignored": (
        lambda: L.git("h/x", signature_public_key="k", require_signed_tag=True, ignore_signed_tag=True),
        "require_signed_tag",
    ),
    "signature alone": (lambda: L.http("http://h/x", signature="x"), "signature_public_key"),
    "signature_public_key alone": (lambda: L.http("http://h/x", signature_public_key="x"), "signature"),
    "two mounts in one place": (lambda: BASE.run("x", mounts=[L.bind("/a"), L.tmpfs("/a")]), "mounts"),
    "output of a mount without": (
        lambda: BASE.run("x", mounts=[L.bind("/c", no_output=True)]).mount("/c"),
        "target",
    ),
    "output of a cache": (lambda: BASE.run("x", mounts=[L.cache("/c")]).mount("/c"), "target"),
    "cache and tmpfs": (lambda: L.Mount("/a", cache_id="x", is_tmpfs=True), "cache_id"),
    "cache_sharing alone": (lambda: L.Mount("/a", cache_sharing="locked"), "cache_sharing"),
    "tmpfs_size alone": (lambda: L.Mount("/a", tmpfs_size=1), "tmpfs_size"),
    "tmpfs with a source": (lambda: L.Mount("/a", BASE, is_tmpfs=True), "Mount(source)"),
    "requires of scratch": (lambda: L.scratch().requires("x", BASE), "requires"),
    "build of scratch": (lambda: L.scratch().build(), "build"),
    "no platform": (lambda: L.marshal(BASE), "platform"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_does_not_go_together_names_the_argument(name: str) -> None:
    call, argument = TOGETHER[name]
    with pytest.raises(InvalidOption) as caught:
        call()
    assert argument in str(caught.value)


def test_an_unknown_option_is_a_type_error() -> None:
    """As for any Python function; the message lists what there is."""
    with pytest.raises(TypeError, match=r"colour.*custom_name"):
        L.image("a", colour="red")


def test_chains_cannot_be_nested_without_end() -> None:
    def nested(depth: int) -> llb.Chain:
        chain = llb.Chain(BASE, (llb.Rm("/a"),))
        for _ in range(depth):
            chain = llb.Chain(BASE, (llb.Copy(chain, "/a", "/b"),))
        return chain

    assert BASE.copy(nested(10), "/b", "/c") is not None
    with pytest.raises(InvalidOption, match="deep"):
        nested(1000)


def test_messages_have_no_password() -> None:
    with pytest.raises(InvalidOption) as caught:
        llb.git("https://user:hunter2@host:port/x")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidOption) as caught:
        llb.http("ftp://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


# What calls give; nobody makes these.
OUTCOMES = {"Comparison", "VertexChange", "FieldChange", "Vertex", "Input"}
# Made by the functions of this package alone: State by scratch() and the sources, and so on.
NOT_CALLED = {"State", "ExecState", "Definition", "Format", "VertexOptions", "CallOptions"}


def public_calls() -> dict[str, Any]:
    """Everything that is called with arguments, by its name."""
    calls = {name: getattr(llb, name) for name in llb.__all__ if name not in OUTCOMES | NOT_CALLED}
    for owner in (llb.State, llb.ExecState):
        for name, member in vars(owner).items():
            if inspect.isfunction(member) and name[0] != "_" and name != "on_output":
                calls[f"{owner.__name__}.{name}"] = member
    return calls | {"Definition.parse": llb.Definition.parse}


def test_every_argument_of_every_public_call_is_refused_something() -> None:
    """A new function, or a new argument, without values above fails, and so do values for one that is gone."""
    calls = public_calls()
    assert calls.keys() == SUBJECTS.keys()
    for name, call in calls.items():
        assert call == SUBJECTS[name].function
        parameters = inspect.signature(call).parameters.values()
        wanted = {p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
        assert wanted == SUBJECTS[name].arguments.keys(), name
        takes_options = any(p.kind is p.VAR_KEYWORD for p in parameters)
        assert takes_options == (name in {*VERTEXES, "marshal", "State.with_marshal_defaults"}), name
    assert OPTIONS.keys() == llb.VertexOptions.__optional_keys__
    arguments = [argument for subject in SUBJECTS.values() for argument in subject.arguments.values()]
    assert all(argument.refused for argument in [*arguments, *OPTIONS.values()])
