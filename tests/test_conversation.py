"""Messages of a request: their order and roles, what functions may return, examples, columns, the fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.faults import InvalidRow, Refused, UsageError
from pipeline.job.attachments import Attachment, MediaColumn, audio, image, media
from pipeline.job.conversation import Content, Conversation, examples_of, turns_of
from pipeline.job.function_text import text_of
from pipeline.job.job import Job

ROW = {"name": "Ada", "photo": "a.png", "sounds": ["a.wav", "b.wav"], "nothing": None}


def said(content: Any, values: Mapping[str, Any] = ROW) -> Any:
    """What becomes of a user's message."""
    return Conversation([("user", content, "user")]).messages(values)[0]["content"]


def fingerprint(content: Content, role: str = "user") -> str:
    return Conversation([(role, content, "user")]).fingerprint


def test_system_examples_messages_and_user_are_kept_in_order(tmp_path: Path) -> None:
    (tmp_path / "shots.jsonl").write_text('{"user": "q1", "assistant": "a1"}\n{"user": "q2", "assistant": "a2"}\n')
    job = Job(name="j", system="S {{ name }}", examples=tmp_path / "shots.jsonl", user="U {{ name }}")
    assert [(message["role"], message["content"]) for message in job.conversation.messages(ROW)] == [
        ("system", "S Ada"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
        ("user", "U Ada"),
    ]


def test_whole_conversations_come_after_the_system_prompt() -> None:
    turns = [{"role": role, "content": f"{role} {{{{ name }}}}"} for role in ("user", "assistant", "user")]
    conversation = Job(name="j", system="S", messages=turns).conversation
    assert conversation.messages(ROW) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "user Ada"},
        {"role": "assistant", "content": "assistant Ada"},
        {"role": "user", "content": "user Ada"},
    ]


def test_a_list_gives_parts_in_order_with_one_for_each_value_of_a_media_column() -> None:
    assert said(["Hi {{ name }}", image("photo"), audio("sounds"), "bye"]) == [
        {"type": "text", "text": "Hi Ada"},
        Attachment("image", "photo", "a.png"),
        Attachment("audio", "sounds", "a.wav"),
        Attachment("audio", "sounds", "b.wav"),
        {"type": "text", "text": "bye"},
    ]


def test_one_media_column_alone_is_a_message() -> None:
    assert said(media("photo")) == [Attachment("media", "photo", "a.png")]


def test_a_list_of_one_template_is_plain_text() -> None:
    assert said(["Hi {{ name }}"]) == "Hi Ada"


@pytest.mark.parametrize("content", [["{{ nothing }}", image("photo")], ["x", image("nothing")], [image("none")]])
def test_a_value_that_is_missing_fails_the_row(content: Content) -> None:
    with pytest.raises(InvalidRow, match=r"no(ne|thing)"):
        said(content)


@pytest.mark.parametrize("value", ["text", [{"type": "text", "text": "x"}]])
def test_what_a_function_returns_is_the_content_as_it_is(value: object) -> None:
    assert said(lambda _: value) == value


def test_a_function_gets_the_row() -> None:
    assert said(lambda row: f"{row['name']}!") == "Ada!"


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (7, "int"), ("", "str"), ([], "list"), ({}, "dict")])
def test_a_function_that_returns_no_content_fails_the_row_and_says_what_it_was(value: object, kind: str) -> None:
    with pytest.raises(InvalidRow, match=f"returned {kind}, not a text"):
        said(lambda _: value)


def test_a_function_that_raises_fails_the_row_and_says_where() -> None:
    with pytest.raises(InvalidRow, match=r"raised KeyError: 'surname' \(test_conversation.py:\d+\)"):
        said(lambda row: row["surname"])


def test_a_fault_of_a_function_is_the_rows_own() -> None:
    """So that a job can say in its own words why a row is not asked."""

    def refuse(_: Mapping[str, Any]) -> str:
        raise Refused("not this one")

    with pytest.raises(Refused, match="not this one"):
        said(refuse)


@pytest.mark.parametrize("content", [[], ["x", 7], [None], [["x"]], None, 7, {"a": "b"}])
def test_content_of_anything_else_is_refused_with_its_field(content: Any) -> None:
    with pytest.raises(UsageError, match=r"`messages\[0\]` is made of templates and media columns"):
        Conversation(turns_of([{"role": "user", "content": content}]))


def test_a_broken_template_is_refused_with_its_field() -> None:
    with pytest.raises(UsageError, match=r"`messages\[1\]` is broken at line 2"):
        Job(name="j", messages=[{"role": "user", "content": "x"}, {"role": "user", "content": "\n{{ name"}])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"},
        {"role": "user"},
        {"content": "x"},
        {"role": "user", "content": "x", "name": "y"},
    ],
)
def test_a_message_is_a_role_and_a_content_and_nothing_else(message: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"messages\[0\] needs a `role` \(system, user, assistant\)"):
        turns_of([message])


def examples(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "shots.jsonl"
    path.write_bytes(content)
    return path


def test_examples_are_taken_as_they_are_and_never_as_templates(tmp_path: Path) -> None:
    path = examples(tmp_path, b'{"user": "{{ name }}", "assistant": {"label": "\xc3\xa4", "n": 1}}\r\n\n')
    messages = Conversation(examples_of(path)).messages({})
    assert [message["content"] for message in messages] == ["{{ name }}", '{"label": "ä", "n": 1}']


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_any_text_of_an_example_survives(pairs: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"user": user, "assistant": assistant}) for user, assistant in pairs]
    with TemporaryDirectory() as folder:
        turns = examples_of(examples(Path(folder), "\n".join(lines).encode()))
    messages = Conversation(turns).messages({})
    assert [message["content"] for message in messages] == [text for pair in pairs for text in pair]


@pytest.mark.parametrize(
    "line", [b"{", b"7", b"[]", b'"user"', b"null", b'{"user": "x"}', b'{"assistant": "x"}', b'{"user": "\xff"}']
)
def test_a_broken_example_is_named_by_file_and_line(line: bytes, tmp_path: Path) -> None:
    path = examples(tmp_path, b'{"user": "x", "assistant": "y"}\n\n' + line + b"\n")
    with pytest.raises(UsageError, match=r"shots.jsonl:3: an example is an object with `user` and `assistant`"):
        examples_of(path)


def test_a_missing_file_of_examples_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.jsonl' cannot be read: No such file"):
        examples_of(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        examples_of(tmp_path)


def test_every_column_is_named_with_the_field_that_needs_it() -> None:
    job = Job(name="j", system="{{ a }}", user=["{{ a }} {{ b }}", image("c"), audio("b")])
    assert job.conversation.columns == {
        "a": "the template of `system`",
        "b": "the template of `user`",
        "c": "image('c')",
    }
    assert job.conversation.media_columns == {"b", "c"}


@pytest.mark.parametrize("content", ["{{ row.name }}", lambda row: row["name"]])
def test_all_columns_may_be_needed_by_functions_and_whole_rows(content: Content) -> None:
    assert Conversation([("system", "{{ a }}", "system"), ("user", content, "user")]).columns is None


def test_a_conversation_has_media_when_a_message_takes_some() -> None:
    assert Conversation([("user", ["x", media("a")], "user")]).has_media
    assert not Conversation([("user", ["x"], "user")]).has_media


def test_no_turns_are_no_conversation() -> None:
    assert not Conversation([])
    assert Conversation([("user", "x", "user")])


def spoken(text: str) -> Callable[[Mapping[str, Any]], str]:
    """A function without source, as in an interactive session."""
    made: Callable[[Mapping[str, Any]], str] = eval(f"lambda row: {text!r}")  # noqa: S307 - our own text
    return made


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lambda row, tone='kind': tone", "lambda row, tone='stern': tone"),
        ("lambda row, *, tone='kind': tone", "lambda row, *, tone='stern': tone"),
        ("lambda row, tone=None: tone", "lambda row, tone=False: tone"),
        ("lambda row, one=lambda: 'a': one()", "lambda row, one=lambda: 'b': one()"),
        ("lambda row, known={'a', 'b'}: row['x'] in known", "lambda row, known={'a', 'c'}: row['x'] in known"),
    ],
)
def test_functions_without_source_that_differ_in_their_defaults_alone_are_told_apart(one: str, other: str) -> None:
    assert text_of(eval(one)) == text_of(eval(one)) != text_of(eval(other))  # noqa: S307 - our own text


def test_a_default_without_a_literal_is_the_same_in_every_process() -> None:
    """Its `repr` tells an address, which would make every resume one of another job."""
    texts = [text_of(eval("lambda row, it=it: it", {"it": object()})) for _ in range(2)]  # noqa: S307 - as above
    assert texts[0] == texts[1]


def _toned(row: Mapping[str, Any], tone: str) -> str:
    return f"{tone}: {row['text']}"


def test_a_partial_function_is_told_by_its_arguments_too() -> None:
    texts = [text_of(partial(_toned, tone=tone)) for tone in ("kind", "kind", "stern")]
    assert texts[0] == texts[1] != texts[2]


def test_the_fingerprint_is_the_same_for_the_same() -> None:
    """Across starts of the process: nothing in it depends on addresses or on the order of a set."""
    content: list[str | MediaColumn] = ["{{ a }}", image("b")]
    assert fingerprint(content) == fingerprint(tuple(content)) == fingerprint(list(content))
    assert fingerprint(spoken("x")) == fingerprint(spoken("x"))
    assert fingerprint(partial(_greeting, object())) == fingerprint(partial(_greeting, object()))


@pytest.mark.parametrize(
    "other",
    [
        "{{ b }}",
        "{{ a}}",
        ["{{ a }}", "x"],
        [image("a")],
        [audio("a")],
        [image("b")],
        lambda row: row["a"],
        lambda row: row["b"],
        spoken("a"),
        spoken("b"),
    ],
)
def test_the_fingerprint_changes_with_anything_said(other: Content) -> None:
    known: list[Content] = ["{{ a }}", [image("c")], lambda row: row["c"], spoken("c")]
    assert fingerprint(other) not in {fingerprint(content) for content in known}
    assert fingerprint(other) != fingerprint(other, role="assistant")


def test_the_fingerprint_tells_orders_and_examples_apart(tmp_path: Path) -> None:
    pair = {"user": "x", "assistant": "y"}
    shots = examples_of(examples(tmp_path, json.dumps(pair).encode()))
    other = examples_of(examples(tmp_path, json.dumps(pair | {"assistant": "z"}).encode()))
    turns: list[tuple[str, Content, str]] = [("user", "x", "user"), ("assistant", "y", "user")]
    prints = [Conversation(turn).fingerprint for turn in (shots, other, turns, turns[::-1], [*shots, *turns])]
    assert len(set(prints)) == len(prints)


def test_functions_with_different_bound_arguments_have_different_fingerprints() -> None:
    assert fingerprint(partial(_greeting, "Hi")) != fingerprint(partial(_greeting, "Ho"))


def _greeting(word: object, row: Mapping[str, Any]) -> str:
    return f"{word} {row['name']}"
