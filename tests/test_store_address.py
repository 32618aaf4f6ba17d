"""What a path or an address names is decided in one place, for every command, before anything is done."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import app
from pipeline.cli import cache as cache_commands
from pipeline.execution.output_place import output_of
from pipeline.faults import UsageError
from pipeline.job.job import Job
from pipeline.source import discover
from pipeline.store.address import Address, local_path, place_of
from tests.commands import JOB, Shell
from tests.evaluations import write_evaluation
from tests.test_cli import error_of

LINES = {
    "run: input": "run job.py --emulate -i {}",
    "run: several inputs": "run job.py --emulate -i rows.jsonl -i {}",
    "run: output": "run job.py --emulate -o {}",
    "run: job's output": "run far_output.py --emulate",
    "run: output of --set": "run job.py --emulate --set output={}",
    "run: job's input": "run far_input.py --emulate",
    "run: requests": "run {} --emulate -o out/requests",
    "run: cache": "run job.py --emulate --cache --cache-dir {}",
    "run: prices": "run job.py --emulate --prices {}",
    "run: credentials": "run job.py --credentials {}",
    "plan: input": "plan job.py -i {}",
    "plan: output": "plan job.py -o {}",
    "plan: job's input": "plan far_input.py",
    "plan: job's output": "plan far_output.py",
    "plan: requests": "plan {}",
    "status": "status {}",
    "show": "show {}",
    "show: job": "show out --job {}",
    "export": "export {} --to rows.csv",
    "export: to": "export out --to {}",
    "report": "report {}",
    "tune": "tune {} rpm=1",
    "show: media": "show out --media {}",
    "report: to": "report out --to {}",
    "report: job": "report out --job {}",
    "reparse": "reparse {} --job job.py",
    "reparse: job": "reparse out --job {}",
    "eval": "eval {}",
    "eval: input": "eval eval.py --emulate -i {}",
    "eval: output": "eval eval.py --emulate -o {}",
    "eval: baseline": "eval far_baseline.py --emulate",
    "grade": "grade {}",
    "grade: job": "grade out --job {}",
    "gate": "gate {}",
    "gate: job": "gate out --job {}",
    "compare: before": "compare {} out",
    "compare: after": "compare out {}",
    "bless": "bless {}",
    "bless: to": "bless out --to {}",
    "cache": "cache list --cache-dir {}",
    "cache: export": "cache export {}",
    "cache: import": "cache import {}",
    "emulate: answers": "emulate --answer-key {}",
    "emulate: folder": "emulate --directory {}",
}
READ = {"run: input", "run: several inputs", "run: job's input", "run: requests"}
READ |= {"plan: input", "plan: job's input", "plan: requests"}
READ |= {"run: output", "run: job's output", "run: output of --set", "status", "show", "report", "export", "export: to"}
READ |= {"plan: output", "plan: job's output", "reparse", "eval: input", "eval: output", "grade", "gate"}
READ |= {"compare: before", "compare: after", "bless"}
"""The lines that read or write object stores."""

FTP = "ftp://host/nightly.jsonl"
REMEDIES = {
    "gs://bucket/nightly.jsonl": "gs:// is not supported yet: use a local path, and copy the files to or from it with",
    "s3://bucket/nightly.jsonl": "`aws s3 cp`",
    "az://bucket/nightly.jsonl": "`azcopy copy`",
    "ftp://host/nightly.jsonl": "begins with ftp://, which is not supported: use a local path",
    "https://host/nightly.jsonl": "`curl -O`",
    "file://host/nightly.jsonl": "names a file of another machine: a path of this one has three slashes",
}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    write_evaluation(shell)
    shell.rows(3)
    return shell


@pytest.mark.parametrize(
    ("place", "line"),
    [
        *((FTP if line in READ else "gs://bucket/nightly.jsonl", line) for line in LINES),
        *((one, "tune") for one in REMEDIES),
    ],
)
def test_a_place_that_is_not_on_this_machine_is_refused_by_every_command(place: str, line: str, shell: Shell) -> None:
    """In one sentence with the remedy; nothing is asked, and no folder `gs:` appears."""
    shell.write("far_input.py", JOB.replace('input="rows.jsonl"', f"input={place!r}"))
    shell.write("far_output.py", JOB.replace("    name=", f"    output={place!r},\n    name="))
    text = (shell.folder / "eval.py").read_text()
    shell.write("far_baseline.py", text.replace('"baseline.json"', repr(place)))
    before = set(shell.folder.iterdir())
    assert REMEDIES[place] in error_of(shell.pipeline(*LINES[line].format(place).split()))
    assert {path for path in set(shell.folder.iterdir()) - before if path.name != "__pycache__"} == set()


COMMANDS = [found.callback for found in [*app.registered_commands, *cache_commands.app.registered_commands]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_that_takes_a_path_reads_it_by_the_one_function(command: Any) -> None:
    """An option without it would make a local folder of an address."""
    paths = {
        parameter.name: parameter.annotation.__metadata__[0].parser
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if "Path" in str(getattr(parameter.annotation, "__origin__", ""))
    }
    assert paths == dict.fromkeys(paths, local_path)


def test_a_file_url_works_wherever_a_path_does(shell: Shell) -> None:
    """For input and output, and for the commands that read the output."""
    odd = shell.folder / "odd name"
    odd.mkdir()
    (shell.folder / "rows.jsonl").rename(odd / "rows.jsonl")
    there = f"file://{shell.folder}/odd%20name"
    done = shell.pipeline("run", "job.py", "--emulate", "-i", f"{there}/*.jsonl", "-o", f"{there}/out", "--json")
    assert done.json["output"] == str(odd / "out")
    assert shell.pipeline("status", f"{there}/out", "--json").json["ok"] == 3
    assert (
        shell.pipeline("plan", "job.py", "-i", f"{there}/*.jsonl", "-o", f"{there}/out", "--json").json["rows_done"]
        == 3
    )
    assert len(shell.pipeline("show", f"{there}/out", "--json").out.splitlines()) == 3
    assert shell.pipeline("report", f"{there}/out", "--to", f"{there}/page.html").code == 0
    assert (odd / "page.html").is_file()
    assert shell.pipeline("export", f"{there}/out", "--to", f"{there}/rows.csv", "--json").json["rows"] == 3
    job = f"file://{shell.folder}/job.py"
    assert shell.pipeline("plan", job, "-i", f"{there}/*.jsonl", "-o", f"{there}/out", "--json").json["rows_done"] == 3
    assert shell.pipeline("reparse", f"{there}/out", "--job", f"{job}:job", "--json").json["status"] == "complete"
    assert len(shell.pipeline("show", f"{there}/out", "--job", job, "--json").out.splitlines()) == 3


def test_a_job_may_name_its_files_as_file_urls(shell: Shell) -> None:
    place = f"file://{shell.folder}"
    text = JOB.replace('"rows.jsonl"', repr(f"{place}/rows.jsonl"))
    shell.write("job.py", text.replace("    name=", f"    output={place + '/there'!r},\n    name="))
    assert shell.pipeline("run", "job.py", "--emulate", "--json").json["ok"] == 3
    assert (shell.folder / "there" / "_SUCCESS").is_file()


@pytest.mark.parametrize("name", ["out:1", "run:2026-11-28T09:30", "http:/x", "a:b/c", "C:"])
def test_a_name_with_a_colon_is_a_folder(name: str, shell: Shell) -> None:
    """Only `://` makes an address."""
    assert shell.pipeline("run", "job.py", "--emulate", "-o", name, "--json").json["output"] == name
    assert shell.pipeline("status", name, "--json").json["status"] == "complete"
    folder = shell.folder / name
    (shell.folder / "job.py").rename(folder / "job.py")
    assert shell.pipeline("plan", f"{name}/job.py:job", "--json").json["rows"] == 3
    (folder / "rows.jsonl").write_text(json.dumps({"id": 1, "text": "a"}))
    assert [found.path for found in discover(folder / "rows.jsonl").files] == [folder / "rows.jsonl"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("out/x", Path("out/x")),
        ("/out/x", Path("/out/x")),
        ("a:b", Path("a:b")),
        ("x:/y", Path("x:/y")),
        ("file:///out/x", Path("/out/x")),
        ("FILE:///out/x", Path("/out/x")),
        ("file://localhost/out/x", Path("/out/x")),
        ("file:/out/x", Path("/out/x")),
        ("file:///out/a%20b", Path("/out/a b")),
        ("file:///100%.csv", Path("/100%.csv")),
        ("file:///data/*.jsonl", Path("/data/*.jsonl")),
        ("gs://bucket", Address("gs", "bucket", "")),
        ("gs://bucket/", Address("gs", "bucket", "")),
        ("GS://bucket/a/b.parquet", Address("gs", "bucket", "a/b.parquet")),
        ("s3://bucket/a//b", Address("s3", "bucket", "a//b")),
        ("az://container/a b", Address("az", "container", "a b")),
    ],
)
def test_a_text_names_a_path_or_an_address(text: str, place: Path | Address) -> None:
    assert place_of(text) == place
    assert place_of(str(place)) == place


@pytest.mark.parametrize("text", ["gs://", "gs:///key"])
def test_an_address_needs_a_bucket(text: str) -> None:
    with pytest.raises(UsageError, match="names no bucket: write it as in gs://BUCKET/KEY"):
        place_of(text)


@pytest.mark.parametrize("path", [Path("gs://bucket/out"), Path("s3://bucket/out"), Path("az://bucket/out")])
def test_an_address_that_went_through_path_is_still_one(path: Path) -> None:
    """`Path` takes one of the two slashes away; of `file://` it is a path all the same."""
    _, address = output_of(Job(name="a", model="google/x", user="{{ a }}", output=path), Path("state"))
    assert address == Address(path.parts[0].rstrip(":"), "bucket", "out")
    with pytest.raises(UsageError, match="is not supported yet"):
        discover(path)
    assert local_path(Path("file:///data/x")) == Path("/data/x")
