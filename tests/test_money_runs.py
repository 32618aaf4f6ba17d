"""What runs have cost, to the cent of what the server billed: over failed rows, turns, stops, kills and processes."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Done, Shell, ended
from tests.servers import Answer, Call, Held, Says, Served, error, served

IN, OUT = 2.0, 8.0
"""Dollars per million tokens."""

PRICES = {"m": {"input": IN, "output": OUT}}

TOOL_JOB = f"""
from pathlib import Path

from pipeline import Job

def look_up(word: str) -> str:
    '''What a word means.'''
    with Path("ran.txt").open("a") as ran:
        print(word, file=ran)
    return f"{{word}} means nothing, said the {{len(Path('ran.txt').read_text().split())}}th"

job = Job(name="a_job", model="m", input="rows.jsonl", user="Say {{{{ text }}}}", tools=[look_up], max_turns=3,
          prices={PRICES}, max_failed=1000)
"""

SCHEMA_JOB = f"""
from pydantic import BaseModel

from pipeline import Job

class Record(BaseModel):
    answer: str
    size: int

job = Job(name="a_job", model="m", input="rows.jsonl", user="Say {{{{ text }}}}", schema=Record, prices={PRICES},
          max_failed=1000, attempts=2)
"""

FITS = '{"answer": "fine", "size": 3}'


@dataclass
class Till:
    """Answers by a script of its own, and counts what it has billed for whole answers."""

    says: Callable[..., Says] = field(default=lambda *_: error(500))
    tokens: int = 0
    dollars: float = 0.0
    calls: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, call: Call) -> Says:
        messages = call.json()["messages"]
        key = json.dumps(messages)
        with self._lock:
            self.asked[key] += 1
        return self.says(call, messages)

    def bill(self, content: str | None, size: int, *calls: dict[str, Any]) -> Answer:
        """A whole answer, and its price on the bill."""
        prompt, completion = 1000 + size, 100 + size
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = list(calls)
        choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message}
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        with self._lock:
            self.calls += 1
            self.tokens += prompt + completion
            self.dollars += (prompt * IN + completion * OUT) / 1e6
        return Answer(json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode())


def calling(word: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": json.dumps({"word": word})}}


@pytest.fixture
def till() -> Till:
    return Till()


@pytest.fixture
def server(till: Till) -> Iterator[Served]:
    with served(till) as server:
        yield server


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, {"OPENAI_API_KEY": "k"})


def arguments(server: Served, *more: str) -> tuple[str, ...]:
    common = ("--base-url", server.base_url, "--no-adaptive", "-c", "8", "--quiet", "--json")
    return ("run", "job.py", *common, *more)


def run(shell: Shell, server: Served, *more: str) -> Done:
    return shell.pipeline(*arguments(server, *more))


def require_billed(shell: Shell, till: Till, run_cost: float | None) -> None:
    """The whole run's cost, in what it said and in what `status` and the manifest say, is the server's own bill."""
    said = shell.pipeline("status", "out/a_job", "--json").json
    assert said["run_calls"] == till.calls
    assert said["run_cost_usd"] == pytest.approx(till.dollars, abs=1e-6)
    assert run_cost in (None, said["run_cost_usd"])
    manifest = shell.manifest()
    assert manifest["cost_usd"] == said["run_cost_usd"]
    assert sum(manifest["tokens"][kind] for kind in ("input", "output", "reasoning")) == till.tokens


def number_of(call: Call) -> int:
    """The row that a request is of."""
    return int(str(call.json()["messages"][0]["content"]).split()[-1])


def test_m3_a_row_that_ends_in_the_midst_of_its_turns_keeps_what_it_cost(
    shell: Shell, server: Served, till: Till
) -> None:
    till.says = lambda call, _: till.bill(None, number_of(call), calling("rain"))
    shell.write("job.py", TOOL_JOB)
    shell.rows(3)
    done = run(shell, server)
    assert (done.code, done.json["failed"], done.json["calls"]) == (0, 3, 9)
    assert done.json["cost_usd"] == done.json["run_cost_usd"] == pytest.approx(till.dollars, abs=1e-6)
    require_billed(shell, till, done.json["run_cost_usd"])
    rows = shell.output()
    assert [row["error"]["type"] for row in rows] == ["Truncated"] * 3
    assert sum(row["response"]["cost_usd"] for row in rows) == pytest.approx(till.dollars)
    assert [row["response"]["input_tokens"] for row in rows] == [3000, 3003, 3006]
    assert [row["response"]["tool_calls"][0]["name"] for row in rows] == ["look_up"] * 3
    again = shell.pipeline("reparse", "out/a_job", "--job", "job.py", "--json").json
    assert (again["failed"], again["run_cost_usd"], again["cost_usd"]) == (3, done.json["run_cost_usd"], 0.0)


@pytest.mark.parametrize("status", [400, 500])
def test_m3_an_answer_whose_repair_fails_is_kept_and_is_read_again_under_another_schema(
    shell: Shell, server: Served, till: Till, status: int
) -> None:
    till.says = lambda _, messages: (
        till.bill('{"answer": "one"}', 0) if len(messages) == 1 else error(status, "INVALID_ARGUMENT")
    )
    shell.write("job.py", SCHEMA_JOB.replace("attempts=2", "attempts=1"))
    shell.rows(2)
    done = run(shell, server)
    assert (done.code, done.json["failed"], done.json["calls"], done.json["input_tokens"]) == (0, 2, 2, 2000)
    require_billed(shell, till, done.json["run_cost_usd"])
    for row in shell.output():
        assert row["error"]["type"] == ("Refused" if status == 400 else "Unavailable")
        assert (row["response"]["text"], row["response"]["output_tokens"]) == ('{"answer": "one"}', 100)
    shell.write("job.py", SCHEMA_JOB.replace("    size: int\n", "").replace("attempts=2", "attempts=1"))
    read = shell.pipeline("reparse", "out/a_job", "--job", "job.py", "--json")
    assert (read.json["ok"], read.json["failed"]) == (2, 0)
    assert [row["parsed"] for row in shell.output()] == [{"answer": "one"}] * 2
    assert till.calls == 2


def test_m3_rows_that_a_budget_stops_between_their_turns_do_not_pay_for_them_again(
    shell: Shell, server: Served, till: Till
) -> None:
    """Nor do their tools run again, whose results are what the next request is made of."""

    def says(_: Call, messages: list[Any]) -> Says:
        return till.bill(None, 0, calling("rain")) if len(messages) < 5 else till.bill("done", 0)

    till.says = says
    shell.write("job.py", TOOL_JOB)
    shell.rows(12)
    starts = 0
    for budget in range(5_000, 60_000, 5_000):
        done = run(shell, server, "--budget-tokens", str(budget), "--processes", str(1 + starts % 2))
        starts += 1
        assert till.tokens <= budget
        assert done.json["run_calls"] == till.calls
        if done.code == 0:
            break
        assert done.code == 6
    assert (done.code, done.json["ok"]) == (0, 12)
    assert starts > 3
    assert set(till.asked.values()) == {1}
    assert till.calls == 36
    assert len((shell.folder / "ran.txt").read_text().splitlines()) == 24
    require_billed(shell, till, done.json["run_cost_usd"])
    rows = shell.output()
    assert sum(row["response"]["cost_usd"] for row in rows) == pytest.approx(till.dollars)
    assert {row["response"]["attempts"] for row in rows} == {3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_m3_a_run_that_is_killed_between_turns_goes_on_from_them(
    shell: Shell, server: Served, till: Till, number: signal.Signals, processes: str
) -> None:
    waiting = threading.Event()

    def says(_: Call, messages: list[Any]) -> Says:
        if len(messages) < 3:
            return till.bill(None, 0, calling("rain"))
        return till.bill("done", 0) if waiting.is_set() else Held(error(503))

    till.says = says
    shell.write("job.py", TOOL_JOB)
    shell.rows(6)
    with shell.started(*arguments(server, "--processes", processes, "--drain-timeout", "0.2")) as child:
        server.arrived(12)  # each of the six rows has been answered once, and has asked again a tick and a sync later
        waiting.wait(0.3)
        child.send_signal(number)
        ended(child)
    waiting.set()
    done = run(shell, server, "--processes", processes)
    assert (done.code, done.json["ok"], done.json["calls"], till.calls) == (0, 6, 6, 12)
    assert len((shell.folder / "ran.txt").read_text().splitlines()) == 6
    require_billed(shell, till, done.json["run_cost_usd"])


@dataclass
class Moody:
    """Rows by their number: some need a repair, some never fit, some are refused, some fail once."""

    till: Till
    fits: bool = False

    def __call__(self, call: Call, messages: list[Any]) -> Says:
        number, again = number_of(call), len(messages) > 1
        match number % 7:
            case 0:
                return self.till.bill("no json" if not again else FITS, number)
            case 1:
                return self.till.bill(FITS if self.fits else "no json", number)
            case 2 if not again:
                return self.till.bill('{"answer": 5}', number)
            case 2 if not self.fits:
                return error(400, "INVALID_ARGUMENT")
            case 3 if number % 10 == 0 and self.till.asked[json.dumps(messages)] == 1:
                return error(503)
        return self.till.bill(FITS, number)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_m4_the_ledger_is_the_servers_own_bill_over_a_stop_resumes_retries_and_a_reparse(
    shell: Shell, server: Served, till: Till, processes: str
) -> None:
    rows = 1200
    till.says = moody = Moody(till)
    shell.write("job.py", SCHEMA_JOB)
    shell.rows(rows, heavy=True)
    options = ("--processes", processes)
    with shell.started(*arguments(server, *options, "--drain-timeout", "60")) as child:
        server.arrived(rows // 2)
        child.send_signal(signal.SIGTERM)
        stopped = ended(child)
    assert stopped.code == 143
    assert stopped.json["run_cost_usd"] == stopped.json["cost_usd"] == pytest.approx(till.dollars, abs=1e-6)
    before = till.dollars
    resumed = run(shell, server, *options)
    assert resumed.code == 0
    assert resumed.json["cost_usd"] == pytest.approx(till.dollars - before, abs=2e-6)
    require_billed(shell, till, resumed.json["run_cost_usd"])
    moody.fits = True
    before = till.dollars
    retried = run(shell, server, *options, "--retry-failed")
    assert (retried.code, retried.json["failed"]) == (0, 0)
    assert retried.json["cost_usd"] == pytest.approx(till.dollars - before, abs=2e-6)
    assert before < till.dollars
    require_billed(shell, till, retried.json["run_cost_usd"])
    shell.write("job.py", SCHEMA_JOB.replace("    answer: str\n", ""))
    read = shell.pipeline("reparse", "out/a_job", "--job", "job.py", "--json")
    assert (read.code, read.json["cost_usd"], read.json["calls"]) == (0, 0.0, 0)
    require_billed(shell, till, read.json["run_cost_usd"])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_m1_m4_a_budget_holds_over_kills_and_retries_for_what_the_server_bills(
    shell: Shell, server: Served, till: Till, processes: str
) -> None:
    """Each start is killed. Every billed call is in the ledger or counts as lost, and so against the budget."""
    till.says = lambda call, _: till.bill("no json", number_of(call) % 50)
    shell.write("job.py", SCHEMA_JOB.replace("max_failed=1000", "repairs=0, max_failed=9999"))
    shell.rows(1200, heavy=True)
    budget = 0.5
    options = ("--processes", processes, "--budget-usd", str(budget), "--retry-failed", "-c", "16")
    for _ in range(3):
        with shell.started(*arguments(server, *options)) as child:
            server.arrived(len(server.calls) + 30)
            child.kill()
            ended(child)
    for _ in range(2):
        done = run(shell, server, *options)
        assert done.code == 6
        assert "the budget is used up" in done.json["reason"]
    assert till.dollars <= budget + (1050 * IN + 150 * OUT) / 1e6
    assert done.json["run_calls"] <= till.calls <= done.json["run_calls"] + done.json["run_lost_calls"]
    assert done.json["run_cost_usd"] <= till.dollars + 1e-6


def test_m3_a_try_that_failed_and_was_billed_counts_like_an_answer(shell: Shell, server: Served, till: Till) -> None:
    """An error within a 200 that comes with its usage."""
    met: set[str] = set()

    def says(call: Call, _: list[Any]) -> Says:
        whole, is_first = till.bill(FITS, 0), call.prompt not in met
        met.add(call.prompt)
        body = {"error": {"code": 503, "message": "odd"}, "usage": json.loads(whole.body)["usage"]}
        return Answer(json.dumps(body).encode()) if is_first else whole

    till.says = says
    shell.write("job.py", SCHEMA_JOB)
    shell.rows(3)
    done = run(shell, server, "-c", "1", "--budget-usd", "1")
    assert (done.code, done.json["ok"], done.json["calls"], done.json["retries"]) == (0, 3, till.calls, till.calls - 3)
    assert till.calls > 3
    require_billed(shell, till, done.json["run_cost_usd"])
    assert sum(row["response"]["cost_usd"] for row in shell.output()) == pytest.approx(till.dollars)


def test_requests_count_what_left_and_nothing_else(shell: Shell, server: Served, till: Till) -> None:
    """A row whose medium is missing never leaves."""
    till.says = lambda *_: till.bill(FITS, 0)
    job = SCHEMA_JOB.replace('user="Say {{ text }}"', 'user=["Say {{ text }}", image("photo")], media_root="."')
    job = job.replace("import Job", "import Job, image")
    shell.write("job.py", job)
    shell.write("rows.jsonl", "".join(json.dumps({"text": n, "photo": "no.png"}) + "\n" for n in range(4)))
    done = run(shell, server)
    assert (done.json["failed"], done.json["requests"], len(server.calls)) == (4, 0, 0), done


def test_m2_a_server_that_reports_no_usage_ends_a_budget_at_its_first_answer(
    shell: Shell, server: Served, till: Till
) -> None:
    def says(*_: object) -> Answer:
        till.calls += 1
        return Answer(json.dumps({"choices": [{"message": {"content": FITS}, "finish_reason": "stop"}]}).encode())

    till.says = says
    shell.write("job.py", SCHEMA_JOB)
    shell.rows(50)
    for budget in ("--budget-usd", "--budget-tokens"):
        done = run(shell, server, budget, "1000")
        assert (done.code, "--assume-price" in done.json["reason"], till.calls) == (6, True, 1)
    assert (done.json["run_input_tokens"], done.json["run_cost_usd"], done.json["run_unmetered_calls"]) == (
        None,
        None,
        1,
    )
    done = run(shell, server, "--budget-tokens", "1000000", "--assume-price", "1,2")
    assert (done.code, done.json["ok"], till.calls) == (0, 50, 50)
    assert all(row["response"]["input_tokens"] is None for row in shell.output())


def test_m2_without_a_budget_unknown_costs_are_null_and_nothing_stops(shell: Shell, server: Served, till: Till) -> None:
    till.says = lambda *_: till.bill(FITS, 0)
    shell.write("job.py", SCHEMA_JOB.replace(str(PRICES), "{}"))
    shell.rows(5)
    done = run(shell, server)
    assert (done.code, done.json["cost_usd"], done.json["unpriced_calls"], done.json["input_tokens"]) == (
        0,
        None,
        5,
        5000,
    )
    assert shell.manifest()["cost_usd"] is None


def test_a_budget_in_dollars_is_kept_for_rows_that_name_their_own_models(
    shell: Shell, server: Served, till: Till
) -> None:
    """The price of each is looked up before it is asked; the first unknown one stops the run."""
    till.says = lambda *_: till.bill("fine", 0)
    models = ["google/gemini-2.5-flash"] * 3 + ["nobody-knows-this"]
    bodies = [{"body": {"model": model, "messages": [{"role": "user", "content": "hi"}]}} for model in models]
    shell.write("requests.jsonl", "".join(json.dumps(body) + "\n" for body in bodies))
    command = ("run", "requests.jsonl", "-o", "out/a_job", "--base-url", server.base_url, "--quiet", "--json")
    done = shell.pipeline(*command, "--budget-usd", "1", "-c", "1")
    assert done.code == 6
    assert till.calls == done.json["ok"] <= 3
    assert "nobody-knows-this" in done.json["reason"]
    done = shell.pipeline(*command, "--budget-usd", "1", "-c", "1", "--assume-price", "1,1")
    assert (done.code, done.json["ok"], till.calls) == (0, 4, 4)
