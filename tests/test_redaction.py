"""No message tells a secret, whole or cut, or repeats what a row says."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.endpoint.redaction import REDACTED, redact_quotes, redact_secret, redact_secret_bytes, user_texts
from pipeline.endpoint.secret_redaction import SHORTEST_SECRET

KEY = "Zq7-of-no-known-form-Zq7"
SECRETS = st.text(string.ascii_letters + string.digits + "-_.~", min_size=SHORTEST_SECRET, max_size=80).filter(
    lambda secret: secret[:8] not in REDACTED
)


@given(st.text(max_size=60), SECRETS, st.text(max_size=60), st.integers(8, 80))
def test_s4_a_secret_is_not_told_however_it_was_cut(before: str, secret: str, after: str, length: int) -> None:
    told = redact_secret(before + secret[:length] + after, secret)
    assert secret[:8] not in told
    assert REDACTED in told


def test_s4_what_stands_around_a_secret_is_told() -> None:
    assert redact_secret(f"bad key {KEY}, {KEY}!", KEY) == f"bad key {REDACTED}, {REDACTED}!"
    assert redact_secret_bytes(f'{{"said": "{KEY}"}}'.encode(), KEY) == b'{"said": "[redacted]"}'


@pytest.mark.parametrize("key", ["x", "EMPTY", "none-needed", ""])
def test_a_key_that_protects_nothing_is_a_word_like_any_other(key: str) -> None:
    assert redact_secret(f"the {key} is", key) == f"the {key} is"
    assert redact_secret_bytes(f"the {key} is".encode(), key) == f"the {key} is".encode()


ROW = "the patient Zebulon Quux was born in 1931 and lives in Eastwick"


@given(
    st.integers(0, len(ROW) - 23), st.integers(23, len(ROW)), st.text("ab: ", max_size=40), st.text("ab: ", max_size=40)
)
def test_s4_a_message_repeats_no_23_characters_of_a_row(start: int, length: int, before: str, after: str) -> None:
    quoted = ROW[start : max(start + 23, length)]
    told = redact_quotes(f"{before}{quoted}{after}", [ROW])
    assert not any(told[at : at + 23] in ROW for at in range(len(told) - 22))
    assert "[...]" in told


@pytest.mark.parametrize("text", ["Quux-7731", "line one\nline two of the row"])
def test_s4_a_whole_text_is_not_repeated_however_short(text: str) -> None:
    told = redact_quotes(f"cannot answer {' '.join(text.split())} today", ["another text", text])
    assert told == "cannot answer [...] today"


@given(st.text(max_size=200), st.lists(st.text(max_size=100), max_size=3))
def test_any_message_and_texts_are_borne(message: str, texts: list[str]) -> None:
    assert redact_quotes(message, []) == message
    redact_quotes(message, texts)


def test_a_message_of_the_servers_own_words_stays_as_it_is() -> None:
    said = "429 RESOURCE_EXHAUSTED: Resource exhausted. Please try again later."
    assert redact_quotes(said, [ROW]) == said


def test_the_texts_of_a_request_are_those_that_rows_may_have_filled() -> None:
    content = [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    messages = [
        {"role": "system", "content": "instructions"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": None},
        "no message",
    ]
    assert list(user_texts({"messages": messages})) == ["a", "b"]
    assert list(user_texts({})) == []
