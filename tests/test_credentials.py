"""Every hitch of Google credentials is told with its reason, before the start or at once, and without a secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import GoogleAuthError, OAuthError, ReauthFailError, RefreshError, TransportError

from pipeline.endpoint.auth import find_credentials, refreshing
from pipeline.endpoint.credentials import is_refused, reason_of
from pipeline.faults import ProviderUnusable, UsageError
from tests.commands import Shell
from tests.servers import Answer, Call, Says, Served, chat, served

pytestmark = pytest.mark.anyio

VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
CANARY = "MIIEcanarySECRETmaterial0123456789"
KEY_JSON = json.dumps(
    {
        "type": "service_account",
        "project_id": "p",
        "private_key": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n",
        "client_email": "a@p.iam.gserviceaccount.com",
    }
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without credentials, and without a metadata server."""
    for name in (VARIABLE, "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    return monkeypatch


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def refusal(path: Path | None = None, *, needs_project: bool = True) -> str:
    """What is said of credentials that cannot be used."""
    with pytest.raises(UsageError) as refused:
        find_credentials(path, needs_project=needs_project)
    said = str(refused.value)
    assert "canary" not in said.lower()
    assert len(said) < 700
    return said


JOB = """
from pipeline import Job

job = Job(name="a_job", model="google/m", input="rows.jsonl", user="{{ text }}")
"""


# What stands where a path should


SETTINGS = {
    "the key": KEY_JSON,
    "a long key": json.dumps({"private_key": "A1b2canary" * 400}),
    "an indented key": json.dumps(json.loads(KEY_JSON), indent=2),
    "a quoted key": json.dumps(KEY_JSON),
    "the key in base64": "eyJ0eXBlIjogInNlcnZpY2VfYWNjb3VudCIsICJjYW5hcnkiOiAx" * 4,
    "a long name": "canary" * 1000,
    "a token": "ya29.canary-token",
    "a null byte": "canary\x00.json",
    "a private key": f"-----BEGIN PRIVATE KEY-----{CANARY}",
    "a folder that is not there": "/canary\u00e9/x.json",
}


@pytest.mark.parametrize("value", SETTINGS.values(), ids=SETTINGS.keys())
def test_s4_t7_the_value_of_a_setting_is_not_repeated_and_its_name_is(
    value: str, environment: pytest.MonkeyPatch
) -> None:
    assert "--credentials" in refusal(Path(value))
    if "\x00" not in value:  # no environment holds one
        environment.setenv(VARIABLE, value)
        assert VARIABLE in refusal()


def test_t7_a_path_to_no_file_is_repeated_for_it_is_none_but_a_path(environment: pytest.MonkeyPatch) -> None:
    assert "'keys/nowhere.json'" in refusal(Path("keys/nowhere.json"))
    environment.setenv(VARIABLE, "/keys/no where.json")
    assert "'/keys/no where.json'" in refusal()


def test_t7_a_command_with_the_key_itself_ends_with_2_and_does_not_repeat_it(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {VARIABLE: KEY_JSON})
    shell.write("job.py", JOB)
    shell.rows(1)
    for more in ((), ("--credentials", KEY_JSON), ("--credentials", KEY_JSON * 20)):
        done = shell.pipeline("run", "job.py", "--project", "p", *more)
        assert done.code == 2, done
        assert "must be a path" in done.err
        assert "Traceback" not in done.err
        assert "canary" not in done.err + done.out


# What stands in a file


def account(private_key: str, **more: object) -> dict[str, object]:
    return {
        "type": "service_account",
        "project_id": "a-project",
        "private_key_id": "k",
        "private_key": private_key,
        "client_email": "a@p.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
        **more,
    }


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("escaped", [False, True])
def test_t7_a_file_is_read_with_or_without_a_bom_and_with_a_key_escaped_once_too_often(
    codec: str, *, escaped: bool, private_key: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    key = private_key.replace("\n", "\\n") if escaped else private_key
    path = tmp_path / "account.json"
    path.write_bytes(json.dumps(account(key)).encode(codec))
    environment.setenv(VARIABLE, str(path))
    assert find_credentials(path)[1] == find_credentials()[1] == "a-project"


BROKEN = {
    "utf-16": (json.dumps(json.loads(KEY_JSON)).encode("utf-16"), "save it as UTF-8"),
    "utf-16 without a bom": (KEY_JSON.encode("utf-16-le"), "save it as UTF-8"),
    "latin-1": ('{"type": "é canary"}'.encode("latin-1"), "save it as UTF-8"),
    "no json": (b"{canary", "is not JSON"),
    "empty": (b"", "is not JSON"),
    "depth": (b"[" * 100_000, "is not JSON"),
    "a list": (b'["canary"]', "a JSON object"),
    "no type": (b'{"canary": 1}', "no `type` that is known"),
    "another type": (b'{"type": "canary"}', "no `type` that is known"),
    "a type that is no text": (b'{"type": {"canary": 1}}', "no `type` that is known"),
    "an oauth client": (b'{"installed": {"client_secret": "canary"}}', "OAuth client"),
    "a cut key": (KEY_JSON.encode(), "private_key|PEM|credentials"),
    "no key": (b'{"type": "service_account", "client_email": "a"}', "missing fields|expected format"),
    "no refresh token": (b'{"type": "authorized_user", "client_secret": "canary"}', "refresh_token"),
    "a workload without a source": (b'{"type": "external_account", "audience": "canary"}', "credential source"),
    "a source that is text": (b'{"type": "external_account", "credential_source": "canary"}', "credential_source"),
    "too large": (b" " * (2**20 + 1) + b"{}", "too large"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_t7_a_file_that_holds_no_credentials_is_told_with_its_setting_and_the_remedy(
    content: bytes, reason: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    environment.setenv(VARIABLE, str(path))
    for said in (refusal(path), refusal()):
        assert any(one in said for one in reason.split("|")), said


# Workload identity


POOL = "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool/providers/prov"


def workload(origin: str, folder: Path, source: Mapping[str, object], **more: object) -> Path:
    """The file of a workload, whose token server is at this origin."""
    info = {
        "type": "external_account",
        "audience": POOL,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{origin}/sts",
        "credential_source": source,
        **more,
    }
    path = folder / "workload.json"
    path.write_text(json.dumps(info))
    return path


GRANTED = Answer(
    json.dumps(
        {
            "access_token": "sts-token",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "token_type": "Bearer",
            "expires_in": 3600,
        }
    ).encode()
)


def test_t7_a_workload_is_loaded_without_a_way_to_anywhere_when_no_project_is_needed(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    subject = tmp_path / "subject.txt"
    subject.write_text("a subject token")
    environment.setenv("https_proxy", "http://127.0.0.1:1")
    path = workload("https://sts.invalid", tmp_path, {"file": str(subject)})
    assert find_credentials(path, needs_project=False)[1] is None
    assert "named with" in refusal(path) or "--project" in refusal(path)
    environment.setenv(VARIABLE, str(path))
    environment.setenv("GOOGLE_CLOUD_PROJECT", "a-project")
    assert find_credentials()[1] == "a-project"


def test_t7_a_missing_subject_file_is_told_before_the_start(tmp_path: Path) -> None:
    path = workload("http://127.0.0.1:1", tmp_path, {"file": str(tmp_path / "missing.txt")})
    assert "subject token that is not there" in refusal(path, needs_project=False)


def oauth(status: int, **fields: object) -> Answer:
    return Answer(json.dumps(fields).encode(), status)


REFUSALS = {
    "invalid_grant": oauth(400, error="invalid_grant", error_description="The subject token is expired."),
    "invalid_target": oauth(400, error="invalid_target", error_description="The audience is invalid."),
    "unauthorized_client": oauth(403, error="unauthorized_client", error_description="Rejected by the condition."),
    "a code of the future": oauth(400, error="token_too_old", error_description="Make another."),
    "nested": oauth(403, error={"code": 403, "status": "PERMISSION_DENIED", "message": "No getAccessToken."}),
    "text": Answer(b"Forbidden: ask your administrator", 403),
    "not found": Answer(b"", 404),
}


async def _denied(path: Path) -> str:
    """What a token is denied with, at once: the clock is the real one, and the patience would be a minute."""
    credentials, _ = find_credentials(path, needs_project=False)
    async with refreshing(credentials) as token:
        with anyio.fail_after(40), pytest.raises(ProviderUnusable) as denied:
            await token()
    assert " for 60 s" not in denied.value.message
    return denied.value.message


@pytest.mark.parametrize("answer", REFUSALS.values(), ids=REFUSALS.keys())
async def test_t7_a_refusal_of_the_token_server_is_final_in_every_spelling(answer: Answer, tmp_path: Path) -> None:
    subject = tmp_path / "subject.txt"
    subject.write_text("canary-subject-token-0123456789")
    with served(lambda _: answer) as server:
        said = await _denied(workload(server.server.origin, tmp_path, {"file": str(subject)}))
        assert len(server.calls) == 1
    assert f"(HTTP {answer.status})" in said
    fields = json.loads(answer.body) if answer.body.startswith(b"{") else {}
    described = fields.get("error_description") or "No getAccessToken." if fields else answer.body.decode()
    assert described in said
    assert "canary" not in said


@pytest.mark.parametrize("answer", REFUSALS.values(), ids=REFUSALS.keys())
async def test_t7_so_is_one_to_a_service_account(answer: Answer, tmp_path: Path, private_key: str) -> None:
    path = tmp_path / "account.json"
    with served(lambda _: answer) as server:
        path.write_text(json.dumps(account(private_key, token_uri=f"{server.server.origin}/token")))
        await _denied(path)
        assert len(server.calls) == 1


@pytest.mark.parametrize("says", [Answer(b"no", 404), Answer(b'{"other": 1}', 403), Answer(b"", 401)])
async def test_t7_a_subject_that_its_url_does_not_give_is_told_at_once(says: Says, tmp_path: Path) -> None:
    with served(lambda _: says) as server:
        said = await _denied(workload(server.server.origin, tmp_path, {"url": f"{server.server.origin}/subject"}))
    assert "subject token" in said


async def test_t7_impersonation_that_is_refused_is_told_at_once_with_googles_words(tmp_path: Path) -> None:
    refused = oauth(403, error={"code": 403, "status": "PERMISSION_DENIED", "message": "Permission denied on it."})

    def script(call: Call) -> Says:
        return refused if "generateAccessToken" in call.path else GRANTED

    subject = tmp_path / "subject.txt"
    subject.write_text("a subject token")
    with served(script) as server:
        url = f"{server.server.origin}/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken"
        more = {"service_account_impersonation_url": url}
        assert "Permission denied on it." in await _denied(
            workload(server.server.origin, tmp_path, {"file": str(subject)}, **more)
        )


async def test_t7_what_the_file_alone_makes_impossible_is_told_at_once(tmp_path: Path) -> None:
    subject = tmp_path / "subject.txt"
    subject.write_text("a subject token")
    path = workload(
        "http://127.0.0.1:1", tmp_path, {"file": str(subject)}, service_account_impersonation_url="http://127.0.0.1:1/x"
    )
    assert "target principal" in await _denied(path)


def test_t7_a_command_whose_token_is_refused_ends_with_7_and_the_reason(tmp_path: Path) -> None:
    def script(call: Call) -> Says:
        return chat("hello") if call.path.endswith("/chat/completions") else REFUSALS["invalid_target"]

    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(3)
    (tmp_path / "subject.txt").write_text("a subject token")
    with served(script) as server:
        path = workload(server.server.origin, tmp_path, {"file": str(tmp_path / "subject.txt")})
        done = _run(shell, server, path)
    assert done.code == 7, done
    assert "The audience is invalid." in done.err
    assert "Traceback" not in done.err


def _run(shell: Shell, server: Served, path: Path) -> Any:
    return shell.pipeline("run", "job.py", "--quiet", "--base-url", server.base_url, "--credentials", str(path))


# What errors mean


SPELLINGS: list[tuple[type[GoogleAuthError], tuple[object, ...], bool]] = [
    (RefreshError, ("invalid_grant: Bad Request", {"error": "invalid_grant"}), True),
    (RefreshError, ("invalid_grant: Bad Request",), True),
    (RefreshError, ("('invalid_grant: Bad Request', {})",), True),
    (RefreshError, ("no", '{"error": "deleted_client"}'), True),
    (RefreshError, ("no", b'[{"error": {"code": 403}}]'), True),
    (RefreshError, ("no", {"error": {"status": "UNAUTHENTICATED"}}), True),
    (OAuthError, ("Error code invalid_target: no", "{}"), True),
    (ReauthFailError, ("Reauthentication is needed.",), True),
    (RefreshError, ("server_error: later", {"error": "server_error"}), False),
    (RefreshError, ("no", '{"error": "temporarily_unavailable"}'), False),
    (RefreshError, ("<html>Bad gateway</html>", "<html>"), False),
    (RefreshError, ("no", '{"error": {"code": 503, "status": "UNAVAILABLE"}}'), False),
    (RefreshError, ("no", "[" * 100_000), False),
    (RefreshError, ("no", None, 7, [], {}), False),
    (TransportError, ("invalid_grant",), False),
]


@pytest.mark.parametrize(("kind", "arguments", "refused"), SPELLINGS)
def test_t7_a_refusal_is_known_in_every_spelling_and_nothing_else_is_one(
    kind: type[GoogleAuthError], arguments: tuple[object, ...], *, refused: bool
) -> None:
    assert is_refused(kind(*arguments)) is refused


def test_t7_what_google_auth_holds_for_passing_is_no_refusal() -> None:
    later = RefreshError("later", {"error": "unknown_thing"}, retryable=True)  # type: ignore[no-untyped-call] # theirs
    assert not is_refused(later)


def test_s4_a_reason_holds_no_secret_whatever_carries_it() -> None:
    secret = {"error": "x", "error_description": "assertion=canary1 refresh_token: 1//0canarycanary"}
    kinds: list[tuple[type[GoogleAuthError], tuple[object, ...]]] = [
        (RefreshError, ("no", json.dumps(secret))),
        (OAuthError, (json.dumps(secret),)),
        (GoogleAuthError, (secret,)),
    ]
    for kind, arguments in kinds:
        assert "canary" not in reason_of(kind(*arguments))
