"""Any good part of our secret is found in an answer, wherever it lies and however little of it is escaped."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.endpoint.redaction import REDACTED, redact_secret_bytes
from pipeline.endpoint.secret_redaction import IN_BODIES, SHORTEST_SECRET

SECRETS = st.text(string.ascii_letters + string.digits + "-_.~+/", min_size=SHORTEST_SECRET, max_size=400)
LONG = "ya29." + "".join(chr(65 + at * 7 % 26) + str(at) for at in range(90))


@given(SECRETS, st.integers(0, 400), st.integers(0, 400), st.binary(max_size=40), st.binary(max_size=40))
@example(LONG, 0, 0, b"", b"")
@example(LONG, len(LONG), 0, b"#######", b"")
def test_s4_any_run_of_an_eighth_of_a_key_is_taken_out_of_an_answer_wherever_it_begins(
    secret: str, first: int, more: int, before: bytes, after: bytes
) -> None:
    length = min(len(secret), max(IN_BODIES, len(secret) // 8) + more)
    first = min(first, len(secret) - length)
    run = secret[first : first + length].encode()
    assert run not in redact_secret_bytes(before + b"#" + run + b"#" + after, secret)


FORMS = {
    "markdown": lambda one: f"\\{one}" if one in "-_." else one,
    "markdown within JSON": lambda one: f"\\\\{one}" if one in "-_." else one,
    "one mark only, in an address": lambda one: f"%{ord(one):02x}" if one == "." else one,
    "one mark only, in a page": lambda one: f"&#x{ord(one):X};" if one == "." else one,
    "one mark only, in JSON": lambda one: f"\\u{ord(one):04x}" if one == "." else one,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("noise", ["", "100 % of \\u003cb\\u003e &#39;all&#39; \\n", "%20%7B"])
def test_s4_a_key_is_taken_out_of_which_only_some_marks_are_escaped(form: str, noise: str) -> None:
    written = "".join(FORMS[form](one) for one in "ya29.a0_AfH-6SMB.x_y-z.0123456789abc")
    body = redact_secret_bytes(
        f'{{"content": "{noise}{written}{noise}"}}'.encode(), "ya29.a0_AfH-6SMB.x_y-z.0123456789abc"
    )
    assert body.decode().replace(noise, "") == f'{{"content": "{REDACTED}"}}'


@pytest.mark.parametrize("size", [1, 7, 8, 9, 500, 20_000])
def test_an_answer_full_of_other_escapes_stays_as_it_is(size: int) -> None:
    body = ('{"a": "\\u003cp\\u003e 100 %, 50 %; &#39;caf\\u00e9&#39; %7B%22 \\n\\t \\" ' * (size // 60 + 1)).encode()[
        :size
    ]
    assert redact_secret_bytes(body, LONG) == body
