"""The command line: the only place that prints.

Only results go to stdout; progress, warnings and errors go to stderr. An error that a user can fix ends in one sentence
with the remedy, never in a traceback. Heavy modules are imported by the commands that need them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from pipeline import __version__
from pipeline.cli import cache, cancel, config, emulate, evaluate, export, plan, report, run, show, status, streams
from pipeline.cli.configuration import ConfiguredCommand
from pipeline.cli.examples import epilog
from pipeline.cli.garbage import raise_gc_threshold
from pipeline.cli.known_words import RENAMED_OPTIONS
from pipeline.cli.plain_help import PlainGroup
from pipeline.execution.exit_codes import code_of
from pipeline.faults import Halt, NothingToDo, UsageError
from pipeline.text import printable


def _present_name(name: str) -> str:
    """The name of an option without its dashes; for one that was renamed, the new one."""
    return RENAMED_OPTIONS.get(f"--{name}", f"--{name}").removeprefix("--")


app = typer.Typer(
    name="pipeline",
    cls=PlainGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _present_name},
    help="Batch jobs on Gemini: rows in, typed Parquet out.",
    epilog="Exit codes: 0 done, 2 usage, 3 too many failed rows, 4 gate failed, 5 no rows, 6 budget, 7 provider, "
    "8 output in use, 75 batch not ready, 129/130/143 interrupted. Running the same command again resumes.",
)


def _version(value: bool) -> None:  # noqa: FBT001 - typer calls it positionally
    if value:
        print(f"pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(  # noqa: FBT001 - a flag, acted on by its callback
        False,  # noqa: FBT003 - its default
        "--version",
        callback=_version,
        is_eager=True,
        help="Show the version and exit.",
    ),
    profile: str | None = typer.Option(
        None, metavar="NAME", envvar="PIPELINE_PROFILE", help="Options of [tool.pipeline.profiles.NAME]."
    ),
) -> None:
    """Batch jobs on Gemini: rows in, typed Parquet out."""


_COMMANDS: dict[str, Callable[..., int | None]] = {
    "run": run.run,
    "plan": plan.plan,
    "status": status.status,
    "tune": status.tune,
    "cancel": cancel.cancel,
    "show": show.show,
    "export": export.export,
    "report": report.report,
    "reparse": run.reparse,
    "eval": evaluate.evaluate,
    "grade": evaluate.grade,
    "gate": evaluate.gate,
    "compare": evaluate.compare,
    "bless": evaluate.bless,
    "emulate": emulate.emulate,
    "config": config.config,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, cls=ConfiguredCommand, epilog=epilog(_name))(_function)
app.add_typer(cache.app, name="cache", cls=PlainGroup, epilog=epilog("cache"))


def _command() -> list[str]:
    """The command on the command line, or nothing if there is none of that name."""
    names = {*(command.name for command in app.registered_commands), *(group.name for group in app.registered_groups)}
    return [argument for argument in sys.argv[1:2] if argument in names]


def _explained(error: typer.TyperException) -> str:
    from pipeline.cli.advice import advice

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined] # a group has them
    return advice(error, sys.argv[1:], commands) or error.format_message()


def _require_folder() -> None:
    """Raises `UsageError` when the current folder was removed: relative paths then lead nowhere."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current folder has been removed: cd to one that exists") from None


def main() -> NoReturn:
    """Runs the command line and exits with a documented exit code, even if its output cannot be written."""
    streams.secure()
    raise_gc_threshold()
    if not sys.stdout.isatty():
        app.rich_markup_mode = None  # then `plain_help` writes the help
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        _require_folder()
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        print(
            f"error: {printable(_explained(error))} (see {' '.join(['pipeline', *_command()])} --help)", file=sys.stderr
        )
        code = error.exit_code
    except (UsageError, NothingToDo, Halt) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = code_of(error)
    sys.stdout.flush()
    if (lost := streams.result_lost()) is not None:
        print(
            f"note: standard output could not be written ({lost}); the exit code is that of the work", file=sys.stderr
        )
    sys.exit(code or 0)
