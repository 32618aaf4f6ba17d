"""Finds and reads Google credentials, and interprets their errors.

Files are read here and not by google-auth, whose messages repeat the content of settings, and which requests a
workload's project while it loads them.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import google.auth
import google.auth.transport.requests
import requests
from google.auth.credentials import Credentials, with_scopes_if_required
from google.auth.exceptions import (
    DefaultCredentialsError,
    GoogleAuthError,
    OAuthError,
    ReauthFailError,
    RefreshError,
    TransportError,
)

from pipeline.endpoint.network import ca_bundles, proxy_for, proxy_secrets
from pipeline.endpoint.redaction import redact_settings, redact_tokens
from pipeline.faults import UsageError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"

REQUEST_TIMEOUT_S = 30.0

LARGEST_FILE = 2**20

TYPES = (
    "service_account",
    "authorized_user",
    "external_account",
    "external_account_authorized_user",
    "impersonated_service_account",
    "gdch_service_account",
)
"""The kinds of credentials files, by their `type`."""

FOREIGN_ERRORS = (
    GoogleAuthError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    NotImplementedError,
    ImportError,
    OSError,
    subprocess.SubprocessError,
)
"""What google-auth raises: its own errors, and those of invalid content, files, and programs that print tokens."""

_REMEDY = "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or pass --credentials"

_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"

_TRANSIENT = {"server_error", "temporarily_unavailable", "internal_failure", "slow_down", "backend_error", "timeout"}
"""The OAuth errors (RFC 6749, 5.2, and Google's additions) that waiting may fix."""

_REFUSALS = {
    "invalid_grant", "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
    "invalid_target", "access_denied", "invalid_request", "invalid_rapt", "account_not_found", "deleted_client",
    "disabled_client", "org_internal", "admin_policy_enforced", "restricted_client", "invalid_token",
    "PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION",
}  # fmt: skip
"""Names of refusals, recognized in text too: OAuth's, and those of Google's own services."""

_REFUSING = {400, 401, 403, 404}

FoundCredentials = tuple[Credentials, str | None]


def find_credentials(path: Path | None = None, *, needs_project: bool = True) -> FoundCredentials:
    """Google credentials and their project: from a file, or wherever `google.auth.default` finds them.

    Raises `UsageError` with the reason, which names a setting and never its value. Unless a project is needed, the
    network is not used.
    """
    named = _named(path)
    try:
        if named is None:
            found: FoundCredentials = google.auth.default(scopes=[SCOPE], request=Requester())
            return found
        credentials, project = _loaded(*named)
        if path is None:
            variables = ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT")
            project = next(filter(None, map(os.environ.get, variables)), project)
        credentials = with_scopes_if_required(credentials, [SCOPE])  # type: ignore[no-untyped-call] # google-auth
    except DefaultCredentialsError as error:
        raise UsageError(
            f"no usable Google credentials: {reason_of(error)} ({_REMEDY}; --emulate needs none)"
        ) from None
    except FOREIGN_ERRORS as error:
        raise UsageError(f"the Google credentials cannot be used: {reason_of(error)}") from None
    if project is None and needs_project and hasattr(credentials, "get_project_id"):
        project = _looked_up(credentials)
    return credentials, project


def _looked_up(credentials: Any) -> str | None:
    """The project of a workload's pool, which the credentials file does not name."""
    try:
        project: str | None = credentials.get_project_id(request=Requester())
    except FOREIGN_ERRORS as error:
        raise UsageError(
            f"the project of these credentials cannot be looked up: {reason_of(error)} (name it with --project)"
        ) from None
    return project


def _named(path: Path | None) -> tuple[str, dict[str, Any]] | None:
    """The setting that names a file, and the file's content; None when google-auth has to search."""
    if path is not None:
        return "--credentials", _read("--credentials", str(path))
    gcloud = _gcloud_file()
    value = os.environ.get(_VARIABLE, "")
    if value and value != str(gcloud):
        return _VARIABLE, _read(_VARIABLE, value)
    if gcloud.is_file():
        info = _read("gcloud", str(gcloud))
        # For a user's credentials, google-auth gets the project from gcloud.
        return ("gcloud", info) if info.get("type") == "external_account" else None
    return None


def _gcloud_file() -> Path:
    """Where `gcloud auth application-default login` writes, and google-auth looks."""
    folder = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    # os.path.expanduser, as in google-auth, leaves "~" where the user has no home; Path.expanduser raises.
    return Path(os.path.expanduser(folder)) / "application_default_credentials.json"  # noqa: PTH111


def _read(setting: str, value: str) -> dict[str, Any]:
    """The object in a credentials file. No message repeats the content of the setting or the file."""
    if re.search(r"[{}\"\n]|PRIVATE KEY", value):
        raise UsageError(f"{setting} holds JSON or a key, and must be a path: write it to a file, and name that")
    try:
        is_file = Path(value).is_file()
        content = _beginning(Path(value)) if is_file else b""
    except (OSError, ValueError) as error:  # the name is too long or has a null byte, or permission is missing
        reason = getattr(error, "strerror", None) or "it is not a path"
        raise UsageError(f"the credentials file that {setting} names cannot be read: {reason}") from None
    if not is_file:
        shown = _shown(value) or "of the name"
        raise UsageError(f"there is no credentials file {shown}: correct the path that {setting} gives")
    file = f"the credentials file of {setting}"
    if len(content) > LARGEST_FILE:
        raise UsageError(f"{file} is too large to hold credentials")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\x00" in content[:4]:
        raise UsageError(f"{file} is in UTF-16: save it as UTF-8")
    try:
        info = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not in UTF-8: save it as UTF-8") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{file} is not JSON") from None
    if not isinstance(info, dict):
        raise UsageError(f"{file} holds no credentials: they are a JSON object")
    return info


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST_FILE + 1)


def _shown(value: str) -> str:
    """The path if it can be shown: a plain one to a JSON file. Anything else may be a misplaced secret."""
    plain = re.fullmatch(r"[\w./~ -]{1,200}\.json", value, re.ASCII) and redact_tokens(value) == value
    return repr(value) if plain else ""


def _loaded(setting: str, info: dict[str, Any]) -> FoundCredentials:
    kind = info.get("type")
    if kind not in TYPES:
        if {"installed", "web"} & info.keys():
            raise UsageError(f"the credentials file of {setting} holds an OAuth client, not credentials: {_REMEDY}")
        raise UsageError(f"the credentials file of {setting} has no `type` that is known: {', '.join(TYPES)}")
    if kind == "external_account":
        return _external(setting, info), None
    key = info.get("private_key")
    if isinstance(key, str) and "\\n" in key:  # escaped twice, by a shell or a secret store
        info = info | {"private_key": key.replace("\\n", "\n")}
    with warnings.catch_warnings():
        # Deprecated for untrusted files; the user named this one, and it may be of any kind.
        warnings.simplefilter("ignore", DeprecationWarning)
        found: FoundCredentials = google.auth.load_credentials_from_dict(  # type: ignore[no-untyped-call] # google-auth leaves it so
            info, quota_project_id=os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT")
        )
    return found


def _external(setting: str, info: dict[str, Any]) -> Credentials:
    """A workload's credentials, as from google-auth's `load_credentials_from_dict`, which also requests the project."""
    from google.auth import aws, identity_pool, pluggable

    source = info.get("credential_source")
    source = source if isinstance(source, dict) else {}
    file = source.get("file")
    if isinstance(file, str) and not Path(file).is_file():
        raise UsageError(f"the credentials of {setting} name a file for the subject token that is not there")
    kind: Any = identity_pool
    if info.get("subject_token_type") == "urn:ietf:params:aws:token-type:aws4_request":
        kind = aws
    elif "executable" in source:
        kind = pluggable
    credentials: Credentials = kind.Credentials.from_info(info).with_quota_project_from_environment()
    return credentials


# Requests to token servers


class Requester(google.auth.transport.requests.Request):
    """Sends google-auth's requests: by the same proxies as calls, and without following redirects.

    They time out sooner than google-auth's own, which may take two minutes.
    """

    def __init__(self) -> None:
        super().__init__(_Session())
        self._asked = False
        self.status: int | None = None
        """The status of the last response; None when there was none."""

    def explains(self, error: Exception) -> bool:
        """Whether the credentials caused an error: no request was sent, or its response was a 4xx."""
        if not isinstance(error, GoogleAuthError) or isinstance(error, TransportError):
            return False
        status = self.status
        return not self._asked or (status is not None and 400 <= status < 500 and status not in {408, 425, 429})

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: Any = None,
        headers: Any = None,
        timeout: float = REQUEST_TIMEOUT_S,
        **options: Any,
    ) -> Any:
        """See `google.auth.transport.Request`."""
        self._asked, self.status = True, None
        answer = super().__call__(url, method, body, headers, timeout, **options)  # type: ignore[no-untyped-call] # theirs
        self.status = answer.status
        return answer


class _Session(requests.Session):
    """Takes proxies and authorities from `pipeline.endpoint.network`, nothing else from the environment (.netrc)."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = next(iter(ca_bundles()), True)

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **options: Any) -> requests.Response:
        """See `requests.Session.request`."""
        address = url if isinstance(url, str) else url.decode()
        return super().request(method, url, *args, **options | {"proxies": _proxies(address), "allow_redirects": False})


def _proxies(url: str) -> dict[str, str]:
    proxy = proxy_for(url)
    if proxy is None:
        return {}
    scheme, _, rest = proxy.url.partition("://")
    user = f"{quote(proxy.user, safe='')}:{quote(proxy.password, safe='')}@" if proxy.user or proxy.password else ""
    return {urlsplit(url).scheme: f"{scheme}://{user}{rest}"}


# Interpreting errors


def is_refused(error: Exception) -> bool:
    """Whether a token was refused, in any spelling, so that waiting does not help."""
    if isinstance(error, ReauthFailError):
        return True
    if not isinstance(error, RefreshError | OAuthError) or error.retryable:
        return False
    return any(_refuses(value) for argument in error.args for value in _documents(argument))


def _documents(value: object) -> Iterator[object]:
    """The content of an error: objects, and texts that may be the JSON of one."""
    yield value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        try:
            yield json.loads(value)
        except (ValueError, RecursionError):
            return


def _refuses(value: object) -> bool:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        return not _REFUSALS.isdisjoint(re.findall(r"[A-Za-z]+(?:_[A-Za-z]+)+|UNAUTHENTICATED", value[:4096]))
    if not isinstance(value, dict):
        return False
    error = value.get("error")
    if isinstance(error, dict):
        return error.get("code") in _REFUSING or error.get("status") in _REFUSALS
    return isinstance(error, str) and bool(re.fullmatch(r"[a-z_]+", error)) and error not in _TRANSIENT


def reason_of(error: Exception) -> str:
    """What went wrong, on one line of at most 300 characters without any secret.

    A token server may repeat what it was sent: a signed assertion, or a refresh token; a proxy, what signs in to it.
    """
    return redact_settings(_reason_of(error), proxy_secrets())


def _reason_of(error: Exception) -> str:
    first = error.args[0] if error.args else error
    if isinstance(first, requests.RequestException):
        return _unreached(first)
    said = str(first).replace(" from dict object", "") or type(error).__name__
    for argument in error.args[1:]:
        inner = str(argument) if isinstance(argument, Exception) else _description(argument)
        said = f"{said}: {inner}" if inner and inner not in said else said
    return redact_tokens(" ".join(said.split()))[:300]


def _description(value: object) -> str:
    """The description for people in a server's response."""
    for document in _documents(value):
        if isinstance(document, dict):
            error = document.get("error")
            fields = error if isinstance(error, dict) else {}
            said = fields.get("message") or document.get("error_description") or error
            return said if isinstance(said, str) else ""
    return value if isinstance(value, str) else ""


def _unreached(error: requests.RequestException) -> str:
    """Why a server was not reached, in plain words."""
    url = getattr(error.request, "url", None)
    host = urlsplit(url).netloc.rpartition("@")[2] if isinstance(url, str) else "the token server"
    text = str(error)
    reason = re.search(r"\[Errno -?\d+\] ([A-Z][\w ]+)", text)
    system = f": {reason[1]}" if reason else ""
    match error:
        case requests.exceptions.ProxyError():
            return f"the proxy on the way to {host} cannot be used{system or f': {redact_tokens(text)[-150:]}'}"
        case requests.exceptions.SSLError():
            certificate = re.search(r"certificate verify failed: ([\w ,'.-]+)", text)
            return (
                f"no TLS connection to {host}: {certificate[1].strip() if certificate else redact_tokens(text)[-150:]}"
            )
        case requests.exceptions.Timeout():
            return f"{host} gave no answer in time"
        case requests.exceptions.ConnectionError() if "resolve" in text or "NameResolution" in text:
            return f"the name {host} cannot be resolved (DNS){system}"
        case requests.exceptions.ConnectionError():
            return f"{host} cannot be reached{system or f': {redact_tokens(text)[-150:]}'}"
        case _:
            return redact_tokens(f"{host}: {text}")[:300]
