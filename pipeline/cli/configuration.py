"""Values of options that are not on the command line: from `PIPELINE_*` variables and `[tool.pipeline]`.

A flag overrides a variable, a variable the job's own field, and that the file: pyproject.toml of the current folder, or
of the nearest folder above it that has the table. `[tool.pipeline.profiles.NAME]` overrides the table itself.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperOption

from pipeline.cli.plain_help import PlainCommand
from pipeline.faults import UsageError
from pipeline.store.address import is_address
from pipeline.text import nearest

if TYPE_CHECKING:
    from pipeline.job.job import Job

FILE = "pyproject.toml"
TABLE = "tool.pipeline"
PROFILES = "profiles"

JOB_FIELDS: Mapping[str, str] = {
    "input": "input",
    "include": "include",
    "input-rows": "input_rows",
    "allow-partial": "allow_partial",
    "output": "output",
    "model": "model",
    "location": "locations",
}
"""Options that are fields of a job too, and the fields: a job that gives one overrides the file."""

_ONLY_GIVEN = {"fresh", "set", "profile", "version", "help"}
"""Options that neither the file nor a variable can hold: they would start every run over, or override every job."""

_PATHS = {"PATH", "FOLDER", "FILE", "FILE.py", "PLACE"}
"""The metavars of options whose values are paths: relative ones are relative to the file."""


@dataclass(frozen=True, slots=True)
class ConfiguredValue:
    """A value of the file, and the table that has it."""

    value: Any
    table: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the file says of one command: values by option, without dashes."""

    path: Path | None = None
    profile: str | None = None
    values: Mapping[str, ConfiguredValue] = field(default_factory=dict)

    def of_job(self) -> dict[str, Any]:
        """The values that are fields of a job."""
        return {JOB_FIELDS[name]: found.value for name, found in self.values.items() if name in JOB_FIELDS}

    def of_options(self, command: Any, context: Any) -> dict[str, Any]:
        """The values of all other options, by the names of the command's parameters.

        Raises `UsageError` if the command line would not accept one of them.
        """
        options = {option_name(one): one for one in options_of(command)}
        found = {name: one for name, one in self.values.items() if name in options and name not in JOB_FIELDS}
        for name, one in found.items():
            try:
                options[name].process_value(context, one.value)
            except typer.BadParameter as error:
                raise UsageError(f"{self.path}: {name} in [{one.table}]: {error.message}") from None
        return {options[name].name: one.value for name, one in found.items()}


_CURRENT: ContextVar[Configuration] = ContextVar("configuration", default=Configuration())  # noqa: B039 - it is frozen


class ConfiguredCommand(PlainCommand):
    """A command whose options may also be given by variables and by the file."""

    def __init__(self, *arguments: Any, **given: Any) -> None:
        super().__init__(*arguments, **given)
        for option in options_of(self):
            if (name := option_name(option)) not in _ONLY_GIVEN:
                option.show_envvar = bool(option.envvar)  # the others would make --help twice as long
                option.envvar = list(dict.fromkeys([variable_of(name), *_listed(option.envvar)]))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line, with the file's values as defaults. `--profile` is accepted here too."""
        profile, rest = _profile_in(args)
        _CURRENT.set(Configuration())
        if not ctx.resilient_parsing and not {"-h", "--help"} & set(rest):  # an invalid file must not hide the help
            chosen = profile or ctx.find_root().params.get("profile")
            configuration = configuration_of(ctx.find_root().command, self, chosen)
            _CURRENT.set(configuration)
            ctx.default_map = configuration.of_options(self, ctx)
        return super().parse_args(ctx, rest)


def option_name(option: TyperOption) -> str:
    """The longest name of an option, without its dashes."""
    return max((name for name in option.opts if name.startswith("--")), key=len).removeprefix("--")


def variable_of(name: str) -> str:
    """The environment variable of an option."""
    return f"PIPELINE_{name.upper().replace('-', '_')}"


def job_defaults(job: Job) -> dict[str, Any]:
    """The values that the file has for those fields that the job leaves at their defaults; none outside a command."""
    configured = current().of_job()
    return {name: value for name, value in configured.items() if getattr(job, name) == default_of(job, name)}


def current() -> Configuration:
    """The configuration of the command that runs; an empty one outside of commands."""
    return _CURRENT.get()


def configuration_of(app: Any, command: Any, profile: str | None) -> Configuration:
    """What the file says of a command. Raises `UsageError` if it is invalid, or has no such profile."""
    found = _table_above(Path.cwd())
    if found is None:
        if profile:
            raise UsageError(f"there is no profile {profile!r}: no {FILE} in this folder or above it has [{TABLE}]")
        return Configuration()
    path, table = found
    sections = _sections(path, table)
    profiles = [place.removeprefix(f"{TABLE}.{PROFILES}.") for place in sections if place != TABLE]
    if profile is not None and profile not in profiles:
        hint = nearest(profile, sorted(profiles)) if profiles else ""
        raise UsageError(f"{path} has no [{TABLE}.{PROFILES}.{profile}]{hint}")
    known = _known_options(app)
    for place, section in sections.items():
        _require_known(path, place, section, known)
    values: dict[str, ConfiguredValue] = {}
    for place in [TABLE] if profile is None else [TABLE, f"{TABLE}.{PROFILES}.{profile}"]:
        of_all = {key: value for key, value in sections[place].items() if not isinstance(value, dict)}
        values |= _values(path, place, of_all, command)
        values |= _values(path, f"{place}.{command.name}", sections[place].get(command.name, {}), command)
    return Configuration(path, profile, values)


def _table_above(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The nearest file that has the table, from a folder upwards, and the table."""
    for place in (folder, *folder.parents):
        path = place / FILE
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if b"pipeline" not in content:  # most files: read no further
            continue
        import tomllib

        try:
            table = tomllib.loads(content.decode("utf-8")).get("tool", {}).get("pipeline")
        except ValueError as error:
            raise UsageError(f"{path} is not TOML: {error}") from None
        if table is not None:
            return path, _table(path, TABLE, table)
    return None


def _sections(path: Path, table: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The table itself and those of the profiles, by their names."""
    profiles = _table(path, f"{TABLE}.{PROFILES}", table.get(PROFILES, {}))
    found: dict[str, Mapping[str, Any]] = {TABLE: {name: value for name, value in table.items() if name != PROFILES}}
    for name, section in profiles.items():
        place = f"{TABLE}.{PROFILES}.{name}"
        found[place] = _table(path, place, section)
    return found


def _require_known(path: Path, place: str, section: Mapping[str, Any], known: Mapping[str, set[str]]) -> None:
    """Raises `UsageError` for an option that no command has, or not the command of its table."""
    everywhere = sorted({name for names in known.values() for name in names})
    for key, value in section.items():
        if not isinstance(value, dict):
            _require_option(path, place, key, everywhere)
        elif key not in known:
            raise UsageError(f"{path}: there is no command {key!r} for [{place}.{key}]{nearest(key, sorted(known))}")
        else:
            for name in value:
                _require_option(path, f"{place}.{key}", name, sorted(known[key]))


def _require_option(path: Path, place: str, key: str, known: Sequence[str]) -> None:
    name = key.replace("_", "-")
    if name in _ONLY_GIVEN:
        raise UsageError(f"{path}: {key} in [{place}]: --{name} is for the command line only")
    if name not in known:
        raise UsageError(f"{path}: [{place}] has no option {key!r}{nearest(key, known)}")


def _values(path: Path, place: str, section: Mapping[str, Any], command: Any) -> dict[str, ConfiguredValue]:
    """The values of a table for a command; those of other commands are left out."""
    options = {option_name(one): one for one in options_of(command)}
    given = {key.replace("_", "-"): (key, value) for key, value in section.items()}
    return {
        name: ConfiguredValue(_checked(path, place, key, value, options[name]), place)
        for name, (key, value) in given.items()
        if name in options
    }


def _checked(path: Path, place: str, key: str, value: Any, option: TyperOption) -> Any:
    """A value as the command line would have it. Raises `UsageError` if it is of another type."""
    is_path = option.metavar in _PATHS
    one = "a text" if is_path else "a text or a number"
    wanted = "true or false" if option.is_flag else "a list of texts" if option.multiple else one
    if option.is_flag:
        fits = isinstance(value, bool)
    elif option.multiple:
        value = [value] if isinstance(value, str) else value
        fits = isinstance(value, list) and all(isinstance(one, str) for one in value)
    else:
        fits = isinstance(value, str if is_path else str | int | float) and not isinstance(value, bool)
    if not fits:
        raise UsageError(f"{path}: {key} in [{place}] is {wanted}, not {value!r}")
    if is_path:
        return [_below(path, one) for one in value] if option.multiple else _below(path, value)
    return value if option.is_flag or option.multiple else str(value)


def _below(path: Path, place: str) -> str:
    """A path of the file, which is relative to it; addresses stay as they are."""
    return place if is_address(place) or place.startswith("file:") else str(path.parent / Path(place).expanduser())


def _known_options(app: Any) -> dict[str, set[str]]:
    """The options of every command, by its name; those of a group of commands together."""
    found = {}
    for name, command in app.commands.items():
        commands = command.commands.values() if hasattr(command, "commands") else [command]
        found[name] = {option_name(one) for each in commands for one in options_of(each)}
    return found


def options_of(command: Any) -> Iterator[TyperOption]:
    """The options of a command."""
    return (one for one in command.params if isinstance(one, TyperOption))


def _profile_in(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of `--profile` behind a command's name, and the other arguments."""
    profile, rest, left = None, [], iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument == "--profile":
            profile = next(left, None)
            if profile is None:
                raise UsageError("--profile takes the name of a profile")
        elif argument.startswith("--profile="):
            profile = argument.removeprefix("--profile=")
        else:
            rest.append(argument)
    return profile, rest


def _table(path: Path, place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: [{place}] is a table, not {value!r}")
    return value


def _listed(variables: str | Sequence[str] | None) -> list[str]:
    return [variables] if isinstance(variables, str) else list(variables or ())


def variables_of(option: TyperOption) -> Iterator[tuple[str, str]]:
    """The variables of an option that are set and not empty, the one that counts first."""
    return ((name, value) for name in _listed(option.envvar) if (value := os.environ.get(name)))


def default_of(job: Job, name: str) -> Any:
    """The default of a field of a job."""
    [field] = [one for one in dataclasses.fields(job) if one.name == name]
    return getattr(field.default, "default", field.default)  # pydantic's own fields hold theirs
