"""Secrets of every kind, in every form in which a server or a library may write them, are told to nobody."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.endpoint.redaction import (
    MOST_QUOTED,
    MOST_READ,
    REDACTED,
    quoted,
    redact_secret,
    redact_secret_bytes,
    redact_tokens,
    said_of_row,
)
from pipeline.endpoint.secret_redaction import IN_BODIES, IN_MESSAGES, SHORTEST_SECRET
from pipeline.faults import MOST_MESSAGE, Refused

DICE = random.Random(7)
BASE64 = string.ascii_letters + string.digits + "+/"
BODY = "\n".join("".join(DICE.choices(BASE64, k=64)) for _ in range(25))
PEM = f"-----BEGIN PRIVATE KEY-----\n{BODY}\nq9Z/w+A7cQ==\n-----END PRIVATE KEY-----\n"
OPAQUE = "".join(DICE.choices(string.ascii_letters + string.digits + "-_", k=48))
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg": "RS256", "typ": "JWT"}', b'{"sub": "someone"}', b"a signature that is not one")
)

SHAPES = {
    "Google token": f"ya29.c.{OPAQUE}",
    "refresh token": f"1//0g{OPAQUE}",
    "Google API key": f"AIzaSy{OPAQUE[:33]}",
    "client secret": f"GOCSPX-{OPAQUE[:28]}",
    "OpenAI": f"sk-proj-{OPAQUE}",
    "Anthropic": f"sk-ant-api03-{OPAQUE}",
    "Groq": f"gsk_{OPAQUE}",
    "Hugging Face": f"hf_{OPAQUE[:34]}",
    "xAI": f"xai-{OPAQUE}",
    "GitHub": f"ghp_{OPAQUE[:36]}",
    "AWS": "AKIAQ7ZQ7ZQ7ZQ7ZQ7ZQ",
    "JWT": JWT,
    "JWT that was cut": JWT[:30],
    "unknown": OPAQUE,
}


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("place", ["bad key {}", '{{"said": "{}"}}', "\\n{}", "({})", "Bearer {} is wrong", "key={}"])
def test_s4_what_looks_like_a_token_or_a_key_is_not_told(secret: str, place: str) -> None:
    told = redact_tokens(place.format(secret))
    assert REDACTED in told
    assert not any(secret[at : at + 8] in told for at in range(len(secret) - 8))


KEYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in JSON": json.dumps,
    "in JSON in JSON": lambda key: json.dumps(json.dumps({"private_key": key})),
    "with escaped slashes": lambda key: json.dumps(key).replace("/", "\\/"),
    "in a credentials file": lambda key: json.dumps({"type": "service_account", "private_key": key, "x": 1}, indent=1),
    "as Python writes it": lambda key: repr({"private_key": key}),
    "on one line": lambda key: key.replace("\n", " "),
    "without its end": lambda key: key[:700],
    "without its end, in JSON": lambda key: json.dumps(key)[:700],
    "without its beginning": lambda key: key[200:],
    "its last line": lambda key: key[-50:],
    "of another kind": lambda key: key.replace("PRIVATE", "RSA PRIVATE"),
}


@pytest.mark.parametrize("written", KEYS.values(), ids=KEYS.keys())
def test_s4_a_private_key_is_not_told_whole_or_in_part(written: Callable[[str], str]) -> None:
    told = redact_tokens(f"File {written(PEM)} was not found.")
    lines = [line for line in PEM.splitlines() if not line.startswith("-----")]
    assert REDACTED in told
    assert not any(line[at : at + 16] in told for line in lines for at in range(max(1, len(line) - 16)))
    assert told.startswith("File ")


NAMES = [
    "private_key",
    "refresh_token",
    "client_secret",
    "id_token",
    "access_token",
    "assertion",
    "api_key",
    "password",
]
FIELDS = [
    '{{"{}": "{}"}}',
    "{{'{}': '{}'}}",
    '{{\\"{}\\": \\"{}\\"}}',
    '{{\\\\\\"{}\\\\\\": \\\\\\"{}\\\\\\"}}',
    "grant_type=x&{}={}&scope=y",
    "{}: {}, and more",
    '"{}" :"{}',
]


@pytest.mark.parametrize("name", [*NAMES, "accessToken", "Client-Secret"])
@pytest.mark.parametrize("form", FIELDS)
def test_s4_the_value_of_a_field_that_is_secret_by_its_name_is_not_told(name: str, form: str) -> None:
    told = redact_tokens(form.format(name, "Quux77zebu"))
    assert "Quux" not in told
    assert "zebu" not in told
    assert name in told


@pytest.mark.parametrize(
    "address",
    [
        "http://canaryuser:canarypass@127.0.0.1:3128",
        "https://canaryuser@proxy.example",
        "socks5://canaryuser:canary/pass@proxy.example:1080",
        "canaryuser:canarypass@proxy.example:3128",
        "url='http://canaryuser:p%40canary@[::1]:3128'",
    ],
)
def test_s9_the_user_and_password_of_an_address_are_not_told_and_its_host_is(address: str) -> None:
    told = redact_tokens(f"cannot reach {address} today")
    assert "canary" not in told
    assert "proxy.example" in told or "127.0.0.1" in told or "[::1]" in told


def test_s4_a_key_in_the_query_of_an_address_is_not_told() -> None:
    told = redact_tokens("no /v1/models?alt=sse&key=canary1&x=2 here")
    assert told == f"no /v1/models?alt=sse&key={REDACTED}&x=2 here"


@pytest.mark.parametrize(
    "said",
    [
        "429 RESOURCE_EXHAUSTED: Quota exceeded for aiplatform.googleapis.com/generate_content_requests_per_minute",
        "404 NOT_FOUND: Publisher Model `projects/my-project-123/locations/us-central1/publishers/google/models/x`",
        "Quota GenerateContentRequestsPerMinutePerProjectPerRegion is used up",
        "the request id is 7f3c9a52-11aa-4b4e-8f7e-0123456789ab",
        "see https://cloud.google.com/vertex-ai/docs/quotas#error-code-429",
        "https://host:443/v1/models/claude-3@20240620 was not found",
        "invalid_grant: the access_token: expired",
        "password: must not be empty",
        "write to someone@example.com",
        "the id token is missing",
    ],
)
def test_the_words_of_a_server_that_are_no_secret_are_told_as_they_are(said: str) -> None:
    assert redact_tokens(said) == said


@given(st.integers(0, 3 * MOST_READ), st.sampled_from(list(SHAPES.values())))
def test_s4_no_half_of_a_secret_is_left_where_a_long_text_is_cut(before: int, secret: str) -> None:
    told = redact_tokens("x " * (before // 2) + secret + " y" * MOST_READ)
    assert not any(secret[at : at + 12] in told for at in range(len(secret) - 12))


HOSTILE = [
    "eyJ-", "sk-", "ya29.", "1//", "A1b", "\\", '\\"', "'", "a:", "a://", "u:p@", "bearer ", 'password="', "password:",
    "-----BEGIN PRIVATE KEY", "-----END PRIVATE KEY-----", "A" * 39 + " ", 'private_key\\\\"',
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_s10_of_a_long_text_only_the_beginning_is_read(unit: str) -> None:
    """100 KB of a refusal once cost 28 s; a megabyte now costs what 8 KB cost."""
    enough, more = unit * (2 * MOST_READ // len(unit)), unit * (2**20 // len(unit))
    assert redact_tokens(more) == redact_tokens(enough)
    assert len(redact_tokens(more)) <= 2 * MOST_READ


# Our own secret


KEY = "sk-CANARYKEY/0123456789+abcdef"
WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "slashes escaped": lambda key: key.replace("/", "\\/"),
    "slashes escaped twice": lambda key: key.replace("/", "\\\\\\/"),
    "all escaped": lambda key: "".join(f"\\u{ord(one):04x}" for one in key),
    "all escaped, capitals": lambda key: "".join(f"\\u{ord(one):04X}" for one in key),
    "some escaped": lambda key: key.replace("K", "\\u004b").replace("+", "\\u002B"),
    "escaped in an escaped text": lambda key: key.replace("K", "\\\\u004b").replace("/", "\\\\/"),
    "in an address": lambda key: key.replace("/", "%2F").replace("+", "%2b"),
    "in an address within an address": lambda key: key.replace("/", "%252F").replace("+", "%252b"),
    "in an address within two": lambda key: key.replace("/", "%25252f").replace("+", "%25252B"),
    "all percent, twice": lambda key: "".join(f"%25{ord(one):02X}" for one in key),
    "in hexadecimal": lambda key: key.encode().hex(),
    "in hexadecimal, capitals": lambda key: key.encode().hex().upper(),
    "in a page": lambda key: key.replace("/", "&#47;").replace("+", "&#x2B;"),
    "beginning masked": lambda key: f"...{key[4:]}",
    "end masked": lambda key: f"{key[:-4]}****",
    "its first half": lambda key: key[:18],
    "its last half": lambda key: key[-18:],
    "as a pattern leaves it": redact_tokens,
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN.keys())
@pytest.mark.parametrize("place", ["key {} is wrong", '{{"content": "your key is {}"}}', "{}", "é{}é", "{0} and {0}"])
def test_s4_our_key_is_taken_out_of_messages_and_answers_however_it_is_written(
    written: Callable[[str], str], place: str
) -> None:
    said = place.format(written(KEY))
    for told in (
        redact_secret(redact_tokens(said), KEY),
        redact_tokens(redact_secret(said, KEY)),
        redact_secret_bytes(said.encode(), KEY).decode(),
    ):
        plain = told.replace("\\", "")
        assert not any(KEY[at : at + IN_BODIES] in plain for at in range(len(KEY) - IN_BODIES + 1)), told
        assert "CANARY" not in told, told
        assert "0123456789" not in told, told
        assert KEY[4:12].encode().hex() not in told.lower(), told
        assert "252F0123" not in told, told
        assert "%254B%2545" not in told, told


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-16"])
def test_s4_our_key_is_taken_out_of_an_answer_in_utf_16(codec: str) -> None:
    body = redact_secret_bytes(json.dumps({"content": f"it is {KEY}, yes"}).encode(codec), KEY)
    assert json.loads(body.decode(codec)) == {"content": f"it is {REDACTED}, yes"}


SECRETS = st.text(string.ascii_letters + string.digits + "-_.~+/", min_size=SHORTEST_SECRET, max_size=300)


@given(SECRETS, st.data(), st.text(max_size=30), st.text(max_size=30))
def test_s4_any_key_escaped_anywhere_is_taken_out_and_the_json_stays_json(
    secret: str, data: st.DataObject, before: str, after: str
) -> None:
    escaped = data.draw(st.lists(st.booleans(), min_size=len(secret), max_size=len(secret)))
    written = "".join(f"\\u{ord(one):04x}" if so else one for one, so in zip(secret, escaped, strict=True))
    start, end = json.dumps(before)[:-1], json.dumps(after)[1:]
    body = redact_secret_bytes(f"{start}{written}{end}".encode(), secret)
    assert secret not in json.loads(body)


@given(SECRETS, st.integers(0, 300), st.integers(IN_MESSAGES, 300))
def test_s4_any_part_of_a_key_is_taken_out_of_a_message(secret: str, first: int, length: int) -> None:
    first = min(first, len(secret) - IN_MESSAGES)
    part = secret[first : first + length]
    told = redact_secret(f"# {part} #", secret)
    assert part not in told
    assert told == f"# {REDACTED} #"


@given(st.binary(max_size=200), SECRETS)
def test_any_body_is_borne_and_one_without_the_secret_stays_as_it_is(body: bytes, secret: str) -> None:
    assert redact_secret_bytes(body, secret) == body


def test_words_that_a_key_happens_to_hold_stay_in_an_answer() -> None:
    key = "my-production-endpoint-key-of-2026"
    assert redact_secret_bytes(b"the production endpoint of 2026", key) == b"the production endpoint of 2026"


@pytest.mark.parametrize("piece", [KEY, KEY[:20], KEY[5:15], KEY.replace("/", "\\/")])
def test_s10_an_answer_that_repeats_our_key_without_end_is_cleaned_too(piece: str) -> None:
    told = redact_secret_bytes(f"{piece} ".encode() * 20_000, KEY)
    assert KEY.encode() not in told.replace(b"\\", b"")
    assert piece == KEY[5:15] or KEY[:IN_BODIES].encode() not in told


# The text of rows in messages of our own


def test_s4_a_long_value_is_quoted_by_its_beginning() -> None:
    assert quoted("a'b") == repr("a'b")
    assert len(quoted("x" * 1_000_000)) < MOST_QUOTED + 10


def test_s4_what_a_function_says_of_a_row_leaves_the_rows_texts_out() -> None:
    text = "the patient is Zebulon Quux-7731"
    for values in ({"t": text}, {"t": {"a": [text]}}, {"t": text * 10_000}):
        told = said_of_row(f"invalid literal for int() with base 10: {text * 100!r}", values)
        assert told.startswith("invalid literal for int() with base 10: ")
        assert "Zebulon" not in told
        assert len(told) <= MOST_QUOTED


def test_s4_no_message_of_a_fault_is_longer_than_2000_characters() -> None:
    assert len(Refused("x" * 10**6).message) == MOST_MESSAGE
    assert str(Refused("as it is")) == "as it is"
