"""The rate that each endpoint last granted, kept for the next start of the run and the next run of the job."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from pipeline.policy import Upstream
from pipeline.storage.durable import FILES, PRIVATE_FILE, FileSystem
from pipeline.storage.run_folder import RATES

_VERSION = 1
_HIGHEST = 1e6
_LARGEST = 100_000
"""Maximum bytes of a file; a larger one is not ours."""


def state_file(job_name: str, model: str | None, endpoints: Sequence[str]) -> Path | None:
    """The file that keeps the rates of a job at these endpoints from one run to the next.

    It is in `user_state`, and None as that is.
    """
    folder = user_state()
    key = orjson.dumps([job_name, model, sorted(endpoints)])
    return folder and folder / "rates" / f"{hashlib.sha256(key).hexdigest()[:32]}.json"


def user_state() -> Path | None:
    """Where we keep what should outlive a run: in `$XDG_STATE_HOME` or `~/.local/state`, as XDG specifies.

    None for a user without a home, as in a container that runs under a number and without `HOME`.
    """
    home = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return folder / "vertex-pipeline"


class GrantedRates:
    """Rates by endpoint name, kept in these files. The first is in the run folder."""

    def __init__(self, run_folder: Path, beyond: Path | None = None, files: FileSystem = FILES) -> None:
        self._own = run_folder / RATES
        self._beyond = beyond
        self._files = files

    def load(self) -> dict[str, float]:
        """The rates saved most recently, from any of the files; empty when no file exists or none is valid."""
        kept = [_read(path) for path in (self._own, self._beyond) if path is not None]
        return max(kept, key=lambda one: one[0])[1]

    def save(self, lanes: Sequence[Upstream]) -> None:
        """Saves the rates the lanes were granted. Raises `OSError` when the disk of the run folder fails."""
        granted = {lane.name: lane.rate.granted for lane in lanes if lane.rate}
        rates = {name: round(rate, 3) for name, rate in granted.items() if rate is not None}
        if not rates:
            return
        content = orjson.dumps({"version": _VERSION, "rates": rates})
        self._files.write_atomic(self._own, content, mode=PRIVATE_FILE)
        if self._beyond is not None:
            with suppress(OSError):  # an unwritable home only costs the next run a second
                self._files.make_private(self._beyond.parent)
                self._files.write_atomic(self._beyond, content, mode=PRIVATE_FILE)


def _read(path: Path) -> tuple[float, dict[str, float]]:
    """The time and the rates of a file; no time (-inf) and no rates unless `save` wrote it."""
    nothing = (-math.inf, dict[str, float]())
    try:
        with path.open("rb") as file:
            content, at = orjson.loads(file.read(_LARGEST)), os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return nothing
    if not isinstance(content, Mapping) or content.get("version") != _VERSION:
        return nothing
    rates = content.get("rates")
    if not isinstance(rates, Mapping):
        return nothing
    return at, {name: rate for name, rate in rates.items() if _is_number(rate) and 0 < rate <= _HIGHEST}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
