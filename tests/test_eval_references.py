"""`pipeline eval --vs-ref`: the job as it stood at a commit, asked beside the present one."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Shell
from tests.evaluations import answering, evaluated, summary_in, write_evaluation, write_gold
from tests.servers import Answer, Call, Served, served

ROWS = 40
HALF = {"Say {{ text }}": "{% if tier == 'golden' %}WORD, {% endif %}say {{ text }}"}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A repository whose only commit has another prompt for the golden rows."""
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    write_evaluation(shell, gates='NoWorse("row_correct", tolerance=0.02)', **HALF)
    write_gold(shell, ROWS)
    for arguments in (["init", "--quiet"], ["add", "eval.py"], ["commit", "--quiet", "--message", "a"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)
    write_evaluation(
        shell,
        gates='NoWorse("row_correct", tolerance=0.02)',
        **{old: HALF[old].replace("WORD", "PLEASE") for old in HALF},
    )
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answering()) as server:
        yield server


def test_unchanged_rows_are_asked_once_for_both_and_changed_rows_for_both(shell: Shell, server: Served) -> None:
    done = evaluated(shell, server, "--vs-ref", "HEAD", "--json")
    assert done.code == 0, done
    asked = Counter(call.prompt for call in server.calls)
    assert set(asked.values()) == {1}
    changed = ROWS // 4
    assert len(asked) == ROWS + changed
    assert sum("WORD" in prompt for prompt in asked) == sum("PLEASE" in prompt for prompt in asked) == changed
    assert (done.json["against"], done.json["p"]) == ("HEAD", 1.0)
    assert done.json["notes"] == ["changed in the job since HEAD: prompt"]


def test_a_prompt_that_breaks_rows_fails_beside_the_one_before(shell: Shell, server: Served) -> None:
    def answer(call: Call) -> Answer:
        return answering(wrong=range(ROWS) if "PLEASE" in call.prompt else ())(call)

    server.follow(answer)
    done = evaluated(shell, server, "--vs-ref", "HEAD", "--json")
    assert done.code == 4, done
    assert len(done.json["broken"]) == ROWS // 4
    assert summary_in(shell)["gates"][0]["answer"] == "regressed"
    for verb in ("grade", "gate"):
        again = shell.pipeline(verb, "out/eval", "--json")
        assert (again.code, again.json["against"], again.json["p"]) == (4, "HEAD", done.json["p"]), again
    assert evaluated(shell, server, "--json").json["against"] is None


def test_the_job_of_before_is_found_by_an_absolute_path_too(shell: Shell, server: Served) -> None:
    target = str(shell.folder / "eval.py")
    assert evaluated(shell, server, "--vs-ref", "HEAD", target=target).code == 0
    assert sum("WORD" in call.prompt for call in server.calls) == ROWS // 4


def test_an_unknown_commit_is_2_before_any_call(shell: Shell, server: Served) -> None:
    done = evaluated(shell, server, "--vs-ref", "nowhere")
    assert (done.code, "nowhere" in done.err, len(server.calls)) == (2, True, 0), done


def test_failed_rows_of_before_are_not_held_against_the_present(shell: Shell, server: Served) -> None:
    def answer(call: Call) -> Answer:
        return answering(failing=range(ROWS) if "WORD" in call.prompt else ())(call)

    server.follow(answer)
    done = evaluated(shell, server, "--vs-ref", "HEAD", "--json")
    assert (done.code, len(done.json["fixed"])) == (0, ROWS // 4), done
