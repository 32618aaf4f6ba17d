"""What a run loads before its first call: time of the processor that every start pays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = '''
import json, sys
sys.argv = json.loads(sys.argv[1])

class WithoutPandas:
    """Where pandas is installed, pyarrow loads it for any list of values."""

    def find_spec(self, name, *_):
        if name == "pandas":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutPandas())
from pipeline.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("LOADED", json.dumps(list(sys.modules)))
'''


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules of a whole run over a few rows of JSONL, answered over HTTP, with a schema and with prices."""
    output = tmp_path_factory.mktemp("start") / "out"
    command = ["pipeline", "run", "jobs/extract_events.py", "--emulate", "-q", "--json", "--limit", "3", "-o", output]
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(command, default=str)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    return set(json.loads(told.rpartition("LOADED ")[2]))


@pytest.mark.parametrize(
    "used", ["openai", "aiohttp", "pyarrow", "pydantic", "pipeline.endpoint.client", "pipeline.execution.engine"]
)
def test_a_run_loads_what_it_uses(loaded: set[str], used: str) -> None:
    assert used in loaded


@pytest.mark.parametrize(
    "unused",
    [
        "aiohttp.web",
        "docstring_parser",
        "duckdb",
        "openai.resources",
        "openai.types.beta",
        "openai.types.responses.response_stream_event",
        "pandas",
        "pipeline.emulator.server.server",
        "pipeline.evaluation.assessment",
        "pipeline.evaluation",
        "pipeline.evaluation.judge_job",
        "pipeline.execution.processes",
        "pipeline.report",
        "pipeline.execution.reparse",
        "pyarrow.compute",
        "pyarrow.csv",
        "pyarrow.dataset",
        "rich",
        "scipy",
    ],
)
def test_a_run_does_not_load_what_it_does_not_use(loaded: set[str], unused: str) -> None:
    assert not [name for name in loaded if name == unused or name.startswith(f"{unused}.")]


def test_of_the_sdk_a_run_loads_its_client_and_little_else(loaded: set[str]) -> None:
    """It has more than five hundred modules, nearly all of them types."""
    assert len([name for name in loaded if name.startswith("openai.")]) < 200
