"""The emulator stands in for each location that is named, and for `global` where none is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import JOB, Shell


@pytest.mark.parametrize(
    ("options", "locations"),
    [
        (("--location", "us-central1", "--location", "europe-west4"), {"us-central1", "europe-west4"}),
        (("--location", "eu", "--processes", "2"), {"eu"}),
        ((), {"global"}),
    ],
)
def test_locations_are_asked_in_the_emulator_too(options: tuple[str, ...], locations: set[str], tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(60)
    done = shell.pipeline("run", "job.py", "--emulate", "--quiet", "--json", "--latency", "0.05", "-c", "8", *options)
    assert done.code == 0, done
    assert {row["response"]["location"] for row in shell.output()} == locations
