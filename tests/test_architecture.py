"""The shape of the package: imports go down the list of its rooms, never up, and nothing heavy is loaded too early.

The order is the map in docs/architecture.md. No import is exempt, and none inside a function.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import pipeline
from pipeline.storage import run_folder

ROOT = Path(pipeline.__file__).parent

VALUES = ["text", "faults", "data", "totals"]
PACKAGES = [
    "store",
    "pace",
    "schema",
    "source",
    "endpoint",
    "job",
    "policy",
    "storage",
    "execution",
    "export",
    "evaluation",
    "report",
    "cli",
]
ORDER = [*VALUES, *PACKAGES, "__main__"]
"""From the bottom to the top: each may import those before it."""

NETWORK = {"openai", "aiohttp", "anyio", "httpx2", "google", "requests", "tenacity"}
ENDPOINT_AT_WORK = {
    "api",
    "auth",
    "client",
    "connection",
    "connection_errors",
    "credentials",
    "network",
    "object_lines",
    "openai_backend",
    "public_client",
    "sdk",
    "selection",
    "store_access",
    "token_source",
    "transport",
    "vertex_backend",
}
"""The modules of `endpoint` that send, or wait; the others say what messages mean."""

HEAVY = {"openai", "pyarrow", "aiohttp", "scipy", "numpy", "pandas", "pydantic", "httpx2", "google", "jinja2", "anyio"}


@dataclass(frozen=True)
class Import:
    """One import statement: which module imports which, and whether only when a function is called."""

    source: str
    target: str
    lazy: bool

    @property
    def foreign(self) -> bool:
        return self.target.partition(".")[0] != "pipeline"


def part_of(module: str) -> str:
    """The module or folder directly inside the package that a module belongs to; the package itself is ""."""
    return module.removeprefix("pipeline").removeprefix(".").partition(".")[0]


def modules() -> dict[str, Path]:
    """Every module of the package, by its name."""
    paths = sorted(ROOT.rglob("*.py"))
    names = [".".join(("pipeline", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


@cache
def imports() -> tuple[Import, ...]:
    """Every import in the package."""
    known = modules()
    return tuple(
        Import(name, target, lazy)
        for name, path in known.items()
        for target, lazy in imports_of(path.read_text(), name, frozenset(known), package=path.stem == "__init__")
    )


def imports_of(source: str, module: str, known: frozenset[str], *, package: bool = False) -> Iterator[tuple[str, bool]]:
    """What a module's source imports, and whether only inside of a function.

    `from pipeline import x` is an import of the module `pipeline.x` when there is one, and of `pipeline` otherwise.
    """
    tree = ast.parse(source)
    lazily = {id(inner) for node in ast.walk(tree) if _is_function(node) for inner in ast.walk(node)}
    here = module if package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        lazy = id(node) in lazily
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), here)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield (inner if inner in known else origin), lazy


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def between_parts() -> set[tuple[str, str]]:
    """Which part of the package imports which other; importing the package itself is free, for it loads nothing."""
    found = {(part_of(step.source), part_of(step.target)) for step in imports() if not step.foreign}
    return {(source, target) for source, target in found if source and target and source != target}


def foreign(*parts: str) -> dict[str, set[str]]:
    """The foreign packages that parts of the package import, with the parts that do."""
    found: dict[str, set[str]] = {}
    for step in imports():
        if step.foreign and part_of(step.source) in parts:
            found.setdefault(step.target.partition(".")[0], set()).add(part_of(step.source))
    return {name: who for name, who in found.items() if name not in sys.stdlib_module_names}


def meaning() -> set[str]:
    """The modules that say what jobs, schemas and messages mean, and do nothing."""
    found = {name for name in modules() if part_of(name) in {"schema", "job"}}
    endpoint = {name for name in modules() if part_of(name) == "endpoint"}
    return found | {name for name in endpoint if name.rpartition(".")[2] not in ENDPOINT_AT_WORK}


def foreign_of(names: set[str], *, eager: bool = False) -> set[str]:
    """The foreign packages that these modules import."""
    steps = (step for step in imports() if step.foreign and step.source in names and not (eager and step.lazy))
    return {step.target.partition(".")[0] for step in steps} - set(sys.stdlib_module_names)


# The order.


def test_every_room_has_its_place() -> None:
    """A new package is put into the order here, and the order says what it may import."""
    assert {part_of(name) for name in modules()} - {"", "emulator"} == set(ORDER)


def test_no_import_points_up() -> None:
    """Not inside of functions either."""
    inside = ((source, target) for source, target in between_parts() if "emulator" not in (source, target))
    assert {(source, target) for source, target in inside if ORDER.index(target) > ORDER.index(source)} == set()


def test_the_emulator_stands_alone_and_one_module_below_the_command_line_knows_it() -> None:
    assert {target for source, target in between_parts() if source == "emulator"} == set()
    known_to = {step.source for step in imports() if step.target.startswith("pipeline.emulator")}
    below = {name for name in known_to if part_of(name) not in {"emulator", "cli"}}
    assert below == {"pipeline.execution.emulation"}


def test_the_engine_takes_nothing_from_the_policies_but_the_shutdown() -> None:
    taken = {step.target for step in imports() if step.source == "pipeline.execution.engine" and not step.foreign}
    assert taken == {"pipeline.data", "pipeline.faults", "pipeline.policy.shutdown"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither when they are loaded nor when functions are called."""
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for step in imports():
        if not step.foreign and step.target != "pipeline":
            graph[step.source].add(step.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


# The map in docs/architecture.md.


@cache
def pages() -> str:
    return (ROOT.parent / "docs" / "architecture.md").read_text()


def named_modules(text: str) -> list[Path]:
    """The modules that a text names in backticks, with or without suffix, by their path below the package."""
    names = (name.removesuffix(".py") for name in re.findall(r"`([a-z_/]+(?:\.py)?)`", text))
    return [path for name in names if (path := ROOT / f"{name}.py").is_file()]


def test_every_module_and_folder_that_the_map_names_exists() -> None:
    paths = re.findall(r"`([a-z_]+/[a-z_/]*(?:\.(?:py|md))?)`", pages())
    assert len(paths) > 20
    for path in paths:
        below = [ROOT / path, ROOT / f"{path}.py", ROOT.parent / path]
        assert any(one.exists() for one in below), f"docs/architecture.md names {path}"


def test_the_core_is_read_in_an_hour() -> None:
    """The reading path that the map names has under 3,000 lines, in nine modules or more."""
    path = named_modules(pages().partition("To read the core")[2].partition("\n\n")[0])
    assert len(path) >= 9
    assert sum(len(module.read_text().splitlines()) for module in path) < 3000


# What comes from outside.


def test_the_values_are_made_of_the_standard_library() -> None:
    assert foreign(*VALUES, "pace") == {}


def test_one_module_knows_the_client_of_object_stores_and_loads_it_late() -> None:
    client = {step.source for step in imports() if step.target.partition(".")[0] == "obstore"}
    assert client == {"pipeline.store.object_store"}
    assert "obstore" not in foreign_of(client, eager=True)
    assert foreign("store") == {"obstore": {"store"}}


def test_meaning_is_pure_and_knows_no_network_and_no_event_loop() -> None:
    assert not NETWORK & foreign_of(meaning())


def test_meaning_loads_pyarrow_only_where_a_type_is_asked_for() -> None:
    graders = {name for name in modules() if name.startswith("pipeline.evaluation.graders")}
    assert "pyarrow" not in foreign_of(meaning() | graders, eager=True)


def test_the_engine_knows_only_the_event_loop() -> None:
    assert foreign_of({"pipeline.execution.engine"}) == {"anyio"}


def test_the_sdk_is_known_in_one_place() -> None:
    assert foreign(*ORDER)["openai"] == {"endpoint"}


# What is loaded when.


def loaded(code: str) -> set[str]:
    """The modules that a new interpreter has loaded after this code, whatever the code printed."""
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(done.stdout.rpartition("LOADED ")[2].split())


def loaded_by_command(arguments: list[str]) -> set[str]:
    """The modules that the command line has loaded after these arguments."""
    found = loaded(f"sys.argv = {['pipeline', *arguments]!r}; from pipeline.cli import main; main()")
    assert "pipeline.cli" in found
    return found


def test_importing_the_package_loads_nothing_heavy() -> None:
    modules_loaded = loaded("import pipeline")
    assert "pipeline" in modules_loaded
    assert not HEAVY & modules_loaded
    assert not [name for name in modules_loaded if name.startswith("pipeline.")]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """Nor rich, whose panels are for terminals: loading it takes as long as all the rest."""
    assert not (HEAVY | {"rich", "typer.rich_utils"}) & loaded_by_command(arguments)


@pytest.mark.parametrize("command", ["run", "plan", "status", "show", "export", "report", "reparse", "emulate"])
def test_the_help_of_a_command_loads_nothing_heavy_of_ours(command: str) -> None:
    """Typer itself takes pydantic for commands that have options."""
    assert not (HEAVY - {"pydantic"}) & loaded_by_command([command, "--help"])


def test_a_job_file_loads_neither_the_sdk_nor_arrow() -> None:
    modules_loaded = loaded("from pipeline import Job; Job(name='a', user='{{ text }}')")
    assert "pipeline.job.job" in modules_loaded
    assert not {"openai", "pyarrow", "aiohttp", "scipy", "numpy", "anyio"} & modules_loaded


def test_what_the_package_offers_is_there() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Jop'"):
        pipeline.Jop  # type: ignore[attr-defined] # noqa: B018 - reading it is what fails


def test_type_checkers_are_told_what_the_package_offers() -> None:
    """The stub beside `__init__.py`, which is not executed: each name comes from the module that defines it."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    told = {
        alias.asname: (node.module, alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: (getattr(pipeline, name).__module__, name) for name in pipeline.__all__}
    assert ast.unparse(stub.body[-1]) == f"__all__ = {pipeline.__all__!r}"


# The reader of imports itself.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pipeline.faults", [("pipeline.faults", False)]),
        ("from pipeline.faults import Fault", [("pipeline.faults", False)]),
        ("from pipeline import faults, __version__", [("pipeline.faults", False), ("pipeline", False)]),
        ("from . import faults", [("pipeline.faults", False)]),
        ("from .faults import Fault", [("pipeline.faults", False)]),
        ("def f():\n    from pipeline import faults", [("pipeline.faults", True)]),
        ("async def f():\n    import anyio", [("anyio", True)]),
        ("class A:\n    def f(self):\n        import anyio.abc as abc", [("anyio.abc", True)]),
        ("if TYPE_CHECKING:\n    import pyarrow", [("pyarrow", False)]),
        ("try:\n    import orjson\nexcept ImportError:\n    pass", [("orjson", False)]),
    ],
)
def test_every_form_of_import_is_seen(source: str, found: list[tuple[str, bool]]) -> None:
    known = frozenset({"pipeline", "pipeline.faults", "pipeline.data"})
    assert list(imports_of(source, "pipeline.data", known)) == found


@pytest.mark.parametrize(
    ("module", "part"), [("pipeline", ""), ("pipeline.faults", "faults"), ("pipeline.cli.a", "cli")]
)
def test_the_part_of_a_module_is_what_lies_directly_in_the_package(module: str, part: str) -> None:
    assert part_of(module) == part


WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}
TELLS_THE_TIME = {
    "endpoint.auth": 3,  # whether the clock was set meanwhile, and how much of a token's life is left when it comes
    "storage.reply_cache.admin": 1,
    "storage.reply_cache.store": 2,
    "cli.progress": 1,  # when a line of a log was written
    "cli.survey_progress": 1,  # when a line of a log was written
    "cli.status": 1,  # how long ago a job reported
    "cli.streams": 1,  # when a line of a log was written
    "report.summary": 1,  # when an evaluation ended
    "endpoint.client": 1,  # when an answer had come
    "execution.run": 1,  # when a start began and ended
    "execution.batch.stage": 1,  # when a job was submitted, whose time to wait may end in a later start
    "storage.run_folder": 1,
    "storage.remote.lease": 1,  # when a start took the lease, for people
    "storage.remote.shards": 1,  # whether a shard shows signs of life, for people
    "report.facts": 1,  # when the folder was read
    "execution.monitor": 3,  # when a start began, what happened in a second, when limits were changed
    "store.object_store": 1,  # until when obstore may keep a token, which it compares with the wall clock
    "endpoint.error_body": 1,  # a date to wait for, from a server that does not say what time it has
}


def test_p9_nothing_is_timed_by_the_wall_clock() -> None:
    """Whatever reads it notes when something was, and is listed here."""
    found: dict[str, int] = {}
    for module, path in modules().items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        reads = sum(ast.unparse(node) in WALL_CLOCK for node in nodes)
        if reads and part_of(module) != "emulator":
            found[module.removeprefix("pipeline.")] = reads
    assert found == TELLS_THE_TIME


def test_the_names_in_a_run_folder_are_written_in_one_place() -> None:
    """Whoever needs one imports it from `storage.run_folder`."""
    own = vars(run_folder)
    names = {own[name] for name in own if name.isupper() and isinstance(own[name], str) and own[name][0] == "_"}
    names |= {run_folder.PLAN, run_folder.JOURNAL, run_folder.EVENTS, run_folder.STATE, run_folder.TUNE}
    found = {
        (module.removeprefix("pipeline."), node.value)
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    }
    # An input folder may be the output of a run; `source` is below `storage`.
    beyond = {("source.discovery", run_folder.MANIFEST)}
    told_by = (run_folder.MANIFEST, run_folder.SUCCESS, run_folder.RUN, run_folder.PLAN)
    beyond |= {("source.run_parts", name) for name in told_by}
    assert {(module, name) for module, name in found if module != "storage.run_folder"} == beyond
