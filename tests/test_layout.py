"""The dataset is a folder of its own, and everything that names or lists its parts finds them there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data import PARTS
from pipeline.faults import UsageError
from pipeline.storage.run_folder import FORMAT, PLAN, RunFolder, RunIdentity
from tests.commands import Shell
from tests.servers import Served
from tests.small_run import ROWS, run, server_of_capitals, shell_with_rows  # noqa: F401 - fixtures


def output(shell: Shell) -> Path:
    return shell.folder / "out/a_job"


def of_format_2(folder: Path) -> None:
    """The output folder as versions before format 3 wrote it: its parts beside `_run`."""
    for part in (folder / PARTS).iterdir():
        part.rename(folder / part.name)
    (folder / PARTS).rmdir()
    plan = json.loads((folder / "_run" / PLAN).read_bytes())
    (folder / "_run" / PLAN).write_text(json.dumps({**plan, "format": 2}))


def test_p15_the_folder_of_the_parts_holds_the_parts_and_nothing_else(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    assert [path.name for path in (output(shell) / PARTS).iterdir()] == ["part-000000.parquet"]
    (part,) = shell.manifest()["parts"]
    assert pq.read_metadata(output(shell) / part["name"]).num_rows == ROWS


def test_p15_a_part_is_never_in_the_folder_of_the_parts_before_it_is_whole(shell: Shell, server: Served) -> None:
    """A run that ends while it writes leaves what it had written in its own folder."""
    assert run(shell, server).code == 0
    (temporary := output(shell) / "_run/.part-000000.parquet.tmp").write_bytes(b"half")
    assert run(shell, server).code == 0
    assert not temporary.exists()


@pytest.mark.parametrize("name", ["out/a_job", "out/a_job/data"])
def test_an_output_folder_is_the_input_of_another_job_with_its_parts_and_nothing_else(
    name: str, shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    assert shell.pipeline("report", "out/a_job").code == 0
    done = run(shell, server, "--input", name, "--set", "user=Again {{ parsed.answer }}", "-o", "out/next")
    assert done.json.items() >= {"rows": ROWS, "ok": ROWS}.items()
    assert [row["id"] for row in shell.output("out/next")] == list(range(ROWS))


@pytest.mark.parametrize("name", ["part-000007.parquet", "more.parquet", "notes.txt", "folder"])
def test_p15_what_is_no_part_of_the_run_is_refused_in_the_folder_of_the_parts(
    name: str, shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    stranger = output(shell) / PARTS / name
    stranger.mkdir() if name == "folder" else stranger.write_bytes(b"x")
    done = run(shell, server)
    assert done.code == 2
    assert f"{name} is not a part of this run: move it elsewhere" in done.err
    assert not (output(shell) / "_SUCCESS").exists()


@pytest.mark.parametrize("name", [".DS_Store", "._part-000000.parquet", ".nfs0001"])
def test_hidden_files_of_a_system_in_the_folder_of_the_parts_are_no_obstacle(
    name: str, shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    (output(shell) / PARTS / name).write_bytes(b"x")
    assert run(shell, server).json["status"] == "complete"


COMMANDS = {
    "run": ("run", "job.py", "--output"),
    "status": ("status",),
    "show": ("show",),
    "report": ("report",),
    "reparse": ("reparse", "--job", "job.py"),
    "tune": ("tune", "--", "rpm=5"),
}


def on(command: str, folder: str) -> tuple[str, ...]:
    words = COMMANDS[command]
    if command == "tune":
        return ("tune", folder, "rpm=5")
    return (*words, folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_p15_a_folder_of_an_earlier_format_is_refused_with_the_remedy_by_every_command(
    command: str, shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    of_format_2(output(shell))
    before = {path.name for path in output(shell).iterdir()}
    extra = ("--base-url", server.base_url) if command == "run" else ()
    done = shell.pipeline(*on(command, "out/a_job"), *extra)
    assert done.code == 2
    assert f"out/a_job holds a run in format 2, and this version reads format {FORMAT}" in done.err
    assert "--fresh" in done.err
    assert before == {path.name for path in output(shell).iterdir()}


def test_p15_fresh_starts_over_in_a_folder_of_an_earlier_format_and_takes_its_parts_away(
    shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    of_format_2(output(shell))
    assert run(shell, server, "--fresh").json["status"] == "complete"
    assert not list(output(shell).glob("part-*"))
    assert len(shell.output()) == ROWS


@pytest.mark.parametrize("command", COMMANDS)
def test_who_names_the_folder_of_the_parts_is_told_which_one_is_meant(
    command: str, shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    extra = ("--base-url", server.base_url) if command == "run" else ()
    done = shell.pipeline(*on(command, "out/a_job/data"), *extra)
    assert done.code == 2
    assert "out/a_job/data holds the parts of a run: name its output folder, out/a_job" in done.err
    assert [path.name for path in (output(shell) / PARTS).iterdir()] == ["part-000000.parquet"]


def test_p13_a_folder_of_parts_that_is_gone_is_made_again_from_the_kept_replies(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    before = shell.output()
    shutil.rmtree(output(shell) / PARTS)
    assert "part-000000.parquet is missing" in run(shell, server).err
    assert shell.pipeline("reparse", "out/a_job", "--job", "job.py").code == 0
    assert shell.output() == before


@pytest.mark.parametrize(("inside", "told"), [("events.jsonl", "holds other files"), ("part-000000.parquet", "_run")])
def test_a_folder_whose_own_data_is_called_data_is_not_taken_for_an_output(
    inside: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "project" / PARTS).mkdir(parents=True)
    (path := tmp_path / "project" / PARTS / inside).write_text("precious")
    with pytest.raises(UsageError, match=told):
        RunFolder(tmp_path / "project").prepare()
    assert path.read_text() == "precious"
    assert not (tmp_path / "project/_run").exists()


def test_a_file_in_the_place_of_the_folder_of_the_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / PARTS).write_text("precious")
    with pytest.raises(UsageError, match=r"holds other files .data.: choose an empty one"):
        RunFolder(tmp_path).prepare()
    assert (tmp_path / PARTS).read_text() == "precious"


def test_clear_takes_the_parts_of_every_format_and_leaves_the_rest(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.prepare()
    folder.save(RunIdentity(job_name="a", job={}, target="", survey={}, limit=None, simulated=False))
    for name in ("part-000000.parquet", "data/part-000000.parquet", "data/part-000000_01.parquet", "data/mine.parquet"):
        (tmp_path / name).write_bytes(b"x")
    folder.clear()
    assert [path.name for path in sorted(tmp_path.rglob("*.parquet"))] == ["mine.parquet"]
