"""`pipeline config`: the value of every option of a command, and what it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pipeline.cli.configuration import (
    JOB_FIELDS,
    Configuration,
    configuration_of,
    current,
    default_of,
    option_name,
    options_of,
    variables_of,
)
from pipeline.cli.options import AsJson
from pipeline.cli.tables import json_line, print_table, short
from pipeline.faults import UsageError
from pipeline.store.address import local_text
from pipeline.text import nearest


def config(
    context: typer.Context,
    command: Annotated[str, typer.Argument(help="The command whose options are shown.")] = "run",
    *,
    job: Annotated[
        str | None,
        typer.Option(
            "--job", "-j", metavar="FILE.py", help="Show what this job says of its own fields.", parser=local_text
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show the value of every option of a command, and whether a variable, the job, or pyproject.toml gives it."""
    app: Any = context.find_root().command
    if not (found := app.commands.get(command)) or not hasattr(found, "params"):
        raise UsageError(f"there is no command {command!r}{nearest(command, sorted(app.commands))}")
    configuration = configuration_of(app, found, current().profile)
    fields = {} if job is None else _given_by(job)
    rows = [
        {"option": f"--{option_name(option)}", "value": value, "from": source}
        for option in options_of(found)
        if not option.hidden
        for value, source in [_value(option, configuration, fields)]
    ]
    if as_json:
        file = {"file": configuration.path, "profile": configuration.profile}
        print(json_line({"command": command, **file, "options": rows}))
        return 0
    if configuration.path is not None:
        profile = f", profile {configuration.profile}" if configuration.profile else ""
        print(f"{configuration.path}{profile}")
    print_table([{**row, "value": short(row["value"])} for row in rows])
    return 0


def _value(option: Any, configuration: Configuration, fields: Mapping[str, Any]) -> tuple[Any, str]:
    """The value of an option that is not on the command line, and where it is from."""
    name = option_name(option)
    for variable, value in variables_of(option):
        return _shown(value), variable
    if (field := JOB_FIELDS.get(name, "")) in fields:
        return fields[field], "job"
    if (configured := configuration.values.get(name)) is not None:
        return _shown(configured.value), f"[{configured.table}]"
    return option.default, "default"


def _shown(value: Any) -> Any:
    """A value without what looks like a key or a password: an address may hold one."""
    from pipeline.endpoint.redaction import redact_tokens

    if isinstance(value, list):
        return [_shown(one) for one in value]
    return redact_tokens(value) if isinstance(value, str) else value


def _given_by(target: str) -> dict[str, Any]:
    """The fields of a job that options could give, where the job gives them."""
    from pipeline.job.loader import load_job

    job = load_job(target)
    found = {field: getattr(job, field) for field in JOB_FIELDS.values()}
    return {field: value for field, value in found.items() if value != default_of(job, field)}
