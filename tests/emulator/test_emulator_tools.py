"""Function calling: which calls are made, and what must come back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.emulator import Options
from pipeline.emulator.answers.tool_calls import MOST_TURNS
from pipeline.emulator.protocol.tools import ANY_SIGNATURE
from pipeline.emulator.vertex import Vertex, emulated
from pipeline.schema.dialects import standard
from pipeline.schema.tool_parameters import gemini_parameters
from tests.emulator.requests import Json, asking, choices, content, message, refusal
from tests.emulator.test_emulator_schema import MODELS, TEXTS

pytestmark = pytest.mark.anyio
UNITS = {"type": "string", "enum": ["km", "mile", "m", "ft", "kg", "lb", "g"]}


def tool(name: str, description: str, *, optional: tuple[str, ...] = (), **properties: Json) -> Json:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("weather", "The weather in a city now.", city={"type": "string", "description": "Its English name."})
CONVERT = tool("convert", "Converts an amount.", amount={"type": "number"}, source=UNITS, target=UNITS)
STOCK_PRICE = tool("stock_price", "The last price of a share.", symbol={"type": "string", "maxLength": 6})
STOCK = tool("get_stock", "How many of an item there are.", item={"type": "string"})
SEARCH = tool("search", "Looks for documents.", optional=("year",), query={"type": "string"}, year={"type": "integer"})
ADDRESS = {"type": "string", "description": "an e-mail address"}
MAIL = tool("send_email", "Sends a message.", to=ADDRESS, text={"type": "string"})
MAILED = "Send an email to ana@x.org: hello."
DATA = Path(__file__).parents[2] / "data"
TOOLS = [WEATHER, CONVERT, STOCK_PRICE]
MISSING = "Function call is missing a thought_signature in functionCall parts."
UNEQUAL = "number of function response parts is equal to the number of function call parts"
PARALLEL = "Weather in Oslo and Graz, please"


def calls_in(found: Json) -> list[tuple[str, Json]]:
    return [
        (each["function"]["name"], json.loads(each["function"]["arguments"])) for each in found.get("tool_calls") or ()
    ]


def answered(payload: Json, found: Json, result: Callable[[str, Json], str] = lambda *_: "{}") -> Json:
    """The request that hands back the calls with their results."""
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": result(name, arguments)}
        for call, (name, arguments) in zip(found["tool_calls"], calls_in(found), strict=True)
    ]
    return {**payload, "messages": [*payload["messages"], found, *results]}


def all_calls(payload: Json, *, kind: str | None = None, most: int = 10) -> list[list[tuple[str, Json]]]:
    """The calls of every turn until the model answers in words."""
    turns: list[list[tuple[str, Json]]] = []
    for _ in range(most):
        found = message(payload, kind=kind)
        if not calls_in(found):
            return turns
        turns.append(calls_in(found))
        payload = answered(payload, found)
    return turns


def distinct(turns: list[list[tuple[str, Json]]]) -> list[tuple[str, Json]]:
    found = [call for turn in turns for call in turn]
    return [call for index, call in enumerate(found) if call not in found[:index]]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the weather like in Bergen right now?", [("weather", {"city": "Bergen"})]),
        ("Will I need an umbrella in Lisbon tomorrow?", [("weather", {"city": "Lisbon"})]),
        ("How many kilometres are 26.2 miles?", [("convert", {"amount": 26.2, "source": "mile", "target": "km"})]),
        ("A parcel weighs 11 lb. Is it under 5 kg?", [("convert", {"amount": 11, "source": "lb", "target": "kg"})]),
        ("Is it colder in Oslo or in Kiel today?", [("weather", {"city": "Oslo"}), ("weather", {"city": "Kiel"})]),
        ("Weather in Graz, Gouda and Taos.", [("weather", {"city": city}) for city in ("Graz", "Gouda", "Taos")]),
        ("Wie warm ist es in Graz, und wie viel ist das in Fahrenheit?", [("weather", {"city": "Graz"})]),
        ("Quel temps fait-il à Rennes ?", [("weather", {"city": "Rennes"})]),
        ("今日の京都の天気を教えてください。", [("weather", {"city": "京都"})]),
        ("What does ACME cost? The price of the stock ACME, please.", [("stock_price", {"symbol": "ACME"})]),
        ("Convert 12 bananas to kilometres.", []),
        ("How many copper elbows do we have in stock?", []),
        ("Who wrote the first cookbook?", []),
        ("What is the weather like?", []),
    ],
)
def test_a_question_calls_the_tools_that_fit(question: str, expected: list[Any]) -> None:
    """Places, amounts, units and codes come from the question; without them nothing is called."""
    found = distinct(all_calls(asking(question, tools=TOOLS)))
    assert found == expected


@pytest.mark.parametrize(
    ("tools", "question", "expected"),
    [
        ([STOCK], "How many copper elbows do we have in stock?", ("get_stock", {"item": "copper elbows"})),
        ([SEARCH], "Search for the minutes.", ("search", {"query": "Search for the minutes."})),
        ([MAIL], "Send an email to ana@x.org: hello.", ("send_email", {"to": "ana@x.org", "text": MAILED})),
    ],
)
def test_texts_are_found_by_what_their_parameters_are_called(tools: Any, question: str, expected: Any) -> None:
    """A thing for an item, the whole question for a query."""
    assert distinct(all_calls(asking(question, tools=tools))) == [expected]


def test_the_sample_questions_are_answered_with_tools_where_they_fit() -> None:
    """About half of them call something, some several things, and every argument fits."""
    questions = (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [all_calls(asking(json.loads(line)["question"], tools=TOOLS)) for line in questions]
    assert 8 <= sum(map(bool, turns)) <= 14
    assert any(len(turn) > 1 for some in turns for turn in some)
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
    for name, arguments in (call for some in turns for turn in some for call in turn):
        jsonschema.validate(arguments, schemas[name])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "convert"}}])
@pytest.mark.parametrize("question", ["Hello", "What is the weather in Oslo?", ""])
def test_a_required_call_is_made_whatever_is_asked(choice: Any, question: str) -> None:
    """Also after results have come; a named function is the one that is called."""
    payload = asking(question, tools=TOOLS, tool_choice=choice)
    turns = all_calls(payload, most=MOST_TURNS + 3)
    assert len(turns) == MOST_TURNS + 3
    if isinstance(choice, dict):
        assert {name for turn in turns for name, _ in turn} == {"convert"}


@pytest.mark.parametrize("choice", ["none", "auto", "validated", None])
def test_a_call_that_is_not_required_is_made_only_when_it_fits(choice: str | None) -> None:
    """`none` calls nothing, the others what fits."""
    called = calls_in(message(asking("Weather in Oslo?", tools=TOOLS, tool_choice=choice)))
    assert bool(called) == (choice != "none")
    assert not calls_in(message(asking("Hello", tools=TOOLS, tool_choice=choice)))


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, seed=st.integers(0, 2**32))
def test_arguments_are_valid_for_their_schema(model: type[Any], text: str, seed: int) -> None:
    """Whatever the parameters and the prompt: found or invented, they fit."""
    schema = gemini_parameters(inlined(model.model_json_schema()))
    assert schema is not None
    function = {"name": "record", "parameters": schema}
    payload = asking(text, tools=[{"type": "function", "function": function}], tool_choice="required")
    for _, arguments in calls_in(message(payload, seed=seed)):
        jsonschema.validate(arguments, standard(schema))


def inlined(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """The schema without references, which parameters cannot have; recursion ends in anything."""
    root = schema if root is None else root
    if isinstance(schema, list):
        return [inlined(each, root, depth) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        if depth > 2:
            return {}
        return inlined(root["$defs"][schema["$ref"].rpartition("/")[2]], root, depth + 1)
    return {name: inlined(each, root, depth) for name, each in schema.items() if name not in {"$defs", "default"}}


def test_calls_have_ids_of_vertex_and_one_signature() -> None:
    """`function-call-` and a UUID, each another, the same each time; the first call bears the signature."""
    payload = asking(PARALLEL, tools=TOOLS)
    choice = choices(payload)[0]
    calls = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"], len(calls)) == ("tool_calls", None, 2)
    pattern = r"function-call-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(pattern, call["id"]) for call in calls)
    assert len({call["id"] for call in calls}) == 2
    assert ["extra_content" in call for call in calls] == [True, False]
    assert choices(payload)[0] == choice


def test_one_prompt_in_three_takes_a_second_turn_and_none_a_third() -> None:
    """Over 600 prompts, within five standard deviations."""
    turns = [len(all_calls(asking(f"Weather in Oslo for room {number}?", tools=[WEATHER]))) for number in range(600)]
    assert set(turns) == {1, 2}
    assert abs(turns.count(2) - 200) < 5 * (600 * 2 / 9) ** 0.5


def test_the_answer_quotes_what_the_tools_have_said() -> None:
    """In prose, and in a schema's fields, by name or as a description."""
    schema = {"type": "object", "properties": {"celsius": {"type": "number"}, "answer": {"type": "string"}}}
    for extra in ({}, {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}):
        payload = asking(PARALLEL, tools=TOOLS, **extra)
        found = message(answered(payload, message(payload), lambda *_: '{"sky": "rain of frogs", "celsius": 8.5}'))
        assert "rain of frogs" in found["content"]
        if extra:
            assert json.loads(found["content"])["celsius"] == 8.5


async def handed_back(vertex: Vertex, change: Callable[[Json], None]) -> Any:
    """The endpoint's response to a changed second turn; the first was a valid one, with two calls."""
    payload = asking(PARALLEL, tools=TOOLS)
    found = (await vertex.ask(payload)).json()["choices"][0]["message"]
    second = json.loads(json.dumps(answered(payload, found)))
    change(second)
    return await vertex.ask(second)


async def test_what_was_called_must_come_back_as_it_was() -> None:
    """Signed, with one result for each call: else 400, in Vertex's words."""

    def first(each: Json) -> Json:
        return dict(each["messages"][1]["tool_calls"][0])

    changes: list[tuple[Callable[[Json], Any], str]] = [
        (lambda each: each["messages"][1]["tool_calls"][0].pop("extra_content"), MISSING),
        (lambda each: each["messages"][1]["tool_calls"].reverse(), MISSING),
        (lambda each: first(each)["extra_content"]["google"].update(thought_signature="AAAA"), "corrupted"),
        (lambda each: first(each)["function"].update(arguments='{"city": "Rome"}'), "corrupted"),
        (lambda each: first(each)["function"].update(arguments="{"), "not a JSON object"),
        (lambda each: each["messages"].pop(), UNEQUAL),
        (lambda each: each.update(messages=each["messages"][:2]), UNEQUAL),
        (lambda each: each["messages"].append(each["messages"][-1]), UNEQUAL),
        (lambda each: each["messages"][-1].update(tool_call_id="other"), UNEQUAL),
        (lambda each: each["messages"][-1].pop("tool_call_id"), UNEQUAL),
        (lambda each: each["messages"].pop(1), UNEQUAL),
    ]
    async with emulated(Options()) as vertex:
        for change, expected in changes:
            assert expected in refusal(await handed_back(vertex, change))
        assert content(await handed_back(vertex, lambda _: None)).startswith("weather says {}")


def signed(each: Json, signature: str) -> None:
    each["messages"][1]["tool_calls"][0]["extra_content"]["google"]["thought_signature"] = signature


async def test_signatures_are_wanted_for_the_current_turn_of_gemini_3_only() -> None:
    """Google's own placeholder passes, and so does history, and an older model."""

    def forget(each: Json) -> None:
        del each["messages"][1]["tool_calls"][0]["extra_content"]

    def go_on(each: Json) -> None:
        forget(each)
        each["messages"].append({"role": "user", "content": "Thanks. Who wrote that?"})

    def older(each: Json) -> None:
        forget(each)
        each["model"] = "google/gemini-2.5-flash"

    async with emulated(Options()) as vertex:
        for change in (lambda each: signed(each, ANY_SIGNATURE), go_on, older):
            assert (await handed_back(vertex, change)).status == 200


async def test_calls_and_results_are_counted_when_they_are_answered() -> None:
    """Two calls asked for, two results received."""
    async with emulated(Options()) as vertex:
        await handed_back(vertex, lambda _: None)
        stats = await vertex.stats()
        assert (stats["tool_calls"], stats["tool_results"], stats["answers"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tool_choice": "sometimes"}, "tool_choice must be"),
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice must be"),
        ({"tools": None, "tool_choice": "required"}, "without function_declarations"),
        ({"tools": [WEATHER, WEATHER]}, "Duplicate function declaration found: weather"),
        ({"tools": [tool("no name", "")]}, "Invalid function name"),
        ({"tools": [{"function": {}}]}, "without a type"),
        ({"tools": {}}, "must be a list"),
        ({"tools": [tool("f", "", a={"type": "array", "items": {"$ref": "#/$defs/A"}})]}, 'Unknown name "$ref"'),
        ({"tools": [tool("f", "", a={"type": "string", "default": "x"})]}, 'Unknown name "default"'),
        ({"tools": [tool("f", "", a={"type": "strange"})]}, 'Type), "strange"'),
        (
            {"model": "google/gemini-2.5-flash", "response_format": {"type": "json_object"}},
            "Function calling with a response mime type: 'application/json' is unsupported",
        ),
    ],
)
async def test_tools_that_cannot_be_are_refused(change: Json, expected: str) -> None:
    """400 INVALID_ARGUMENT, with the reason."""
    async with emulated(Options()) as vertex:
        assert expected in refusal(await vertex.ask({**asking("Weather in Oslo?", tools=TOOLS), **change}))


def test_properties_may_be_called_like_keywords() -> None:
    """A parameter named `default` is not a default."""
    assert calls_in(message(asking("x", tools=[tool("f", "", default={"type": "string"})], tool_choice="required")))


@pytest.mark.parametrize(("kind", "idents"), [("empty_ids", 1), ("same_ids", 1), (None, 2)])
async def test_ids_can_be_empty_or_repeated(kind: str | None, idents: int) -> None:
    """Faults that other layers over Gemini have; what is handed back so is refused."""
    async with emulated(Options(faults={kind: 1.0} if kind else {})) as vertex:
        payload = asking(PARALLEL, tools=TOOLS)
        found = (await vertex.ask(payload)).json()["choices"][0]["message"]
        assert len({call["id"] for call in found["tool_calls"]}) == idents
        assert ("" in {call["id"] for call in found["tool_calls"]}) == (kind == "empty_ids")
        assert (await vertex.ask(answered(payload, found))).status == (400 if kind else 200)


async def test_tool_calls_can_come_with_finish_reason_stop() -> None:
    """As some layers over Gemini send them."""
    async with emulated(Options(faults={"tool_stop": 1.0})) as vertex:
        choice = (await vertex.ask(asking(PARALLEL, tools=TOOLS))).json()["choices"][0]
        assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("stop", 2)


@pytest.mark.parametrize("kind", ["bad_arguments", "unknown_tool"])
def test_a_wrong_call_is_mended_when_the_model_is_told(kind: str) -> None:
    """The first call does not fit; the second turn makes the right one, and then the answer comes."""
    payload = asking(PARALLEL, tools=TOOLS)
    right = all_calls(payload)
    wrong, *mended = all_calls(payload, kind=kind)
    name, arguments = wrong[0]
    assert (name == "weather") == (kind == "bad_arguments")
    if kind == "bad_arguments":
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])
    assert distinct([*mended, wrong[1:]]) == distinct(right)


@pytest.mark.parametrize("kind", ["empty_ids", "same_ids", "bad_arguments", "unknown_tool", "tool_stop"])
async def test_faults_of_tools_leave_other_answers_alone(kind: str) -> None:
    """Without tools the answer is an honest one."""
    async with emulated(Options(faults={kind: 1.0})) as vertex:
        assert content(await vertex.ask(asking())) == message(asking())["content"]
