"""What a process of its own costs: processor time and peak memory, as the operating system counts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.faults import UsageError


@dataclass(frozen=True, slots=True)
class Cost:
    """One process from its start to its end."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    started: float
    """Unix time."""
    said: str
    """What it wrote to its standard output."""


def cost_of(command: Sequence[str]) -> Cost:
    """Runs a command to its end. Raises `UsageError` with what it said when it fails.

    Modules are compiled as for any user, whatever the environment says: else each start would compile them all.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started, began = time.time(), time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        said = child.stdout.read() if child.stdout else ""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - began
    if child.returncode != 0:
        raise UsageError(f"{' '.join(command)} ended with {child.returncode}: {said[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss / 1024, started, said)


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module of this package."""
    return [sys.executable, "-m", f"tests.benchmarks.{name}", *map(str, arguments)]
