"""A key that comes back in base64 is taken out as one that comes back as it is."""

from __future__ import annotations

import base64
import json

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
