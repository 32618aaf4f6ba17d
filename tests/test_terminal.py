"""Nothing that a row or a model wrote steers the terminal that shows it, whichever command does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.tables import json_line
from pipeline.text import printable
from tests.commands import JOB, Shell
from tests.servers import chat, error, served

STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b2J\x7f\u202eright to left\u2066\u061c [bold red]markup[/]"


@given(st.text())
def test_s7_plain_text_has_no_character_that_steers(text: str) -> None:
    assert not STEERS.search(printable(text))


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_s7_a_line_of_json_is_one_line_that_steers_nothing_and_means_the_same(value: object) -> None:
    line = json_line(value)
    assert json.loads(line) == value
    assert not STEERS.search(line)
    assert len(line.splitlines()) == 1


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB.replace('keep=["id", "text"]', "max_failed=0.9").replace("str\n", "str\n    why: str\n"))
    shell.write(
        "chats.py", JOB.replace('user="Say {{ text }}",', 'max_failed=0.9, key="text",').replace('"text"]', '"text"]')
    )
    row = {"id": 1, "text": HOSTILE, f"column {HOSTILE}": HOSTILE}
    shell.write("rows.jsonl", json.dumps(row) + "\n" + json.dumps({**row, "id": 2}) + "\n")
    chats = {"id": 1, "text": HOSTILE, "messages": [{"role": f"user{HOSTILE}", "content": HOSTILE}]}
    shell.write("chats.jsonl", json.dumps(chats) + "\n")
    return shell


def test_s7_no_command_lets_rows_answers_and_errors_steer_the_terminal(shell: Shell) -> None:
    answers = [chat(json.dumps({"answer": HOSTILE, "why": HOSTILE})), error(400, HOSTILE, HOSTILE)]
    with served(lambda call: answers[call.number % 2]) as server:
        url = ("--base-url", server.base_url)
        told = [
            shell.pipeline("run", "job.py", *url, "-c", "1"),
            shell.pipeline("run", "job.py", *url, "--json", "--output", "out/json"),
            shell.pipeline("show", "out/a_job"),
            shell.pipeline("show", "out/a_job", "--failed"),
            shell.pipeline("show", "out/a_job", "--json"),
            shell.pipeline("status", "out/a_job"),
            shell.pipeline("plan", "job.py"),
            shell.pipeline("plan", "job.py", "--json"),
            shell.pipeline("plan", "chats.py", "--input", "chats.jsonl"),
        ]
        server.follow(lambda _: error(403, HOSTILE, HOSTILE))
        told.append(shell.pipeline("run", "job.py", *url, "--output", "out/denied"))
        told.append(shell.pipeline("run", "job.py", "--input", f"none{HOSTILE}.jsonl"))
    assert [done.code for done in told] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 2]
    for done in told:
        assert not STEERS.search(done.out + done.err), done
    assert sum("[bold red]" in done.out for done in told) >= 5
