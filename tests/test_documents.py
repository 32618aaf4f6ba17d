"""The documents keep up with the code: their commands run as printed, their tables say what the code says.

A block marked `console` is run: its lines that begin with `$ ` are commands, the others what they print; no other
block may show a command with a `$ `. Blocks with a file name (```` ```python mood.py ````) are files that the commands
of their page may use. A printed line must come as it is, but for what differs from one time or machine to the next:
seconds, rates, temporary folders. A line of three dots stands for lines left out; one with three dots in it is compared
by its words. What stands under a table's rule is what the emulator made up, and is not compared.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import pipeline.schema.from_json_schema
import pipeline.schema.from_pydantic
from pipeline import faults
from pipeline.cli import app
from pipeline.cli.known_words import RENAMED_OPTIONS
from pipeline.emulator import BATCH_FAULTS, BUCKET_FAULTS, FAULT_KINDS
from pipeline.execution.exit_codes import CODES
from pipeline.execution.finish import Summary
from pipeline.job.columns import OURS
from pipeline.job.job import Job
from pipeline.storage.journal_reader import read_state
from pipeline.storage.output_columns import ERROR, RESPONSE
from pipeline.storage.run_folder import JOURNAL
from pipeline.totals.ledger import NOTHING

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "data" / "README.md"]
PATIENCE_S = 120
READER_WORDS_A_MINUTE = 250
READY = ".ready"
"""Newer than what `make` would install from."""

_FENCE = re.compile(r"^```(\w*) *(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{3,}")
_PASSING = (
    (re.compile(r"(seconds +)[\d.]+"), r"\1#"),
    (re.compile(r"[\d.]+(?= rows/s)"), "#"),
    (re.compile(r"(?<=127\.0\.0\.1:)\d+"), "#"),
    (re.compile(r"(?<=/tmp/)[\w./-]+"), "#"),
    (re.compile(r"^/\S*/\.venv/bin/"), ""),
)
"""What differs from one time, or one machine, to the next."""

_SERVING = "Stop with Ctrl-C."
_KILLED = re.compile(r'timeout -s KILL \d+ (?P<command>pipeline run .* -o (?P<output>\S+)) \|\| echo "exit \$\?"')
"""A run that is killed in the middle, and the shell's word for it."""

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_OTHER_PROGRAM = re.compile(r"^ *(?:gcloud|docker|kubectl|pip|sbatch|RUN|COPY) (?:.*\\\n)*.*$", re.MULTILINE)
"""A command of another program, with the lines that continue it: its options are its own."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `name` is the file that it is, if it is one."""

    language: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what it is said to print."""

    line: str
    printed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """The part of a page below a heading, with the files of the whole page."""

    page: str
    title: str
    commands: tuple[Command, ...]
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.page}: {self.title}"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command really did."""

    code: int
    output: str


def blocks_of(text: str) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(text)]


def commands_of(text: str) -> list[Command]:
    commands: list[Command] = []
    for block in blocks_of(text):
        if block.language != "console":
            continue
        for lines in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, *printed = lines.rstrip("\n").split("\n")
            commands.append(Command(line, tuple(printed)))
    return commands


def sections_of(path: Path) -> Iterator[Section]:
    text = path.read_text("utf-8")
    files = {block.name: block.text for block in blocks_of(text) if block.name}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        commands = tuple(commands_of(part))
        if commands:
            yield Section(path.name, part.partition("\n")[0], commands, files)


SECTIONS = [section for page in PAGES for section in sections_of(page)]


def run_section(section: Section, folder: Path) -> list[Ran]:
    """Runs the section's commands one after the other, in a folder of its own that has the jobs and the sample data."""
    for name in ("jobs", "data", "Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / READY).touch()
    for name, content in section.files.items():
        (folder / name).write_text(content, "utf-8")
    return [run_command(command.line, folder) for command in section.commands]


def run_command(line: str, folder: Path) -> Ran:
    if line.startswith("pipeline emulate "):
        return served(line, folder)
    if killed := _KILLED.fullmatch(line):
        return killed_midway(killed["command"], folder / killed["output"])
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout)


def served(line: str, folder: Path) -> Ran:
    """A server, on a port that is free, until it says that it is up; then it is stopped as a user stops it."""
    free = re.sub(r"--port \d+", "--port 0", line)
    with subprocess.Popen(
        ["sh", "-c", f"exec {free}"], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        lines: list[str] = []
        for said in child.stdout:
            lines.append(said)
            if said.strip() == _SERVING:
                break
        child.send_signal(signal.SIGINT)
        return Ran(child.wait(PATIENCE_S), "".join(lines))


def killed_midway(command: str, output: Path) -> Ran:
    """A run that is killed once it has recorded a row, however long its start takes, instead of after some seconds."""
    journal = output / "_run" / JOURNAL
    until = time.monotonic() + PATIENCE_S
    with subprocess.Popen(
        ["sh", "-c", f"exec {command}"], cwd=output.parents[1], env=environment(), stderr=subprocess.PIPE, text=True
    ) as child:
        while child.poll() is None and time.monotonic() < until and not any(read_state(journal)):
            time.sleep(0.05)
        child.kill()
        _, told = child.communicate()
    return Ran(0, f"{told}exit {128 - child.returncode}\n")


def environment() -> dict[str, str]:
    """Ours, with this interpreter's commands, this checkout's code, and nobody's settings; nothing is to be set up."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE_", "OPENAI_"))}
    commands = str(Path(sys.executable).parent)
    path = os.pathsep.join([commands, ours.get("PATH", "")])
    make = f" -- BIN={commands} READY={READY}"
    return {**ours, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "MAKEFLAGS": make}


def compared(printed: Sequence[str]) -> Iterator[str]:
    """The printed lines that are compared."""
    made_up = False
    for line in printed:
        made_up = ("─" in line or made_up) and bool(line.strip())
        if not made_up and line.strip() not in ("", "..."):
            yield line


def unprinted(command: Command, output: str) -> list[str]:
    """What the document says that the command prints, and it did not."""
    words, lines = set(_WORD.findall(output)), set(map(lasting, output.splitlines()))
    missing = []
    for line in compared(command.printed):
        if "..." in line:
            missing += [word for word in _WORD.findall(line) if word not in words]
        elif lasting(line) not in lines:
            missing.append(line)
    return missing


def lasting(line: str) -> str:
    """A line without what differs from one time to the next."""
    for passing, instead in _PASSING:
        line = passing.sub(instead, line)
    return " ".join(line.split())


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_commands_run_as_printed(section: Section, tmp_path: Path) -> None:
    for command, ran in zip(section.commands, run_section(section, tmp_path), strict=True):
        assert ran.code == 0, f"$ {command.line}\n{ran.output}"
        assert not unprinted(command, ran.output), f"$ {command.line}\n{ran.output}"


def test_a_changed_output_is_noticed() -> None:
    command = Command("x", ("rows     3: 3 ok, 0 failed, 0 left", "...", " id   name", " ─────", " 1    Anything", ""))
    assert not unprinted(command, "rows     3: 3 ok, 0 failed, 0 left\n id   name\n")
    assert unprinted(command, "rows     3: 2 ok, 1 failed, 0 left\n id   name\n")
    assert unprinted(command, "rows     3: 3 ok, 0 failed, 0 left\n id   title\n")
    figures = Command("x", ("tokens   5 in, 2 out", "seconds  1.3", "report  /tmp/a/b.html"))
    assert not unprinted(figures, "tokens   5 in, 2 out\nseconds  12.0\nreport  /tmp/c.html\n")
    assert unprinted(figures, "tokens   6 in, 2 out\nseconds  1.3\nreport  /tmp/a/b.html\n")


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_no_command_is_shown_that_is_not_run(page: Path) -> None:
    """A `$ ` at the beginning of a line marks a command in `console` blocks only, and those are run."""
    for block in blocks_of(page.read_text("utf-8")):
        if block.language != "console" or page not in PAGES:
            assert not re.search(r"^\$ ", block.text, flags=re.MULTILINE), block.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_to_type_plans_as_printed(page: Path, tmp_path: Path) -> None:
    """Runs that need an account cannot be run here; their job, their files and their options are looked at offline."""
    blocks = [each.text for each in blocks_of(page.read_text("utf-8")) if each.language == "sh" and not each.name]
    lines = [line for text in blocks for line in text.splitlines() if line.startswith("pipeline run ")]
    for name in ("jobs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in blocks_of(page.read_text("utf-8")):
        if block.name:
            (tmp_path / block.name).write_text(block.text, "utf-8")
    known = options_of("plan")
    for line in lines:
        told = shlex.split(line.removeprefix("pipeline run "))
        kept = [word for place, word in enumerate(told) if _belongs(word, told[place - 1] if place else "", known)]
        done = run_command(shlex.join(["pipeline", "plan", *kept]), tmp_path)
        assert done.code == 0, done.output


def _belongs(word: str, before: str, known: set[str]) -> bool:
    """Whether a word of `run` is one of `plan`, too: every option of such lines takes a value."""
    return word in known if word.startswith("-") else not before.startswith("-") or before in known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_documents_compiles(page: Path) -> None:
    for block in blocks_of(page.read_text("utf-8")):
        if block.language == "python":
            compile(block.text, block.name or page.name, "exec")


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def tables_in(text: str) -> list[list[list[str]]]:
    """Every table outside of fenced blocks, as rows of cells, without its head."""
    bare = _FENCE.sub("", text)
    tables = re.findall(r"(?:^\|.*\n)+", bare, flags=re.MULTILINE)
    return [[cells_of(line) for line in table.splitlines()[2:]] for table in tables]


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def tables_under(text: str, heading: str) -> list[list[list[str]]]:
    """The tables between a heading and the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    rest = text.partition(f"{heading}\n")[2]
    assert rest, f"no heading {heading!r}"
    return tables_in(re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0])


def code_of(cell: str) -> str:
    """The first piece of code in a cell."""
    found = re.search(r"`([^`]+)`", cell)
    assert found, f"no code in {cell!r}"
    return found.group(1)


@pytest.mark.parametrize(
    "module", [pipeline.schema.from_pydantic, pipeline.schema.from_json_schema], ids=lambda module: module.__name__
)
def test_the_tables_of_types_are_those_of_the_code(module: Any) -> None:
    table = "\n".join(line for line in module.__doc__.splitlines() if line.startswith("|"))
    assert f"\n\n{table}\n\n" in text_of("docs/jobs.md")


def test_every_field_of_a_job_is_explained_with_its_default() -> None:
    rows = [row for table in tables_under(text_of("docs/jobs.md"), "## Fields") for row in table]
    explained = {code_of(field): default for field, default, meaning in rows if meaning}
    assert explained == {field.name: shown_default(field) for field in dataclasses.fields(Job)}
    assert len(rows) == len(explained)


def shown_default(field: dataclasses.Field[Any]) -> str:
    default = field.default
    default = getattr(default, "default", default) if getattr(default, "default_factory", None) is None else {}
    if field.name == "name":
        return "required"
    return "" if default is None else f"`{default!r}`"


def test_the_output_columns_are_those_of_the_code() -> None:
    of_readme = tables_under(text_of("README.md"), "## What comes out")[0]
    of_page = tables_under(text_of("docs/output.md"), "## Columns")
    assert of_readme == of_page[0]
    assert tuple(code_of(name) for name, _, _ in of_readme) == OURS
    for table, struct in zip(of_page[1:3], (RESPONSE, ERROR), strict=True):
        assert [(code_of(name), kind) for name, kind, _ in table] == [(field.name, str(field.type)) for field in struct]


def test_every_fault_that_a_row_may_end_in_is_explained() -> None:
    explained = {code_of(name) for name, _ in tables_under(text_of("docs/output.md"), "## Columns")[3]}
    assert explained == {kind.__name__ for kind in faults.Permanent.__subclasses__()} | {faults.Unavailable.__name__}


def test_the_exit_codes_are_those_of_the_code() -> None:
    of_readme = tables_under(text_of("README.md"), "## Commands")[1]
    assert of_readme == tables_under(text_of("docs/running.md"), "## Exit codes")[0]
    codes = {int(code) for code, _ in of_readme}
    told = {int(code) for code in re.findall(r"\b(\d{1,3})\b", app.info.epilog or "")}
    assert codes == told | {1}
    assert {code for _, code in CODES} <= codes


COMMANDS: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined] # a group has them


@pytest.mark.parametrize("page", ["README.md", "docs/running.md"])
def test_every_command_is_listed(page: str) -> None:
    listed = [code_of(row[0]).split()[1] for row in tables_under(text_of(page), "## Commands")[0]]
    assert listed == list(COMMANDS)


def options_of(command: str) -> set[str]:
    """The options of a command, or of all commands of a group."""
    inner = getattr(COMMANDS[command], "commands", {}).values()
    params = [param for each in (COMMANDS[command], *inner) for param in each.params]
    shown = [each for each in params if each.param_type_name == "option" and not each.hidden]
    return {name for each in shown for name in (*each.opts, *each.secondary_opts)} - {"--help", "-h"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    page = "docs/emulator.md" if command == "emulate" else "docs/running.md"
    rows = [row for table in tables_under(text_of(page), f"### pipeline {command}") for row in table]
    told = {name for row in rows for name in re.findall(r"`(--?[a-z][a-z-]*)`", row[0])}
    if any(row[0].startswith("all of `run`") for row in rows):
        told = (told | options_of("run")) - (told & options_of("run"))  # but for those that the row names
    assert told == options_of(command)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_every_option_that_is_mentioned_exists(page: Path) -> None:
    known = {"--help", "--version", "--profile"}.union(*map(options_of, COMMANDS))
    known |= set(RENAMED_OPTIONS) if page.name == "CHANGELOG.md" else set()
    assert set(_OPTION.findall(_OTHER_PROGRAM.sub("", page.read_text("utf-8")))) <= known


def test_the_fields_of_the_json_result_are_those_of_the_code() -> None:
    tables = tables_under(text_of("docs/running.md"), "## What goes where")[:2]
    explained = [code_of(name) for table in tables for name, _ in table]
    fields = {field.name for field in dataclasses.fields(Summary)} - {"run"}
    assert sorted(explained) == sorted({*fields, *NOTHING.figures("run_"), "run_lost_calls", "exit_code", "left"})


def test_every_kind_of_fault_that_the_emulator_knows_is_listed() -> None:
    listed = {code_of(kind): meaning for kind, meaning in tables_under(text_of("docs/emulator.md"), "## Faults")[0]}
    assert listed == dict(FAULT_KINDS)


def test_every_kind_of_bucket_fault_is_listed() -> None:
    listed = {code_of(kind): meaning for kind, meaning in tables_under(text_of("docs/emulator.md"), "## Buckets")[1]}
    assert listed == dict(BUCKET_FAULTS)


def test_every_kind_of_batch_fault_is_listed() -> None:
    tables = tables_under(text_of("docs/emulator.md"), "## Batch prediction")
    assert {code_of(kind): meaning for kind, meaning in tables[1]} == dict(BATCH_FAULTS)


def test_every_job_is_listed_and_shown() -> None:
    jobs = {f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("eval_")}
    assert {code_of(job) for job, _ in tables_under(text_of("README.md"), "## What a job can do")[0]} == jobs
    assert set(re.findall(r"^\$ pipeline run (jobs/\S+)", text_of("docs/capabilities.md"), flags=re.MULTILINE)) == jobs


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", _FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page if not name else page.parent / name
        assert path.exists(), target
        assert not anchor or anchor in anchors_in(path), target


def anchors_in(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", path.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """A new page is one line under `nav` in mkdocs.yml."""
    named = re.findall(r"^ +- .+: (\S+\.md)$", text_of("mkdocs.yml"), flags=re.MULTILINE)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.name != "README.md"}
    assert pages <= set(named)
    assert len(named) == len(set(named))


def messages_in(path: Path) -> Iterator[str]:
    """Every text of a module, with three dots for the values in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    messages = {text for path in (ROOT / "pipeline").rglob("*.py") for text in messages_in(path)}
    quoted = re.findall(r"^### (.+)$", text_of("docs/troubleshooting.md"), flags=re.MULTILINE)
    patterns = {each: re.compile(".*".join(map(re.escape, each.split("…"))), re.DOTALL) for each in quoted}
    assert len(quoted) > 20
    assert [each for each, pattern in patterns.items() if not any(map(pattern.search, messages))] == []


def test_the_readme_is_read_in_ten_minutes() -> None:
    prose = _FENCE.sub("", text_of("README.md"))
    assert len(re.findall(r"\w+", prose)) < 10 * READER_WORDS_A_MINUTE


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert tomllib.loads(text_of("pyproject.toml"))["project"]["license"] == "Apache-2.0"
    assert text_of("LICENSE").split()[:4] == ["Apache", "License", "Version", "2.0,"]


def test_the_changelog_begins_with_what_is_not_released() -> None:
    assert re.findall(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), flags=re.MULTILINE)[0] == "Unreleased"
