"""The progress of a run, from its output folder: the one place that decides its status.

Safe to read while a run is in progress, in any number of processes. Nothing is locked, nothing is written.
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
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal_reader import charged_in, read_state
from pipeline.storage.records import with_examples
from pipeline.storage.run_folder import LOCK, MANIFEST, SUCCESS, RunFolder, RunIdentity

Status = Literal["running", "complete", "failed", "stopped"]
"""`running` while a process works on it. `complete` only with the success marker. `failed`: every row is done, and more
failed than the job allows. `stopped`: rows are left, or a complete dataset is damaged. `run --json` reports the same
for a start that has ended."""

KILLED = "the last start did not end by itself: its process was killed, or the machine went down"

_NOW = (
    "at", "rows_per_s", "eta_s", "concurrency", "limit", "rate_change", "in_flight", "waiting", "waits_for", "trouble",
    "retrying", "latency_p50", "latency_p99",
)  # fmt: skip
"""What a running job reports about the current second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run, as read from its folder. Rows and charges cover the whole run, over all its starts."""

    job: str
    run_id: str
    simulated: bool
    status: Status
    reason: str | None
    """Why it stopped or failed; None while nothing is wrong."""
    stopped_by: str | None
    """What stopped the last start: a signal's name or a kind of error, as in `TooManyFailures`."""
    holder: str | None
    """The process that is working on it."""
    rows: int
    ok: int
    failed: int
    unsealed: int
    """Rows that are answered but in no part yet, and not counted as ok or failed. 0 while the run is in progress, and
    after a start that ended normally: then they are counted."""
    failures: Failures
    sealed_parts: int
    charged: Charges
    created: str
    started: str | None
    """When the current start began, or the last one that ended normally, in UTC."""
    finished: str | None
    start_cost_usd: float | None = None
    """What the current start has spent."""
    resumed: bool = False
    """Whether earlier starts have spent something too."""
    now: Mapping[str, Any] = field(default_factory=dict)
    """The current second of a running job: see `pipeline.execution.monitor`."""

    @property
    def done(self) -> int:
        """Rows that need no further call."""
        return self.ok + self.failed + self.unsealed

    @property
    def left(self) -> int:
        """Rows still to be asked."""
        return max(0, self.rows - self.done)

    def facts(self) -> dict[str, Any]:
        """All fields under plain names, for JSON: the names of `run --json` where they mean the same."""
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
    """Raises `UsageError` if the folder holds no run, or a damaged manifest; `Broken` if the journal is damaged."""
    folder, plan = require_run(output)
    parts, pending = read_state(folder.journal)
    holder = folder.running()
    state = _state_of(folder, running=holder is not None)
    manifest = manifest_of(output) or {}
    settled = _is_settled(manifest, state, sum(part.rows for part in parts) + pending, running=holder is not None)
    ok, failed, unsealed = sum(part.ok for part in parts), sum(part.failed for part in parts), pending
    kinds: Any = chain.from_iterable(part.failures for part in parts)
    rows = Survey.from_json(plan.survey).rows
    if holder is not None and state.get("rows") == rows:  # the runs of an evaluation count together
        ok, failed, unsealed, kinds = state["run_ok"], state["run_failed"], 0, state["failures"]
    elif settled:
        ok, failed, unsealed, kinds = manifest["ok"], manifest["failed"], 0, manifest.get("failures", ())
    damage = None if holder is not None else damage_in(output, parts)
    status = status_of(
        output,
        manifest if settled else {},
        running=holder is not None,
        done=ok + failed + unsealed == rows,
        damage=damage,
    )
    return RunStatus(
        job=plan.job_name,
        run_id=plan.run_id,
        simulated=plan.simulated,
        status=status,
        reason=damage or _reason(manifest, state, parts_or_entries=bool(parts or pending))
        if status in _ENDED_BADLY
        else None,
        stopped_by=manifest.get("stopped_by") if status == "stopped" and not _worked_since(manifest, state) else None,
        holder=holder,
        rows=rows,
        ok=ok,
        failed=failed,
        unsealed=unsealed,
        failures=with_examples(Failures() + Failures.from_json(kinds), output, parts),
        sealed_parts=len(parts),
        charged=charged_in(folder.journal, ended=holder is None),
        created=plan.created,
        started=_signed(folder).isoformat(timespec="milliseconds") if holder is not None else manifest.get("started"),
        finished=None if holder is not None else manifest.get("finished"),
        resumed=state.get("run_cost_usd", 0.0) > state.get("cost_usd", 0.0),
        start_cost_usd=state.get("cost_usd") if holder is not None else None,
        now={name: state.get(name) for name in _NOW} if holder is not None else {},
    )


_ENDED_BADLY = ("failed", "stopped")

_APART_S = 0.5
"""The last state of a start is older than its manifest; the first of the next start is a second younger or more."""


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
    """The folder and plan of a run. Raises `UsageError` if there is none."""
    folder = RunFolder(output)
    return folder, folder.require()


def manifest_of(output: Path) -> dict[str, Any] | None:
    """What the last start wrote at its end; None if none has ended. Raises `UsageError` if it is damaged."""
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
    """The manifest, which may come from anyone. Raises one of several errors if it cannot be ours."""
    counts = [manifest.get(name, 0) for name in ("rows", "ok", "failed")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("its counts are not numbers")
    Failures() + Failures.from_json(manifest.get("failures", ()))
    for name in ("started", "finished"):
        if manifest.get(name) is not None:
            datetime.fromisoformat(manifest[name])
    return manifest


def _state_of(folder: RunFolder, *, running: bool) -> dict[str, Any]:
    """The state last reported by a running job; empty if it is from an earlier start, as in the first second."""
    state = state_of(folder.run)
    return {} if running and state.get("at", 0.0) < _signed(folder).timestamp() else state


def _signed(folder: RunFolder) -> datetime:
    """When the lock was last taken: the beginning of a start."""
    return datetime.fromtimestamp((folder.run / LOCK).stat().st_mtime, UTC)


def _is_settled(manifest: Mapping[str, Any], state: Mapping[str, Any], recorded: int, *, running: bool) -> bool:
    """Whether the manifest is still current: the last start ended normally and counted every row."""
    if running or not manifest:
        return False
    return not _worked_since(manifest, state) and manifest.get("ok", 0) + manifest.get("failed", 0) == recorded


def _worked_since(manifest: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether another start has run since the manifest was written."""
    finished = manifest.get("finished")
    if not isinstance(finished, str) or "at" not in state:
        return False
    return bool(state["at"] > datetime.fromisoformat(finished).timestamp() + _APART_S)


def _reason(manifest: Mapping[str, Any], state: Mapping[str, Any], *, parts_or_entries: bool) -> str | None:
    if manifest and not _worked_since(manifest, state):
        reason = manifest.get("reason")
        return None if reason is None else str(reason)
    return KILLED if state or parts_or_entries else "no row has been answered yet"
