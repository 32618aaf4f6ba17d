"""Files of a user's folder stand in for no module of ours, of a library or of Python; a job's own imports work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.job.loader import load_job
from tests.commands import JOB, ROOT, Done, Shell
from tests.servers import Answer, Call, Served, chat, served

TRAP = 'raise SystemExit("a file of the user was taken for a module")\n'
STANDARD = ["email", "calendar", "types", "secrets", "json", "queue", "logging", "socket", "typing", "zoneinfo", "site"]
LIBRARIES = [
    "rich",
    "tqdm",
    "openai",
    "pyarrow",
    "orjson",
    "uvloop",
    "simplejson",
    "pandas",
    "scipy",
    "numpy",
    "tzdata",
]
OURS = ["data", "run", "job", "cli"]
"""Names of modules of ours, as top-level ones."""

STEMS = [*STANDARD, *LIBRARIES, *OURS, "pipeline"]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {})
    shell.rows(3)
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    def answer(call: Call) -> Answer:
        return chat(json.dumps({"answer": call.prompt}))

    with served(answer) as server:
        yield server


MAIN = "import sys; sys.argv[0] = 'pipeline'; from pipeline.cli import main; main()"


def installed(shell: Shell, *arguments: str, where: Path | None = None) -> Done:
    """`pipeline ARGUMENTS` as the installed command starts it: without the working directory among its paths."""
    command = [sys.executable, "-P", "-c", MAIN, *arguments]
    environment = {name: value for name, value in shell.environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=where or shell.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_p14_a_folder_full_of_names_of_modules_changes_nothing(shell: Shell) -> None:
    """Neither for the run, nor for its emulator, nor for its worker processes, nor for what shows it."""
    for stem in STEMS:
        if stem != "pipeline":
            shell.write(f"{stem}.py", TRAP)
    for folder in ("pipeline", "encodings", "aiohttp", "google"):
        (shell.folder / folder).mkdir()
        shell.write(f"{folder}/__init__.py", TRAP)
    shell.write("job.py", JOB)
    (shell.folder / "jobs").mkdir()
    shell.write("jobs/mine.py", JOB)
    for target in ("job.py", "jobs/mine.py"):
        flags = ("run", target, "--emulate", "--report", "--fresh", "--cache", "--processes", "2")
        done = installed(shell, *flags)
        assert done.code == 0, done
    for command in (("show", "out/a_job"), ("status", "out/a_job"), ("report", "out/a_job"), ("plan", "job.py")):
        assert installed(shell, *command).code == 0


@pytest.mark.parametrize("stem", [*STEMS[:6], "rich", "tqdm", "openai", "uvloop", "pipeline"])
def test_p14_a_job_may_be_called_as_any_module(stem: str, shell: Shell) -> None:
    shell.write(f"{stem}.py", JOB)
    done = installed(shell, "run", f"{stem}.py", "--emulate", "--quiet", "--json")
    assert done.code == 0, done
    assert done.json["ok"] == 3


DIES_ONCE = """
import os
from pathlib import Path

if os.getppid() != int(os.environ["TEST_PID"]):  # a worker
    try:
        Path("dead").touch(exist_ok=False)
        os._exit(3)
    except FileExistsError:
        pass
"""


def test_p14_worker_processes_that_are_started_later_begin_apart_from_the_folder(shell: Shell, server: Served) -> None:
    (shell.folder / "pipeline").mkdir()
    shell.write("pipeline/__init__.py", TRAP)
    shell.write("job.py", DIES_ONCE + JOB)
    shell.rows(2000, heavy=True)
    shell = Shell(shell.folder, {"OPENAI_API_KEY": "k", "TEST_PID": str(os.getpid())})
    flags = ("--base-url", server.base_url, "--processes", "2", "--json")
    done = installed(shell, "run", "job.py", *flags)
    assert done.code == 0, done
    assert done.json["ok"] == 2000
    assert "a worker process has ended (exit 3)" in done.err


def test_p14_python_m_pipeline_takes_no_standard_module_from_the_folder(shell: Shell) -> None:
    for stem in ("email", "calendar", "rich", "typing_extensions"):
        shell.write(f"{stem}.py", TRAP)
    shell.write("job.py", JOB)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", "job.py", "--emulate", "--quiet"],
        cwd=shell.folder,
        env={name: value for name, value in shell.environment.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done


# A job's own imports


def loaded(path: Path, text: str) -> str:
    """What the job's prompt is, in a process of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    code = f"from pipeline.job.loader import load_job; print(load_job({str(path)!r}).user)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=path.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


JOB_OF = "from pipeline import Job\n{imports}\njob = Job(name='a', model='m', user={prompt})\n"


@pytest.mark.parametrize(
    "statement",
    [
        "from words import WORD",
        "import words; WORD = words.WORD",
        "import importlib; WORD = importlib.import_module('words').WORD",
        "WORD = __import__('words').WORD",
        "def late():\n    from words import WORD\n    return WORD\nWORD = late()",
        "from package import WORD",
        "from package.inner import WORD",
        "from package.deeper.still import WORD",
        "from spaces.module import WORD",
        "from indirect import WORD",
        "from top import WORD",
        "from shared.words import WORD",
    ],
)
def test_p14_a_job_imports_what_lies_beside_it_and_in_the_working_directory(statement: str, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    files = {
        jobs / "words.py": "WORD = 'beside'",
        jobs / "package/__init__.py": "from package.inner import WORD",
        jobs / "package/inner.py": "from words import WORD",
        jobs / "package/deeper/__init__.py": "",
        jobs / "package/deeper/still.py": "from ..inner import WORD",
        jobs / "spaces/module.py": "import words\nWORD = words.WORD",
        jobs / "indirect.py": "from package import WORD",
        tmp_path / "top.py": "WORD = 'beside'",
        tmp_path / "shared/words.py": "WORD = 'beside'",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert loaded(jobs / "job.py", JOB_OF.format(imports=statement, prompt="WORD")) == "beside"


def test_p14_the_folder_of_a_job_comes_before_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("WORD = 'of the working directory'\n")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/words.py").write_text("WORD = 'beside'\n")
    assert loaded(tmp_path / "jobs/job.py", JOB_OF.format(imports="from words import WORD", prompt="WORD")) == "beside"


def test_p14_an_import_that_finds_nothing_is_told_with_its_line(tmp_path: Path) -> None:
    from pipeline.faults import UsageError

    path = tmp_path / "job.py"
    path.write_text(JOB_OF.format(imports="import nowhere_at_all", prompt="'x'"))
    with pytest.raises(UsageError, match=r"job\.py:2: ModuleNotFoundError: No module named 'nowhere_at_all'"):
        load_job(str(path))


def test_p14_who_is_no_job_finds_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "only_beside_the_job.py").write_text("")
    (tmp_path / "job.py").write_text(JOB_OF.format(imports="import only_beside_the_job", prompt="'x'"))
    code = (
        "import importlib.util, sys; from pipeline.job.loader import load_job; load_job('job.py'); "
        "del sys.modules['only_beside_the_job']; assert '' not in sys.path; "
        "print(importlib.util.find_spec('only_beside_the_job'))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
    assert ROOT.is_dir()


@pytest.mark.parametrize("module", ["job/loader.py", "endpoint/client.py", "cli/run.py", "data.py"])
def test_p14_no_module_of_ours_imports_what_lies_beside_it_in_a_checkout(module: str, tmp_path: Path) -> None:
    """The whole package lies in the working directory here, as a job's own modules do."""
    (tmp_path / "job.py").write_text(JOB_OF.format(imports="", prompt="'x'"))
    code = (
        "import sys; from pathlib import Path; import pipeline; from pipeline.job.loader import load_job\n"
        "job, module = sys.argv[1:]\n"
        "load_job(job)\n"
        "sys.path = [path for path in sys.path if Path(path or '.').resolve() != Path.cwd()]\n"
        "own = str(Path(pipeline.__file__).parent / module)\n"
        "try:\n    exec('import tests', {'__file__': own})\nexcept ModuleNotFoundError:\n    print('not there')"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "job.py"), module]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "not there"
