"""What commands read and write by address, beside runs: shown rows, exports, plans, evaluations."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.emulator.bucket.objects import Buckets
from pipeline.faults import Broken
from pipeline.storage.remote.folder_copy import INDEX, index_of
from tests.commands import Done, Shell
from tests.evaluations import write_evaluation, write_gold
from tests.memory_store import BUCKET, Clock, MemoryStore
from tests.test_cli import error_of
from tests.test_remote_runs import PLACE, ROWS, Cloud, cloud_of


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with cloud_of(tmp_path) as cloud:
        yield cloud


def machine(cloud: Cloud) -> Shell:
    """Another machine, which has the files of the first, its credentials, and nothing of its runs."""
    folder = cloud.shell.folder / "machine"
    folder.mkdir()
    for name in ("job.py", "rows.jsonl"):
        shutil.copy(cloud.shell.folder / name, folder)
    more = {
        "GOOGLE_APPLICATION_CREDENTIALS": str(cloud.vertex.address.credentials_file),
        "PIPELINE_STATE_DIR": str(folder / "state"),
    }
    return Shell(folder, {**cloud.shell.variables, **more})


def ok(done: Done) -> dict[str, Any]:
    assert done.code == 0, done
    return done.json


def test_commands_that_read_rows_read_in_the_bucket_what_they_show(cloud: Cloud) -> None:
    """The second part is gone: rows of the first are shown all the same, and the others are not."""
    cloud.shell.rows(ROWS, heavy=True)
    ok(cloud.run())
    shell = machine(cloud)
    assert ok(shell.pipeline("plan", "job.py", "-o", PLACE, "--json")).items() >= {
        "rows_done": ROWS, "requests": 0, "estimated_from": f"the run in {PLACE}",
    }.items()  # fmt: skip
    assert ok(shell.pipeline("plan", "job.py", "-o", "gs://bucket/none", "--json"))["requests"] == ROWS
    to = ("--columns", "id,parsed.answer")
    exported = ok(shell.pipeline("export", PLACE, "--to", "rows.csv", *to, "--json"))
    assert (exported["file"], exported["rows"]) == ("rows.csv", ROWS)
    written = f"{PLACE}/rows.csv"
    assert ok(shell.pipeline("export", PLACE, "--to", written, *to, "--json"))["bytes"] == exported["bytes"]
    assert cloud.objects()["nightly/out/rows.csv"] == (shell.folder / "rows.csv").read_bytes()
    again = shell.pipeline("export", PLACE, "--to", written, *to)
    assert f"{written} exists: name another file, or replace it with --force" in error_of(again)
    ok(shell.pipeline("export", PLACE, "--to", written, "--columns", "id", "--force", "--json"))
    assert len(list(csv.reader(io.StringIO(cloud.objects()["nightly/out/rows.csv"].decode())))) == ROWS + 1
    assert "among those of the run" in error_of(shell.pipeline("export", PLACE, "--to", f"{PLACE}/data/x.csv"))
    cloud.store.delete("nightly/out/data/part-000001.parquet")
    assert len(shell.pipeline("show", PLACE, "-n", "3", "--json").out.splitlines()) == 3
    missing = shell.pipeline("show", PLACE, "--row", str(ROWS - 1))
    assert "part-000001.parquet cannot be read" in error_of(missing, 1)
    assert "is missing" in error_of(shell.pipeline("export", PLACE, "--to", "more.csv"))


def test_an_evaluation_in_a_bucket_is_worked_on_by_every_command_on_any_machine(cloud: Cloud) -> None:
    place = "gs://bucket/evaluation"
    shell = machine(cloud)
    write_evaluation(shell, gates='AtLeast("row_correct", 0.5)')
    write_gold(shell, 12)
    done = shell.pipeline("eval", "eval.py", "--emulate", "--quiet", "-o", place, "--json")
    assert (done.code, done.json["output"]) == (0, place), done
    found = cloud.objects()
    assert {f"evaluation/{name}" for name in ("_SUCCESS", "_eval/scores.json", "_run/plan.json")} <= found.keys()
    shutil.rmtree(shell.folder / "state")
    for command in ("gate", "grade"):
        graded = shell.pipeline(command, place, "--json")
        assert (graded.code, graded.json["output"], graded.json["rows"]) == (0, place, 12), graded
    assert shell.pipeline("compare", place, place, "--json").json["comparison"]["rows"] == 12
    assert shell.pipeline("bless", place, "--to", "b.json", "--allow-emulated").out == "b.json\n"
    assert ok(shell.pipeline("status", place, "--json"))["ok"] == 12
    assert json.loads(shell.pipeline("show", place, "--row", "3", "--json").out)["ordinal"] == 3
    write_evaluation(shell, gates='AtLeast("row_correct", 1.1)')
    stricter = shell.pipeline("gate", place, "--job", "eval.py", "--json")
    assert stricter.code == 2, stricter
    write_evaluation(shell, gates='AtMost("row_correct", 0.1)')
    assert shell.pipeline("gate", place, "--job", "eval.py", "--json").code == 4
    assert json.loads(cloud.objects()["evaluation/_eval/summary.json"])["passed"] is False
    assert "holds an evaluation" in cloud.run("-o", place).err
    again = shell.pipeline("eval", "eval.py", "--emulate", "--quiet", "-o", place, "--json")
    assert again.code == 4, again
    history = cloud.objects()["evaluation/_eval/history.jsonl"]
    assert len(history.splitlines()) == 2, "the second machine continued what the first had uploaded"


def test_the_results_of_a_graded_run_are_beside_it(cloud: Cloud) -> None:
    """A run of gold data is graded where it is; the dataset stays as it was, marked as complete."""
    shell = machine(cloud)
    write_evaluation(shell, gates='AtLeast("row_correct", 0.0)')
    write_gold(shell, 12)
    shell.write("asked.py", "from eval import evaluation\n\njob = evaluation.job\n")
    ok(shell.pipeline("run", "asked.py", "--emulate", "--quiet", "-o", PLACE, "--json"))
    before = cloud.objects()
    graded = shell.pipeline("grade", PLACE, "--job", "eval.py", "--json")
    assert (graded.code, graded.json["rows"]) == (0, 12), graded
    assert shell.pipeline("gate", PLACE, "--job", "eval.py").code == 0
    after = cloud.objects()
    assert {key for key in before if before[key] != after[key]} == {"nightly/out/_run/lease.json"}
    assert {key.split("/")[2] for key in after.keys() - before.keys()} == {"_eval"}
    assert ok(shell.pipeline("run", "asked.py", "--emulate", "--quiet", "-o", PLACE, "--json"))["requests"] == 0


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a/../../b", ""])
def test_an_index_cannot_name_files_outside_of_the_folder(name: str) -> None:
    buckets = Buckets([BUCKET], Clock())
    objects = MemoryStore(buckets).objects()
    objects.create(INDEX, json.dumps({"id": "1", "files": {name: "0"}}).encode())
    with pytest.raises(Broken, match="is not an index of files"):
        index_of(objects)
