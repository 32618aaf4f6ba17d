"""Whole runs with the reply cache: what was paid once is not paid again, and nothing else changes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.reply_cache import FILE, holdings
from tests.commands import JOB, Done, Shell
from tests.servers import Answer, Call, Held, Served, chat, error, served

ROWS = 20


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt.removeprefix("Say ").upper()}))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def arguments(server: Served, output: str, *more: str) -> tuple[str, ...]:
    always = ("--no-adaptive", "-c", "8", "--json", "--cache", "-o", f"out/{output}")
    return ("run", "job.py", "--base-url", server.base_url, *always, *more)


def run(shell: Shell, server: Served, output: str, *more: str) -> Done:
    return shell.pipeline(*arguments(server, output, *more))


def paid(done: Done) -> tuple[int, int]:
    """Calls that were made, and calls that the cache answered."""
    return done.json["requests"], done.json["cache_hits"]


# Calls


def test_a_rerun_with_nothing_changed_makes_no_call(shell: Shell, server: Served) -> None:
    assert paid(run(shell, server, "one")) == (ROWS, 0)
    assert paid(run(shell, server, "two")) == (0, ROWS)
    assert paid(run(shell, server, "one", "--fresh")) == (0, ROWS)
    assert len(server.calls) == ROWS
    one, two = shell.output("out/one"), shell.output("out/two")
    assert one == two
    assert {row["response"]["from_cache"] for row in one} == {True}


def test_only_the_rows_that_changed_are_asked(shell: Shell, server: Served) -> None:
    run(shell, server, "one")
    lines = (shell.folder / "rows.jsonl").read_text().splitlines()
    changed = [line if number % 2 else line.replace("text ", "texts ") for number, line in enumerate(lines)]
    shell.write("rows.jsonl", "\n".join(changed))
    assert paid(run(shell, server, "two")) == (ROWS // 2, ROWS // 2)
    rows = shell.output("out/two")
    assert [row["response"]["from_cache"] for row in rows] == [False, True] * (ROWS // 2)
    assert [row["parsed"]["answer"] for row in rows[:2]] == ["TEXTS 0", "TEXT 1"]


def test_a_word_of_the_prompt_that_half_of_the_rows_have_calls_that_half(shell: Shell, server: Served) -> None:
    shell.write("job.py", JOB.replace("Say {{ text }}", "Say {% if id < 10 %}one{% endif %} {{ text }}"))
    run(shell, server, "one")
    shell.write("job.py", JOB.replace("Say {{ text }}", "Say {% if id < 10 %}two{% endif %} {{ text }}"))
    assert paid(run(shell, server, "two")) == (10, 10)


@pytest.mark.parametrize("change", ["model=another", "temperature=0.7", "seed=1"])
def test_whatever_shapes_the_answers_asks_every_row_again(shell: Shell, server: Served, change: str) -> None:
    run(shell, server, "one")
    assert paid(run(shell, server, "two", "--set", change)) == (ROWS, 0)


@pytest.mark.parametrize("change", ["tier=flex", "max_failed=3", "attempts=2"])
def test_what_does_not_shape_them_asks_none(shell: Shell, server: Served, change: str) -> None:
    run(shell, server, "one")
    assert paid(run(shell, server, "two", "--set", change)) == (0, ROWS)


def test_another_server_is_asked_itself(shell: Shell, server: Served) -> None:
    run(shell, server, "one")
    with served(answer) as other:
        assert paid(run(shell, other, "two")) == (ROWS, 0)


def test_the_emulators_answers_are_used_for_the_emulator_and_never_for_another(shell: Shell, server: Served) -> None:
    emulated = ("run", "job.py", "--emulate", "--json", "--cache")
    assert paid(shell.pipeline(*emulated, "-o", "out/one")) == (ROWS, 0)
    assert paid(shell.pipeline(*emulated, "-o", "out/two")) == (0, ROWS)
    assert paid(run(shell, server, "three")) == (ROWS, 0)
    assert {one.endpoint for one in holdings(shell.folder / ".pipeline-cache")} == {"emulated", server.base_url}


def test_without_the_flag_nothing_is_used_and_nothing_is_stored(shell: Shell, server: Served) -> None:
    run(shell, server, "one", "--no-cache")
    assert not (shell.folder / ".pipeline-cache").exists()
    run(shell, server, "two")
    assert paid(run(shell, server, "three", "--no-cache")) == (ROWS, 0)


def test_rows_that_ask_the_same_at_one_time_are_asked_once(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"id": 1, "text": "a"}\n' * ROWS)
    assert paid(run(shell, server, "one")) == (1, ROWS - 1)
    assert sum(row["response"]["from_cache"] for row in shell.output("out/one")) == ROWS - 1


# What is stored


def stubborn(call: Call) -> Answer:
    """Row 3 is never valid, row 4 is truncated, row 5 is refused; row 6 is valid only after a repair."""
    messages = call.json()["messages"]
    text = messages[0]["content"]
    if text == "Say text 3" or (text == "Say text 6" and len(messages) == 1):
        return chat("no JSON")
    if text == "Say text 4":
        return chat('{"answer": "TE', finish_reason="length")
    if text == "Say text 5":
        return error(400, "INVALID_ARGUMENT")
    return chat(json.dumps({"answer": text.removeprefix("Say ").upper()}))


def test_rows_that_failed_are_asked_again_and_repaired_ones_are_not(shell: Shell, server: Served) -> None:
    server.follow(stubborn)
    first = run(shell, server, "one", "--set", "max_failed=3")
    assert (first.json["ok"], first.json["failed"]) == (ROWS - 3, 3)
    server.follow(answer)
    again = run(shell, server, "two")
    assert (again.json["ok"], *paid(again)) == (ROWS, 3, ROWS - 3 + 1)
    assert paid(run(shell, server, "three")) == (0, ROWS + 1)
    repaired = shell.output("out/three")[6]["response"]
    assert (repaired["from_cache"], repaired["input_tokens"], repaired["attempts"]) == (True, 20, 2)


def test_retry_failed_asks_for_real(shell: Shell, server: Served) -> None:
    """Also rows whose stored reply did not fit a check of the job's own that is new."""
    run(shell, server, "one")
    checked = JOB.replace("import BaseModel", "import *").replace("    answer: str\n", "    answer: str\n" + CHECK)
    shell.write("job.py", checked)
    done = run(shell, server, "two", "--set", "repairs=0", "--set", "max_failed=1")
    assert (done.json["failed"], *paid(done)) == (1, 0, ROWS)
    server.follow(lambda _: chat('{"answer": "BETTER"}'))
    again = run(shell, server, "two", "--set", "repairs=0", "--retry-failed")
    assert (again.json["failed"], *paid(again)) == (0, 1, 0)
    assert shell.output("out/two")[7]["parsed"] == {"answer": "BETTER"}


CHECK = """
    @field_validator("answer")
    def check(cls, value):
        if value == "TEXT 7":
            raise ValueError("not that one")
        return value
"""

TOOLS = """
def look_up(word: str) -> str:
    "What the word means."
    return word.upper() if not __import__("pathlib").Path("other").exists() else "something else"


job = Job(name="a_job", model="google/gemini-test", input="rows.jsonl", user="Say {{ text }}", tools=[look_up])
"""


def with_tools(call: Call) -> Answer:
    """Looks the text up, and says what it found."""
    last = call.json()["messages"][-1]
    if last["role"] == "tool":
        return chat(last["content"])
    function = {"name": "look_up", "arguments": json.dumps({"word": last["content"].removeprefix("Say ")})}
    return chat(None, finish_reason="tool_calls", tool_calls=[{"id": "1", "type": "function", "function": function}])


def test_every_turn_of_a_row_with_tools_is_looked_up_by_itself(shell: Shell, server: Served) -> None:
    shell.write("job.py", f"from pipeline import Job\n{TOOLS}")
    server.follow(with_tools)
    assert paid(run(shell, server, "one")) == (2 * ROWS, 0)
    assert paid(run(shell, server, "two")) == (0, 2 * ROWS)
    shell.write("other", "")  # the tool says something else now, so that the second turn is another one
    third = run(shell, server, "three")
    assert paid(third) == (ROWS, ROWS)
    assert (third.json["input_tokens"], third.json["output_tokens"]) == (10 * ROWS, 5 * ROWS)
    rows = shell.output("out/three")
    assert {(row["parsed"], row["response"]["from_cache"]) for row in rows} == {("something else", False)}
    assert {row["response"]["input_tokens"] for row in rows} == {20}


def test_what_a_killed_run_was_answered_is_not_paid_twice(shell: Shell, server: Served) -> None:
    server.follow(lambda call: answer(call) if call.number < 12 else Held(answer(call)))
    with shell.started(*arguments(server, "one")) as child:
        server.arrived(20)
        _until_stored(shell, 12)
        child.send_signal(signal.SIGKILL)
        child.wait(60)
    server.release()
    server.follow(answer)
    assert paid(run(shell, server, "two")) == (ROWS - 12, 12)


def _until_stored(shell: Shell, replies: int) -> None:
    folder = shell.folder / ".pipeline-cache"
    while not (folder / FILE).exists() or sum(one.replies for one in holdings(folder)) < replies:
        pass


# Money

PRICES = "prices={'google/gemini-test': {'input': 1000, 'output': 1000}}"


def priced(shell: Shell) -> None:
    """15 tokens a call at a tenth of a cent: a cent and a half."""
    shell.write("job.py", JOB.replace("    schema=Record,", f"    schema=Record,\n    {PRICES},"))


def test_a_hit_says_what_it_cost_once_and_no_sum_counts_it(shell: Shell, server: Served) -> None:
    priced(shell)
    first = run(shell, server, "one", "--limit", "5").json
    assert (first["cost_usd"], first["input_tokens"]) == (0.075, 50)
    second = run(shell, server, "two").json
    assert (second["cost_usd"], second["input_tokens"], second["output_tokens"]) == (0.225, 150, 75)
    rows = shell.output("out/two")
    assert {row["response"]["cost_usd"] for row in rows} == {0.015}
    assert [row["response"]["from_cache"] for row in rows] == [True] * 5 + [False] * 15
    manifest = shell.manifest("out/two")
    assert manifest["cost_usd"] == pytest.approx(0.225)
    assert manifest["tokens"]["input"] == 150
    assert manifest["rows_from_cache"] == 5


def test_budgets_hold_for_what_is_paid_over_all_starts(shell: Shell, server: Served) -> None:
    """200 rows of 15 tokens each, of which 120 are known: 1200 tokens are paid, in two starts."""
    shell.rows(120)
    run(shell, server, "one")
    shell.rows(200)
    server.follow(lambda call: answer(call) if len(server.answered) < 145 else error(403))
    stopped = run(shell, server, "two", "--budget-tokens", "1450", "-c", "1")
    assert (stopped.code, stopped.json["left"], stopped.json["cache_hits"]) == (7, 55, 120)
    server.follow(answer)
    done = run(shell, server, "two", "--budget-tokens", "1450")
    assert (done.code, done.json["ok"], paid(done)) == (0, 200, (55, 0))


def test_the_result_says_how_many_answers_were_paid_before(shell: Shell, server: Served) -> None:
    run(shell, server, "one")
    plain = [word for word in arguments(server, "two", "--quiet") if word != "--json"]
    done = shell.pipeline(*plain)
    assert f"cache    {ROWS} answers that were paid before\n" in done.out


# Files


def test_a_file_that_cannot_be_used_is_told_before_anything_is_asked_or_removed(shell: Shell, server: Served) -> None:
    run(shell, server, "one")
    calls = len(server.calls)
    (shell.folder / ".pipeline-cache" / FILE).write_text("this is not a database" * 100)
    done = run(shell, server, "one", "--fresh", "--quiet")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: the reply cache .pipeline-cache/replies.sqlite cannot be used")
    assert "--cache-dir" in done.err
    assert "Traceback" not in done.err
    assert len(server.calls) == calls
    assert len(shell.output("out/one")) == ROWS


def test_the_cache_may_lie_anywhere(shell: Shell, server: Served) -> None:
    run(shell, server, "one", "--cache-dir", "elsewhere/cache")
    assert not (shell.folder / ".pipeline-cache").exists()
    named = Shell(shell.folder, {**shell.variables, "PIPELINE_CACHE_DIR": "elsewhere/cache"})
    assert paid(run(named, server, "two")) == (0, ROWS)


def test_the_commands_tell_what_they_did(shell: Shell, server: Served) -> None:
    run(shell, server, "one")
    listed = shell.pipeline("cache", "list", "--json").json
    assert [(one["endpoint"], one["replies"]) for one in listed["holdings"]] == [(server.base_url, ROWS)]
    assert listed["bytes"] == (shell.folder / ".pipeline-cache" / FILE).stat().st_size
    assert f"{ROWS} replies" in shell.pipeline("cache", "list").out
    assert shell.pipeline("cache", "export", "file", "--json").json["replies"] == ROWS
    assert shell.pipeline("cache", "prune", "--unused-for", "1h", "--json").json["deleted"] == 0
    assert shell.pipeline("cache", "prune", "--max-size", "1kB", "--json").json["deleted"] == ROWS
    assert shell.pipeline("cache", "import", "file", "--json").json["added"] == ROWS
    assert paid(run(shell, server, "two")) == (0, ROWS)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("list",), "there is no reply cache in .pipeline-cache"),
        (("prune", "--unused-for", "30d"), "there is no reply cache in .pipeline-cache"),
        (("prune",), "say what to delete"),
        (("prune", "--unused-for", "soon"), "as in 30d, not 'soon'"),
        (("prune", "--max-size", "5"), "as in 30MB, not '5'"),
        (("import", "nothing"), "there is no file nothing"),
        ((), "say what to do"),
    ],
)
def test_commands_that_cannot_be_carried_out_say_why(shell: Shell, command: tuple[str, ...], said: str) -> None:
    done = shell.pipeline("cache", *command)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("error: ")
