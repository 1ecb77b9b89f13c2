"""Caches of a build for several platforms: one for each, by a name of its own.

Two platforms that export to one name would overwrite each other, and a cache of one platform is of little use to the
others. So for several platforms the name of each platform is appended:

======== =========================================== ==================================
type     what is named                               ``linux/arm64``
======== =========================================== ==================================
registry the tag of ref                              ``registry/app:cache-linux-arm64``
local    the tag in ``index.json`` of the directory  ``latest-linux-arm64``
gha      scope                                       ``buildkit-linux-arm64``
s3,      every name of the list                      ``buildkit-linux-arm64``
azblob
======== =========================================== ==================================

An import means all of these and the name as it stands, such as the image itself with its inline cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from buildkit_py.errors import InvalidOption, InvalidReference
from buildkit_py.options import CacheSpec
from buildkit_py.platforms import Platform
from buildkit_py.reference import Reference

if TYPE_CHECKING:
    from configparser import RawConfigParser

_LOG = logging.getLogger(__name__)

_MAX_TAG = 128
_DEFAULT_NAME = "buildkit"
_NAMES = {"local": ("tag", "latest"), "gha": ("scope", _DEFAULT_NAME), "s3": ("name", _DEFAULT_NAME)}
_NAMES["azblob"] = _NAMES["s3"]
"""Attribute that tells caches of a type in one place apart, and its default."""
_PLACES: Mapping[str, tuple[str, ...]] = {
    "local": ("dest",),
    "gha": ("url", "url_v2", "repository"),
    "s3": ("bucket", "region", "endpoint_url", "prefix", "manifests_prefix"),
    "azblob": ("account_url", "account_name", "container", "prefix", "manifests_prefix"),
}
"""Attributes that say where caches of a type are."""
_AWS_SOURCES = ("sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file")
_AWS_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""What docker buildx would ask somebody else for."""
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """What each platform's solve imports and exports."""

    imports: tuple[CacheSpec, ...]
    """The same for all platforms: a step for the build platform may have been cached with another one."""
    exports: Mapping[Platform | None, tuple[CacheSpec, ...]]


def plan_caches(
    imports: Sequence[CacheSpec],
    exports: Sequence[CacheSpec],
    platforms: Sequence[Platform],
    *,
    environ: Mapping[str, str] | None = None,
    warn: bool = False,
) -> Caches:
    """Check caches and give every platform its own; raise InvalidOption for attributes that make no sense.

    Credentials that docker buildx would take from the environment are added. With warn, exports of one platform that
    would overwrite each other are warned of. Blocks shortly where there are local caches.
    """
    environ = os.environ if environ is None else environ
    imports = [spec for given in imports if (spec := _with_environment(given, environ, warn)) is not None]
    exports = [spec for given in exports if (spec := _with_environment(given, environ, warn)) is not None]
    for spec in imports:
        _check(spec, "cache-from")
    for spec in exports:
        _check(spec, "cache-to")
    each: Sequence[Platform | None] = platforms or (None,)
    many = len(each) > 1
    planned: dict[Platform | None, tuple[CacheSpec, ...]] = {}
    for platform in each:
        own = tuple(_of_platform(spec, platform) if many and platform else spec for spec in exports)
        planned[platform] = own
        _check_overwrites(own, warn)
    found = [spec for given in imports for spec in _all_of(given, platforms if many else ())]
    return Caches(imports=tuple(_distinct(found)), exports=MappingProxyType(planned))


def _check(spec: CacheSpec, option: str) -> None:
    spec.check(option)
    if spec.type == "registry":
        try:
            reference = Reference.parse_normalized(spec.attrs["ref"])
        except InvalidReference as error:
            raise InvalidOption(f"{option} type=registry: {error}") from error
        if option == "cache-to" and reference.digest is not None:
            raise InvalidOption(f"{option} type=registry: ref={spec.attrs['ref']}: a name to write has no digest")
    elif spec.type == "local":
        from buildkit_py.session.localcache import check_local_export, check_local_import

        (check_local_import if option == "cache-from" else check_local_export)(spec)


def _of_platform(spec: CacheSpec, platform: Platform) -> CacheSpec:
    """The cache of one platform among several."""
    suffix = _suffix(platform)
    attrs = dict(spec.attrs)
    if spec.type == "registry":
        reference = Reference.parse_normalized(attrs["ref"])
        tag = reference.tag_or_latest + suffix
        if len(tag) > _MAX_TAG:
            raise InvalidOption(
                f"cache ref={attrs['ref']}: tag {tag} of {platform} has more than {_MAX_TAG} characters"
            )
        attrs["ref"] = str(reference.with_tag(tag))
    elif spec.type in _NAMES:
        key, default = _NAMES[spec.type]
        names = (attrs.get(key) or default).split(";") if key == "name" else [attrs.get(key) or default]
        attrs[key] = ";".join(f"{name}{suffix}" for name in names if name)
    return replace(spec, attrs=MappingProxyType(attrs))


def _suffix(platform: Platform) -> str:
    return "-" + str(platform).replace("/", "-").replace("(", "-").replace(")", "").replace("+", "-")


def _all_of(spec: CacheSpec, platforms: Sequence[Platform]) -> Iterator[CacheSpec]:
    """The cache that spec names and, unless that is the one of a platform or a digest, those of the platforms."""
    yield spec
    key = "ref" if spec.type == "registry" else _NAMES.get(spec.type, ("", ""))[0]
    name = spec.attrs.get(key, "")
    if "@" in name or "digest" in spec.attrs or name.endswith(tuple(_suffix(platform) for platform in platforms)):
        return
    for platform in platforms:
        yield _of_platform(spec, platform)


def _distinct(specs: Sequence[CacheSpec]) -> Iterator[CacheSpec]:
    seen: list[tuple[str, dict[str, str]]] = []
    for spec in specs:
        key = (spec.type, dict(spec.attrs))
        if spec.type == "registry":
            key[1]["ref"] = str(Reference.parse_normalized(spec.attrs["ref"]).with_default_tag())
        if key not in seen:
            seen.append(key)
            yield spec


def _check_overwrites(specs: Sequence[CacheSpec], warn: bool) -> None:
    targets: set[str] = set()
    for spec in specs:
        for target in _targets(spec):
            if target in targets and spec.type == "registry":
                raise InvalidOption(f"cache-to: two exports have the name {target}")
            if target in targets and warn:
                _LOG.warning("cache-to: two exports go to %s; the later one overwrites the other", target)
            targets.add(target)


def _targets(spec: CacheSpec) -> list[str]:
    """What the export writes to, as text without credentials."""
    if spec.type == "registry":
        return [str(Reference.parse_normalized(spec.attrs["ref"]).with_default_tag())]
    if spec.type not in _NAMES:
        return []
    key, default = _NAMES[spec.type]
    place = ",".join(f"{name}={spec.attrs[name]}" for name in _PLACES[spec.type] if spec.attrs.get(name))
    names = (spec.attrs.get(key) or default).split(";")
    return [f"type={spec.type},{place + ',' if place else ''}{key}={name}" for name in names]


def _with_environment(spec: CacheSpec, environ: Mapping[str, str], warn: bool) -> CacheSpec | None:
    """The cache with what its service wants to know of this environment; None where it is out of service.

    That is a cache of GitHub's outside of its runners. Source: docker/buildx, build/opt.go.
    """
    added: dict[str, str | None] = {}
    if spec.type == "gha":
        version = spec.attrs.get("version", "2" if environ.get("ACTIONS_CACHE_SERVICE_V2") in _TRUE else "")
        results = environ.get("ACTIONS_RESULTS_URL")
        added = {
            "token": environ.get("ACTIONS_RUNTIME_TOKEN"),
            "url_v2": results if version == "2" else None,
            "url": environ.get("ACTIONS_CACHE_URL", results),
        }
    elif spec.type == "s3" and not {"access_key_id", "secret_access_key"} <= set(spec.attrs):
        added = _aws_credentials(environ)
        if warn and not added and (kind := _foreign_credentials(environ)):
            _LOG.warning(
                "cache type=s3: credentials by %s are not fetched here, so the daemon uses what it has itself; "
                "to pass yours on: eval $(aws configure export-credentials --format env)",
                kind,
            )
    attrs = {**{key: value for key, value in added.items() if value}, **spec.attrs}
    if spec.type == "gha" and not (attrs.get("token") and (attrs.get("url") or attrs.get("url_v2"))):
        _LOG.info("cache type=gha: left out, as this is no runner of GitHub's")
        return None
    return replace(spec, attrs=MappingProxyType(attrs))


def _aws_credentials(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Those of the environment, else those of a profile in the files of credentials and settings; half a key is none.

    Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files".
    """
    found = {
        "access_key_id": environ.get("AWS_ACCESS_KEY_ID") or environ.get("AWS_ACCESS_KEY"),
        "secret_access_key": environ.get("AWS_SECRET_ACCESS_KEY") or environ.get("AWS_SECRET_KEY"),
        "session_token": environ.get("AWS_SESSION_TOKEN"),
    }
    if found["access_key_id"] and found["secret_access_key"]:
        return found
    for path, profiles, section in _aws_profiles(environ):
        found = {
            name: profiles.get(section, f"aws_{name}", fallback=None)
            for name in ("access_key_id", "secret_access_key", "session_token")
        }
        if found["access_key_id"] and found["secret_access_key"]:
            _LOG.debug("cache type=s3: credentials are those of %s in %s", section, path)
            return found
    return {}


def _foreign_credentials(environ: Mapping[str, str]) -> str:
    """What would have to be asked for credentials, as the setting that says so; "" where nothing does."""
    for _, profiles, section in _aws_profiles(environ):
        for key in _AWS_SOURCES:
            if profiles.has_option(section, key):
                return f"{key} of profile {environ.get('AWS_PROFILE') or 'default'}"
    return next((name for name in _AWS_VARIABLES if environ.get(name)), "")


def _aws_profiles(environ: Mapping[str, str]) -> Iterator[tuple[str, RawConfigParser, str]]:
    """The files that have the profile of the environment, parsed, with the section of it."""
    import configparser

    home = environ.get("HOME")
    profile = environ.get("AWS_PROFILE") or "default"
    files = (
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
    )
    for variable, name, section in files:
        path = environ.get(variable) or (home and f"{home}/.aws/{name}")
        if not path:
            continue
        profiles = configparser.RawConfigParser(default_section="", strict=False)
        try:
            profiles.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            _LOG.info("%s cannot be read: %s", path, type(error).__name__)  # its lines are secrets
            continue
        if profiles.has_section(section):
            yield path, profiles, section
