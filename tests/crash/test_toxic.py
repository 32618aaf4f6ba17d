"""Through a network that delays, drips, cuts, resets and swallows, every row ends as it should."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from tests.commands import JOB, Shell
from tests.crash import SEED
from tests.crash.proxy import Bandwidth, Chosen, Cut, Latency, Never, Reset, SlowClose, Toxic, proxied
from tests.servers import Answer, Call, chat, served

ROWS = 40
TIMEOUT_S = 1.0


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt.removeprefix("Say ").upper(), "rest": "x" * 2000}))


def run(shell: Shell, base_url: str) -> dict[str, object]:
    flags = ("--no-adaptive", "-c", str(ROWS), "--quiet", "--json", "--set", f"timeout_s={TIMEOUT_S}")
    done = shell.pipeline("run", "job.py", "--base-url", base_url, *flags, "--set", "attempts=20")
    assert done.code == 0, done
    return done.json


def require_answered(shell: Shell) -> None:
    rows = shell.output()
    assert [(row["id"], row["status"]) for row in rows] == [(number, "ok") for number in range(ROWS)]
    assert [row["parsed"]["answer"] for row in rows] == [f"TEXT {number}" for number in range(ROWS)]


def some(*toxics: Toxic) -> Chosen:
    """One of the toxics for every second connection; the later ones are clean, and so there is an end."""
    dice = random.Random(SEED)
    drawn = [dice.choice([None, dice.choice(toxics)]) for _ in range(2 * ROWS)]
    return lambda number: drawn[number] if number < len(drawn) else None


def test_h5_connections_cut_or_reset_after_any_number_of_bytes_cost_no_row(shell: Shell) -> None:
    whole = 2300  # a little more than an answer with its head
    toxics = [kind(after) for after in range(0, whole, 23) for kind in (Cut, Reset)]
    with served(answer) as server, proxied(server.base_url, some(*toxics)) as proxy:
        summary = run(shell, proxy.base_url)
    assert sum(toxic is not None for toxic in proxy.seen) > ROWS // 3
    assert summary["retries"] == sum(isinstance(toxic, Cut | Reset) for toxic in proxy.seen)
    require_answered(shell)


def test_h5_connections_closed_under_the_next_request_cost_no_row(shell: Shell) -> None:
    with served(answer) as server, proxied(server.base_url, lambda _: SlowClose()) as proxy:
        run(shell, proxy.base_url)
    assert len(proxy.seen) >= ROWS // 2
    require_answered(shell)


def test_h6_connections_that_are_never_answered_or_drip_are_given_up_and_others_go_on(shell: Shell) -> None:
    toxics = (Never(), Bandwidth(1, 0.1), Latency(10 * TIMEOUT_S))
    with served(answer) as server, proxied(server.base_url, some(*toxics)) as proxy:
        summary = run(shell, proxy.base_url)
    assert isinstance(summary["retries"], int)
    assert summary["retries"] >= sum(toxic is not None for toxic in proxy.seen) > ROWS // 3
    require_answered(shell)
    slowest = max(row["response"]["latency_s"] for row in shell.output())
    assert slowest <= TIMEOUT_S + 1.0


def test_h6_a_slow_network_that_keeps_the_deadline_costs_no_retry(shell: Shell) -> None:
    toxics = (Latency(0.05), Bandwidth(500, 0.01))
    with served(answer) as server, proxied(server.base_url, some(*toxics)) as proxy:
        assert run(shell, proxy.base_url)["retries"] == 0
    require_answered(shell)


BOMB = gzip.compress(bytes(200 * 2**20), 1)


@pytest.mark.parametrize(
    "huge",
    [
        Answer(b" " * (17 * 2**20)),
        Answer(BOMB, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    ],
    ids=["17 MB", "200 MB in a gzip"],
)
def test_h9_a_row_that_is_answered_with_too_much_fails_and_the_others_do_not(huge: Answer, shell: Shell) -> None:
    with served(lambda call: huge if call.prompt == "Say text 7" else answer(call)) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet", "--json")
    assert done.code == 3
    rows = shell.output()
    assert [row["id"] for row in rows if row["status"] == "failed"] == [7]
    assert rows[7]["error"]["type"] == "Unparsable"
    assert "larger than 16 MB" in rows[7]["error"]["message"]
