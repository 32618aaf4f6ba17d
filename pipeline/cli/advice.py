"""What to type instead, where the command line is not understood."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.known_words import COMMANDS, OPTIONS


def advice(error: Any, arguments: Sequence[str], commands: Mapping[str, Any]) -> str | None:
    """What to type instead, for an error of the parser; None when its own message says enough.

    `commands` are those of the command line by name, with the options that each has in `params`.
    """
    if (option := getattr(error, "option_name", None)) is not None:
        return _about_option(str(option), arguments, commands) if hasattr(error, "possibilities") else None
    if (extra := _extra_files(error.message, arguments)) is not None:
        return extra
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
    if having:
        return f"{missing}: it belongs to {' and '.join(f'`pipeline {name}`' for name in having[:2])}"
    if (remedy := _remedy(OPTIONS, plain)) is not None:
        return f"there is no option {option}: {remedy}"
    if (field := plain.lstrip("-").replace("-", "_")) in _job_fields():
        return f"there is no option {option}: `{field}` is a field of the job (--set {field}=VALUE)"
    known = options_of(commands[here]) if here else set().union(*map(options_of, commands.values()))
    return f"there is no option {option}{_nearest(plain, known)}"


def _about_command(word: str, commands: Mapping[str, Any]) -> str:
    if Path(word).suffix in {".py", ".jsonl", ".parquet", ".csv"} or ".py:" in word:
        return f"there is no command {word!r}: `pipeline run {word}` runs it"
    remedy = _remedy(COMMANDS, word.lower())
    return f"there is no command {word!r}{f': {remedy}' if remedy else _nearest(word, commands)}"


def _extra_files(message: str, arguments: Sequence[str]) -> str | None:
    """A pattern that the shell has expanded: its first match was taken, the others are left over."""
    extra = message.rpartition("(")[2].rstrip(")").split() if "unexpected extra argument" in message else []
    if not extra or not Path(extra[0]).exists():
        return None
    option = next((one for one in arguments if one in {"-i", "--input", "--include"}), "--input")
    several = f"quote a pattern, as in {option} 'data/*.jsonl', or repeat {option} for each file"
    return f"unexpected {' '.join(extra[:3])}: {several}"


def _as_typed(option: str, arguments: Sequence[str]) -> str:
    """`-limit` is read as -l; this is what was typed."""
    if option.startswith("--"):
        return option
    return next((one.partition("=")[0] for one in arguments if one.startswith(option) and len(one) > 2), option)


def _remedy(table: Mapping[str, str], word: str) -> str | None:
    return next((remedy for words, remedy in table.items() if word in words.split()), None)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _job_fields() -> set[str]:
    from dataclasses import fields

    from pipeline.job import Job

    return {field.name for field in fields(Job)}
