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
from buildkit_py.errors import RegistryError
from buildkit_py.reference import Reference
from buildkit_py.registry._http import Response
from buildkit_py.registry._oras import RepositoryURLs
from buildkit_py.registry._oras_provider import OrasRegistry

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
    assert list(ours) == wanted


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

    def nothing(url: str) -> Response:
        raise AssertionError(url)

    registry = OrasRegistry(nothing)
    assert type(registry.auth) is oras.auth.auth_backends["buildkit_py"]
    assert not isinstance(registry.auth, oras.auth.TokenAuth)
    assert registry.auth.get_auth_header() == {}
    assert registry.auth.authenticate_request(requests.Response(), {}) == ({}, False)
    with pytest.raises(RegistryError, match="was not expected"):
        registry.do_request("http://localhost/v2/a/manifests/v1", "PUT", data=b"x")


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


def test_oras_is_imported_in_two_modules() -> None:
    package = Path(buildkit_py.__file__).parent
    pattern = re.compile(r"^\s*(?:import|from) oras\b", re.MULTILINE)
    found = {path.name for path in package.rglob("*.py") if pattern.search(path.read_text())}
    assert found == {"_oras.py", "_oras_provider.py"}


def test_the_validator_of_oras_is_loaded_when_it_is_used() -> None:
    """It takes as long to import as all the rest of oras, and nothing here validates by it."""
    code = (
        "import sys, buildkit_py.registry._oras_provider, oras.provider\n"
        "assert 'jsonschema' not in sys.modules\n"
        "oras.provider.jsonschema.validate({}, {})\n"
        "import jsonschema\n"
        "assert jsonschema is sys.modules['jsonschema'] and jsonschema.validate\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_page_needs_no_more_of_oras_than_its_urls() -> None:
    """What a copy or a join loads is what it uses."""
    code = (
        "import sys, buildkit_py.registry.client\n"
        "heavy = {'oras.provider', 'requests', 'urllib3', 'http.client', 'email'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
