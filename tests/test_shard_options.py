"""`--shard` and `--drain-timeout`, from the command line and from platforms, and shards as their user sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.shard_options import shard_of
from pipeline.execution.drain_timeout import drain_timeout, platform_s
from pipeline.faults import UsageError
from pipeline.storage.remote.shards import Shard
from tests.commands import JOB, Shell
from tests.test_remote_runs import PLACE, Cloud, cloud_of, require_same_as_a_folder


@pytest.mark.parametrize(
    ("text", "variables", "shard"),
    [
        ("0/1", {}, (0, 1)),
        ("3/10", {}, (3, 10)),
        ("auto", {"CLOUD_RUN_TASK_INDEX": "0", "CLOUD_RUN_TASK_COUNT": "4"}, (0, 4)),
        ("auto", {"BATCH_TASK_INDEX": "2", "BATCH_TASK_COUNT": "3"}, (2, 3)),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "1", "AWS_BATCH_JOB_ARRAY_SIZE": "2"}, (1, 2)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "8"}, (7, 8)),
        ("auto", {"JOB_COMPLETION_INDEX": "5", "PIPELINE_SHARD_COUNT": "6"}, (5, 6)),
        ("auto/6", {"JOB_COMPLETION_INDEX": "5"}, (5, 6)),
        ("auto/10", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "1"}, (7, 10)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "1", "PIPELINE_SHARD_COUNT": "9"}, (7, 9)),
    ],
)
def test_a_shard_is_named_by_its_user_or_by_the_platform(
    text: str, variables: dict[str, str], shard: tuple[int, int]
) -> None:
    assert shard_of(text, variables) == Shard(*shard)


def test_without_the_option_there_is_no_shard_whatever_the_platform_says() -> None:
    assert shard_of(None, {"CLOUD_RUN_TASK_INDEX": "0", "CLOUD_RUN_TASK_COUNT": "4"}) is None


@pytest.mark.parametrize(
    ("text", "variables", "said"),
    [
        ("10/10", {}, "--shard 10/10: shards are counted from 0, so the last of 10 is 9/10"),
        ("0/0", {}, "a run has at least one shard, 0/1"),
        ("3", {}, "--shard takes I/N, as in 3/10, or auto, or auto/N, not '3'"),
        ("-1/3", {}, "--shard takes I/N"),
        ("auto/x", {"JOB_COMPLETION_INDEX": "5"}, "--shard takes I/N"),
        ("auto", {}, r"finds none of the variables that number a task, CLOUD_RUN_TASK_INDEX .*: give --shard I/N"),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "5"},
            "Kubernetes does not say how many tasks there are: give --shard auto/N",
        ),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3"}, "array tasks begin at 0, as in --array"),
        ("auto", {"BATCH_TASK_INDEX": "a", "BATCH_TASK_COUNT": "3"}, "BATCH_TASK_INDEX is 'a', which is not a number"),
    ],
)
def test_a_shard_that_does_not_exist_is_refused_with_the_remedy(
    text: str, variables: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        shard_of(text, variables)


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [({"CLOUD_RUN_JOB": "j"}, 6), ({"K_SERVICE": "s"}, 6), ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 25), ({}, 20)],
)
def test_a_platform_leaves_so_many_seconds_for_calls_in_flight(variables: dict[str, str], seconds: float) -> None:
    assert platform_s(variables) == seconds


def test_the_drain_timeout_is_seconds_or_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_RUN_JOB", "nightly")
    assert (drain_timeout("auto"), drain_timeout("0.5")) == (6, 0.5)
    for text in ("-1", "nan", "inf", "soon"):
        with pytest.raises(UsageError, match=f"--drain-timeout takes seconds from 0 on, or auto, not '{text}'"):
            drain_timeout(text)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-o", "out"), "--shard needs an --output that all machines reach: gs://, s3:// or az://; on one machine"),
        (("-o", PLACE, "--fresh"), "--fresh would remove what other shards write: choose another --output"),
        (("-o", PLACE, "--report"), f"--report is about the whole run: `pipeline report {PLACE}` when all shards"),
    ],
)
def test_what_shards_cannot_do_is_refused_with_the_remedy(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": ""})
    shell.write("job.py", JOB)
    shell.rows(3)
    done = shell.pipeline("run", "job.py", "--shard", "0/2", "--emulate", *more)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with cloud_of(tmp_path) as cloud:
        yield cloud


def test_two_commands_divide_a_run_and_status_shows_them(cloud: Cloud) -> None:
    """The first with two processes inside; the second, which ends the run, as a task of a platform."""
    cloud.shell.rows(60)
    first = cloud.run("--shard", "0/2", "--processes", "2")
    assert first.code == 0, first
    assert first.json.items() >= {"status": "done", "shard": "0/2", "rows": first.json["requests"]}.items()
    assert "of the run are sealed; other shards have the rest" in first.json["reason"]
    shell = Shell(
        cloud.shell.folder,
        {**cloud.shell.variables, "GOOGLE_APPLICATION_CREDENTIALS": str(cloud.vertex.address.credentials_file)},
    )
    status = shell.pipeline("status", PLACE)
    assert "status    stopped: shards not started: 1/2\n" in status.out
    assert "shards    2: 1 done, 1 not started\n" in status.out
    assert "shard     1/2 not started, 0 of " in status.out
    found = shell.pipeline("status", PLACE, "--json").json["shards"]
    assert [(one["shard"], one["state"]) for one in found] == [("0/2", "done"), ("1/2", "not started")]
    task = {"CLOUD_RUN_TASK_INDEX": "1", "CLOUD_RUN_TASK_COUNT": "2"}
    cloud.shell = Shell(cloud.shell.folder, {**cloud.shell.variables, **task})
    last = cloud.run("--shard", "auto")
    assert last.json.items() >= {"status": "complete", "shard": "1/2", "rows": 60, "run_calls": 60}.items()
    require_same_as_a_folder(cloud, 60)
    again = cloud.run("--shard", "auto")
    assert (again.code, again.json["requests"]) == (0, 0)
    assert "nothing is left to do in shard 1/2: its rows are done" in again.err
