"""What is typed wrong is answered with what to type instead."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pipeline.cli import app
from pipeline.cli.advice import options_of
from pipeline.cli.examples import EXAMPLES
from pipeline.cli.known_words import COMMANDS, OPTIONS
from pipeline.cli.options import PANELS
from tests.commands import JOB, Shell
from tests.screens import Terminal
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
        answer = said(error_of(shell.pipeline("run", "job.py", word, "1")))
        if word in OUR_OPTIONS - options_of(OURS["run"]):  # then that command is named, too
            named = re.match(rf"there is no option {word} here, but in `pipeline (\w+)`", answer)
            assert named is not None
            assert word in options_of(OURS[named[1]])
            assert answer.endswith(f": {OPTIONS[words]}")
        else:
            assert answer == f"there is no option {word}: {OPTIONS[words]}"


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
        (("status", "out/a", "--failed"), "there is no option --failed here: it belongs to `pipeline show`"),
        (("run", "job.py", "--xyzzy"), "there is no option --xyzzy"),
        (("job.py",), "there is no command 'job.py': `pipeline run job.py` runs it"),
        (("rows.jsonl",), "there is no command 'rows.jsonl': `pipeline run rows.jsonl` runs it"),
        (("rnu", "job.py"), "there is no command 'rnu'; did you mean run?"),
        (("run", "job.py", "-i", "rows.jsonl", "rows.jsonl"), "quote a pattern, as in -i 'data/*.jsonl'"),
        (("run", "job.py", "other.py"), "one job per run"),
        (("run", "job.py", "--set", "temperature", "0"), "--set takes FIELD=VALUE in one word"),
        (("run",), "what to work on is missing, as in `pipeline run jobs/mood.py --emulate --limit 20`"),
        (("status",), "what to work on is missing, as in `pipeline status out/mood`"),
        (("compare", "out/a"), "what to work on is missing, as in `pipeline compare out/eval_before out/eval_after`"),
        (("run", "job.py", "--limit", "ten"), "--limit takes a whole number, not 'ten'"),
        (("run", "job.py", "--limit=1.5"), "--limit takes a whole number, not '1.5'"),
        (("run", "job.py", "--rpm", "fast"), "--rpm takes a number, not 'fast'"),
        (("run", "job.py", "-c", "0"), "-c takes at least 1, not '0'"),
        (("run", "job.py", "--hedge-share", "2"), "--hedge-share takes at most 0.5, not '2'"),
        (("run", "job.py", "--limit"), "--limit takes a value: --limit N"),
        (("run", "job.py", "--json=yes"), "--json is a flag: write it without a value"),
        (("run", "job.py", "--fresh", "--retry-failed"), "leave one of them out"),
        (("cache",), "say what to do: `pipeline cache list`, `pipeline cache prune`"),
        (("reparse", "out/a"), "--job is missing, as in `pipeline reparse out/mood --job jobs/mood.py`"),
        (("status", "rows.jsonl", "job.py"), "one job per run"),
        (("status", "out/a", "rows.jsonl"), "rows.jsonl is too much: this command takes one at a time"),
    ],
)
def test_a_command_line_that_is_not_understood_is_answered_with_the_remedy(
    arguments: tuple[str, ...], remedy: str, shell: Shell
) -> None:
    """Misspelled, put elsewhere, expanded by the shell, or a field of the job: one line says what to type."""
    assert remedy in error_of(shell.pipeline(*arguments))


@pytest.mark.parametrize("command", [name for name, found in OURS.items() if name != "cache"])
def test_the_help_of_a_command_has_examples_that_its_parser_takes(command: str, shell: Shell) -> None:
    """Each is parsed as the shell would pass it on: none has an option that is not there."""
    help_text = shell.pipeline(command, "--help").out
    assert "Examples:" in help_text
    for example in EXAMPLES[command]:
        words = shlex.split(example.removeprefix("watch "))
        assert words[:2] == ["pipeline", command]
        OURS[command].make_context(command, words[2:])
        assert words[2] in help_text


def test_the_help_of_run_has_sections_with_defaults_and_variables(shell: Shell) -> None:
    """Forty options in one list are not found: they are grouped, each with what holds without it."""
    help_text = shell.pipeline("run", "--help").out
    for panel in PANELS[1:]:
        assert help_text.count(f"\n{panel}:\n") == 1
    for variable in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        assert variable in help_text
    for default in ("[default: 64; x>=1]", "the job's, or out/NAME", "[default: (auto)]", "[default: fail-fast]"):
        assert default in " ".join(help_text.split())
    assert "<bool>" not in help_text
    for example in EXAMPLES["run"]:
        assert f"  {example}\n" in help_text


def test_on_a_terminal_the_sections_are_panels(shell: Shell) -> None:
    shown = "\n".join(Terminal(["run", "--help"], shell.folder, shell.environment, columns=100).end())
    for panel in PANELS[1:]:
        assert shown.count(f"\u2500 {panel} \u2500") == 1


def test_the_help_of_the_program_cuts_no_description(shell: Shell) -> None:
    """Whatever the width, the last word of every command's first sentence is there."""
    for columns in ("80", "60"):
        narrow = Shell(shell.folder, {"COLUMNS": columns})
        help_text = narrow.pipeline("--help").out
        assert "..." not in help_text.replace("[ARGS]...", "")
        words = set(re.findall(r"[\w,.]+", help_text))
        for command in OURS.values():
            assert set(re.findall(r"[\w,.]+", (command.help or "").partition("\n\n")[0])) <= words


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("-o", "afile"), "afile is a file: choose another --output"),
        (("-o", "dangling"), "dangling is a link to nothing: choose another --output"),
        (("-o", "afile/below"), "afile is a file: choose another --output"),
        (("-o", "other"), "holds other files (x.txt): choose an empty one"),
        (("-i", "dangling"), "dangling is a link to nothing: correct the link, or name another input"),
        (("-m", "gpt-5"), "not 'gpt-5': other servers need --base-url"),
        (("-m", "gemini-3.5-flash-lite"), "write google/gemini-3.5-flash-lite"),
        (("--base-url", "http://127.0.0.1:1/v1"), "--emulate starts a server of its own, and --base-url names another"),
        (("--set", "prompt=x"), "a job has no field 'prompt': the prompt is `user`"),
        (("--set", "user={{ text | uper }}"), "there is no filter 'uper'; did you mean 'upper'?"),
    ],
)
def test_a_path_a_model_or_a_template_that_is_wrong_is_answered_with_the_remedy(
    arguments: tuple[str, ...], remedy: str, shell: Shell
) -> None:
    """Before anything is asked, in one line."""
    shell.write("afile", "x")
    (shell.folder / "dangling").symlink_to("nowhere")
    (shell.folder / "other").mkdir()
    shell.write("other/x.txt", "x")
    assert remedy in error_of(shell.pipeline("run", "job.py", "--emulate", *arguments))


def test_what_is_close_to_right_is_answered_with_what_is_right(shell: Shell) -> None:
    """A job without its suffix, a file where a run should be, a port that there is not, a key for no server."""
    assert "there is no 'job'; did you mean 'job.py'?" in error_of(shell.pipeline("run", "job"))
    assert "there is no run in rows.jsonl" in error_of(shell.pipeline("status", "rows.jsonl"))
    assert "--port takes at most 65535, not '99999'" in error_of(shell.pipeline("emulate", "--port", "99999"))
    told = error_of(shell.pipeline("run", "job.py"))
    assert "OPENAI_API_KEY is for the server of a --base-url only" in told
    assert "--emulate needs none" in told


def test_a_column_that_is_inside_of_a_list_is_answered_with_the_command_that_makes_rows_of_it(shell: Shell) -> None:
    shell.write("rows.json", '{"next": null, "data": [{"text": "a"}, {"text": "b"}]}')
    told = error_of(shell.pipeline("plan", "job.py", "--input", "rows.json"))
    assert "the job names the column 'id', which is not in the input" in told
    assert f"if its rows are in 'data': jq -c '.data[]' {shell.folder}/rows.json > new.jsonl" in told


def test_a_folder_that_was_removed_is_answered_with_the_remedy(shell: Shell) -> None:
    (gone := shell.folder / "gone").mkdir()
    command = [
        sys.executable,
        "-c",
        "import os; os.rmdir(os.getcwd()); from pipeline.cli import main; main()",
        "status",
        "x",
    ]
    done = subprocess.run(command, cwd=gone, env=shell.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: the current folder has been removed: cd to one that exists\n")
