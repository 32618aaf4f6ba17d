"""Google's token endpoint and a virtual machine's metadata server, with their failure modes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl

from aiohttp import web

from pipeline.emulator.protocol.wire import dump, front_end_page
from pipeline.emulator.server.credentials import AccessTokens, OAuthProblem, ServiceAccount, check_refresh_grant
from pipeline.emulator.server.responses import closed, html, plain
from pipeline.emulator.server.responses import json as json_response

MODES = ("ok", "slow", "down", "500", "503", "garbage", "html", "no_expiry", "bad_expires", "part_used")
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
METADATA = "/computeMetadata/v1/"
FLAVOR = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
PLAIN_JSON = "application/json"  # google-auth parses JSON of the metadata server only with exactly this type


@dataclass(slots=True)
class TokenServer:
    """Serves both sources of tokens. `mode` is one of `MODES`; a slow answer takes `delay` seconds."""

    account: ServiceAccount
    tokens: AccessTokens
    mode: str = "ok"
    delay: float = 5.0

    async def token(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /token`: RFC 7523 assertions and refresh tokens."""
        form = dict(parse_qsl((await request.read()).decode("utf-8", "replace")))
        try:
            self._check_grant(form)
        except OAuthProblem as problem:
            body = dump({"error": problem.error, "error_description": problem.description})
            return json_response(body, problem.http_status)
        return await self._grant(request, "application/json; charset=utf-8")

    async def metadata(self, request: web.BaseRequest) -> web.StreamResponse:
        """`GET` below `/computeMetadata/v1/`: refused without `Metadata-Flavor: Google`, as by the real server."""
        if request.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in request.headers:
            return html(b"<html><body>Missing Metadata-Flavor:Google header.</body></html>\n", 403, FLAVOR)
        what = request.path.removeprefix(METADATA)
        if what == "project/project-id":
            return plain(self.account.project, FLAVOR)
        if what == "universe/universe-domain":
            return plain("googleapis.com", FLAVOR)
        folder, _, leaf = what.rpartition("/")
        if folder in {f"instance/service-accounts/{name}" for name in ("default", self.account.email)}:
            return await self._service_account(request, leaf)
        return html(front_end_page(404, "Not Found"), 404, FLAVOR)

    async def _service_account(self, request: web.BaseRequest, leaf: str) -> web.StreamResponse:
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        match leaf:
            case "":
                account = {"aliases": ["default"], "email": self.account.email, "scopes": scopes}
                return json_response(dump(account), 200, FLAVOR, PLAIN_JSON)
            case "email":
                return plain(self.account.email, FLAVOR)
            case "token":
                return await self._grant(request, PLAIN_JSON, FLAVOR)
            case _:
                return html(front_end_page(404, "Not Found"), 404, FLAVOR)

    def _check_grant(self, form: dict[str, str]) -> None:
        match form.get("grant_type"):
            case grant if grant == JWT_BEARER:
                self.account.verify(form.get("assertion", ""), time.time())
            case "refresh_token":
                check_refresh_grant(form)
            case None:
                raise OAuthProblem("invalid_request", "Required parameter is missing: grant_type")
            case other:
                raise OAuthProblem("unsupported_grant_type", f"Invalid grant_type: {other}")

    async def _grant(
        self, request: web.BaseRequest, content_type: str, headers: dict[str, str] | None = None
    ) -> web.StreamResponse:
        match self.mode:
            case "down":
                return closed(request)
            case "500" | "503":
                status = int(self.mode)
                body = dump({"error": "internal_failure" if status == 500 else "temporarily_unavailable"})
                return json_response(body, status, headers, content_type)
            case "garbage":
                return json_response(b'\x00{"access_tok', 200, headers, content_type)
            case "html":
                return html(front_end_page(502, "Server Error"), 502, headers)
            case "slow":
                await asyncio.sleep(self.delay)
        return json_response(self._issue(), 200, headers, content_type)

    def _issue(self) -> bytes:
        token, seconds = self.tokens.issue(share_used=0.9 if self.mode == "part_used" else 0.0)
        answer: dict[str, object] = {"access_token": token, "expires_in": seconds, "token_type": "Bearer"}
        if self.mode == "no_expiry":
            del answer["expires_in"]
        if self.mode == "bad_expires":
            answer["expires_in"] = "x"
        return dump(answer)
