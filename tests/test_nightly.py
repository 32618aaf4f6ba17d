"""The documented lines for cron and Airflow, run as those run them: by a bare shell with next to no environment."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import Environment

from tests.commands import JOB
from tests.servers import Answer, Call, Held, Served, chat, error, served

PAGE = (Path(__file__).parents[1] / "docs" / "running.md").read_text("utf-8")
PATIENCE_S = 60


def script(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt}))


def cron_line() -> str:
    """The command of the documented line, without its time."""
    (line,) = re.findall(r"^30 2 \* \* \* +(.+)$", PAGE, flags=re.MULTILINE)
    assert "%" not in line, "cron takes a percent sign for the end of the line"
    return str(line)


def airflow_command(day: str) -> str:
    """The command of the documented operator, with its date filled in."""
    (code,) = re.findall(r"^```python\n(BashOperator\(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    given = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    return Environment(autoescape=False).from_string(given["bash_command"]).render(ds=day)  # noqa: S701 - a command


class NightlyMachine:
    """A folder in the place of /srv/events, with an installed `pipeline`, a job and three rows."""

    def __init__(self, folder: Path, server: Served) -> None:
        self.folder, self.server = folder, server
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        (folder / "jobs").mkdir()
        (folder / "jobs" / "extract_events.py").write_text(JOB.replace("keep=", "max_failed=0, keep="), "utf-8")
        rows = "".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(3))
        for name in ("rows.jsonl", "in/2026-11-27/rows.jsonl"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(rows, "utf-8")

    def started(self, command: str, shell: str) -> subprocess.Popen[str]:
        """The command, under cron's environment and what a crontab sets."""
        cron = [f"HOME={self.folder}", "LOGNAME=user", "SHELL=/bin/sh", "PATH=/usr/bin:/bin"]
        crontab = [f"OPENAI_BASE_URL={self.server.base_url}", "OPENAI_API_KEY=k", "NO_PROXY=127.0.0.1"]
        here = command.replace("/srv/events", str(self.folder)).replace("*.parquet", "*.jsonl")
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["/usr/bin/env", "-i", *cron, *crontab, shell, "-c", here], text=True, stdout=pipe, stderr=pipe, cwd="/"
        )

    def code(self, command: str, shell: str = "/bin/sh") -> int:
        """How it ends."""
        child = self.started(command, shell)
        out, err = child.communicate(timeout=PATIENCE_S)
        assert child.returncode in {0, 3, 8}, out + err
        return child.returncode

    @property
    def results(self) -> list[dict[str, object]]:
        """What was appended to `runs.jsonl`."""
        return [json.loads(line) for line in (self.folder / "runs.jsonl").read_text("utf-8").splitlines()]


def test_the_cron_line_asks_the_failed_rows_again_the_next_night(tmp_path: Path) -> None:
    """Three nights of it: a row fails, only that row is asked again, and then there is nothing to ask."""
    with served(lambda call: error(400) if call.prompt.endswith("1") else script(call)) as server:
        machine = NightlyMachine(tmp_path, server)
        assert machine.code(cron_line()) == 3
        server.follow(script)
        before = len(server.calls)
        assert machine.code(cron_line()) == 0
        assert [call.prompt for call in server.calls[before:]] == ["Say text 1"]
        assert machine.code(cron_line()) == 0
        assert len(server.calls) == before + 1
    assert [(one["exit_code"], one["ok"], one["failed"]) for one in machine.results] == [
        (3, 2, 1),
        (0, 3, 0),
        (0, 3, 0),
    ]


def test_p6_the_cron_line_that_meets_a_run_exits_with_8_and_prints_no_result(tmp_path: Path) -> None:
    """A skipped night is told from a mistake by its exit code, and adds nothing to the results."""
    with served(lambda call: Held(script(call))) as server:
        machine = NightlyMachine(tmp_path, server)
        first = machine.started(cron_line(), "/bin/sh")
        server.arrived(3)
        assert machine.code(cron_line()) == 8
        assert machine.results == []
        assert "error: another run works on out/a_job: pid " in (tmp_path / "runs.log").read_text("utf-8")
        server.release()
        assert first.wait(PATIENCE_S) == 0
        first.communicate()
    assert [one["exit_code"] for one in machine.results] == [0]


def test_the_airflow_command_retries_what_failed_and_its_last_line_is_the_result(tmp_path: Path) -> None:
    """A retry of the task comes to a whole dataset, and stdout is the one line that goes to XCom."""
    with served(lambda call: error(400) if call.prompt.endswith("1") else script(call)) as server:
        machine = NightlyMachine(tmp_path, server)
        assert machine.code(airflow_command("2026-11-27"), "/bin/bash") == 3
        server.follow(script)
        out, err = machine.started(airflow_command("2026-11-27"), "/bin/bash").communicate(timeout=PATIENCE_S)
    result = json.loads(out)
    assert (result["exit_code"], result["ok"], result["output"]) == (0, 3, "out/2026-11-27")
    assert err == "asking 1 failed row again\n"


def test_the_documented_lines_name_the_program_by_its_full_path() -> None:
    """Cron's PATH does not have it."""
    for line in (cron_line(), airflow_command("2026-11-27")):
        assert re.search(r"(?<!\S)/srv/events/\.venv/bin/pipeline run ", line)


@pytest.mark.parametrize("option", ["--json", "--quiet", "--retry-failed"])
def test_the_documented_lines_retry_and_print_one_line(option: str) -> None:
    """All three matter at night: a result that is read by machines, no progress in the log, failed rows again."""
    assert option in cron_line()
    assert option in airflow_command("2026-11-27")
