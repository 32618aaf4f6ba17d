"""What a refusal concerns, as far as one answer can tell: the account, this request, or either.

The fields of the error body decide (`details[].reason`, `errors[].reason`, `error.code`, `error.type`). Text decides
only where servers are known to have no field for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.faults import Fault, ProviderUnusable, Refused

ACCOUNT = frozenset({
    # google.rpc.ErrorInfo: https://github.com/googleapis/googleapis/blob/master/google/api/error_reason.proto.
    # USER_PROJECT_DENIED and the organisation's policies concern the project of the credentials, which all calls of a
    # run share. Reasons that may concern a single resource (RESOURCE_USAGE_RESTRICTION_VIOLATED ...) are not listed.
    "API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED", "API_KEY_HTTP_REFERRER_BLOCKED",
    "API_KEY_IP_ADDRESS_BLOCKED", "API_KEY_ANDROID_APP_BLOCKED", "API_KEY_IOS_APP_BLOCKED", "SERVICE_DISABLED",
    "SERVICE_NOT_VISIBLE", "BILLING_DISABLED", "CONSUMER_INVALID", "CONSUMER_SUSPENDED", "GCP_SUSPENDED",
    "ACCOUNT_STATE_INVALID", "USER_PROJECT_DENIED", "USER_BLOCKED_BY_ADMIN", "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
    "ACCESS_TOKEN_TYPE_UNSUPPORTED", "CREDENTIALS_MISSING", "LOCATION_POLICY_VIOLATED", "LOCATION_TAX_POLICY_VIOLATED",
    "ORG_RESTRICTION_VIOLATION",
    # OpenAI's `code` and `type`: https://platform.openai.com/docs/guides/error-codes; langchainjs#1929, anton#284.
    "INSUFFICIENT_QUOTA", "BILLING_HARD_LIMIT_REACHED", "BILLING_NOT_ACTIVE", "ACCOUNT_DEACTIVATED", "INVALID_API_KEY",
    "INVALID_ORGANIZATION", "UNSUPPORTED_COUNTRY_REGION_TERRITORY",
    # Anthropic's `type`: https://docs.anthropic.com/en/api/errors.
    "AUTHENTICATION_ERROR", "BILLING_ERROR",
    # LiteLLM's proxy, `type`: its keys and their budgets; litellm#37599.
    "BUDGET_EXCEEDED", "EXPIRED_KEY", "TOKEN_NOT_FOUND_IN_DB",
})  # fmt: skip
"""Reasons that apply to every request of a run, and that waiting does not change."""

_SAYINGS = (
    # Gemini API without `details`, as some gateways pass it on: continue#11336, plainbook#25.
    r"API key (?:not valid|expired|not found)",
    # FAILED_PRECONDITION, no reason in any field: https://ai.google.dev/gemini-api/docs/troubleshooting.
    r"User location is not supported for the API use",
    # Older Google APIs send SERVICE_DISABLED and BILLING_DISABLED only as text.
    r"[\w .()-]{1,80} has not been used in project \S{1,80} before or it is disabled",
    r"This API method requires billing to be enabled",
    r"The billing account for the owning project is disabled",
    # Anthropic, a 400 with the type of any bad request: https://docs.anthropic.com/en/api/errors.
    r"Your credit balance is too low",
    # OpenAI, for some endpoints, without a code.
    r"Billing hard limit has been reached",
    # DeepSeek's 402, with the code of any bad request: https://api-docs.deepseek.com/quick_start/error_codes.
    r"Insufficient Balance",
)
"""Account errors that no field reports. Only the beginning of a message counts: what follows may quote a row."""

_SAID = re.compile("|".join(_SAYINGS), re.IGNORECASE)

SUSPECT = frozenset({402, 403, 404, 405, 407, 410})
"""Statuses that may concern the account, the model or the address as well as this request; 3xx also does."""

_ZERO_QUOTA = re.compile(r"\blimit: 0(?![\d.])")
"""In the text of a Gemini API 429, next to the metric; gemini-cli#14831 shows the form."""

_MOST_WORDS = 200

_MOST_SEARCHED = 1000

_TAG = re.compile(r"<[^<>]{0,200}>")
"""An HTML tag, for a page in place of an error: each text between tags is examined on its own."""


def account_fault(status: int, error: Mapping[str, Any], text: str) -> ProviderUnusable | None:
    """The fault that ends the run, if the error concerns the account; `text` is its message."""
    message = error.get("message")
    said = [part.strip() for part in _TAG.split(message[:_MOST_SEARCHED])] if isinstance(message, str) else []
    reported = any(map(_SAID.match, said))
    named = [*reasons(error), *(_spelt(part) for part in said if " " not in part)]
    reason = next((reason for reason in named if reason in ACCOUNT), None)
    if reason is None and not (reported and 400 <= status < 500):
        return None
    return ProviderUnusable(text, http_status=status, kind=f"{status} {reason or _words(message)}")


def refusal(status: int, error: Mapping[str, Any], text: str) -> Fault:
    """The fault for a refused request; it may apply to all rows if only the status is known."""
    suspect = status in SUSPECT or 300 <= status < 400 or status == 429
    said = next(reasons(error), "")
    kind = f"{status} {said}" if suspect else f"{status} {said} {_words(error.get('message'))}"
    return Refused(text, http_status=status, suspect=suspect, kind=kind)


def grants_nothing(error: Mapping[str, Any]) -> bool:
    """Whether a 429 says that the quota is 0, so that waiting does not help, at least for this model."""
    for detail in _details(error):
        values = [one.get("quotaValue") for one in _listed(detail.get("violations")) if isinstance(one, dict)]
        metadata = detail.get("metadata")
        values += [metadata.get("quota_limit_value")] if isinstance(metadata, dict) else []
        if any(value in ("0", 0) and not isinstance(value, bool) for value in values):
            return True
    message = error.get("message")
    return isinstance(message, str) and _ZERO_QUOTA.search(message[:2000]) is not None


def reasons(error: Mapping[str, Any]) -> Iterator[str]:
    """Every reason in the fields of an error, most specific first, in one spelling."""
    found = [detail.get("reason") for detail in _details(error)]
    found += [other.get("reason") for other in _listed(error.get("errors")) if isinstance(other, dict)]
    found += [error.get(name) for name in ("code", "type", "status")]
    for reason in found:
        if isinstance(reason, str) and 0 < len(reason) <= 100 and not reason.isdigit():
            yield _spelt(reason)


def _spelt(reason: str) -> str:
    return reason.strip().upper().replace("-", "_").replace(" ", "_")


def _details(error: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (detail for detail in _listed(error.get("details")) if isinstance(detail, dict))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(message: object) -> str:
    """A message without the parts that vary by row: numbers, quoted names, paths."""
    if not isinstance(message, str):
        return ""
    bare = re.sub(r"\"[^\"]*\"|'[^']*'|`[^`]*`", "#", message[:_MOST_WORDS].lower())
    return " ".join("#" if re.search(r"[\d/]", word) else word for word in bare.split())
