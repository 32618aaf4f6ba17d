"""Every sample job, against a server that shares nothing with the emulator: every row comes out ok.

It refuses what the documentation of the endpoint does not list, and obeys the schemas that it is given to the letter.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pipeline.schema.dialects import standard
from tests.commands import ROOT, Done, Shell
from tests.obedient import answers
from tests.servers import Answer, Call, error, served

ROWS = 30
SAMPLES = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("eval_"))

REQUEST = frozenset(
    """
    messages model max_tokens max_completion_tokens n frequency_penalty presence_penalty temperature top_p stop seed
    stream stream_options modalities reasoning_effort response_format tools tool_choice web_search_options extra_body
    """.split()  # noqa: SIM905 - the list of the documentation
)
PARAMETERS = frozenset(
    """
    type format description nullable enum items properties required minItems maxItems minimum maximum minLength
    maxLength anyOf
    """.split()  # noqa: SIM905 - the list of the documentation
)
STRICT_TYPES = {"string", "number", "boolean", "integer", "object", "array", "null"}


def drawn(schema: Mapping[str, Any], count: int) -> list[str]:
    """So many answers that obey the schema, the same in every run."""
    found: list[str] = []

    @settings(
        max_examples=count * 3, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(answers(schema))
    def draw(text: str) -> None:
        found.append(text)

    draw()
    return found[:count]


class StrictServer:
    """Answers each schema by its own instances in turn. What it does not understand it refuses, and remembers."""

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.drawn: dict[str, Iterator[str]] = {}
        self.lock = threading.Lock()

    def answer(self, call: Call) -> Answer:
        request = call.json()
        complaint = next(complaints(request), None)
        if complaint is not None:
            self.refusals.append(complaint)
            return error(400, "INVALID_ARGUMENT", complaint)
        messages = [self.message(request) for _ in range(request.get("n", 1))]
        choices = [
            {"index": at, "message": each, "finish_reason": "tool_calls" if "tool_calls" in each else "stop"}
            for at, each in enumerate(messages)
        ]
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        whole = {"id": "x", "object": "chat.completion", "created": 1, "model": request["model"], "usage": usage}
        if not request.get("stream"):
            return Answer(json.dumps({**whole, "choices": choices}).encode())
        delta = [{"index": 0, "delta": messages[0], "finish_reason": "stop"}]
        chunk = json.dumps({**whole, "object": "chat.completion.chunk", "choices": delta})
        return Answer(f"data: {chunk}\n\ndata: [DONE]\n\n".encode(), headers={"Content-Type": "text/event-stream"})

    def message(self, request: Any) -> dict[str, Any]:
        plain = {"role": "assistant", "content": "A plain answer."}
        if request.get("tools") and request["messages"][-1]["role"] != "tool":
            calls = [
                {
                    "id": f"c{at}",
                    "type": "function",
                    "function": {
                        "name": tool["function"]["name"],
                        "arguments": self.next(standard(tool["function"]["parameters"])),
                    },
                }
                for at, tool in enumerate(request["tools"])
            ]
            return {**plain, "content": None, "tool_calls": calls}
        if "image" in request.get("modalities", ()):
            return {**plain, "content": None, "audio": {"data": "aGVsbG8=", "extra_content": IMAGE}}
        if "response_format" in request:
            return {**plain, "content": self.next(request["response_format"]["json_schema"]["schema"])}
        return plain

    def next(self, schema: Mapping[str, Any]) -> str:
        with self.lock:
            key = json.dumps(schema, sort_keys=True)
            if key not in self.drawn:
                self.drawn[key] = itertools.cycle(drawn(schema, ROWS))
            return next(self.drawn[key])


IMAGE = {"google": {"mime_type": "image/png"}}


def complaints(request: Any) -> Iterator[str]:
    """What the documentation of the endpoint has no place for."""
    yield from (f"unknown parameter {name}" for name in request.keys() - REQUEST)
    for tool in request.get("tools", ()):
        if "parameters" in tool["function"]:
            yield from in_parameters(tool["function"]["parameters"])
    form = request.get("response_format", {"type": "text"})
    if form["type"] == "json_schema":
        inner = form["json_schema"]
        if inner.keys() - {"name", "schema", "strict", "description"} or not inner["name"]:
            yield "response_format.json_schema is not OpenAI's"
        yield from in_structured(inner["schema"], strict=inner["strict"])


def in_parameters(schema: Any) -> Iterator[str]:
    yield from (f"unknown name {name}" for name in schema.keys() - PARAMETERS)
    if "anyOf" in schema:
        if len(schema) > 1:
            yield "fields beside any_of"
    elif schema.get("type") not in STRICT_TYPES:
        yield f"type {schema.get('type')}"
    if schema.get("type") == "object" and not schema.get("properties"):
        yield "an object without properties"
    if schema.get("type") == "array" and "items" not in schema:
        yield "an array without items"
    if not all(isinstance(value, str) and value for value in schema.get("enum", ())):
        yield "an enum of something else than text"
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    for each in [*inner, *([schema["items"]] if "items" in schema else [])]:
        yield from in_parameters(each)


def in_structured(schema: Any, *, strict: bool) -> Iterator[str]:
    """OpenAI's rules of strict schemas, and Gemini's words for values."""
    yield from (f"{word} is ignored by Gemini" for word in ("const", "oneOf", "nullable", "default") if word in schema)
    if "$ref" in schema and len(schema) > 1:
        yield "fields beside $ref"
    properties = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False and set(schema.get("required", ())) == set(properties)
    if strict and schema.get("type") == "object" and not closed:
        yield "a strict object that is open, or has optional properties"
    inner = [*properties.values(), *schema.get("anyOf", ()), *schema.get("$defs", {}).values()]
    for each in [*inner, *([schema["items"]] if isinstance(schema.get("items"), dict) else [])]:
        yield from in_structured(each, strict=strict)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_row_of_a_sample_job_is_ok_where_its_request_is_obeyed_to_the_letter(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shell = Shell(tmp_path_factory.mktemp("strict"), {"OPENAI_API_KEY": "invented-key-0001"})
    for linked in ("jobs", "data"):
        (shell.folder / linked).symlink_to(ROOT / linked)
    server = StrictServer()
    with served(server.answer) as endpoint:
        done: Done = shell.pipeline(
            "run", f"jobs/{name}.py", "--base-url", endpoint.base_url, "--output", "out", "--limit", str(ROWS), "--json"
        )
    assert server.refusals == []
    assert (done.json["failed"], done.json["ok"]) == (0, done.json["rows"]), done.err
    assert done.code == 0
