"""Access tokens: issuing and checking them, and the credentials with which clients obtain them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from pipeline.emulator.protocol.wire import Problem, unauthenticated

CLIENT_ID = "emulated-client.apps.googleusercontent.com"
CLIENT_SECRET = "emulated-secret"  # noqa: S105 (valid for this emulator only)
REFRESH_TOKEN = "1//emulated-refresh-token"  # noqa: S105 (the same)
API_KEY = "sk-emulated"
"""What the addresses of an OpenAI server take in place of an access token."""
LONGEST_JWT = 3600 + 300  # seconds: an hour, and a tolerance for clock skew

Claims = Mapping[str, Any]


class OAuthProblem(Exception):
    """An error of the token endpoint: `error` and `error_description` of RFC 6749, with its HTTP status."""

    def __init__(self, error: str, description: str, *, http_status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.http_status = http_status


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """An emulated service account, with its own key."""

    email: str
    project: str
    key: rsa.RSAPrivateKey

    @classmethod
    def generate(cls, project: str) -> ServiceAccount:
        """A new account with a new 2048-bit key: a fraction of a second of CPU."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return cls(email=f"emulator@{project}.iam.gserviceaccount.com", project=project, key=key)

    def info(self, token_uri: str) -> dict[str, str]:
        """The content of its credentials file."""
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": self.project,
            "private_key_id": hashlib.sha256(pem).hexdigest()[:40],
            "private_key": pem.decode(),
            "client_email": self.email,
            "client_id": "100000000000000000001",
            "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        }

    def verify(self, assertion: str, now: float) -> Claims:
        """The claims of a JWT signed by this account; raises `OAuthProblem`. `aud` is Google's, not ours."""
        header, claims, signature, signed = _split_jwt(assertion)
        if header.get("alg") != "RS256":
            raise OAuthProblem("invalid_grant", "Invalid JWT: unsupported signing algorithm.")
        try:
            self.key.public_key().verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise OAuthProblem("invalid_grant", "Invalid JWT Signature.") from None
        if claims.get("iss") != self.email:
            raise OAuthProblem("invalid_grant", "Invalid grant: account not found")
        if not claims.get("scope"):
            raise OAuthProblem("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        _check_times(claims, now)
        return claims


@dataclass(slots=True)
class AccessTokens:
    """The issued access tokens with their expiry times. `clock` returns monotonic seconds."""

    life: float
    clock: Callable[[], float] = time.monotonic
    refreshes: int = 0
    _ends: dict[str, float] = field(default_factory=dict)
    _forgotten: int = 0

    def issue(self, *, share_used: float = 0.0) -> tuple[str, int]:
        """A new token and its remaining lifetime in whole seconds; `share_used` of the lifetime has already passed.

        As with Google, a lifetime of an hour is announced as 3599 s; a short one is rounded down, to at least 1 s.
        """
        self.refreshes += 1
        life = self.life * (1.0 - share_used)
        token = "ya29.emulated." + hashlib.sha256(f"{id(self)}/{len(self._ends)}".encode()).hexdigest()
        self._ends[token] = self.clock() + life
        return token, max(1, math.floor(life) - (1 if life >= 60 else 0))

    def check(self, authorization: str | None, *, keys: bool = False) -> None:
        """Returns for a valid token, or for the API key where `keys` are taken; raises a 401 otherwise."""
        if keys and authorization == f"Bearer {API_KEY}":
            return
        if not authorization:
            raise _missing()
        scheme, _, token = authorization.partition(" ")
        ends = self._ends.get(token)
        if ends is None or scheme.lower() != "bearer":
            raise unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED")
        if ends <= self.clock():
            raise unauthenticated("ACCESS_TOKEN_EXPIRED")

    def revoke(self) -> None:
        """Revokes every token issued so far."""
        now = self.clock()
        self._ends = {token: min(end, now) for token, end in self._ends.items()}

    def expired(self) -> int:
        """The number of tokens that have expired since the counters began."""
        return self._ended() - self._forgotten

    def reset_counters(self) -> None:
        """Resets the counters; the tokens stay."""
        self.refreshes = 0
        self._forgotten = self._ended()

    def _ended(self) -> int:
        now = self.clock()
        return sum(end <= now for end in self._ends.values())


def write_credentials(directory: Path, account: ServiceAccount, token_uri: str) -> tuple[Path, Path]:
    """Writes the service account and authorized user files, mode 0600; creates a missing directory with 0700.

    google-auth's own loader of the second file ignores its `token_uri`: build
    `google.oauth2.credentials.Credentials(token_uri=...)` from its fields instead.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    user = {
        "type": "authorized_user",
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "refresh_token": REFRESH_TOKEN,
        "token_uri": token_uri,
        "universe_domain": "googleapis.com",
    }
    paths = directory / "service_account.json", directory / "authorized_user.json"
    for path, content in zip(paths, (account.info(token_uri), user), strict=True):
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return paths


def check_refresh_grant(form: Mapping[str, str]) -> None:
    """Returns for the authorized user that `write_credentials` wrote; raises `OAuthProblem`."""
    if form.get("client_id") != CLIENT_ID:
        raise OAuthProblem("invalid_client", "The OAuth client was not found.", http_status=401)
    if form.get("client_secret") != CLIENT_SECRET:
        raise OAuthProblem("invalid_client", "Unauthorized", http_status=401)
    if form.get("refresh_token") != REFRESH_TOKEN:
        raise OAuthProblem("invalid_grant", "Token has been expired or revoked.")


def _missing() -> Problem:
    message = (
        "Request is missing required authentication credential. Expected OAuth 2 access token, login cookie or other "
        "valid authentication credential. See "
        "https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    return unauthenticated("CREDENTIALS_MISSING", message)


def _split_jwt(assertion: str) -> tuple[Claims, Claims, bytes, bytes]:
    signed, _, signature = assertion.rpartition(".")
    head, _, body = signed.partition(".")
    try:
        parts = [orjson.loads(_decode(part)) for part in (head, body)]
        raw = _decode(signature)
    except ValueError:
        raise OAuthProblem("invalid_grant", "Invalid JWT: malformed assertion.") from None
    if not all(isinstance(part, dict) for part in parts):
        raise OAuthProblem("invalid_grant", "Invalid JWT: malformed assertion.")
    return parts[0], parts[1], raw, signed.encode()


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _check_times(claims: Claims, now: float) -> None:
    issued, ends = claims.get("iat"), claims.get("exp")
    in_time = (
        isinstance(issued, int | float)
        and isinstance(ends, int | float)
        and issued <= now + 300
        and now - 300 <= ends <= issued + LONGEST_JWT
    )
    if not in_time:
        raise OAuthProblem(
            "invalid_grant",
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
            "Check your iat and exp values in the JWT claim.",
        )
