"""Suggests what to type instead when the command line is not understood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.cli.configuration import variables_of
from pipeline.cli.examples import EXAMPLES
from pipeline.cli.known_words import COMMANDS, OPTIONS, RENAMED_OPTIONS
from pipeline.text import closest

_RUNS = ("run", "eval")
"""The commands that the table of other tools' options is about."""


def advice(error: Any, arguments: Sequence[str], commands: Mapping[str, Any]) -> str | None:
    """What to type instead, for an error of the parser; None if its own message is sufficient.

    `commands` maps the name of each command to the command, whose parameters are in `params`.
    """
    here = next((name for name in arguments if name in commands), None)
    if (option := getattr(error, "option_name", None)) is not None:
        if hasattr(error, "possibilities"):
            return _about_option(str(option), arguments, commands)
        return _about_use(str(option), error.message, here and commands[here])
    param = getattr(error, "param", None)
    if param is not None and param.param_type_name == "argument" and here is not None:
        return f"what to work on is missing, as in `{EXAMPLES[here][0]}`"
    if param is not None and not error.message and here is not None:
        return f"{param.opts[0]} is missing, as in `{EXAMPLES[here][0]}`"
    if param is not None and param.opts[-1].startswith("-"):
        return _about_value(param, error.message, arguments)
    if (extra := _about_extra(error.message, arguments, options_of(commands[here]) if here else set())) is not None:
        return extra
    if here is not None and (inner := getattr(commands[here], "commands", None)) and "Missing command" in error.message:
        return f"say what to do: {', '.join(f'`pipeline {here} {name}`' for name in inner)}"
    word = next((one for one in arguments if not one.startswith("-")), "")
    return _about_command(word, commands) if word and word not in commands else None


def options_of(command: Any) -> set[str]:
    """The options of a command, or of all commands of a group."""
    inner = getattr(command, "commands", {}).values()
    shown = [one for each in (command, *inner) for one in each.params if one.param_type_name == "option"]
    return {name for one in shown for name in (*one.opts, *one.secondary_opts)}


def _about_option(option: str, arguments: Sequence[str], commands: Mapping[str, Any]) -> str:
    option = _as_typed(option, arguments)
    missing = f"there is no option {option} here"
    plain = option.replace("_", "-").lower()
    having = [name for name, command in commands.items() if plain in options_of(command)]
    here = next((name for name in arguments if name in commands), None)
    if having and arguments[0].startswith("-"):
        return f"options come after the command, as in `pipeline {here or having[0]} ... {plain}`"
    if here in having or f"-{plain}" in options_of(commands.get(here or "run")):
        return f"there is no option {option}: write {plain if plain.startswith('--') else f'-{plain}'}"
    remedy = _remedy(OPTIONS, plain)
    if having:
        owners = " and ".join(f"`pipeline {name}`" for name in having[:2])
        # An option of `show` that means something else in other tools: in a run, that is what was meant.
        meant = remedy if here in _RUNS else None
        return f"{missing}: it belongs to {owners}" if meant is None else f"{missing}, but in {owners}: {meant}"
    if remedy is not None:
        return f"there is no option {option}: {remedy}"
    if (field := plain.lstrip("-").replace("-", "_")) in _job_fields():
        return f"there is no option {option}: `{field}` is a field of the job (--set {field}=VALUE)"
    known = options_of(commands[here]) if here else set().union(*map(options_of, commands.values()))
    return f"there is no option {option}{_did_you_mean(plain, known)}"


def _about_command(word: str, commands: Mapping[str, Any]) -> str:
    if Path(word).suffix in {".py", ".jsonl", ".parquet", ".csv"} or ".py:" in word:
        return f"there is no command {word!r}: `pipeline run {word}` runs it"
    remedy = _remedy(COMMANDS, word.lower())
    return f"there is no command {word!r}{f': {remedy}' if remedy else _did_you_mean(word, commands)}"


def _about_use(option: str, message: str, command: Any) -> str:
    """Advice for an option without its value, or a flag with one."""
    if "requires an argument" not in message:
        return f"{option} is a flag: write it without a value"
    found = next((one for one in getattr(command, "params", ()) if option in one.opts), None)
    return f"{option} takes a value: {option} {getattr(found, 'metavar', None) or 'VALUE'}"


def _about_value(param: Any, message: str, arguments: Sequence[str]) -> str:
    """Advice for a value of the wrong type, or out of range."""
    names = [*param.opts, *(old for old, new in RENAMED_OPTIONS.items() if new in param.opts)]
    given = next((one for one in arguments if one.partition("=")[0] in names), None)
    name, _, value = (given or param.opts[0]).partition("=")
    if given is None:  # then a variable has the value
        name, value = next(variables_of(param), (name, value))
    elif not value:
        value = next((two for one, two in pairwise(arguments) if one in names), "")
    reason = next((said for pattern, said in _VALUES.items() if pattern in message), None)
    if reason is None:
        return f"{name} does not take {value!r}: {message}"
    return f"{name} takes {reason}{message.rpartition(' ')[2] if reason.endswith(' ') else ''}, not {value!r}"


_VALUES = {
    "valid integer": "a whole number",
    "valid number": "a number",
    "greater than or equal to": "at least ",
    "less than or equal to": "at most ",
}


def _about_extra(message: str, arguments: Sequence[str], known: Iterable[str]) -> str | None:
    """Advice for surplus arguments: files of a pattern that the shell expanded, or a value meant to follow an `=`."""
    extra = message.rpartition("(")[2].rstrip(")").split() if "unexpected extra argument" in message else []
    if not extra:
        return None
    surplus = f"{' '.join(extra[:3])}{' ...' if len(extra) > 3 else ''} is too much"
    if extra[0].endswith(".py"):
        return f"{surplus}: one job per run, so call `pipeline` once for each"
    if "--input" not in known:
        return f"{surplus}: this command takes one at a time"
    if Path(extra[0]).exists():
        option = next((one for one in arguments if one in {"-i", "--input", "--include"}), "--input")
        return f"{surplus}: quote a pattern, as in {option} 'data/*.jsonl', or repeat {option} for each file"
    return (
        f"{surplus}: --set takes FIELD=VALUE in one word, as in --set temperature=0"
        if "--set" in arguments
        else surplus
    )


def _as_typed(option: str, arguments: Sequence[str]) -> str:
    """The option as typed: the parser reports `-limit` as -l."""
    if option.startswith("--"):
        return option
    return next((one.partition("=")[0] for one in arguments if one.startswith(option) and len(one) > 2), option)


def _remedy(table: Mapping[str, str], word: str) -> str | None:
    return next((remedy for words, remedy in table.items() if word in words.split()), None)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = closest(word, known)
    return f"; did you mean {close}?" if close else ""


def _job_fields() -> set[str]:
    from dataclasses import fields

    from pipeline.job.job import Job

    return {field.name for field in fields(Job)}
