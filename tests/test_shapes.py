"""Any text an endpoint may answer with becomes a value or a clean fault."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.faults import Unparsable
from pipeline.schema.from_pydantic import shape_of
from pipeline.schema.shape import load


class Line(BaseModel):
    sku: str
    quantity: int


HOSTILE = {
    "empty": "",
    "space": " \n\t",
    "mark only": "\ufeff",
    "prose": "I cannot help with that.",
    "cut short": '{"sku": "a", "quan',
    "two objects": '{"sku": "a", "quantity": 1} {"sku": "a", "quantity": 1}',
    "same key twice": '{"sku": "a", "quantity": 1, "quantity": 2}',
    "same key twice, escaped": '{"sku": "a", "quantity": 1, "qu\\u0061ntity": 2}',
    "NaN": '{"sku": "a", "quantity": NaN}',
    "infinity": '{"sku": "a", "quantity": -Infinity}',
    "beyond float64": '{"sku": "a", "quantity": 1e400}',
    "5,000 digits": '{"sku": "a", "quantity": ' + "1" * 5000 + "}",
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "deep, below the limit": '{"sku": ' + "[" * 500 + "]" * 500 + "}",
    "half a surrogate pair, escaped": '{"sku": "\\ud800", "quantity": 1}',
    "half a surrogate pair, raw": '{"sku": "\ud800", "quantity": 1}',
    "control character": '{"sku": "a\x00", "quantity": 1}',
    "a list": "[]",
    "a string": '"{}"',
    "null": "null",
    "missing": '{"sku": "a"}',
    "wrong type": '{"sku": "a", "quantity": "many"}',
    "fraction": '{"sku": "a", "quantity": 1.5}',
    "rounded to whole": '{"sku": "a", "quantity": 3.00000000000000000001}',
    "two fences": '```json\n{"sku": "a", "quantity": 1}\n```\nor\n```json\n{"sku": "b", "quantity": 1}\n```',
    "open fence": '```json\n{"sku": "a", "quantity": 1}',
    "only fences": "``````",
}
LINE_DOCUMENT = {
    "type": "object",
    "title": "Line",
    "properties": {"sku": {"type": "string"}, "quantity": {"type": "integer"}},
    "required": ["sku", "quantity"],
    "additionalProperties": False,
}
LINE_SHAPES = {"model": shape_of(Line), "file": shape_of(LINE_DOCUMENT)}


@pytest.mark.parametrize("origin", LINE_SHAPES)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_answer_is_unparsable_in_one_short_line_that_does_not_quote_it(case: str, origin: str) -> None:
    shape, text = LINE_SHAPES[origin], HOSTILE[case]
    with pytest.raises(Unparsable) as caught:
        shape.plain(shape.parse(text))
    message = caught.value.message
    assert 0 < len(message) <= 300
    assert message.isprintable()
    assert len(text) < 3 or text not in message


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.text('{}[]",:\\u0123456789eE.-+ntrfa`\n ', max_size=40))
def test_any_text_is_a_value_or_unparsable(text: str) -> None:
    for shape in LINE_SHAPES.values():
        with contextlib.suppress(Unparsable):
            pa.array([shape.plain(shape.parse(text))], type=shape.arrow_type())


@pytest.mark.parametrize(
    "wrapped",
    [
        "{}",
        "\ufeff {} \r\n",
        "```json\n{}\n```",
        "```\n{}\n```",
        "```json {} ```",
        "```JSON\r\n{}\r\n```  ",
        "Here it is:\n\n```json\n{}\n```\nAnything else?",
    ],
)
@pytest.mark.parametrize("origin", LINE_SHAPES)
def test_an_answer_is_found_in_its_wrapping(wrapped: str, origin: str) -> None:
    answer = '{"sku": "```", "quantity": 1}'
    shape = LINE_SHAPES[origin]
    assert shape.plain(shape.parse(wrapped.replace("{}", answer))) == {"sku": "```", "quantity": 1}


DIGITS = st.text("0123456789", min_size=1, max_size=24)


@settings(max_examples=300)
@given(DIGITS, DIGITS, st.sampled_from(["", "e3", "E-7", "e+20"]), st.sampled_from(["", "-"]), st.text(max_size=20))
def test_a_number_is_the_float_of_its_digits_and_whatever_float64_changes_is_told(
    before: str, after: str, power: str, sign: str, beside: str
) -> None:
    """Texts without such a number are read on a shorter way: it must not make a difference."""
    literal = f"{sign}{int(before)}.{after}{power}"
    tree, inexact = load(json.dumps([beside])[:-1] + f", {literal}]")
    assert tree == [beside, float(literal)]
    kept = Decimal(literal) == Decimal(repr(float(literal)))
    assert [number.literal for number in inexact] in ([], [literal])
    assert kept or len(literal) < 17 or inexact
