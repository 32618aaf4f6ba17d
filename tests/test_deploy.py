"""What is given to be copied: resources of schedulers, the image, and the scripts that a scheduler or GitHub runs.

The schemas in tests/schemas/ have the fields that the recipes use, of the published ones that each names under
`$comment`; an unknown field is refused.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from pipeline.cli import app
from pipeline.cli.shard_options import shard_of

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
SCHEMAS = Path(__file__).parent / "schemas"
PATIENCE_S = 60

RECIPES = {
    "cloud-run-job.yaml": "cloud_run_job.json",
    "kubernetes-job.yaml": "kubernetes_job.json",
    "ray-job.yaml": "ray_job.json",
    "../../action.yml": "github_action.json",
}


def loaded(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def schema(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / name).read_text("utf-8")))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_fields_of_the_published_schema(recipe: str) -> None:
    assert [error.message for error in schema(RECIPES[recipe]).iter_errors(loaded(recipe))] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_misspelt_field_is_noticed_at_every_depth(recipe: str) -> None:
    checked = schema(RECIPES[recipe])
    for holder, name in fields_in(loaded(recipe)):
        whole = loaded(recipe)
        inner = whole
        for step in holder:
            inner = inner[step]
        inner[f"{name}x"] = inner.pop(name)
        free = holder and holder[-1] in ("limits", "requests", "env", "inputs", "outputs", "with", "rayStartParams")
        assert free or not checked.is_valid(whole), [*holder, name]


def fields_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every field, with the way to the object that holds it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(value, dict):
            yield path, str(key)
        yield from fields_in(inner, (*path, key))


def command_lines() -> dict[str, list[str]]:
    """What each recipe runs, after `pipeline`."""
    cloud_run = loaded("cloud-run-job.yaml")["spec"]["template"]["spec"]["template"]["spec"]["containers"][0]
    kubernetes = loaded("kubernetes-job.yaml")["spec"]["template"]["spec"]["containers"][0]
    ray = shlex.split(loaded("ray-job.yaml")["spec"]["entrypoint"])
    assert ray[:2] == ["python", "docs/deploy/ray-shards.py"]
    slurm = (DEPLOY / "slurm-array.sh").read_text("utf-8").partition("\npipeline ")[2].partition(" &\n")[0]
    airflow = re.findall(
        r'^ +"(run|jobs/\S+|--[^"]+)",$', (DEPLOY.parent / "howto" / "airflow.md").read_text("utf-8"), re.MULTILINE
    )
    return {
        "Cloud Run": cloud_run["args"],
        "Kubernetes": kubernetes["args"],
        "Ray": ["run", *ray[3:], "--shard", f"0/{ray[2]}"],
        "Slurm": shlex.split(slurm.replace("\\\n", " ")),
        "Airflow": airflow,
    }


@pytest.mark.parametrize(("where", "arguments"), command_lines().items())
def test_the_command_line_of_a_recipe_is_understood(where: str, arguments: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    context = group.commands[name].make_context(name, list(rest))
    assert (ROOT / context.params["target"]).exists(), where
    assert context.params["shard"], where
    assert context.params["output"], where


def test_the_shards_are_as_many_as_the_platform_starts() -> None:
    spec = loaded("kubernetes-job.yaml")["spec"]
    text = next(each for each in command_lines()["Kubernetes"] if each.startswith("--shard=")).partition("=")[2]
    shards = [shard_of(text, {"JOB_COMPLETION_INDEX": str(index)}) for index in range(spec["completions"])]
    assert [str(shard) for shard in shards] == [f"{index}/{len(shards)}" for index in range(len(shards))]
    count = loaded("cloud-run-job.yaml")["spec"]["template"]["spec"]["taskCount"]
    task = {"CLOUD_RUN_TASK_INDEX": "3", "CLOUD_RUN_TASK_COUNT": str(count)}
    assert str(shard_of("auto", task)) == f"3/{count}"


def test_what_another_try_cannot_cure_is_not_tried_again_by_kubernetes() -> None:
    spec = loaded("kubernetes-job.yaml")["spec"]
    codes = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert codes == {2: "FailJob", 3: "FailIndex", 6: "FailIndex"}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_the_image_is_locked_and_runs_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert 'ENTRYPOINT ["pipeline"]' in lines
    assert re.fullmatch(r"USER [1-9]\d*", lines[-3])
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    files = [name for name in copied if not name.startswith("--")]
    assert all((ROOT / name).exists() for name in files)
    assert {f"!{name}" for name in files} == set((ROOT / ".dockerignore").read_text("utf-8").splitlines()[1:-1])
    assert "--require-hashes -r requirements-image.lock" in "\n".join(lines)


@pytest.mark.parametrize("lock", ["requirements-image.lock", "requirements-docs.lock"])
def test_the_other_locks_have_the_same_versions(lock: str) -> None:
    """A package of two locks is the same in both: what is tested is what the image has."""
    ours, theirs = (versions_in(name) for name in ("requirements.lock", lock))
    assert {name: version for name, version in theirs.items() if ours.get(name, version) != version} == {}


def versions_in(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)(?:\[\S+\])?==([^\s;]+)", (ROOT / lock).read_text("utf-8"), re.MULTILINE))


SCRIPTS = [*sorted((ROOT / "action").glob("*.sh")), DEPLOY / "slurm-array.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    checker = Path(sys.executable).parent / "shellcheck"
    if checker.exists():
        subprocess.run([checker, script], check=True)


def program(folder: Path, name: str, text: str) -> None:
    """A program on the path of the scripts, in place of the real one."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}", "utf-8")
    path.chmod(0o755)


def slurm(folder: Path, pipeline: str, restarts: int = 0) -> subprocess.Popen[bytes]:
    program(folder, "pipeline", pipeline)
    program(folder, "scontrol", 'echo "$@" >> requeued\n')
    told = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": str(restarts)}
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **told}
    return subprocess.Popen(["bash", DEPLOY / "slurm-array.sh"], cwd=folder, env=environment)


def test_slurms_time_limit_drains_the_run_and_queues_it_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    waits = 'trap "echo drained > drained; exit 143" TERM\necho > started\nwhile :; do sleep 0.05; done\n'
    task = slurm(tmp_path, waits)
    (tmp_path / "started").read_text()  # returns when the run is there
    task.send_signal(signal.SIGTERM)
    assert task.wait(PATIENCE_S) == 143
    assert (tmp_path / "drained").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 7_2\n"


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(0, 0, False), (2, 0, False), (6, 0, False), (7, 0, True), (7, 5, False)]
)
def test_slurm_queues_a_task_again_only_if_another_start_may_help(
    tmp_path: Path,
    code: int,
    restarts: int,
    again: bool,  # noqa: FBT001 # a column of the table
) -> None:
    assert slurm(tmp_path, f"exit {code}\n", restarts).wait(PATIENCE_S) == code
    assert (tmp_path / "requeued").exists() == again
