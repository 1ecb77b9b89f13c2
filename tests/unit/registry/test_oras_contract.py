"""What the client relies on in oras, whose versions promise no stable API."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import oras.auth
import oras.auth.base
import oras.container
import oras.provider
import pytest
import requests

import buildkit_py
from buildkit_py.reference import Reference
from buildkit_py.registry import RegistryConfig, RetryPolicy, StaticCredentials, Timeouts
from buildkit_py.registry._http import Transport
from buildkit_py.registry._oras import OrasRegistry, RepositoryURLs
from buildkit_py.registry.auth import Authorizer

SHA = "sha256:" + "0" * 64


def test_do_request_is_the_one_way_out() -> None:
    """Every request of the registry class goes through the method that is replaced."""
    source = inspect.getsource(oras.provider)
    uses = [line.strip() for line in source.splitlines() if re.search(r"self\.session\b", line)]
    allowed = (
        "self.session: requests.Session = requests.Session()",
        "self.session.cookies.set_policy(",
        "auth_backend, self.session,",
        "response = self.session.request(",
    )
    assert all(line.startswith(allowed) for line in uses), uses
    inside = inspect.getsource(oras.provider.Registry.do_request)
    assert source.count("self.session.request(") == inside.count("self.session.request(")


def test_do_request_has_the_parameters_that_inherited_callers_use() -> None:
    wanted = ["self", "url", "method", "data", "headers", "json", "stream"]
    theirs = inspect.signature(oras.provider.Registry.do_request).parameters
    ours = inspect.signature(OrasRegistry.do_request).parameters
    assert list(theirs) == wanted
    assert list(ours)[: len(wanted)] == wanted
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(ours)[len(wanted) :])


def test_paging_asks_and_checks_as_expected() -> None:
    source = inspect.getsource(oras.provider.Registry._do_paginated_request)
    assert list(inspect.signature(oras.provider.Registry._do_paginated_request).parameters) == [
        "self",
        "url",
        "callable",
    ]
    assert set(re.findall(r"self\.(\w+)", source)) == {"do_request", "headers", "_check_200_response"}


def test_the_auth_backend_is_ours_and_empty() -> None:
    """Inherited code must find nothing to send: not a token, not a password."""
    assert isinstance(oras.auth.auth_backends, dict)
    transport = Transport(RegistryConfig(), timeouts=Timeouts(), retry=RetryPolicy())
    registry = OrasRegistry(transport, Authorizer(transport, StaticCredentials({})))
    assert type(registry.auth) is oras.auth.auth_backends["buildkit_py"]
    assert not isinstance(registry.auth, oras.auth.TokenAuth)
    assert registry.auth.get_auth_header() == {}
    assert registry.auth.authenticate_request(requests.Response(), {}) == ({}, False)
    assert registry.session is transport.session
    assert registry.session.trust_env is False
    transport.close()


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("alpine", "registry-1.docker.io/v2/library/alpine"),
        ("localhost/foo", "localhost/v2/foo"),
        ("r.example:5000/a/b/c:v1", "r.example:5000/v2/a/b/c"),
    ],
)
def test_urls(text: str, host: str) -> None:
    """The URLs are those of oras, for references that its own parser reads wrongly."""
    urls = RepositoryURLs(Reference.parse_normalized(text))
    tag = "v1" if text.endswith(":v1") else "latest"
    assert urls.manifest_url() == f"{host}/manifests/{tag}"
    assert urls.get_blob_url(SHA) == f"{host}/blobs/{SHA}"
    assert urls.upload_blob_url() == f"{host}/blobs/uploads/"
    assert urls.all_tags_url == f"{host}/tags/list"
    pinned = RepositoryURLs(Reference.parse_normalized(f"{text}@{SHA}"))
    assert pinned.manifest_url() == f"{host}/manifests/{SHA}"


def test_oras_is_imported_in_one_module() -> None:
    package = Path(buildkit_py.__file__).parent
    pattern = re.compile(r"^\s*(?:import|from) oras\b", re.MULTILINE)
    found = [path.name for path in package.rglob("*.py") if pattern.search(path.read_text())]
    assert found == ["_oras.py"]


def test_the_validator_of_oras_is_loaded_when_it_is_used() -> None:
    """It takes as long to import as all the rest of oras, and nothing here validates by it."""
    code = (
        "import sys, buildkit_py.registry._oras, oras.provider\n"
        "assert 'jsonschema' not in sys.modules\n"
        "oras.provider.jsonschema.validate({}, {})\n"
        "import jsonschema\n"
        "assert jsonschema is sys.modules['jsonschema'] and jsonschema.validate\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
