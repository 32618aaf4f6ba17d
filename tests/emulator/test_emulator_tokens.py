"""google-auth gets its tokens here as it gets them from Google."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import google.auth.transport.requests
import pytest
import requests
from google.auth.exceptions import RefreshError
from google.oauth2 import credentials, service_account
from hypothesis import given
from hypothesis import strategies as st

from pipeline.emulator import Options
from pipeline.emulator.protocol.wire import Problem
from pipeline.emulator.server.credentials import AccessTokens, OAuthProblem, ServiceAccount
from pipeline.emulator.server.token_server import MODES
from pipeline.emulator.vertex import Vertex, emulated

pytestmark = pytest.mark.anyio
SCOPE = ["https://www.googleapis.com/auth/cloud-platform"]
HELLO = {"model": "google/gemini-test", "messages": [{"role": "user", "content": "Hello"}]}
TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"


async def refreshed(made: Any) -> str:
    """The token that google-auth gets; its clients block, hence the thread."""
    with requests.Session() as session:
        session.trust_env = False
        await asyncio.to_thread(made.refresh, google.auth.transport.requests.Request(session))
    return str(made.token)


def read(path: str) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


async def test_a_service_account_file_gets_a_token_that_the_endpoint_accepts() -> None:
    """google-auth signs with the generated key; the emulator verifies, and serves the token."""
    async with emulated(Options()) as vertex:
        made: Any = service_account.Credentials
        token = await refreshed(made.from_service_account_file(vertex.address.credentials_file, scopes=SCOPE))
        assert (await vertex.ask(HELLO, token)).status == 200
        assert (await vertex.stats())["token_refreshes"] == 1


async def test_an_authorized_user_gets_a_token_that_the_endpoint_accepts() -> None:
    """The refresh token of the second credentials file works with a token_uri of one's own."""
    async with emulated(Options()) as vertex:
        info = read(vertex.address.authorized_user_file)
        made: Any = credentials.Credentials
        names = ("refresh_token", "token_uri", "client_id", "client_secret")
        token = await refreshed(made(None, **{name: info[name] for name in names}))
        assert (await vertex.ask(HELLO, token)).status == 200


async def test_the_metadata_server_serves_application_default_credentials() -> None:
    """A process with the announced environment gets project and token with `google.auth.default()` alone."""
    code = (
        "import google.auth, google.auth.transport.requests as r;"
        f"c, p = google.auth.default(scopes={SCOPE}); c.refresh(r.Request()); print(p, c.token)"
    )
    async with emulated(Options(project="some-project")) as vertex:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "GCE", "CLOUDSDK"))}
        environment = {**kept, **vertex.address.environment(), "CLOUDSDK_CONFIG": "/nonexistent"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", code, env=environment, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
        project, token = output.decode().split()
        assert project == "some-project"
        assert (await vertex.ask(HELLO, token)).status == 200


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"key": True}, "invalid_grant", "Invalid JWT Signature."),
        ({"client_email": "other@x.iam.gserviceaccount.com"}, "invalid_grant", "account not found"),
    ],
)
async def test_a_service_account_that_is_not_ours_is_refused(wrong: dict[str, Any], error: str, says: str) -> None:
    """The signature is really verified, and so is the issuer."""
    async with emulated(Options()) as vertex:
        info = {**read(vertex.address.credentials_file), **wrong}
        if info.pop("key", False):
            info["private_key"] = ServiceAccount.generate("other").info("")["private_key"]
        made: Any = service_account.Credentials
        with pytest.raises(RefreshError, match=error) as refusal:
            await refreshed(made.from_service_account_info(info, scopes=SCOPE))
        assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({}, 400, "invalid_request"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "a.b.c"}, 400, "invalid_grant"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "x"}, 400, "invalid_grant"),
        ({"refresh_token": "stolen"}, 400, "invalid_grant"),
        ({"client_secret": "guessed"}, 401, "invalid_client"),
        ({"client_id": "unknown"}, 401, "invalid_client"),
    ],
)
async def test_a_grant_that_cannot_be_is_refused_as_oauth_says(form: dict[str, str], status: int, error: str) -> None:
    """The errors of RFC 6749, with their HTTP status."""
    async with emulated(Options()) as vertex:
        user = {**read(vertex.address.authorized_user_file), "grant_type": "refresh_token"}
        body = {**user, **form} if form and "grant_type" not in form else form
        answered = await vertex.request("POST", vertex.address.token_uri, data=body)
        assert (answered.status, answered.json()["error"]) == (status, error)


@pytest.mark.parametrize(("offset", "life"), [(-7200, 3600), (3600, 3600), (0, 36000), (0, -600)])
def test_an_assertion_out_of_its_time_is_refused(offset: int, life: int) -> None:
    """An old, a future, a too long and an ended assertion."""
    account = ServiceAccount.generate("p")
    made: Any = service_account.Credentials
    signer = made.from_service_account_info(account.info("http://127.0.0.1/token"))
    now = 1_800_000_000
    claims = {"iss": account.email, "scope": "x", "iat": now + offset, "exp": now + offset + life}
    token: Any = google.auth.jwt
    with pytest.raises(OAuthProblem, match="short-lived"):
        account.verify(token.encode(signer.signer, claims).decode(), now)
    in_time = {**claims, "iat": now, "exp": now + 3600}
    assert account.verify(token.encode(signer.signer, in_time).decode(), now)["iss"] == account.email


async def metadata(vertex: Vertex, path: str, **headers: str) -> Any:
    return await vertex.request("GET", vertex.address.origin + path, headers=headers)


async def test_the_metadata_server_asks_for_its_header() -> None:
    """Only `Metadata-Flavor: Google`, not forwarded by a proxy, is served; the root always names its flavour."""
    async with emulated(Options()) as vertex:
        assert (await metadata(vertex, "/")).headers["Metadata-Flavor"] == "Google"
        assert (await metadata(vertex, TOKEN_PATH)).status == 403
        flavor = {"Metadata-Flavor": "Google"}
        assert (await metadata(vertex, TOKEN_PATH, **flavor, **{"X-Forwarded-For": "1.2.3.4"})).status == 403
        served = await metadata(vertex, TOKEN_PATH, **flavor)
        assert (served.status, served.headers["Content-Type"]) == (200, "application/json")
        assert served.headers["Metadata-Flavor"] == "Google"
        assert (await metadata(vertex, "/computeMetadata/v1/nothing", **flavor)).status == 404


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "down"])
async def test_the_token_server_fails_as_told(mode: str) -> None:
    """Each way to be broken is what it says, on the token endpoint and on the metadata server."""
    expected = {
        "ok": (200, {"access_token", "expires_in", "token_type"}),
        "slow": (200, {"access_token", "expires_in", "token_type"}),
        "part_used": (200, {"access_token", "expires_in", "token_type"}),
        "bad_expires": (200, {"access_token", "expires_in", "token_type"}),
        "no_expiry": (200, {"access_token", "token_type"}),
        "500": (500, {"error"}),
        "503": (503, {"error"}),
        "garbage": (200, None),
        "html": (502, None),
    }
    async with emulated(Options()) as vertex:
        form = {**read(vertex.address.authorized_user_file), "grant_type": "refresh_token"}
        await vertex.control(token_server=mode, token_delay=0.0)
        for answered in (
            await vertex.request("POST", vertex.address.token_uri, data=form),
            await metadata(vertex, TOKEN_PATH, **{"Metadata-Flavor": "Google"}),
        ):
            status, keys = expected[mode]
            assert answered.status == status
            if keys is None:
                with pytest.raises(ValueError, match=r"\w"):
                    answered.json()
            else:
                assert set(answered.json()) == keys
        await vertex.control(token_server="ok")
        assert (await vertex.ask(HELLO)).status == 200


async def test_a_token_server_that_is_down_closes_the_connection_and_comes_back() -> None:
    """`down` gives no answer at all, and `ok` ends it."""
    async with emulated(Options()) as vertex:
        await vertex.control(token_server="down")
        with pytest.raises(aiohttp.ClientError):
            await vertex.token()
        await vertex.control(token_server="ok")
        assert await vertex.token()


async def test_revoked_tokens_are_expired_and_new_ones_are_not() -> None:
    """`revoke` ends every token given out; `/stats` counts them as expired."""
    async with emulated(Options()) as vertex:
        old = await vertex.token()
        await vertex.control(revoke=True)
        refused = await vertex.ask(HELLO, old)
        assert refused.status == 401
        assert refused.json()[0]["error"]["details"][0]["reason"] == "ACCESS_TOKEN_EXPIRED"
        assert (await vertex.ask(HELLO)).status == 200
        assert (await vertex.stats())["tokens_expired"] == 1


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        (None, "CREDENTIALS_MISSING"),
        ("Bearer AIzaSomeKey", "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        ("Basic dTpw", "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        ("Bearer", "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    ],
)
async def test_other_credentials_are_refused_with_their_reason(authorization: str | None, reason: str) -> None:
    """The body is Google's: a list with one error, an ErrorInfo in its details."""
    async with emulated(Options()) as vertex:
        headers = {"Authorization": authorization} if authorization else {}
        url = f"{vertex.address.base_url}/chat/completions"
        refused = await vertex.request("POST", url, json=HELLO, headers=headers)
        error = refused.json()[0]["error"]
        assert (refused.status, error["code"], error["status"]) == (401, 401, "UNAUTHENTICATED")
        assert error["details"][0]["reason"] == reason
        assert refused.headers["WWW-Authenticate"].startswith("Bearer ")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@given(life=st.floats(0.5, 7200), age=st.floats(0, 10_000))
def test_a_token_lives_as_long_as_it_was_told(life: float, age: float) -> None:
    """Accepted before its end, refused from its end on, and announced as no longer than it lives (1 s at least)."""
    clock = Clock()
    tokens = AccessTokens(life, clock)
    token, announced = tokens.issue()
    assert announced <= max(1.0, life)
    clock.now += age
    if age < life:
        tokens.check(f"Bearer {token}")
        assert tokens.expired() == 0
    elif age > life:
        with pytest.raises(Problem) as refusal:
            tokens.check(f"Bearer {token}")
        assert refusal.value.http_status == 401
        assert tokens.expired() == 1


def test_an_hour_is_announced_as_google_announces_it() -> None:
    """3599 seconds; a tenth of it for a part-used token."""
    tokens = AccessTokens(3600.0, Clock())
    assert tokens.issue()[1] == 3599
    assert tokens.issue(share_used=0.9)[1] in {358, 359, 360}


def mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


async def test_credentials_are_readable_by_their_owner_only_and_leave_with_the_emulator(tmp_path: Path) -> None:
    """A directory of one's own is made with 0700 and kept; the temporary one is removed."""
    async with emulated(Options(directory=tmp_path / "made")) as vertex:
        kept = Path(vertex.address.credentials_file)
    assert mode(kept) == 0o600
    assert mode(kept.parent) == 0o700
    async with emulated(Options()) as vertex:
        gone = Path(vertex.address.credentials_file)
        assert mode(gone.parent) == 0o700
    assert mode(gone.parent) is None


def test_the_wall_clock_serves_for_assertions_only() -> None:
    """Token life is measured by a clock that does not jump."""
    assert AccessTokens(1.0).clock is time.monotonic
