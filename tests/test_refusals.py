"""What error bodies say about the account, about a request, or about either: by their fields, then by known words."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.endpoint.error_body import fault_in, fault_of_status
from pipeline.faults import Fault, ProviderUnusable, Refused, Throttled, Unavailable

ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
QUOTA = "type.googleapis.com/google.rpc.QuotaFailure"
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "41s"}


def google(code: int, message: str, status: str = "", *details: object) -> Any:
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


def openai(message: str, kind: str | None, code: str | None) -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def info(reason: str) -> dict[str, Any]:
    return {"@type": ERROR_INFO, "reason": reason, "domain": "googleapis.com"}


def fault(status: int, body: object) -> Fault:
    return fault_of_status(status, orjson.dumps(body), {})


ACCOUNT = {
    "an invalid key": (400, google(400, "API key not valid.", "INVALID_ARGUMENT", info("API_KEY_INVALID"))),
    "an expired key": (400, google(400, "API key expired. Please renew.", "INVALID_ARGUMENT", info("API_KEY_INVALID"))),
    "the same without details": (400, google(400, "API key expired. Please renew the API key.")),
    "a blocked key": (403, google(403, "Requests are blocked.", "PERMISSION_DENIED", info("API_KEY_SERVICE_BLOCKED"))),
    "a disabled service": (403, google(403, "Enable it.", "PERMISSION_DENIED", info("SERVICE_DISABLED"))),
    "the same in words": (403, google(403, "Vertex AI API has not been used in project 7 before or it is disabled.")),
    "billing": (403, google(403, "Billing is off.", "PERMISSION_DENIED", info("BILLING_DISABLED"))),
    "billing in words": (403, google(403, "This API method requires billing to be enabled.")),
    "a project that is none": (403, google(403, "Permission denied on P.", "", info("CONSUMER_INVALID"))),
    "a suspended project": (403, google(403, "Suspended.", "", info("CONSUMER_SUSPENDED"))),
    "the errors list": (403, {"error": {"code": 403, "message": "x", "errors": [{"reason": "BILLING_DISABLED"}]}}),
    "a location": (400, google(400, "User location is not supported for the API use.", "FAILED_PRECONDITION")),
    "no money": (429, openai("You exceeded your current quota.", "insufficient_quota", "insufficient_quota")),
    "no money, by type only": (429, openai("You exceeded your current quota.", "insufficient_quota", None)),
    "a hard limit": (400, openai("Billing hard limit has been reached", "x", "billing_hard_limit_reached")),
    "an account that is gone": (403, openai("deactivated", "invalid_request_error", "account_deactivated")),
    "a country": (403, openai("Country not supported", "request_forbidden", "unsupported_country_region_territory")),
    "a spent balance": (400, {"type": "error", "error": {"type": "x", "message": "Your credit balance is too low to"}}),
    "another one": (402, openai("Insufficient Balance", "unknown_error", "invalid_request_error")),
    "a proxy's budget": (429, openai("Budget has been exceeded!", "budget_exceeded", "429")),
    "a proxy's key": (400, openai("Key expired", "expired_key", "400")),
}


@pytest.mark.parametrize("case", ACCOUNT)
def test_h11a_the_accounts_trouble_ends_the_run_whatever_its_status(case: str) -> None:
    status, body = ACCOUNT[case]
    found = fault(status, body)
    assert isinstance(found, ProviderUnusable)
    assert found.kind is not None
    assert found.kind.startswith(str(status))
    assert found.http_status == status


IN_WORDS = {
    "text": (400, b"API key not valid. Please pass a valid API key."),
    "a reason alone": (429, b"insufficient_quota"),
    "a page": (403, b"<html><body><h1>403</h1>\n<p>API key expired. Renew it.</p></body></html>"),
    "a page with a reason": (403, b"<!doctype html><title>Forbidden</title><b>SERVICE_DISABLED</b>"),
    "an error that is its reason": (403, b'{"error": "billing_not_active"}'),
    "a message that is its reason": (429, b'{"message": "insufficient-quota"}'),
    "a list": (400, b'[{"error": "API_KEY_INVALID"}]'),
}


@pytest.mark.parametrize("case", IN_WORDS)
def test_h11a_the_accounts_trouble_is_known_in_a_body_of_any_shape(case: str) -> None:
    status, body = IN_WORDS[case]
    found = fault_of_status(status, body, {})
    assert isinstance(found, ProviderUnusable)
    assert found.kind is not None


@pytest.mark.parametrize(
    "body", [b"Bad text: API key not valid", b"no insufficient_quota here", b"<p>you said API key expired"]
)
def test_h11a_a_body_that_speaks_of_keys_further_on_may_quote_a_row(body: bytes) -> None:
    assert not isinstance(fault_of_status(400, body, {}), ProviderUnusable)


def test_h2b_a_spent_quota_ends_the_run_also_inside_a_200_and_a_stream() -> None:
    body = openai("You exceeded your current quota.", "insufficient_quota", "insufficient_quota")
    assert isinstance(
        fault_in({"error": {**body["error"], "code": 429, "type": "insufficient_quota"}}), ProviderUnusable
    )


SUSPECT = {
    "moderation": (403, openai('Your input was flagged for "violence".', None, None)),
    "a file": (403, google(403, "service-1@x does not have storage.objects.get access.", "PERMISSION_DENIED")),
    "a model": (404, google(404, "Publisher Model `m` was not found", "NOT_FOUND")),
    "credits": (402, openai("Insufficient credits", None, None)),
    "a method": (405, {}),
    "a proxy": (407, {}),
    "gone": (410, {}),
    "a redirect": (302, {}),
    "a quota of 0, in words": (429, google(429, "Quota exceeded for metric: x, limit: 0", "RESOURCE_EXHAUSTED", RETRY)),
    "a quota of 0": (429, google(429, "Quota.", "", {"@type": QUOTA, "violations": [{"quotaValue": "0"}]}, RETRY)),
    "a quota value of 0": (429, google(429, "Q.", "", {**info("X"), "metadata": {"quota_limit_value": "0"}})),
}


@pytest.mark.parametrize("case", SUSPECT)
def test_a_refusal_that_may_be_either_is_left_to_those_who_see_all_calls(case: str) -> None:
    status, body = SUSPECT[case]
    found = fault(status, body)
    assert isinstance(found, Refused)
    assert found.suspect
    assert found.http_status == status


OWN = {
    "a limit above 0": (429, google(429, "Quota exceeded for metric: x, limit: 20", "RESOURCE_EXHAUSTED"), Throttled),
    "a limit of 0.5": (429, google(429, "Quota exceeded, limit: 0.5", "RESOURCE_EXHAUSTED"), Throttled),
    "a bad request": (400, google(400, "Unknown name", "INVALID_ARGUMENT"), Refused),
    "a row that speaks of keys": (400, google(400, 'Bad text: "API key not valid"', "INVALID_ARGUMENT"), Refused),
    "an overload": (503, google(503, "API key not valid", "UNAVAILABLE"), Unavailable),
}


@pytest.mark.parametrize("case", OWN)
def test_what_is_about_a_request_or_passes_is_neither(case: str) -> None:
    status, body, kind = OWN[case]
    found = fault(status, body)
    assert type(found) is kind
    assert not getattr(found, "suspect", False)


def test_refusals_are_alike_when_only_names_and_numbers_differ() -> None:
    alike = [
        fault(400, google(400, f"Schema of 'row {n}' has {n} states at /a/{n}", "INVALID_ARGUMENT")) for n in (1, 22)
    ]
    other = fault(400, google(400, "Too long", "INVALID_ARGUMENT"))
    kinds = [one.kind for one in (*alike, other) if isinstance(one, Refused)]
    assert kinds[0] == kinds[1] != kinds[2]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("code", "message", "type", "status", "details", "errors", "reason", "violations", "metadata", "quotaValue")


@settings(max_examples=400, deadline=None)
@given(
    status=st.sampled_from([200, 301, 400, 402, 403, 404, 418, 429, 451, 500, 503]),
    error=st.dictionaries(st.sampled_from(NAMES), values | st.lists(st.dictionaries(st.sampled_from(NAMES), values))),
)
def test_h7_an_error_of_any_types_is_a_fault_and_nothing_else(status: int, error: dict[str, Any]) -> None:
    try:
        body = orjson.dumps({"error": error})
    except TypeError:
        return  # integers beyond 64 bits: nothing that arrives as JSON of ours
    assert isinstance(fault_of_status(status, body, {}), Fault)
