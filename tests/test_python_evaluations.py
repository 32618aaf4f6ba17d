"""Evaluations run from Python: the same verdict and files as of `pipeline eval`."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import pipeline
from pipeline.evaluation.workspace import blessed
from tests.servers import Answer, Call, Served, chat, error, served


class Record(BaseModel):
    answer: str


def answers(call: Call) -> Answer:
    """Wrong for every fourth row."""
    number = int(call.prompt.rsplit(maxsplit=1)[-1])
    return chat(json.dumps({"answer": "wrong" if number % 4 == 0 else f"right {number}"}))


@pytest.fixture(name="server")
def server_of_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    gold = [{"id": str(n), "text": f"row {n}", "expected": {"answer": f"right {n}"}} for n in range(40)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    with served(answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server


def evaluation(least: float) -> pipeline.Eval:
    job = pipeline.Job(
        name="asked", model="google/gemini-test", input="gold.jsonl", user="Say {{ text }}", schema=Record, key="id"
    )
    return pipeline.Eval(job=job, gates=[pipeline.AtLeast("row_correct", least)])


def test_a_failed_gate_is_a_result_and_a_second_time_asks_nothing(server: Served) -> None:
    result = pipeline.evaluate(evaluation(0.9), "out")
    assert (result.passed, result.measures["row_correct"], result.facts["exit_code"]) == (False, 0.75, 4)
    assert "must be at least 90.0 %" in result.gates[0].message
    assert json.loads(Path("out/_eval/summary.json").read_text())["passed"] is False
    assert pipeline.evaluate(evaluation(0.5), "out").passed
    assert len(server.calls) == 40
    assert blessed(Path("out"), Path("baseline.json"), allow_emulated=False) == Path("baseline.json")


def test_without_an_output_the_folder_lives_as_long_as_the_result(server: Served) -> None:
    result = pipeline.evaluate(evaluation(0.5), repeats=2, cache=False)
    assert (result.path / "_eval" / "summary.json").exists()
    assert len(server.calls) == 80
    path = result.path
    del result
    gc.collect()
    assert not path.exists()


def test_what_stops_an_evaluation_is_raised(server: Served) -> None:
    server.follow(lambda _: error(403, "PERMISSION_DENIED"))
    with pytest.raises(pipeline.ProviderUnusable) as caught:
        pipeline.evaluate(evaluation(0.5), "out")
    assert caught.value.summary.left == 40
