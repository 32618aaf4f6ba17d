"""A key that comes back in base64 is taken out as one that comes back as it is."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.endpoint.redaction import REDACTED, redact_secret, redact_secret_bytes

KEY = "sk-proj-CANARY/0123+456789=abcdefXYZ"
ALPHABETS = [base64.b64encode, base64.urlsafe_b64encode]


@pytest.mark.parametrize("encode", ALPHABETS)
@given(before=st.binary(max_size=12), after=st.binary(max_size=12), secret=st.text("ab/+=-_Z09", min_size=12))
def test_s4_a_secret_within_what_was_encoded_is_not_left(
    encode: object, before: bytes, after: bytes, secret: str
) -> None:
    assert callable(encode)
    sent = encode(before + secret.encode() + after)
    inner = redact_secret_bytes(b'{"a": "%s."}' % sent, secret)
    assert REDACTED.encode() in inner
    assert json.loads(inner)["a"].endswith(".")
    assert sent[16:] not in inner or len(sent) <= 16


@pytest.mark.parametrize("encode", ALPHABETS)
def test_s4_a_basic_authorization_with_our_key_is_in_no_message_also_when_it_was_cut(encode: object) -> None:
    assert callable(encode)
    basic = encode(b"user:" + KEY.encode()).decode()
    for told in (basic, basic[:-10], json.dumps(basic).replace("/", "\\/")):
        said = redact_secret(f"401: bad header Basic {told}, said the server", KEY)
        assert said.endswith("said the server")
        assert basic[8:30] not in said
        assert basic[-30:-10] not in said


def test_s10_what_is_not_our_key_is_left_alone() -> None:
    body = base64.b64encode(bytes(range(256)) * 4000)
    assert redact_secret_bytes(body, KEY) == body


@given(
    before=st.binary(max_size=7),
    between=st.binary(max_size=7),
    encodes=st.tuples(st.sampled_from(ALPHABETS), st.sampled_from(ALPHABETS)),
    secret=st.text("ab/+=-_Z09", min_size=24),
)
def test_s4_a_secret_that_was_encoded_twice_is_not_left(
    before: bytes, between: bytes, encodes: tuple[Callable[[bytes], bytes], ...], secret: str
) -> None:
    once = encodes[0](before + secret.encode())
    sent = encodes[1](between + once + b"\n")
    inner = redact_secret_bytes(b'{"a": "%s."}' % sent, secret)
    assert REDACTED.encode() in inner
    assert sent[24:] not in inner


BYTES: dict[str, Callable[[bytes], str]] = {
    "colons": lambda key: key.hex(":"),
    "blanks": lambda key: key.hex(" "),
    "hyphens, in capitals": lambda key: key.hex("-").upper(),
    "lines": lambda key: key.hex("\n"),
    "a dump": lambda key: key.hex(" ", 1).replace(" ", " 0x"),
    "a list in C": lambda key: ", ".join(f"0x{byte:02X}" for byte in key),
    "escapes": lambda key: "".join(f"\\x{byte:02x}" for byte in key),
    "numbers": lambda key: str(list(key)),
    "numbers without blanks": lambda key: ",".join(map(str, key)),
    "one piece": lambda key: key.hex(),
}


@pytest.mark.parametrize("form", BYTES)
def test_s4_a_key_that_comes_back_byte_by_byte_is_taken_out_of_messages_and_answers(form: str) -> None:
    written = BYTES[form](KEY.encode())
    last = BYTES[form](KEY.encode()[-8:]).strip("[]0x\\")
    said = redact_secret(f"401: bad key {written}; said the server", KEY)
    assert said.endswith("; said the server")
    assert last not in said
    body = redact_secret_bytes(json.dumps({"error": written + "."}).encode(), KEY)
    assert REDACTED in json.loads(body)["error"]
    assert last not in json.loads(body)["error"]


def test_s4_base64_in_lines_is_taken_out_whole() -> None:
    key = "".join(f"{at:02}kEy" for at in range(40))
    lines = base64.encodebytes(key.encode()).decode()
    said = redact_secret(f"bad: {lines} said the server", key)
    assert said == f"bad: {REDACTED}\n said the server"
