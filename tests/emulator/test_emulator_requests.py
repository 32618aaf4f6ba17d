"""Requests of any form are answered or refused, never anything else."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.emulator.answers.answers import answers
from pipeline.emulator.protocol.fingerprint import digest_of
from pipeline.emulator.protocol.request import read_request
from pipeline.emulator.protocol.wire import Problem, completion
from pipeline.emulator.server.bodies import choices_of, counted
from pipeline.emulator.server.event_stream import events
from tests.emulator.requests import Json, asking, message
from tests.emulator.test_emulator_media import audio, data_url, image, read
from tests.emulator.test_emulator_tools import PARALLEL, TOOLS, answered

SCHEMA = {"type": "object", "properties": {"celsius": {"type": "number"}, "tags": {"type": "array", "items": {}}}}
FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
GOOGLE = {
    "thinking_config": {"include_thoughts": True, "thinking_budget": 5},
    "thought_tag_marker": "think",
    "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}],
    "cached_content": "projects/p/locations/l/cachedContents/4",
}
CALLING = asking(PARALLEL, tools=TOOLS)
VALID = [
    {**answered(CALLING, message(CALLING)), "response_format": FORMAT},
    asking(
        [image(data_url(read("shapes/flag.heic"), "image/heic")), audio(read("audio/three_beeps.ogg"), "audio/ogg")],
        modalities=["text", "image"],
        stop=["x"],
    ),
    asking("Hello", extra_body={"google": GOOGLE}, temperature=0, n=2, max_tokens=30, tool_choice="none"),
]
NUMBERS = st.integers(-2, 2**63) | st.floats(allow_nan=False, allow_infinity=False)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value with each of its keys or indices."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@st.composite
def mutated(draw: st.DrawFn) -> Json:
    """A valid request with something in it exchanged for anything."""
    payload: Json = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 2))):
        where = places(payload)
        if where:
            container, key = draw(st.sampled_from(where))
            container[key] = draw(ANYTHING)
    return payload


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(payload=mutated())
def test_any_request_is_answered_or_refused(payload: Json) -> None:
    """Whatever stands where something else should: a completion that can be streamed, or a `Problem`."""
    with contextlib.suppress(Problem):
        _answer(payload)


def _answer(payload: Json) -> None:
    asked = read_request(orjson.dumps(payload), default_model=None)
    found, reasoning = answers(asked, 0, {"celsius": 0.5, "tags": 0.5})
    choices = choices_of(asked, found, reasoning, None)
    tokens = counted(asked, found, reasoning, None)
    body = completion(model=asked.model, ident="x", created=1, choices=choices, tokens=tokens)
    assert len(body["choices"]) == asked.n
    assert all(json.loads(event.removeprefix(b"data: ")) for event in events(body, fragments=True))


def test_streaming_makes_no_difference_to_the_digest() -> None:
    """Nor does the order of keys; the messages do."""
    streamed = read_request(orjson.dumps(asking(stream=True, stream_options={})), default_model=None)
    assert streamed.digest == digest_of([{"content": "Tell me about rivers.", "role": "user"}])
    assert streamed.digest != digest_of(asking("Tell me about rivers")["messages"])
