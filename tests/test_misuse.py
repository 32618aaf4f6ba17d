"""What is typed wrong is answered with what to type instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from pipeline.cli import app
from pipeline.cli.advice import options_of
from pipeline.cli.known_words import COMMANDS, OPTIONS
from tests.commands import JOB, Shell
from tests.test_cli import error_of

OURS = typer.main.get_command(app).commands  # type: ignore[attr-defined] # a group has them
OUR_OPTIONS = set().union(*map(options_of, OURS.values()))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(3)
    return shell


def said(text: str) -> str:
    """The error, without where to read more."""
    return re.sub(r" \(see pipeline[\w ]* --help\)$", "", text)


@pytest.mark.parametrize("words", OPTIONS)
def test_an_option_of_other_tools_leads_to_what_does_it_here(words: str, shell: Shell) -> None:
    """Every word of the table is no option of `run`, and is answered with its line, whatever follows it."""
    for word in words.split():
        if word in OUR_OPTIONS - options_of(OURS["run"]):
            continue  # the option of another command is answered with that command
        error = error_of(shell.pipeline("run", "job.py", word, "1"))
        assert said(error) == f"there is no option {word}: {OPTIONS[words]}"


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_other_tools_leads_to_what_does_it_here(words: str, shell: Shell) -> None:
    """Every word of the table is no command, and is answered with its line."""
    for word in words.split():
        assert said(error_of(shell.pipeline(word, "job.py"))) == f"there is no command {word!r}: {COMMANDS[words]}"


def test_what_the_tables_recommend_exists_and_no_word_is_there_twice() -> None:
    """A remedy that is refused, too, would be worse than none."""
    for table in (OPTIONS, COMMANDS):
        words = [word for words in table for word in words.split()]
        assert len(words) == len(set(words))
    foreign = {"--preserve-status", "--help", "--version", "-a"}
    for remedy in [*OPTIONS.values(), *COMMANDS.values()]:
        assert set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", remedy)) - {"-c", "-i", "-o"} <= OUR_OPTIONS | foreign, remedy
        assert set(re.findall(r"`pipeline ([a-z]+)", remedy)) <= set(OURS), remedy
    assert not set(OURS) & {word for words in COMMANDS for word in words.split()}
    assert not options_of(OURS["run"]) & {word for words in OPTIONS for word in words.split()}


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("run", "job.py", "--temperature", "0"), "`temperature` is a field of the job (--set temperature=VALUE)"),
        (("run", "job.py", "--max-failed", "5"), "`max_failed` is a field of the job (--set max_failed=VALUE)"),
        (("run", "job.py", "--user", "hi"), "`user` is a field of the job (--set user=VALUE)"),
        (("run", "job.py", "--concurency", "5"), "there is no option --concurency; did you mean --concurrency?"),
        (("run", "job.py", "--retry_failed"), "there is no option --retry_failed: write --retry-failed"),
        (("run", "job.py", "--Emulate"), "there is no option --Emulate: write --emulate"),
        (("run", "job.py", "-limit", "5"), "there is no option -limit: write --limit"),
        (("plan", "job.py", "--concurrency", "5"), "it belongs to `pipeline run` and `pipeline eval`"),
        (("--emulate", "run", "job.py"), "options come after the command, as in `pipeline run ... --emulate`"),
        (("status", "--input", "rows.jsonl"), "it belongs to `pipeline run` and `pipeline plan`"),
        (("run", "job.py", "--xyzzy"), "there is no option --xyzzy"),
        (("job.py",), "there is no command 'job.py': `pipeline run job.py` runs it"),
        (("rows.jsonl",), "there is no command 'rows.jsonl': `pipeline run rows.jsonl` runs it"),
        (("rnu", "job.py"), "there is no command 'rnu'; did you mean run?"),
        (("run", "job.py", "-i", "rows.jsonl", "job.py"), "quote a pattern, as in -i 'data/*.jsonl'"),
        (("run", "job.py", "--fresh", "--retry-failed"), "leave one of them out"),
    ],
)
def test_a_command_line_that_is_not_understood_is_answered_with_the_remedy(
    arguments: tuple[str, ...], remedy: str, shell: Shell
) -> None:
    """Misspelled, put elsewhere, expanded by the shell, or a field of the job: one line says what to type."""
    assert remedy in error_of(shell.pipeline(*arguments))
