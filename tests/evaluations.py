"""A small evaluation, its gold data, and a server whose right and wrong answers are chosen row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tests.commands import Done, Shell
from tests.servers import Answer, Call, Served, chat, error

EVALUATION = """
from pydantic import BaseModel

from pipeline import AtLeast, AtMost, Eval, Job, NeverBreak, NoWorse
from pipeline.evaluation import Judge, Text


class Record(BaseModel):
    answer: str


evaluation = Eval(
    job=Job(
        name="asked",
        model="google/gemini-test",
        input="gold.jsonl",
        system="SYSTEM",
        user="Say {{ text }}",
        schema=Record,
        key="id",
        prices={"google/gemini-test": {"input": 1.0, "output": 1.0}},
    ),
    # FIELDS
    slices=["tier"],
    gates=[GATES],
    baseline="baseline.json",
)
"""

GATES = 'AtLeast("row_correct", 0.5), NoWorse("row_correct"), NeverBreak(where={"tier": "golden"})'

COST = 15e-6
"""Dollars of a call: 10 tokens in, 5 out."""


def write_evaluation(
    shell: Shell, *, gates: str = GATES, fields: str = "", name: str = "eval.py", **changes: str
) -> None:
    """The file; `changes` replace words of it."""
    text = EVALUATION.replace("GATES", gates).replace("# FIELDS", fields)
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    shell.write(name, text)


def gold_row(number: int, **more: Any) -> dict[str, Any]:
    """Every fourth row is golden."""
    tier = "golden" if number % 4 == 0 else "standard"
    return {
        "id": f"r{number:03d}",
        "text": f"text {number}",
        "tier": tier,
        "expected": {"answer": f"TEXT {number}"},
    } | more


def write_gold(shell: Shell, count: int, changed: Mapping[int, Mapping[str, Any]] | None = None) -> None:
    rows = [gold_row(number, **(changed or {}).get(number, {})) for number in range(count)]
    shell.write("gold.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def number_of(call: Call) -> int:
    """Which row a call is about."""
    return int(call.prompt.rpartition(" ")[2])


def answering(wrong: Collection[int] = (), failing: Collection[int] = ()) -> Callable[[Call], Answer]:
    """A script that answers every row right but these: wrong, or blocked."""

    def answer(call: Call) -> Answer:
        number = number_of(call)
        if number in failing:
            return chat(None, finish_reason="content_filter")
        return said("no" if number in wrong else f"TEXT {number}")

    return answer


def said(answer: str) -> Answer:
    return chat(json.dumps({"answer": answer}))


def denied(_: Call) -> Answer:
    return error(403, "PERMISSION_DENIED")


def evaluated(shell: Shell, server: Served, *more: str, target: str = "eval.py") -> Done:
    """`pipeline eval` against the server."""
    always = ("--no-adaptive", "-c", "8", "--quiet", "--base-url", server.base_url)
    return shell.pipeline("eval", target, *always, *more)


def summary_in(shell: Shell, output: str = "out/eval") -> dict[str, Any]:
    return dict(json.loads((shell.folder / output / "_eval" / "summary.json").read_bytes()))
