"""A job as it stood at another commit."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.evaluation.at_commit import loaded_at
from pipeline.faults import UsageError
from pipeline.job.job import Job
from pipeline.job.loader import load_job

JOB = """
from words import SYSTEM
from pipeline import Job
job = Job(name="a", model="google/m", system=SYSTEM, user="{{ text }}", examples="shots.jsonl")
"""
SHOT = '{"user": "%s", "assistant": "yes"}\n'

Repository = Callable[..., None]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """Writes files of a repository, and commits them. What their loading leaves in the interpreter goes afterwards."""
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    git(tmp_path, "init", "--quiet")

    def commit(**files: str) -> None:
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", "--message", "step")

    yield commit
    sys.path[:] = path
    sys.modules.pop("words", None)


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True)


def load() -> Job:
    return load_job("jobs/a.py")


def test_a_job_comes_with_the_modules_and_files_of_its_commit(repository: Repository) -> None:
    """The prompt's module and the examples beside it are those of that commit, also when others are loaded already."""
    repository(jobs__a_dot_py=JOB, jobs__words_dot_py="SYSTEM = 'old'", shots_dot_jsonl=SHOT % "old shot")
    repository(jobs__words_dot_py="SYSTEM = 'new'", shots_dot_jsonl=SHOT % "new shot")
    new = load()
    old = loaded_at("HEAD~1", load)
    assert [told(job) for job in (old, new, load())] == [("old", "old shot"), ("new", "new shot"), ("new", "new shot")]


def told(job: Job) -> tuple[str, str]:
    messages = job.conversation.messages({"text": "x"})
    return messages[0]["content"], messages[1]["content"]


def test_nothing_of_the_other_commit_stays_behind(repository: Repository, tmp_path: Path) -> None:
    """Neither modules nor search paths nor the folder; what was loaded before is there as it was."""
    repository(jobs__a_dot_py=JOB, jobs__words_dot_py="SYSTEM = 'old'", shots_dot_jsonl=SHOT % "old shot")
    load()
    before, path = dict(sys.modules), list(sys.path)
    loaded_at("HEAD", load)
    assert {name: module for name, module in sys.modules.items() if before.get(name) is not module} == {}
    assert sys.path == path
    assert Path.cwd() == tmp_path


def test_a_commit_that_is_not_there_is_told(repository: Repository) -> None:
    repository(jobs__a_dot_py=JOB)
    with pytest.raises(UsageError, match="no-such-ref"):
        loaded_at("no-such-ref", load)


def test_a_folder_without_a_repository_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not a git repository"):
        loaded_at("HEAD", load)


@pytest.mark.parametrize("name", ["nosuch", "HEAD~99", "--output=x", "", "a b", "deadbeef"])
def test_a_name_that_is_no_commit_is_said_to_be_none_and_never_reaches_git_as_an_option(
    repository: Repository, tmp_path: Path, name: str
) -> None:
    repository(jobs__a_dot_py=JOB)
    with pytest.raises(UsageError, match=r"^there is no commit ") as refused:
        loaded_at(name, load)
    assert repr(name) in str(refused.value)
    assert not (tmp_path / "x").exists()
