"""How far a run is, from its output folder: the one place that decides on its status.

Read beside a run that may be at work, also one with several processes. Nothing is locked and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import orjson

from pipeline.data import Part
from pipeline.execution.monitor import state_of
from pipeline.failures import Failures
from pipeline.faults import UsageError
from pipeline.ledger import Charges
from pipeline.source import Survey
from pipeline.storage.dataset import MANIFEST, SUCCESS
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal import charged_in, read_state
from pipeline.storage.records import with_examples
from pipeline.storage.run_folder import LOCK, RunFolder, RunIdentity

Status = Literal["running", "complete", "failed", "stopped"]
"""`running` while a process works on it. `complete` only where the success marker is. `failed`: every row is done, and
more have failed than the job allows. `stopped`: rows are left, or the dataset is damaged. `run --json` says the same
of a start that has ended."""

KILLED = "the last start did not end by itself: its process was killed, or the machine went down"

_NOW = (
    "at", "rows_per_s", "eta_s", "concurrency", "limit", "rate_change", "in_flight", "waiting", "waits_for", "trouble",
    "retrying", "latency_p50", "latency_p99",
)  # fmt: skip
"""What a running job says of the present second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run as its folder tells it. Rows and charges are of the whole run, all its starts together."""

    job: str
    run_id: str
    simulated: bool
    status: Status
    reason: str | None
    """Why it stopped, or has failed; None while nothing is wrong."""
    stopped_by: str | None
    """What stopped the last start: a signal's name or a kind of error, as in `TooManyFailures`."""
    holder: str | None
    """The process that works on it."""
    rows: int
    ok: int
    failed: int
    unsealed: int
    """Rows that are answered, and in no part yet, so that nobody has counted them as ok or failed. 0 where they were:
    while the run is at work, and after a start that ended by itself."""
    failures: Failures
    sealed_parts: int
    charged: Charges
    created: str
    started: str | None
    """When the start began that is at work, or the last one that ended by itself, in UTC."""
    finished: str | None
    start_cost_usd: float | None = None
    """What the start that is at work has spent."""
    resumed: bool = False
    """Whether earlier starts have spent something, too."""
    now: Mapping[str, Any] = field(default_factory=dict)
    """The present second of a running job: see `pipeline.execution.monitor`."""

    @property
    def done(self) -> int:
        """Rows that need no further call."""
        return self.ok + self.failed + self.unsealed

    @property
    def left(self) -> int:
        """Rows that still have to be asked."""
        return max(0, self.rows - self.done)

    def facts(self) -> dict[str, Any]:
        """All of it under plain names, for JSON: those of `run --json` where they mean the same."""
        return {
            "status": self.status,
            "reason": self.reason,
            "stopped_by": self.stopped_by,
            "job": self.job,
            "run_id": self.run_id,
            "simulated": self.simulated,
            "holder": self.holder,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "rows": self.rows,
            "done": self.done,
            "left": self.left,
            "ok": self.ok,
            "failed": self.failed,
            "unsealed": self.unsealed,
            "failures": self.failures.bare().to_json(),
            "sealed_parts": self.sealed_parts,
            **self.charged.figures("run_"),
            "run_lost_calls": self.charged.lost_calls,
            "start_cost_usd": self.start_cost_usd,
            **{f"now_{name}": self.now.get(name) for name in _NOW},
        }


def run_status(output: Path) -> RunStatus:
    """Raises `UsageError` when the folder holds no run, or its manifest is damaged; `Broken` when its journal is."""
    folder, plan = require_run(output)
    parts, pending = read_state(folder.journal)
    holder = folder.running()
    state = _state_of(folder, running=holder is not None)
    told = manifest_of(output) or {}
    settled = _is_settled(told, state, sum(part.rows for part in parts) + pending, running=holder is not None)
    ok, failed, unsealed = sum(part.ok for part in parts), sum(part.failed for part in parts), pending
    kinds: Any = chain.from_iterable(part.failures for part in parts)
    rows = Survey.from_json(plan.survey).rows
    if holder is not None and state.get("rows") == rows:  # the runs of an evaluation count together
        ok, failed, unsealed, kinds = state["run_ok"], state["run_failed"], 0, state["failures"]
    elif settled:
        ok, failed, unsealed, kinds = told["ok"], told["failed"], 0, told.get("failures", ())
    damage = None if holder is not None else damage_in(output, parts)
    status = status_of(
        output, told if settled else {}, running=holder is not None, done=ok + failed + unsealed == rows, damage=damage
    )
    return RunStatus(
        job=plan.job_name,
        run_id=plan.run_id,
        simulated=plan.simulated,
        status=status,
        reason=damage or _reason(told, state, parts_or_entries=bool(parts or pending))
        if status in _ENDED_BADLY
        else None,
        stopped_by=told.get("stopped_by") if status == "stopped" and not _worked_since(told, state) else None,
        holder=holder,
        rows=rows,
        ok=ok,
        failed=failed,
        unsealed=unsealed,
        failures=with_examples(Failures() + Failures.from_json(kinds), output, parts),
        sealed_parts=len(parts),
        charged=charged_in(folder.journal, ended=holder is None),
        created=plan.created,
        started=_signed(folder).isoformat(timespec="milliseconds") if holder is not None else told.get("started"),
        finished=None if holder is not None else told.get("finished"),
        resumed=state.get("run_cost_usd", 0.0) > state.get("cost_usd", 0.0),
        start_cost_usd=state.get("cost_usd") if holder is not None else None,
        now={name: state.get(name) for name in _NOW} if holder is not None else {},
    )


_ENDED_BADLY = ("failed", "stopped")

_APART_S = 0.5
"""A start writes its state for the last time just before its manifest; that of the next one is a second younger."""


def damage_in(output: Path, parts: Sequence[Part]) -> str | None:
    """What is wrong with the files of a dataset that is marked as whole, with the remedy; None when nothing is.

    A file is read only when it was touched since it was sealed. Raises `Broken` when it cannot be.
    """
    if not (output / SUCCESS).is_file():
        return None
    check = PartCheck(output)
    for wrong in check.damage(parts).values():
        return f"{wrong}: restore the file, or `pipeline reparse {output}` makes it again from the kept replies"
    for stranger in check.unrecorded(parts):
        return f"{stranger} is no part of this run: move it elsewhere"
    return None


def status_of(
    output: Path, manifest: Mapping[str, Any], *, running: bool, done: bool, damage: str | None = None
) -> Status:
    """The status of a run whose last start, if nothing was recorded since, left this manifest.

    `done` is whether every row is accounted for, `damage` what is wrong with the files of its parts.
    """
    if running:
        return "running"
    match manifest.get("status"):
        case "complete" if (output / SUCCESS).is_file() and damage is None:
            return "complete"
        case "failed" if done:
            return "failed"
    return "stopped"


def require_run(output: Path) -> tuple[RunFolder, RunIdentity]:
    """The folder and the plan of a run. Raises `UsageError` when there is none."""
    folder = RunFolder(output)
    found = folder.load()
    if found is None:
        raise UsageError(f"there is no run in {output}: {output / '_run' / 'plan.json'} does not exist")
    return folder, found


def manifest_of(output: Path) -> dict[str, Any] | None:
    """What the last start wrote at its end; None when none has ended. Raises `UsageError` when it is damaged."""
    try:
        content = orjson.loads((output / MANIFEST).read_bytes())
        return _sound(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{output / MANIFEST} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{output / MANIFEST} is damaged: {error}") from error


def _sound(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, which may have come from anybody. Raises one of several errors when it cannot be ours."""
    counts = [manifest.get(name, 0) for name in ("rows", "ok", "failed")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("its counts are no numbers")
    Failures() + Failures.from_json(manifest.get("failures", ()))
    for name in ("started", "finished"):
        if manifest.get(name) is not None:
            datetime.fromisoformat(manifest[name])
    return manifest


def _state_of(folder: RunFolder, *, running: bool) -> dict[str, Any]:
    """What a running job said of itself last; empty when that was an earlier start, as in the first second of one."""
    state = state_of(folder.run)
    return {} if running and state.get("at", 0.0) < _signed(folder).timestamp() else state


def _signed(folder: RunFolder) -> datetime:
    """When the lock was taken last: the beginning of a start."""
    return datetime.fromtimestamp((folder.run / LOCK).stat().st_mtime, UTC)


def _is_settled(told: Mapping[str, Any], state: Mapping[str, Any], recorded: int, *, running: bool) -> bool:
    """Whether the manifest still tells how the run stands: its last start ended by itself and counted every row."""
    if running or not told:
        return False
    return not _worked_since(told, state) and told.get("ok", 0) + told.get("failed", 0) == recorded


def _worked_since(told: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether a start was at work after the one that wrote the manifest."""
    finished = told.get("finished")
    if not isinstance(finished, str) or "at" not in state:
        return False
    return bool(state["at"] > datetime.fromisoformat(finished).timestamp() + _APART_S)


def _reason(told: Mapping[str, Any], state: Mapping[str, Any], *, parts_or_entries: bool) -> str | None:
    if told and not _worked_since(told, state):
        reason = told.get("reason")
        return None if reason is None else str(reason)
    return KILLED if state or parts_or_entries else "no row has been answered yet"
