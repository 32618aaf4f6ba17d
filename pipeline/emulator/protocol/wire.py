"""Bodies as Vertex writes them: completions with sorted keys, errors in google.rpc.Status envelopes."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

JsonMapping = Mapping[str, Any]

JsonObject = dict[str, Any]

SIMULATED = ("X-Simulated", "vertex-emulator")
JSON_TYPE = "application/json; charset=UTF-8"
TOO_MANY_STATES = "The specified schema produces a constraint that has too many states for serving."
HTML_TYPE = "text/html; charset=UTF-8"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The token counts of one call; disjoint, except `cached`, which is part of `prompt`."""

    prompt: int
    completion: int
    reasoning: int = 0
    cached: int = 0


class Problem(Exception):
    """An error response of the API: HTTP status, canonical code and message. `reason` adds an ErrorInfo detail."""

    def __init__(self, http_status: int, status: str, message: str, *, details: Sequence[JsonObject] = ()) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.status = status
        self.message = message
        self.details = tuple(details)

    def body(self, style: Literal["list", "object"]) -> bytes:
        """The error as the OpenAI-compatible endpoint sends it (`list`), or the native one (`object`)."""
        error: JsonObject = {"code": self.http_status, "message": self.message, "status": self.status}
        if self.details:
            error["details"] = list(self.details)
        wrapped: JsonObject = {"error": error}
        return dump([wrapped] if style == "list" else wrapped)


def dump(value: Any) -> bytes:
    """JSON with sorted keys, as in all of Vertex's bodies."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def response_id(digest: bytes, repeat: int) -> str:
    """An id of 23 base64url characters, equal for the same request and the same `repeat`."""
    material = digest[:13] + repeat.to_bytes(4, "big")
    return base64.urlsafe_b64encode(material).decode().rstrip("=")


def choice(index: int, message: Mapping[str, Any], finish_reason: str) -> JsonObject:
    """One of `choices`."""
    return {"finish_reason": finish_reason, "index": index, "logprobs": None, "message": message}


def nonce_id(count: int) -> str:
    """A unique id of the same form: its first 8 characters are a counter, the others random."""
    return base64.urlsafe_b64encode(count.to_bytes(6, "big") + secrets.token_bytes(11)).decode().rstrip("=")


def completion(
    *,
    model: str,
    ident: str,
    created: int,
    choices: Sequence[JsonObject],
    tokens: TokenCounts,
    traffic: str = "ON_DEMAND",
) -> JsonObject:
    """A chat completion."""
    return {
        "choices": list(choices),
        "created": created,
        "id": ident,
        "model": model,
        "object": "chat.completion",
        "system_fingerprint": "",
        "usage": usage(tokens, traffic),
    }


def usage(tokens: TokenCounts, traffic: str) -> JsonObject:
    """`usage` by Vertex's arithmetic: completion tokens exclude reasoning tokens, the total includes both."""
    result: JsonObject = {
        "completion_tokens": tokens.completion,
        "extra_properties": {"google": {"traffic_type": traffic}},
        "prompt_tokens": tokens.prompt,
        "total_tokens": tokens.prompt + tokens.completion + tokens.reasoning,
    }
    if tokens.reasoning:
        result["completion_tokens_details"] = {"reasoning_tokens": tokens.reasoning}
    if tokens.cached:
        result["prompt_tokens_details"] = {"cached_tokens": tokens.cached}
    return result


def invalid(message: str) -> Problem:
    """400: the request is invalid."""
    return Problem(400, "INVALID_ARGUMENT", message)


def precondition(message: str) -> Problem:
    """400: the request cannot be served here."""
    return Problem(400, "FAILED_PRECONDITION", message)


def unavailable() -> Problem:
    """503."""
    return Problem(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")


def unauthenticated(reason: str, message: str | None = None) -> Problem:
    """401 with its reason: ACCESS_TOKEN_EXPIRED, ACCESS_TOKEN_TYPE_UNSUPPORTED or CREDENTIALS_MISSING."""
    method = "google.cloud.aiplatform.v1beta1.PredictionService.ChatCompletions"
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "aiplatform.googleapis.com", "method": method},
    }
    default = (
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
        "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    return Problem(401, "UNAUTHENTICATED", message or default, details=[info])


def denied(model: str, parent: str) -> Problem:
    """403 for a model; `parent` is `projects/P/locations/L`."""
    resource = f"//aiplatform.googleapis.com/{_publisher_model(model, parent)}"
    message = f"Permission 'aiplatform.endpoints.predict' denied on resource '{resource}' (or it may not exist)."
    return Problem(403, "PERMISSION_DENIED", message)


def not_found(model: str, parent: str) -> Problem:
    """404 for a model; `parent` is `projects/P/locations/L`."""
    message = (
        f"Publisher Model `{_publisher_model(model, parent)}` was not found or your project does not have access to "
        "it. Please ensure you are using a valid model version. For more information, see: "
        "https://cloud.google.com/vertex-ai/generative-ai/docs/learn/model-versions"
    )
    return Problem(404, "NOT_FOUND", message)


def exhausted(retry_info: float | None = None) -> Problem:
    """429. `retry_info` adds a google.rpc.RetryInfo with this many seconds."""
    message = (
        "Resource exhausted. Please try again later. Please refer to "
        "https://cloud.google.com/vertex-ai/generative-ai/docs/error-code-429 for more details."
    )
    delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_info or 0:g}s"}
    return Problem(429, "RESOURCE_EXHAUSTED", message, details=[delay] if retry_info is not None else [])


def front_end_page(status: int, title: str) -> bytes:
    """The HTML page that Google's front end sends in place of the API."""
    return (
        f"<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n<title>Error {status} ({title})!!1</title>\n"
        f"<p><b>{status}.</b> <ins>That&rsquo;s an error.</ins>\n<p>The server answered: {title}.  "
        "<ins>That&rsquo;s all we know.</ins>\n"
    ).encode()


def _publisher_model(model: str, parent: str) -> str:
    publisher, _, name = model.rpartition("/")
    return f"{parent}/publishers/{publisher or 'google'}/models/{name}"
