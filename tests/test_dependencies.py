"""What the package imports is what it says it needs: nothing that is there by the kindness of another package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

EXTRAS = {
    "pipeline/evaluation/": "eval",
    "pipeline/store/object_store.py": "cloud",
    "pipeline/execution/result.py": "frames",
    "pipeline/report/otel.py": "otel",
    "pipeline/execution/ray_engine.py": "ray",
}
"""Folders and modules whose packages of other makers come with an extra."""

BY_NAME = {"uvloop", "tzdata"}
"""Those that are never imported by a statement: anyio loads the first by its name, and zoneinfo the second."""


def imported_in(path: Path) -> Iterator[str]:
    """The packages at the top that are imported anywhere in a file, functions included."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


BROUGHT = packages_distributions()


def distributions_of(package: str) -> set[str]:
    """What brings a package: `google` is brought by several."""
    return {named(name) for name in BROUGHT.get(package, [package])}


def named(text: str) -> str:
    """The name that a requirement begins with, as indexes spell it."""
    name = re.match(r"[\w.-]+", text)
    assert name is not None, text
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(extra: str | None = None) -> set[str]:
    wanted = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else [])]
    return {named(text) for text in wanted}


def undeclared(path: Path) -> set[str]:
    inside = path.relative_to(ROOT).as_posix()
    extra = next((extra for folder, extra in EXTRAS.items() if inside.startswith(folder)), None)
    theirs = set(imported_in(path)) - sys.stdlib_module_names - {"pipeline", "_typeshed"}
    return {package for package in theirs if not distributions_of(package) & declared(extra)}


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.name)
def test_every_package_that_is_imported_is_declared(path: Path) -> None:
    assert undeclared(path) == set()


def test_every_package_that_is_declared_is_imported() -> None:
    used = {
        name
        for path in (ROOT / "pipeline").rglob("*.py")
        for package in imported_in(path)
        for name in distributions_of(package)
    }
    every = declared().union(*(declared(extra) for extra in PROJECT["optional-dependencies"]))
    assert every - used == BY_NAME


def test_the_sdk_has_an_upper_bound_for_its_hooks_are_private() -> None:
    (openai,) = [text for text in PROJECT["dependencies"] if named(text) == "openai"]
    assert "<" in openai
