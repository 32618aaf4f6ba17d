"""Times of day are text in the dataset unless a job asks for Parquet's own type, wherever they are in an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import Job
from pipeline.data import Reply
from pipeline.evaluation.gold import _value
from tests.commands import Done, Shell
from tests.servers import Answer, Call, Served, chat, served


class Slot(BaseModel):
    start: time
    end: time | None


class Day(BaseModel):
    model_config = ConfigDict(extra="forbid")

    at: time
    maybe: time | None
    all: list[time]
    some: set[time]
    slots: list[Slot]
    free: str
    either: time | int


MODEL = Job(name="model", model="m", user="{{ text }}", schema=Day)
CLOCK = {"type": "string", "format": "time"}
SLOT = {
    "type": "object",
    "properties": {"start": CLOCK, "end": {"anyOf": [CLOCK, {"type": "null"}]}},
    "required": ["start", "end"],
}
DOCUMENT = MODEL.replace(
    schema={
        "type": "object",
        "properties": {"at": CLOCK, "slots": {"type": "array", "items": SLOT}, "again": {"$ref": "#/properties/at"}},
        "required": ["at", "slots"],
    }
)
BOTH = pytest.mark.parametrize("job", [MODEL, DOCUMENT], ids=["model", "document"])

TIMES = st.times()


def kinds(type_: pa.DataType) -> Iterator[pa.DataType]:
    """The types of all leaves."""
    inner = [type_.field(number).type for number in range(type_.num_fields)]
    yield from (leaf for one in inner for leaf in kinds(one)) if inner else (type_,)


def as_text(value: Any) -> Any:
    """A value with its times in ISO 8601."""
    match value:
        case time():
            return value.isoformat()
        case dict():
            return {name: as_text(inner) for name, inner in value.items()}
        case list():
            return [as_text(inner) for inner in value]
    return value


def parsed(job: Job, content: Any) -> Any:
    """What the dataset's column holds of an answer."""
    outcome = job.outcome(0, Reply(chat(json.dumps(content)).body))
    return pa.array([getattr(outcome, "value", None)], job.reader.parsed_type())[0].as_py()


@BOTH
def test_no_column_is_a_time_unless_the_job_asks_for_it(job: Job) -> None:
    assert not any(map(pa.types.is_time, kinds(job.reader.parsed_type())))
    own = job.replace(time_as="time").reader.parsed_type()
    assert pa.types.is_time(own.field("at").type)
    assert sum(map(pa.types.is_time, kinds(own))) == (6 if job is MODEL else 4)


@BOTH
def test_what_may_be_null_stays_so_in_either_form(job: Job) -> None:
    text, own = job.reader.parsed_type(), job.replace(time_as="time").reader.parsed_type()
    assert [field.nullable for field in text] == [field.nullable for field in own]
    slots = [kind.field("slots").type.value_type for kind in (text, own)]
    assert [slots[0].field(name).nullable for name in ("start", "end")] == [False, True]
    assert [slots[1].field(name).nullable for name in ("start", "end")] == [False, True]


@given(TIMES, TIMES, st.lists(TIMES, max_size=4))
def test_the_text_is_the_time_as_it_is_in_its_own_form(one: time, other: time, several: list[time]) -> None:
    all_ = [each.isoformat() for each in several]
    slots = [{"start": one.isoformat(), "end": None}, {"start": other.isoformat(), "end": one.isoformat()}]
    content = {
        "at": one.isoformat(),
        "maybe": None,
        "all": all_,
        "some": all_,
        "slots": slots,
        "free": "12:00",
        "either": 7,
    }
    found = parsed(MODEL, content)
    own = parsed(MODEL.replace(time_as="time"), content)
    assert isinstance(own["at"], time)
    assert found == as_text(own) | {"some": sorted({*all_})}
    assert time.fromisoformat(found["at"]) == one


@given(st.lists(TIMES, min_size=2, max_size=9))
def test_the_text_sorts_as_the_times_do(several: list[time]) -> None:
    texts = [parsed(MODEL, day(at=each.isoformat()))["at"] for each in several]
    assert sorted(texts) == [each.isoformat() for each in sorted(several)]


def day(**changes: Any) -> dict[str, Any]:
    plain = {"at": "10:00:00", "maybe": "11:00", "all": [], "some": [], "slots": [], "free": "x", "either": "12:30:00"}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("14:30:00+02:00", "14:30:00"),
        ("14:30", "14:30:00"),
        ("14:30:00.250Z", "14:30:00.250000"),
        ("00:00Z", "00:00:00"),
    ],
)
def test_the_text_has_one_form_however_the_answer_writes_it(said: str, text: str) -> None:
    assert parsed(MODEL, day(at=said))["at"] == text


@pytest.mark.parametrize("said", ["25:00:00", "noon", "", "14:60", "2026-01-02T10:00:00"])
@BOTH
def test_what_is_no_time_fails_its_row_in_either_form(said: str, job: Job) -> None:
    for own in (job, job.replace(time_as="time")):
        assert parsed(own, day(at=said)) is None


@BOTH
def test_an_evaluation_compares_the_same_values_in_either_form(job: Job) -> None:
    text = json.dumps(day(at="14:30:00Z", slots=[{"start": "01:02:03Z", "end": None}]))
    assert _value(job, text) == _value(job.replace(time_as="time"), text)


def test_another_form_is_refused() -> None:
    with pytest.raises(ValidationError, match="time_as"):
        MODEL.replace(time_as="number")


JOB = """
from datetime import time
from pydantic import BaseModel
from pipeline import Job


class Record(BaseModel):
    at: time
    others: list[time | None]


job = Job(name="a_job", model="google/gemini-test", input="rows.jsonl", user="Say {{ text }}", schema=Record{more})
"""


def answer(_call: Call) -> Answer:
    return chat(json.dumps({"at": "14:30:00.5", "others": ["01:02:03", None]}))


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def run(shell: Shell, server: Served) -> Done:
    return shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet", "--json")


def test_reparse_changes_times_into_text_and_back_without_a_call(tmp_path: Path, server: Served) -> None:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.rows(3)
    own, text = JOB.format(more=', time_as="time"'), JOB.format(more="")
    shell.write("job.py", own)
    assert run(shell, server).code == 0
    as_time = {"at": time(14, 30, 0, 500_000), "others": [time(1, 2, 3), None]}
    assert [row["parsed"] for row in shell.output()] == [as_time] * 3
    shell.write("job.py", text)
    refused = run(shell, server)
    assert (refused.code, "pipeline reparse out/a_job --job job.py" in refused.err) == (2, True), refused
    assert shell.pipeline("reparse", "out/a_job", "--job", "job.py").code == 0
    assert [row["parsed"] for row in shell.output()] == [{"at": "14:30:00.500000", "others": ["01:02:03", None]}] * 3
    shell.write("job.py", own)
    assert shell.pipeline("reparse", "out/a_job", "--job", "job.py").code == 0
    assert [row["parsed"] for row in shell.output()] == [as_time] * 3
    assert len(server.calls) == 3
