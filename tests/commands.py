"""The command line as a user calls it: in this process where that is enough, and in one of its own where it is not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.data import PARTS

ROOT = Path(__file__).parents[1]

JOB = """
from pydantic import BaseModel

from pipeline import Job


class Record(BaseModel):
    answer: str


job = Job(
    name="a_job",
    model="google/gemini-test",
    input="rows.jsonl",
    user="Say {{ text }}",
    schema=Record,
    keep=["id", "text"],
)
"""

CHUNK = 1000
"""Rows of a chunk, when they are heavy."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one line on stdout."""
        (line,) = self.out.splitlines()
        return dict(json.loads(line))


@dataclass(frozen=True)
class Shell:
    """A working directory, and an environment in which no credentials are found unless it is told of some."""

    folder: Path
    variables: Mapping[str, str]

    @property
    def environment(self) -> dict[str, str]:
        own = {"HOME": str(self.folder), "CLOUDSDK_CONFIG": str(self.folder), "NO_GCE_CHECK": "true"}
        ours = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_PROXY": "127.0.0.1"}
        return {**ours, **own, **self.variables}

    def pipeline(self, *arguments: str) -> Done:
        """Calls `pipeline ARGUMENTS` in this process."""
        out, err, environment = io.StringIO(), io.StringIO(), self.environment
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["pipeline", *arguments])
            patch.setattr(sys, "path", list(sys.path))
            patch.chdir(self.folder)
            for name in list(os.environ):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        assert isinstance(code, int)
        return Done(code, out.getvalue(), err.getvalue())

    @contextmanager
    def started(self, *arguments: str, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
        """`pipeline ARGUMENTS` in a process of its own; killed at the end of the block if it still lives."""
        command = [*prefix, sys.executable, "-m", "pipeline", *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe
        ) as child:
            try:
                yield child
            finally:
                child.kill()

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def rows(self, count: int, name: str = "rows.jsonl", *, heavy: bool = False) -> Path:
        """An input of so many rows: row 7 says "text 7". Heavy ones fill a chunk by the thousand."""
        rest = {"rest": "x" * 17_000} if heavy else {}
        return self.write(
            name, "".join(json.dumps({"id": n, "text": f"text {n}", **rest}) + "\n" for n in range(count))
        )

    def output(self, folder: str = "out/a_job") -> list[dict[str, Any]]:
        """The rows of a dataset, in order."""
        parts = sorted((self.folder / folder / PARTS).glob("part-*.parquet"))
        return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]

    def manifest(self, folder: str = "out/a_job") -> dict[str, Any]:
        return dict(json.loads((self.folder / folder / "_manifest.json").read_bytes()))


def ended(child: subprocess.Popen[str], *, within_s: float = 60.0) -> Done:
    """How it ended, once it has."""
    out, err = child.communicate(timeout=within_s)
    return Done(child.returncode, out, err)
