"""Answers that differ, and answers that are wrong on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.emulator.answers.answers import answers
from pipeline.emulator.answers.compiler import compiled
from pipeline.emulator.answers.facts import Facts
from pipeline.emulator.answers.hints import Scene
from pipeline.emulator.answers.mutations import accepts, altered
from pipeline.emulator.answers.nodes import NOTHING
from pipeline.emulator.answers.seeded import Dice
from pipeline.emulator.options import load_answer_key
from pipeline.emulator.protocol.request import read_request
from tests.emulator.requests import Json, asking, choices
from tests.emulator.test_emulator_schema import MODELS, TEXTS

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": ["string", "null"]},
        "date": {"type": "string", "format": "date"},
        "category": {"enum": ["meeting", "concert", "other"]},
        "lines": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"price": {"type": "number"}, "quantity": {"type": "number", "minimum": 0}},
                "required": ["price", "quantity"],
            },
        },
        "paid": {"type": "boolean"},
        "note": {"type": "string"},
    },
    "required": ["name", "date", "category", "lines", "paid"],
}
FIELDS = ("name", "date", "category", "lines", "lines.quantity", "paid")


def prompt(number: int) -> Json:
    text = f"The meeting “Room {number}” is on {1 + number % 28} March 2026.\nTea, 2 cups: 5 EUR.\nCake: 4 EUR."
    return asking(text, response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}})


def answer(number: int, errors: dict[str, float], seed: int = 0) -> Json:
    asked = read_request(orjson.dumps(prompt(number)), default_model=None)
    found, _ = answers(asked, seed, errors)
    return dict(json.loads(found[0].text or ""))


def wrong(errors: dict[str, float], rows: int = 300) -> dict[int, Json]:
    """The rows whose answer differs from the right one."""
    found = {number: answer(number, errors) for number in range(rows)}
    return {number: value for number, value in found.items() if value != answer(number, {})}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_wrong_in_its_share_of_answers_and_no_other_is(field: str) -> None:
    """Within five standard deviations; a field inside a list is wrong in an item of it."""
    found = wrong({field: 0.2})
    assert abs(len(found) - 60) < 5 * (300 * 0.2 * 0.8) ** 0.5
    outer, _, inner = field.partition(".")
    for number, value in found.items():
        right = answer(number, {})
        assert [name for name in right if right[name] != value.get(name, NOTHING)] == [outer]
        if inner:
            assert [each["price"] for each in value[outer]] == [each["price"] for each in right[outer]] == [5, 4]


def test_a_larger_share_is_wrong_in_the_same_rows_and_more() -> None:
    """And in the same way."""
    few, many = wrong({"date": 0.1}), wrong({"date": 0.3})
    assert few.keys() < many.keys()
    assert all(many[number] == value for number, value in few.items())
    assert wrong({"date": 1.0}).keys() == set(range(300))
    assert wrong({"date": 0.0}) == {}


def test_fields_err_independently_of_each_other() -> None:
    """Another error more changes nothing in the rows that were wrong before."""
    one, both = wrong({"date": 0.2}), wrong({"date": 0.2, "category": 0.2})
    assert all(both[number]["date"] == value["date"] for number, value in one.items())
    assert len(both) > len(one)


def test_a_field_that_is_not_there_is_wrong_nowhere() -> None:
    """Unknown names, and paths through values that are not objects."""
    assert wrong({"nobody": 1.0, "lines.nobody": 1.0, "date.year": 1.0}, rows=20) == {}


def test_an_answer_that_it_was_given_is_its_answer_but_for_the_fields_that_are_wrong(tmp_path: Path) -> None:
    """Other prompts are answered as ever."""
    told = {"name": "Known", "date": "2020-02-02", "category": "concert", "lines": [], "paid": True}
    text = prompt(1)["messages"][0]["content"]
    (tmp_path / "key.jsonl").write_text(json.dumps({"prompt": text, "answer": told}) + "\n")
    key = load_answer_key(tmp_path / "key.jsonl")

    def said(number: int, errors: dict[str, float]) -> Json:
        asked = read_request(orjson.dumps(prompt(number)), default_model=None)
        return dict(json.loads(answers(asked, 0, errors, key)[0][0].text or ""))

    assert said(1, {}) == told
    erring = said(1, {"date": 1.0})
    assert erring.pop("date") != "2020-02-02"
    assert erring == {name: value for name, value in told.items() if name != "date"}
    assert said(2, {}) == answer(2, {})


@pytest.mark.parametrize("content", ["{", '{"prompt": "x"}', "[]"])
def test_an_answer_key_that_cannot_be_read_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"the answer key .*key.jsonl cannot be read"):
        load_answer_key(tmp_path / "key.jsonl")


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, seed=st.binary(max_size=8))
def test_an_altered_value_is_valid_and_another(model: type[BaseModel], text: str, seed: bytes) -> None:
    """For every kind of field: nested, recursive, bounded, with pattern or format."""
    node = compiled(orjson.dumps(model.model_json_schema()))
    scene = Scene(Facts(text), Dice(seed))
    right = node.find(scene)
    right = node.invent(scene) if right is NOTHING else right
    other = altered(node, right, Scene(Facts(text), Dice(seed)))
    model.model_validate_json(json.dumps(other))
    assert other != right
    assert accepts(node, right)


@pytest.mark.parametrize("response_format", [None, {"type": "json_object"}, prompt(0)["response_format"]])
def test_several_answers_differ_from_the_first(response_format: Any) -> None:
    """In text, in JSON and by schema, always in the same way; at temperature 0 they do not."""
    payload = {**prompt(7), "response_format": response_format, "n": 4}
    texts = [choice["message"]["content"] for choice in choices(payload)]
    assert all(text != texts[0] for text in texts[1:])
    assert [choice["index"] for choice in choices(payload)] == [0, 1, 2, 3]
    assert texts == [choice["message"]["content"] for choice in choices(payload)]
    assert texts[0] == choices({**payload, "n": 1})[0]["message"]["content"]
    still = {choice["message"]["content"] for choice in choices({**payload, "temperature": 0})}
    assert still == {texts[0]}
