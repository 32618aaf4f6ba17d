"""The matrix of faults (`tests/faults.md`), and which of its lines are proven by the tests that carry their numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
LIST = TESTS / "faults.md"

_LINE = re.compile(r"^\| ([A-Z]\d+[a-z]?) \|", re.MULTILINE)
_NUMBERS = re.compile(r"test_((?:[a-z]\d+[a-z]?_)+)")


def lines_in(text: str) -> list[str]:
    """The numbers of the matrix's lines, in order."""
    return _LINE.findall(text)


def numbers_in(name: str) -> list[str]:
    """The lines that a test proves, by its name: `test_h7_h8_any_json...` proves H7 and H8."""
    found = _NUMBERS.match(name)
    return [number[:1].upper() + number[1:] for number in found.group(1).split("_")[:-1]] if found else []


@cache
def proofs_in(folder: Path) -> dict[str, set[str]]:
    """The tests that carry each number: `file::function`, as far as pytest would collect them."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for name in _functions(path.read_text(encoding="utf-8")):
            for number in numbers_in(name):
                found.setdefault(number, set()).add(f"{path.name}::{name}")
    return found


def _functions(source: str) -> Iterator[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def proof_of(nodeid: str) -> str:
    """`file::function` of a test as pytest calls it, without its folder and parameters."""
    path, _, name = nodeid.partition("::")
    return f"{Path(path).name}::{name.partition('[')[0]}"


def unproven(tests: Mapping[str, Iterable[str]], ended: Mapping[str, set[str]]) -> list[str]:
    """The lines of which every test was run (`ended` has its outcomes), and not one passed."""
    return [
        number
        for number, names in tests.items()
        if all(name in ended for name in names) and not any("passed" in ended[name] for name in names)
    ]
