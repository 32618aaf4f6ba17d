"""Prompt templates: strict about what they name, deaf to what the data say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.faults import InvalidRow, UsageError
from pipeline.job.prompt import FUNCTIONS, Template


def rendered(source: str, **values: Any) -> str:
    return Template(source, field="user").render(values)


def problem(source: str, **values: Any) -> str:
    with pytest.raises(InvalidRow) as caught:
        rendered(source, **values)
    return caught.value.message


def deep(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


# What is in the row is data.


@settings(deadline=None)
@given(st.text())
def test_s1_a_value_goes_into_the_prompt_as_it_is(text: str) -> None:
    assert rendered("{{ text }}", text=text) == text
    assert rendered("{{ row['text'] }}", text=text) == text


@pytest.mark.parametrize(
    "text",
    [
        "{{ secret }}",
        "{% for x in range(9) %}x{% endfor %}",
        "{# gone #}",
        "{{ ''.__class__ }}",
        "{% raw %}",
        "<b>&amp;</b>",
        "${secret} %(secret)s {0}",
    ],
)
def test_s1_text_that_looks_like_a_template_is_rendered_once_and_stays_inert(text: str) -> None:
    assert rendered("> {{ text }}", text=text, secret="s3cret") == f"> {text}"
    assert rendered("{{ text | trim }}", text=text, secret="s3cret") == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ text.__class__ }}",
        "{{ text.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ text | attr('__class__') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ tags.append('x') }}",
        "{{ tags.clear() }}",
        "{{ inner.update({'a': 1}) }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ evil.format(text) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_s1_the_sandbox_lets_no_template_reach_beyond_the_row_or_change_it(source: str) -> None:
    values = {"text": "a", "tags": ["b"], "inner": {"c": 1}, "evil": "{0.__class__.__mro__}"}
    before = json.dumps(values)
    assert "<class" not in problem(source, **values)
    assert json.dumps(values) == before


@settings(deadline=None)
@given(st.text())
def test_a_fence_cannot_be_closed_by_what_is_inside_it(text: str) -> None:
    first, *inner, last = rendered("{{ text | fence }}", text=text).split("\n")
    assert "\n".join(inner) == text
    assert last == first.replace("<data", "</data")
    assert first not in text
    assert last not in text


def test_a_fence_is_the_same_for_the_same_text() -> None:
    assert rendered("{{ a | fence }}", a="x") == rendered("{{ a | fence }}", a="x")


# Nulls.


@pytest.mark.parametrize(
    "source",
    [
        "{{ note }}",
        "{{ row['note'] }}",
        "{{ note | trim }}",
        "{{ note | upper }}",
        "{{ note | string }}",
        "{{ note | replace('a', 'b') }}",
        "{{ note | wordwrap(80) }}",
        "{{ note | truncate(10) }}",
        "{{ note | join(', ') }}",
        "{{ note | fence }}",
        "{{ note | trim | default('x') }}",
        "{{ 'Note: ' ~ note }}",
        "{{ (note ~ '') | upper }}",
        "{% for line in note %}{{ line }}{% endfor %}",
        "{{ inner.note }}",
    ],
)
def test_i6_a_null_that_reaches_the_text_fails_the_row_instead_of_becoming_a_word(source: str) -> None:
    problem(source, note=None, inner={"note": None})


def test_i6_the_fault_names_the_column_and_the_field() -> None:
    message = problem("{{ text }} {{ note }}", text="a", note=None)
    assert "the template of `user`" in message
    assert "null" in message
    assert "note" in message
    assert "text" not in message


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ note | default('none', true) }}", "none"),
        ("{{ note | d('none', true) }}", "none"),
        ("{{ note or 'none' }}", "none"),
        ("{{ (note or 'none') ~ '!' }}", "none!"),
        ("{{ 'none' if note is none else note }}", "none"),
        ("{% if note %}{{ note }}{% endif %}.", "."),
        ("{{ {'note': note} | tojson }}", '{"note": null}'),
        ("{{ note | tojson }}", "null"),
    ],
)
def test_i6_a_null_with_a_default_is_no_trouble(source: str, text: str) -> None:
    assert rendered(source, note=None) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), ("", ""), (False, "False"), ([], "[]"), (0.5, "0.5")])
def test_what_is_empty_or_zero_is_not_null(value: object, text: str) -> None:
    assert rendered("{{ value }}", value=value) == text


@pytest.mark.parametrize("source", ["A text.", "{{ 'a' ~ 1 }}", "{# nothing #}", "{{ range(3) | list }}"])
def test_a_template_that_names_no_column_is_the_same_for_every_row(source: str) -> None:
    template = Template(source, field="system")
    assert template.render({"a": 1}) == template.render({"b": None})


# Rows that do not fit.


@pytest.mark.parametrize(
    "source",
    [
        "{{ inner.missing }}",
        "{{ inner['missing'].more }}",
        "{{ text.missing() }}",
        "{{ text + 1 }}",
        "{{ text / 2 }}",
        "{{ 1 // zero }}",
        "{{ text | dictsort }}",
        "{{ zero | xmlattr }}",
        "{{ text.split(1) }}",
        "{{ '%d' | format(text) }}",
        "{{ deep }}",
        "{{ deep | tojson }}",
        "{% include text %}",
    ],
)
def test_a_row_that_does_not_fit_its_template_fails_alone(source: str) -> None:
    message = problem(source, text="a", zero=0, inner={"a": 1}, deep=deep(10_000))
    assert "the template of `user`" in message


# Templates that are wrong.


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{{ text", 1),
        ("\n\n{{ text | }}", 3),
        ("a\n{% for x in text %}", 2),
        ("a\n{% nonsense %}", 2),
        ("a\n{{ text | no_such_filter }}", 2),
    ],
)
def test_a_broken_template_is_found_when_it_is_made_with_its_line(source: str, line: int) -> None:
    with pytest.raises(UsageError, match=rf"the template of `system` is broken at line {line}"):
        Template(source, field="system")


# Columns.


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("no column at all", set()),
        ("{{ a }} {% if b %}{{ c.d }}{% endif %}", {"a", "b", "c"}),
        ("{% for item in items %}{{ loop.index }} {{ item.name }}{% endfor %}", {"items"}),
        ("{% set x = a %}{{ x }}", {"a"}),
        ("{% macro m(x) %}{{ x }}{{ y }}{% endmacro %}{{ m(a) }}", {"a", "y"}),
        ("{% for i in range(3) %}{{ a }}{% endfor %}", {"a"}),
        ("{{ a ~ (b ~ c) }}", {"a", "b", "c"}),
    ],
)
def test_the_columns_of_a_template_are_what_it_takes_from_the_row(source: str, columns: set[str]) -> None:
    assert Template(source, field="user").columns == frozenset(columns)


@pytest.mark.parametrize("source", ["{{ row['invoice no'] }}", "{% for k, v in row.items() %}{{ k }}{% endfor %}"])
def test_a_template_over_the_whole_row_needs_every_column(source: str) -> None:
    assert Template(source, field="user").columns is None


def test_a_column_whose_name_is_no_identifier_is_found_in_the_row() -> None:
    assert Template("{{ row['invoice no'] }}", field="user").render({"invoice no": 7}) == "7"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_column_called_like_a_function_of_jinja_is_the_column(name: str) -> None:
    assert Template(f"{{{{ {name} }}}}", field="user").render({name: "a value"}) == "a value"


# Text.


def test_json_is_written_as_it_is_and_not_for_html() -> None:
    assert rendered("{{ value | tojson }}", value={"a": "<ä> & 'b'"}) == '{"a": "<ä> & \'b\'"}'
    assert rendered("{{ value | tojson(indent=1) }}", value=[1]) == "[\n 1\n]"


def test_blocks_leave_no_blank_lines_and_the_last_newline_stays() -> None:
    source = "A\n  {% for x in xs %}\n- {{ x }}\n  {% endfor %}\nB\n"
    assert rendered(source, xs=[1, 2]) == "A\n- 1\n- 2\nB\n"
