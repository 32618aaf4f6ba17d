"""Through a network that delays, drips, cuts, resets and swallows, every row ends as it should."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.auth import ApiKey
from pipeline.data import Request
from pipeline.endpoint import Target, open_endpoint
from pipeline.faults import Unavailable
from tests.commands import JOB, Shell
from tests.crash import SEED
from tests.crash.proxy import Bandwidth, Chosen, Cut, Latency, Never, Proxy, Reset, SlowClose, Toxic, proxied, proxying
from tests.servers import Answer, Call, chat, scripted, served

ROWS = 40
TIMEOUT_S = 1.0


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


def answer_of(text: str) -> Answer:
    return chat(json.dumps({"answer": text.upper(), "rest": "x" * 2000}))


def answer(call: Call) -> Answer:
    return answer_of(call.prompt.removeprefix("Say "))


def answer_once(call: Call) -> Answer:
    """The same, for one request a connection: so that there are many of them."""
    return replace(answer(call), hangs_up=True)


def run(shell: Shell, base_url: str, *, at_once: int = ROWS, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    flags = ("--no-adaptive", "-c", str(at_once), "--quiet", "--json", "--set", f"timeout_s={timeout_s}")
    done = shell.pipeline("run", "job.py", "--base-url", base_url, *flags, "--set", "attempts=20")
    assert done.code == 0, done
    return done.json


def require_answered(shell: Shell) -> None:
    rows = shell.output()
    assert [(row["id"], row["status"]) for row in rows] == [(number, "ok") for number in range(ROWS)]
    assert [row["parsed"]["answer"] for row in rows] == [f"TEXT {number}" for number in range(ROWS)]


def some(*toxics: Toxic) -> Chosen:
    """One of the toxics for every fifth connection; the later ones are clean, and so there is an end."""
    dice = random.Random(SEED)
    drawn = [dice.choice(toxics) if dice.random() < 0.2 else None for _ in range(2 * ROWS)]
    return lambda number: drawn[number] if number < len(drawn) else None


def toxics_met(proxy: Proxy) -> int:
    return sum(toxic is not None for toxic in proxy.seen)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Cut, Reset])
async def test_h5_an_answer_that_ends_after_any_number_of_bytes_is_unavailable(kind: type[Cut | Reset]) -> None:
    """Byte by byte through the head, and in steps through the body."""
    whole = 300 + len(answer_of("text 0").body)
    lengths = [*range(200), *range(200, whole - 150, 29)]
    async with (
        scripted(answer) as server,
        proxying(server.base_url, lambda number: kind(lengths[number]) if number < len(lengths) else None) as proxy,
        open_endpoint(Target.url(proxy.base_url), ApiKey("k"), connections=1, timeout_s=10) as endpoint,
    ):
        request = Request(0, {"model": "m", "messages": [{"role": "user", "content": "Say text 0"}]})
        for length in lengths:
            with pytest.raises(Unavailable):
                await endpoint.ask(request)
            assert proxy.seen[-1] == kind(length)
        assert (await endpoint.ask(request)).body == answer_of("text 0").body


def test_h5_connections_that_are_cut_or_reset_cost_no_row(shell: Shell) -> None:
    toxics = [kind(after) for after in range(0, 2200, 23) for kind in (Cut, Reset)]
    with served(answer_once) as server, proxied(server.base_url, some(*toxics)) as proxy:
        summary = run(shell, proxy.base_url)
    assert summary["retries"] == toxics_met(proxy) >= 5
    require_answered(shell)


def test_h5_connections_closed_under_the_next_request_cost_no_row(shell: Shell) -> None:
    with served(answer) as server, proxied(server.base_url, some(SlowClose())) as proxy:
        summary = run(shell, proxy.base_url, at_once=4)
    assert summary["retries"] == toxics_met(proxy) > 0
    require_answered(shell)


def test_h6_connections_that_are_never_answered_or_drip_are_given_up_and_others_go_on(shell: Shell) -> None:
    toxics = (Never(), Bandwidth(1, 0.1), Latency(10 * TIMEOUT_S))
    with served(answer_once) as server, proxied(server.base_url, some(*toxics)) as proxy:
        summary = run(shell, proxy.base_url)
    assert summary["retries"] == toxics_met(proxy) >= 5
    require_answered(shell)


def test_h6_a_slow_network_that_keeps_the_deadline_costs_no_retry(shell: Shell) -> None:
    toxics = (Latency(0.05), Bandwidth(500, 0.01))
    with served(answer_once) as server, proxied(server.base_url, some(*toxics)) as proxy:
        assert run(shell, proxy.base_url, timeout_s=60)["retries"] == 0
    assert toxics_met(proxy) >= 5
    require_answered(shell)


BOMB = gzip.compress(bytes(200 * 2**20), 1)


@pytest.mark.parametrize(
    "huge",
    [Answer(b" " * (17 * 2**20)), Answer(BOMB, headers={"Content-Encoding": "gzip"})],
    ids=["17 MB", "200 MB in a gzip"],
)
def test_h9_a_row_that_is_answered_with_too_much_fails_and_the_others_do_not(huge: Answer, shell: Shell) -> None:
    with served(lambda call: huge if call.prompt == "Say text 7" else answer(call)) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet", "--json")
    assert done.json["failed"] == 1
    rows = shell.output()
    assert [row["id"] for row in rows if row["status"] == "failed"] == [7]
    assert rows[7]["error"]["type"] == "Unparsable"
    assert "larger than 16 MB" in rows[7]["error"]["message"]
