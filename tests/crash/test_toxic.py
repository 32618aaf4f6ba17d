"""Through a network that delays, drips, floods, cuts, resets and swallows, every row ends as it should."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import Request
from pipeline.endpoint.client import EndpointAddress, open_endpoint
from pipeline.endpoint.token_source import ApiKey
from pipeline.faults import Unavailable
from tests.commands import JOB, Done, Shell, ended
from tests.crash import SEED
from tests.crash.proxy import (
    Bandwidth,
    Chosen,
    Cut,
    Delay,
    Flood,
    Never,
    Reset,
    SlowClose,
    Toxic,
    ToxicProxy,
    proxied,
    proxying,
)
from tests.servers import Answer, Call, bomb, chat, scripted, served

ROWS = 40
MB = 2**20
PATIENCE_S = 60.0


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


def answer_of(text: str, **headers: str) -> Answer:
    body = chat(json.dumps({"answer": text.upper(), "rest": "x" * 2000})).body
    return Answer(body, headers={"Content-Type": "application/json", **headers})


def answer(call: Call) -> Answer:
    return answer_of(call.prompt.removeprefix("Say "))


def answer_once(call: Call) -> Answer:
    """The same, for one request a connection: so that there are many of them."""
    return answer_of(call.prompt.removeprefix("Say "), Connection="close")


def run(shell: Shell, base_url: str, *, at_once: int = ROWS, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
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


def toxics_met(proxy: ToxicProxy) -> int:
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
        open_endpoint(
            EndpointAddress.url(proxy.base_url), ApiKey("k"), connections=1, timeout_s=PATIENCE_S
        ) as endpoint,
    ):
        request = Request(0, {"model": "m", "messages": [{"role": "user", "content": "Say text 0"}]})
        for length in lengths:
            with pytest.raises(Unavailable, match="no whole answer"):
                await endpoint.ask(request)
            assert proxy.seen[-1] == kind(length)
        assert (await endpoint.ask(request)).body == answer_of("text 0").body


def test_h5_a_connection_that_is_cut_or_reset_costs_one_request_and_no_row(shell: Shell) -> None:
    toxics = [kind(after) for after in range(0, 2200, 23) for kind in (Cut, Reset)]
    with served(answer_once) as server, proxied(server.base_url, some(*toxics)) as proxy:
        summary = run(shell, proxy.base_url)
    assert toxics_met(proxy) >= 5
    assert summary["requests"] == len(proxy.seen) == ROWS + toxics_met(proxy)
    require_answered(shell)


def test_h5_kept_connections_that_close_under_the_next_request_cost_one_counted_request_each(shell: Shell) -> None:
    """They had not been idle: for all that is known, the server has seen the request, and may bill it."""
    with (
        served(answer) as server,
        proxied(server.base_url, lambda number: SlowClose() if number < 8 else None) as proxy,
    ):
        summary = run(shell, proxy.base_url, at_once=4)
    assert toxics_met(proxy) == 8
    assert summary.items() >= {"requests": ROWS + 8, "retries": 8}.items()
    require_answered(shell)
    assert sum(row["response"]["attempts"] - 1 for row in shell.output()) == 8


def test_h6_connections_that_are_never_answered_or_drip_are_given_up_and_others_go_on(shell: Shell) -> None:
    toxics = (Never(), Bandwidth(1, 1.0), Delay(10 * PATIENCE_S))
    with served(answer_once) as server, proxied(server.base_url, some(*toxics)) as proxy:
        summary = run(shell, proxy.base_url, timeout_s=2.0)
    assert toxics_met(proxy) >= 5
    assert summary["requests"] >= ROWS + toxics_met(proxy)
    require_answered(shell)


def test_h6_a_slow_network_that_keeps_the_deadline_costs_no_retry(shell: Shell) -> None:
    toxics = (Delay(0.05), Bandwidth(500, 0.01))
    with served(answer_once) as server, proxied(server.base_url, some(*toxics)) as proxy:
        assert run(shell, proxy.base_url)["requests"] == ROWS
    assert toxics_met(proxy) >= 5
    require_answered(shell)


MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def measured(shell: Shell, base_url: str, folder: str) -> tuple[Done, int]:
    """A run in a process of its own, and the most memory that it took, in bytes."""
    flags = ("--quiet", "--json", "--output", folder, "--set", "max_failed=5", "--no-adaptive", "-c", "1")
    prefix = (sys.executable, "-c", MEASURED)
    with shell.started("run", "job.py", "--base-url", base_url, *flags, prefix=prefix) as child:
        done = ended(child)
    return done, int(done.err.rpartition("peak ")[2]) * 1024


def test_h9_floods_and_bombs_fail_their_rows_and_memory_grows_by_less_than_64_mb(shell: Shell) -> None:
    packed = Answer(bomb(500), headers={"Content-Encoding": "gzip", "Connection": "close"})
    flooded = range(10, 12)

    def script(call: Call) -> Answer:
        return packed if call.prompt in {"Say text 3", "Say text 20"} else answer_once(call)

    with served(answer_once) as server:
        calm, before = measured(shell, server.base_url, "out/calm")
    with (
        served(script) as server,
        proxied(server.base_url, lambda number: Flood(500 * MB) if number in flooded else None) as proxy,
    ):
        done, after = measured(shell, proxy.base_url, "out/a_job")
    assert calm.json.items() >= {"ok": ROWS}.items()
    assert done.json.items() >= {"ok": ROWS - 4, "failed": 4, "requests": ROWS}.items()
    failed = [row for row in shell.output() if row["status"] == "failed"]
    assert [row["id"] for row in failed] == [3, 10, 11, 20]
    assert {row["error"]["message"] for row in failed} == {"the answer is larger than 16 MB"}
    assert after - before < 64 * MB
