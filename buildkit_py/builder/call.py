"""Ask a Dockerfile's frontend about a build instead of building. Source: buildkit, frontend/subrequests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from buildkit_py.builder.build import StatusCallback
from buildkit_py.builder.contexts import is_web
from buildkit_py.builder.identity import node_id
from buildkit_py.builder.registries import OpenRegistries
from buildkit_py.builder.request import BuildRequest, Plan, plan
from buildkit_py.builder.services import ClientServices
from buildkit_py.builder.streams import open_streams
from buildkit_py.client import Client, SolveRequest
from buildkit_py.errors import ProtocolError, SolveError, UnsupportedByDaemon
from buildkit_py.session.auth import Auth

if TYPE_CHECKING:
    from buildkit_py.progress import StatusUpdate
    from buildkit_py.registry import CredentialStore, RegistryConfig

_CAPABILITY = "moby.buildkit.frontend.subrequests"
_UNKNOWN = "unsupported request frontend."


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a frontend answered."""

    method: str
    metadata: Mapping[str, bytes]

    @property
    def text(self) -> str:
        """The answer for people; "" where the frontend gives none."""
        return self.metadata.get("result.txt", b"").decode("utf-8", "replace")

    @property
    def raw_json(self) -> str:
        """The answer for programs, as the frontend wrote it; "" where it gives none."""
        return self.metadata.get("result.json", b"").decode("utf-8", "replace")

    def json(self) -> object:
        """The answer for programs, read; ProtocolError when it is no JSON."""
        try:
            return cast("object", json.loads(self.raw_json))
        except ValueError as error:
            raise ProtocolError(f"call {self.method}: the frontend's answer is no JSON") from error

    @property
    def status(self) -> int:
        """0, or what a command should exit with: a check has found something."""
        text = self.metadata.get("result.statuscode", b"0").decode("ascii", "replace")
        return int(text) if text.isdigit() and len(text) < 4 else 0


async def call(
    client: Client,
    request: BuildRequest,
    method: str,
    *,
    credentials: CredentialStore | None = None,
    registry_config: RegistryConfig | None = None,
    on_status: StatusCallback | None = None,
) -> CallResult:
    """Ask for ``outline``, ``targets``, ``lint`` or whatever else ``subrequests.describe`` lists; nothing is built.

    Raises as build() does; UnsupportedByDaemon for what the frontend does not answer.
    """
    request = await open_streams(request)
    if is_web(request.dockerfile):
        from buildkit_py.builder.webfile import fetch_dockerfile

        request = await fetch_dockerfile(client, request, on_status)
    checked = plan(request)
    registries = OpenRegistries(credentials, registry_config)
    try:
        services = await asyncio.to_thread(ClientServices, checked)
        auth = Auth(registries.credentials, registry_config)
        key = checked.shared_key(await asyncio.to_thread(node_id))
        async with client.open_session([*services.attachables, auth], shared_key=key) as session:
            solve = _solve_request(checked, method)

            def update(status: StatusUpdate) -> None:
                if on_status is not None:
                    on_status("", status)

            try:
                metadata = await client.call_frontend(solve, session=session, on_status=update)
            except SolveError as error:
                if error.code == "UNIMPLEMENTED" or _UNKNOWN in error.message:
                    raise UnsupportedByDaemon(f"call {method}: the frontend does not answer this") from error
                raise
    finally:
        await registries.aclose()
    return CallResult(method, metadata)


def _solve_request(checked: Plan, method: str) -> SolveRequest:
    work = checked.joint_work() if checked.platforms else checked.work(None, directories_session="")
    # A frontend that a Dockerfile brings along may answer too; an old one refuses instead of building.
    attrs = {**work.attrs, "requestid": f"frontend.{method}", "frontend.caps": f"{_CAPABILITY}+forward"}
    attrs = {name: value for name, value in attrs.items() if not name.startswith("attest:")}
    return SolveRequest(
        frontend=work.frontend,
        frontend_attrs=attrs,
        frontend_inputs=work.inputs,
        entitlements=checked.entitlements,
        source_rules=checked.request.source_rules,
        internal=True,
    )
