"""Where files come from: registries, repositories, URLs, the client's directories and OCI layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, Unpack
from urllib.parse import quote, unquote, urlsplit

from buildkit_py.digest import Digest
from buildkit_py.errors import InvalidOption, InvalidReference
from buildkit_py.llb import check
from buildkit_py.llb.ops import Output, SourceOp
from buildkit_py.llb.paths import join
from buildkit_py.llb.state import State, of_output
from buildkit_py.llb.vertex import Settings, VertexOptions, settings
from buildkit_py.reference import Reference

ResolveMode = Literal["default", "pull", "local"]
RecordType = Literal["regular", "internal", "frontend"]
Differ = Literal["none", "metadata"]

_RESOLVE_MODES = ("default", "pull", "local")
_RECORD_TYPES = ("regular", "internal", "frontend")


def image(
    ref: str,
    *,
    resolve_mode: ResolveMode = "default",
    record_type: RecordType | None = None,
    layer_limit: int | None = None,
    checksum: Digest | str | None = None,
    digest: Digest | str | None = None,
    config: Mapping[str, object] | bytes | str | None = None,
    **options: Unpack[VertexOptions],
) -> State:
    """The filesystem of an image; ``alpine`` means docker.io/library/alpine:latest.

    resolve_mode "pull" asks the registry each time, "local" prefers what the daemon has. record_type is how the
    daemon's cache lists it: "internal" and "frontend" are the build's machinery. Of layer_limit the lowest layers
    are taken. checksum is what the manifest must have. Nothing is fetched here: whoever has looked the image up
    gives its digest, which then stands in the reference unless one does already, and its config, whose
    environment, working directory and platform the state then has.
    """
    name = _reference("ref", ref)
    name = name.with_default_tag()
    if digest is not None and name.digest is None:
        name = replace(name, digest=Digest.parse(check.digest("digest", digest)))
    attrs: dict[str, str] = {}
    caps = ["source.image"]
    if check.choice("resolve_mode", resolve_mode, _RESOLVE_MODES) != "default":
        attrs["image.resolvemode"] = resolve_mode
        if resolve_mode == "pull":
            caps.append("source.image.resolvemode")
    if record_type is not None:
        attrs["image.recordtype"] = check.choice("record_type", record_type, _RECORD_TYPES)
    if layer_limit is not None:
        attrs["image.layerlimit"] = str(check.integer("layer_limit", layer_limit, (1, check.INT32[1])))
        caps.append("source.image.layerlimit")
    if checksum is not None:
        attrs["image.checksum"] = check.digest("checksum", checksum)
        caps.append("source.image.checksum")
    state = _state(SourceOp(f"docker-image://{name}", attrs, settings(options), caps))
    return state if config is None else state.with_image_config(config)


def local(
    name: str,
    *,
    session_id: str = "",
    include_patterns: Iterable[str] = (),
    exclude_patterns: Iterable[str] = (),
    follow_paths: Iterable[str] = (),
    shared_key_hint: str = "",
    differ: Differ | None = None,
    differ_required: bool = False,
    metadata_only: bool = False,
    metadata_only_exceptions: Iterable[str] = (),
    unique_id: str | None = None,
    **options: Unpack[VertexOptions],
) -> State:
    """A directory of the client, under the name that the solve gives it.

    session_id names the session that has it; without one the build's own are asked. follow_paths are links
    whose targets are sent too. shared_key_hint lets the daemon start from an earlier upload. differ says how
    changed files are found, and differ_required that the daemon must know how. With metadata_only the daemon
    gets names and attributes of files, and the content of the exceptions alone.
    """
    attrs: dict[str, str] = {}
    caps = ["source.local"]
    if check.text("session_id", session_id):
        attrs["local.session"] = session_id
        caps.append("source.local.sessionid")
    lists: Mapping[str, Iterable[str]] = {
        "include_patterns": include_patterns,
        "exclude_patterns": exclude_patterns,
        "follow_paths": follow_paths,
    }
    for argument, values in lists.items():
        if items := check.texts(argument, values):
            word = argument.replace("_", "")
            attrs["local.includepattern" if word == "includepatterns" else f"local.{word}"] = _json(items)
            caps.append(f"source.local.{word}")
    if check.text("shared_key_hint", shared_key_hint):
        attrs["local.sharedkeyhint"] = shared_key_hint
        caps.append("source.local.sharedkeyhint")
    check.boolean("differ_required", differ_required)
    if differ is not None:
        attrs["local.differ"] = check.choice("differ", differ, ("none", "metadata"))
        if differ_required:
            caps.append("source.local.differ")
    elif differ_required:
        raise InvalidOption("differ_required=True: needs differ")
    exceptions = check.texts("metadata_only_exceptions", metadata_only_exceptions)
    if check.boolean("metadata_only", metadata_only):
        attrs["local.metadatatransfer"] = "true"
        if exceptions:
            attrs["local.metadatatransferexclude"] = _json(exceptions)
        caps.append("source.local.metadatatransfer")
    elif exceptions:
        raise InvalidOption("metadata_only_exceptions: needs metadata_only=True")
    if unique_id is not None:
        check.filled("unique_id", unique_id)
    identifier = f"local://{check.filled('name', name)}"
    return _state(SourceOp(identifier, attrs, settings(options), caps, unique_id=unique_id))


def git(
    url: str,
    *,
    ref: str = "",
    subdir: str = "",
    fragment: str = "",
    keep_git_dir: bool = False,
    auth_token_secret: str | None = None,
    auth_header_secret: str | None = None,
    known_ssh_hosts: Iterable[str] = (),
    mount_ssh_sock: str = "",
    checksum: str = "",
    skip_submodules: bool = False,
    mtime: Literal["checkout", "commit"] | None = None,
    fetch_by_commit: bool = False,
    bundle: str = "",
    bundle_session_id: str = "",
    bundle_store_id: str = "",
    checkout_bundle: bool = False,
    signature_public_key: str = "",
    reject_expired_keys: bool = False,
    require_signed_tag: bool = False,
    ignore_signed_tag: bool = False,
    **options: Unpack[VertexOptions],
) -> State:
    """The work tree of a repository: an http, https, ssh or git URL, ``user@host:path``, or one without scheme.

    ref is a branch, tag or commit, subdir a directory of the tree; fragment is both in the old form
    ``ref:subdir``. Query and fragment of the URL itself are left out. The two auth secrets are the ids of the
    session's secrets that are tried for http(s); known_ssh_hosts are lines of a known_hosts file, which ssh
    fails without, and mount_ssh_sock is the id of the agent. checksum is the commit that ref must be, or the
    start of it; fetch_by_commit fetches it without asking what ref is. bundle is a blob to take the history from,
    and checkout_bundle makes a bundle instead of a work tree. With signature_public_key, an armoured OpenPGP key or
    a line of an OpenSSH one, the tag or else the commit must be signed by it; the next three options say what counts.
    """
    is_ssh, host, path, remote = _parse_git_url(check.filled("url", url))
    old_ref, colon, old_subdir = check.text("fragment", fragment).partition(":")
    ref = check.text("ref", ref) or old_ref
    if ref.startswith("-"):
        raise check.fail("ref", ref, "a branch, tag or commit")
    subdir = check.text("subdir", subdir) or (join("/", old_subdir)[1:] if colon else "")
    identifier = f"git://{host}{join('/', path)}"
    if ref or subdir:
        identifier += f"#{ref}" + (f":{subdir}" if subdir else "")
    attrs = {"git.fullurl": remote}
    caps = ["source.git", "source.git.fullurl"]
    secrets = {
        "git.authtokensecret": "GIT_AUTH_TOKEN" if auth_token_secret is None else auth_token_secret,
        "git.authheadersecret": "GIT_AUTH_HEADER" if auth_header_secret is None else auth_header_secret,
    }
    check.text("auth_token_secret", secrets["git.authtokensecret"])
    check.text("auth_header_secret", secrets["git.authheadersecret"])
    attrs |= {attr: secret for attr, secret in secrets.items() if secret}
    if any(secrets.values()) and (auth_token_secret is not None or auth_header_secret is not None):
        caps.append("source.git.httpauth")
    lines = check.texts("known_ssh_hosts", known_ssh_hosts)
    check.text("mount_ssh_sock", mount_ssh_sock)
    if is_ssh:
        if lines:
            attrs["git.knownsshhosts"] = "".join([line.removesuffix("\n") + "\n" for line in lines])
        attrs["git.mountsshsock"] = mount_ssh_sock or "default"
        caps += ["source.git.knownsshhosts", "source.git.mountsshsock"]
    flags = {
        "keepgitdir": ("keep_git_dir", keep_git_dir),
        "skipsubmodules": ("skip_submodules", skip_submodules),
        "fetchbycommit": ("fetch_by_commit", fetch_by_commit),
        "checkoutbundle": ("checkout_bundle", checkout_bundle),
    }
    words = {"checksum": ("checksum", checksum), "mtime": ("mtime", mtime or ""), "bundle": ("bundle", bundle)}
    if mtime is not None:
        check.choice("mtime", mtime, ("checkout", "commit"))
    for attr, (argument, flag) in flags.items():
        if check.boolean(argument, flag):
            attrs[f"git.{attr}"] = "true"
            caps.append(f"source.git.{attr}")
    for attr, (argument, word) in words.items():
        if check.text(argument, word):
            attrs[f"git.{attr}"] = word
            caps.append(f"source.git.{attr}")
    attrs |= _store("bundle_", bundle_session_id, bundle_store_id)
    if checksum and not _HEX.fullmatch(checksum):
        raise check.fail("checksum", checksum, "a commit, in hexadecimal digits")
    if fetch_by_commit and not _COMMIT.fullmatch(checksum or ref):
        raise InvalidOption("fetch_by_commit=True: needs a whole commit as checksum or ref")
    if checkout_bundle and (keep_git_dir or subdir):
        raise InvalidOption("checkout_bundle=True: excludes keep_git_dir and subdir")
    if bundle:
        _check_bundle(bundle)
        if not checksum:
            raise InvalidOption(f"bundle={bundle!r}: needs checksum, the commit to take from it")
    elif bundle_session_id or bundle_store_id:
        raise InvalidOption("bundle_session_id, bundle_store_id: need bundle")
    signed = {
        "rejectexpired": ("reject_expired_keys", reject_expired_keys),
        "requiresignedtag": ("require_signed_tag", require_signed_tag),
        "ignoresignedtag": ("ignore_signed_tag", ignore_signed_tag),
    }
    for attr, (argument, flag) in signed.items():
        if check.boolean(argument, flag):
            if not signature_public_key:
                raise InvalidOption(f"{argument}=True: needs signature_public_key")
            attrs[f"git.sig.{attr}"] = "true"
    if require_signed_tag and ignore_signed_tag:
        raise InvalidOption("require_signed_tag=True, ignore_signed_tag=True: expected one of them")
    if check.text("signature_public_key", signature_public_key):
        attrs["git.sig.pubkey"] = signature_public_key
        caps.append("source.git.signatureverify")
    return _state(SourceOp(identifier, attrs, settings(options), caps))


def http(
    url: str,
    *,
    checksum: Digest | str | None = None,
    filename: str = "",
    chmod: int = 0,
    chown: tuple[int, int] = (0, 0),
    auth_header_secret: str = "",
    accept: str = "",
    user_agent: str = "",
    signature: str = "",
    signature_public_key: str = "",
    **options: Unpack[VertexOptions],
) -> State:
    """One file, fetched from an http or https URL, which stands in the vertex as it is given.

    filename is its name in the result; without one the server or the URL says it. auth_header_secret is the id
    of the session's secret that becomes the Authorization header. signature is an armoured detached OpenPGP
    signature, which the file must have by signature_public_key.
    """
    check.filled("url", url)
    if not url.startswith(("http://", "https://")):
        raise check.fail("url", _without_password(url), "a URL that starts with http:// or https://")
    attrs, caps = _file_info(filename, chmod, chown), ["source.http"]
    if "http.perm" in attrs:
        caps.append("source.http.perm")
    if "http.uid" in attrs or "http.gid" in attrs:
        caps.append("soruce.http.uidgid")  # the protocol has it misspelt
    if checksum is not None:
        attrs["http.checksum"] = check.digest("checksum", checksum)
        caps.append("source.http.checksum")
    if check.text("auth_header_secret", auth_header_secret):
        attrs["http.authheadersecret"] = auth_header_secret
        caps.append("source.http.auth")
    headers = {"accept": check.text("accept", accept), "user-agent": check.text("user_agent", user_agent)}
    for name, value in headers.items():
        if value:
            attrs[f"http.header.{name}"] = value
            caps.append("source.http.header")
    check.text("signature", signature)
    check.text("signature_public_key", signature_public_key)
    if bool(signature) != bool(signature_public_key):
        raise InvalidOption("signature, signature_public_key: expected both of them or none")
    if signature:
        attrs |= {"http.sig.signature": signature, "http.sig.pubkey": signature_public_key}
        caps.append("source.http.signatureverify")
    return _state(SourceOp(url, attrs, settings(options), caps))


def oci_layout(
    ref: str,
    *,
    session_id: str = "",
    store_id: str = "",
    layer_limit: int | None = None,
    **options: Unpack[VertexOptions],
) -> State:
    """The filesystem of an image in an OCI layout of the client: ``name@digest``, in the store of that id."""
    if "@" not in check.filled("ref", ref):
        raise check.fail("ref", ref, "a reference with a digest, such as name@sha256:...")
    _reference("ref", ref)
    attrs = _store("", session_id, store_id)
    if layer_limit is not None:
        attrs["oci.layerlimit"] = str(check.integer("layer_limit", layer_limit, (1, check.INT32[1])))
    return _state(SourceOp(f"oci-layout://{ref}", attrs, settings(options), ["source.ocilayout"]))


def image_blob(
    ref: str,
    *,
    filename: str = "",
    chmod: int = 0,
    chown: tuple[int, int] = (0, 0),
    **options: Unpack[VertexOptions],
) -> State:
    """One blob of a registry as a file: ``repository@digest``."""
    attrs = _file_info(filename, chmod, chown)
    return _blob("docker-image+blob", ref, attrs, settings(options))


def oci_layout_blob(
    ref: str,
    *,
    filename: str = "",
    chmod: int = 0,
    chown: tuple[int, int] = (0, 0),
    session_id: str = "",
    store_id: str = "",
    **options: Unpack[VertexOptions],
) -> State:
    """One blob of an OCI layout of the client as a file: ``name@digest``, in the store of that id."""
    attrs = _file_info(filename, chmod, chown) | _store("", session_id, store_id)
    return _blob("oci-layout+blob", ref, attrs, settings(options))


def _state(op: SourceOp) -> State:
    return of_output(Output(op, platform=op.platform))


def _blob(scheme: str, ref: str, attrs: Mapping[str, str], given: Settings) -> State:
    name = _reference("ref", ref)
    if name.digest is None or name.tag is not None:
        raise check.fail("ref", ref, "a digest and no tag, such as repository@sha256:...")
    return _state(SourceOp(f"{scheme}://{name}", attrs, given, ["source.imageblob"]))


def _check_bundle(bundle: str) -> None:
    """Raise InvalidOption unless it names a blob."""
    scheme, separator, name = bundle.partition("://")
    digest = name.rpartition("@")[2] if separator and scheme in {"docker-image+blob", "oci-layout+blob"} else ""
    if not _SHA256.fullmatch(digest):
        raise check.fail("bundle", bundle, "docker-image+blob://...@sha256:... or oci-layout+blob://...@sha256:...")


def _reference(argument: str, ref: str) -> Reference:
    try:
        return Reference.parse_normalized(check.filled(argument, ref))
    except InvalidReference as error:
        raise InvalidOption(f"{argument}: {error}") from error


def _file_info(filename: str, chmod: int, chown: tuple[int, int]) -> dict[str, str]:
    """Attributes of a source that is one file; what is zero is left out."""
    attrs: dict[str, str] = {}
    if check.text("filename", filename):
        if "/" in filename or filename in {".", ".."}:
            raise check.fail("filename", filename, "a name without directories")
        attrs["http.filename"] = filename
    if permissions := check.mode("chmod", chmod) & 0o777:
        attrs["http.perm"] = f"0{permissions:o}"
    for attr, number in zip(("http.uid", "http.gid"), check.pair("chown", chown, "(uid, gid)"), strict=True):
        if check.integer("chown", number, check.UINT32):
            attrs[attr] = str(number)
    return attrs


def _store(prefix: str, session_id: str, store_id: str) -> dict[str, str]:
    """Attributes that say which OCI layout of which session is meant."""
    named = {
        "oci.session": check.text(f"{prefix}session_id", session_id),
        "oci.store": check.text(f"{prefix}store_id", store_id),
    }
    return {attr: value for attr, value in named.items() if value}


def _json(items: Iterable[str]) -> str:
    """A JSON list as Go writes it: <, > and & escaped, other text as it is."""
    text = json.dumps(list(items), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


_HEX = re.compile("[0-9a-fA-F]+")
_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile("sha256:[0-9a-f]{64}")
_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_SCP = re.compile(r"([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):(.*?)(?:\?(.*?))?(?:#(.*))?")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9$\-_.~+!*'(),;:@&=/\[\]]|%[0-9A-Fa-f]{2})*")


def _parse_git_url(url: str) -> tuple[bool, str, str, str]:
    """Whether it goes over ssh, host, path, and the URL to clone from.

    Source: moby/buildkit util/gitutil/git_url.go; Go net/url, for what is escaped how.
    """
    found = _SCHEME.match(url)
    if found is None:
        if (scp := _SCP.fullmatch(url)) is not None:
            user, host, path = scp[1], scp[2], scp[3]
            return True, host, path, f"{user}@{host}:{path}"
        url = f"https://{url}"
        found = _SCHEME.match(url)
    scheme = found[1].lower() if found is not None else ""
    expected = "an http, https, ssh or git URL, or user@host:path"
    if scheme not in {"http", "https", "ssh", "git"} or _CONTROL.search(url):
        raise check.fail("url", _without_password(url), expected)
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        raise check.fail("url", _without_password(url), expected) from None
    userinfo, at, host = parts.netloc.rpartition("@")
    if not host:
        raise check.fail("url", _without_password(url), expected)
    user, colon, password = userinfo.partition(":")
    credentials = _escape_userinfo(user) + (f":{_escape_userinfo(password)}" if colon else "") + at
    path = parts.path
    written = path if _PLAIN_PATH.fullmatch(path) else quote(unquote(path), safe="/$&+,:;=@~")
    return scheme == "ssh", host, unquote(path), f"{scheme}://{credentials}{host}{written}"


def _escape_userinfo(text: str) -> str:
    return quote(unquote(text), safe="$&+,;=~")


def _without_password(url: str) -> str:
    """For messages: credentials do not belong into them."""
    return re.sub(r"//[^/@]*@", "//...@", url)
