"""Options that were renamed are accepted under both names for one more release."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli import app
from pipeline.cli.known_words import RENAMED_OPTIONS
from tests.commands import JOB, Shell
from tests.test_cli import error_of

GROUP: Any = typer.main.get_command(app)

CASES = [
    ("grade", "--common", ()),
    ("gate", "--common", ()),
    ("compare", "--common", ()),
    ("eval", "--common", ()),
    ("run", "--grace", ("0.5",)),
    ("eval", "--grace", ("0.5",)),
    ("run", "--hedge", ("0.25",)),
    ("eval", "--hedge", ("0.25",)),
    ("run", "--token-life", ("7",)),
    ("eval", "--token-life", ("7",)),
    ("emulate", "--token-life", ("7",)),
    ("emulate", "--nonce", ()),
]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(3)
    return shell


def values(command: str, *options: str) -> dict[str, object]:
    """What the parser makes of a command line."""
    arguments = {"compare": ["a", "b"], "emulate": []}.get(command, ["x"])
    with GROUP.make_context("pipeline", [command, *arguments, *options], resilient_parsing=False) as parent:
        found = GROUP.commands[command]
        with found.make_context(command, [*arguments, *options], parent=parent) as context:
            return dict(context.params)


@pytest.mark.parametrize(("command", "old", "value"), CASES)
def test_an_option_means_the_same_under_its_earlier_name(command: str, old: str, value: tuple[str, ...]) -> None:
    """With the value in the same word or in the next, and unlike a command line without the option."""
    new = RENAMED_OPTIONS[old]
    assert values(command, old, *value) == values(command, new, *value) != values(command)
    if value:
        assert values(command, f"{old}={value[0]}") == values(command, new, *value)


def test_every_command_that_has_a_renamed_option_is_tried_here() -> None:
    """A table of aliases that no option stands behind would promise what is not there."""
    having = {
        (name, old)
        for name, command in GROUP.commands.items()
        for old, new in RENAMED_OPTIONS.items()
        if any(new in param.opts for param in command.params)
    }
    assert having == {(command, old) for command, old, _ in CASES}
    assert {old for _, old, _ in CASES} == set(RENAMED_OPTIONS)


@pytest.mark.parametrize("command", sorted({command for command, _, _ in CASES}))
def test_help_shows_an_option_by_its_new_name_only(command: str, shell: Shell) -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shell.pipeline(command, "--help").out))
    assert not shown & set(RENAMED_OPTIONS)


def test_an_earlier_name_with_a_wrong_value_is_answered_as_it_was_typed(shell: Shell) -> None:
    """The message names the option that stands on the command line."""
    for option in ("--hedge", "--hedge-share"):
        assert f"{option} takes at most 0.5, not '2'" in error_of(shell.pipeline("run", "job.py", option, "2"))
        assert f"{option} takes at most 0.5, not '2'" in error_of(shell.pipeline("run", "job.py", f"{option}=2"))


def test_a_value_that_looks_like_an_earlier_name_is_left_alone() -> None:
    """Only the names of options are translated."""
    assert values("run", "--model", "grace")["model"] == "grace"
    assert values("run", "--set", "name=--grace")["assignments"] == ["name=--grace"]
