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
from pipeline.execution.shard_status import ShardStatus, missing_shards, shard_statuses
from pipeline.faults import UsageError
from pipeline.source import Survey
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal_reader import charged_in, read_state
from pipeline.storage.records import with_examples
from pipeline.storage.remote.hydration import RemoteView
from pipeline.storage.run_folder import EVENTS, LOCK, MANIFEST, SUCCESS, RunFolder, RunIdentity
from pipeline.storage.submissions import Submission, submissions_in
from pipeline.totals.failures import Failures
from pipeline.totals.ledger import NOTHING, Charges

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
    shards: Sequence[ShardStatus] = ()
    """Every shard, if the run is divided."""
    now: Mapping[str, Any] = field(default_factory=dict)
    """The current second of a running job: see `pipeline.execution.monitor`."""
    batch_jobs: Sequence[Submission] = ()
    """The batch jobs of the run."""

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
            "shards": [one.facts() for one in self.shards],
            "batch": [
                {
                    "name": job.name,
                    "rows": job.rows,
                    "state": job.state,
                    "progress": job.progress,
                    "answered": job.answered,
                    "message": job.message,
                }
                for job in self.batch_jobs
            ],
            **{f"now_{name}": self.now.get(name) for name in _NOW},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the files of a run say together, with what is out of date left aside.

    Counts, charges and status cover the whole run, over all its starts.
    """

    output: Path
    plan: RunIdentity | None
    """None for a dataset that was copied without its `_run` folder."""
    holder: str | None
    """The process that is working on the run."""
    parts: Sequence[Part]
    pending: int
    """Rows that are recorded, but in no part yet."""
    state: Mapping[str, Any]
    """What the job last reported; while it runs, only what the current start reported."""
    manifest: Mapping[str, Any]
    """What the last start that ended normally wrote; empty if none did. Not current unless `is_settled`."""
    damage: str | None
    """What is wrong with the files of a dataset that is marked as complete; None when nothing is."""
    charged: Charges
    worked: bool
    """Whether any start has got as far as to ask."""
    began: datetime | None
    """When the lock was last taken: the beginning of a start."""
    rows: int
    """Rows of the input."""

    @property
    def is_settled(self) -> bool:
        """Whether the manifest is current: the last start ended normally and counted every recorded row."""
        if self.holder is not None or not self.manifest or self.worked_since:
            return False
        if self.plan is None:  # there is nothing else to know it by
            return True
        recorded = sum(part.rows for part in self.parts) + self.pending
        return bool(self.manifest.get("ok", 0) + self.manifest.get("failed", 0) == recorded)

    @property
    def worked_since(self) -> bool:
        """Whether another start has run since the manifest was written."""
        finished = self.manifest.get("finished")
        if not isinstance(finished, str) or "at" not in self.state:
            return False
        return bool(self.state["at"] > datetime.fromisoformat(finished).timestamp() + _APART_S)

    @property
    def ended_normally(self) -> bool:
        """Whether the manifest is that of the last start, even if it does not count every recorded row."""
        if self.is_settled or not self.manifest or self.worked_since:
            return self.is_settled
        finished = self.manifest.get("finished")
        return self.began is None or finished is None or self.began <= datetime.fromisoformat(finished)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows that are ok, failed, and recorded without it being known yet which of the two they are."""
        if self._reports_itself:
            return self.state["run_ok"], self.state["run_failed"], 0
        if self.is_settled:
            return self.manifest["ok"], self.manifest["failed"], 0
        return sum(part.ok for part in self.parts), sum(part.failed for part in self.parts), self.pending

    @property
    def failures(self) -> Failures:
        """The failed rows by kind, without examples."""
        kinds: Any = chain.from_iterable(part.failures for part in self.parts)
        if self._reports_itself:
            kinds = self.state["failures"]
        elif self.is_settled:
            kinds = self.manifest.get("failures", ())
        return Failures() + Failures.from_json(kinds)

    @property
    def status(self) -> Status:
        """The status of the run."""
        if self.holder is not None:
            return "running"
        match self.manifest.get("status") if self.is_settled else None:
            case "complete" if (self.output / SUCCESS).is_file() and self.damage is None:
                return "complete"
            case "failed" if sum(self.counts) == self.rows:
                return "failed"
        return "stopped"

    @property
    def reason(self) -> str | None:
        """Why the run stopped or failed; None while nothing is wrong."""
        if self.status not in ("failed", "stopped"):
            return None
        if self.damage is not None:
            return self.damage
        if self.ended_normally:
            reason = self.manifest.get("reason")
            return None if reason is None else str(reason)
        return KILLED if self.worked or self.parts or self.pending else "no row has been answered yet"

    @property
    def _reports_itself(self) -> bool:
        # The runs of an evaluation count together: then the state is about more rows than this run has.
        return self.holder is not None and self.state.get("rows") == self.rows


def read_record(output: Path, *, held: bool = False, remote: RemoteView | None = None) -> RunRecord:
    """What is recorded about a run. With `held`, this process holds its lock, and its work is done.

    `remote` belongs to a folder that is a copy of a run in a bucket.

    Without the `_run` folder, the manifest is enough. Raises `UsageError` when both are missing, or the manifest is
    damaged; `Broken` when the journal is damaged or a part cannot be read.
    """
    folder = RunFolder(output)
    plan = folder.load()
    # First: whatever ends after this look is reported as running, and not half as it was before and half as after.
    holder = remote.holder if remote else None if held else folder.running()
    manifest = manifest_of(output) or {}
    if plan is None and not manifest:
        raise UsageError(f"{output} holds neither the plan nor the manifest of a run")
    if folder.journal.exists():
        parts, pending = read_state(folder.journal)
        charged = charged_in(folder.journal, ended=holder is None)
    else:
        parts, pending = _parts_listed(output, manifest), 0
        charged = Charges.from_json(manifest.get("charged", {}))
    return RunRecord(
        output=output,
        plan=plan,
        holder=holder,
        parts=parts,
        pending=pending,
        state=_state_of(folder, running=holder is not None),
        manifest=manifest,
        # A copy of the dataset has other file times than those that the journal knows.
        damage=None if holder is not None or not folder.journal.exists() else _damage_in(output, parts, plan, remote),
        charged=charged,
        worked=(folder.run / EVENTS).exists(),
        began=_signed(folder) if (folder.run / LOCK).exists() else None,
        rows=Survey.from_json(plan.survey).rows if plan else int(manifest["rows"]),
    )


def status_of(output: Path, *, held: bool = False) -> Status:
    """The status of the run in a folder; `stopped` if there is none yet. `held` and errors as in `read_record`."""
    if RunFolder(output).load() is None and manifest_of(output) is None:
        return "stopped"
    return read_record(output, held=held).status


def charged_to(output: Path) -> Charges:
    """What the run in a folder was charged, over all its starts; nothing if there is none yet."""
    if RunFolder(output).load() is None and manifest_of(output) is None:
        return NOTHING
    return read_record(output).charged


def run_status(output: Path, remote: RemoteView | None = None) -> RunStatus:
    """Raises `UsageError` if the folder holds no run, or a damaged manifest; `Broken` if the journal is damaged."""
    folder, plan = require_run(output)
    record = read_record(output, remote=remote)
    running = record.holder is not None
    shards = shard_statuses(remote, Survey.from_json(plan.survey), record.parts, folder.journal)
    missing = missing_shards(shards) if record.status == "stopped" and record.damage is None else None
    ok, failed, unsealed = record.counts
    state, manifest = record.state, record.manifest
    stopped_by = manifest.get("stopped_by") if record.status == "stopped" and record.ended_normally else None
    return RunStatus(
        job=plan.job_name,
        run_id=plan.run_id,
        simulated=plan.simulated,
        status=record.status,
        reason=missing or record.reason,
        shards=shards,
        stopped_by=stopped_by,
        holder=record.holder,
        rows=record.rows,
        ok=ok,
        failed=failed,
        unsealed=unsealed,
        failures=with_examples(record.failures, output, record.parts),
        sealed_parts=len(record.parts),
        charged=record.charged,
        created=plan.created,
        started=_signed(folder).isoformat(timespec="milliseconds") if running else manifest.get("started"),
        finished=None if running else manifest.get("finished"),
        resumed=state.get("run_cost_usd", 0.0) > state.get("cost_usd", 0.0),
        start_cost_usd=state.get("cost_usd") if running else None,
        now={name: state.get(name) for name in _NOW} if running else {},
        batch_jobs=submissions_in(folder.journal),
    )


_APART_S = 0.5
"""The last state of a start is older than its manifest; the first of the next start is a second younger or more."""


def _damage_in(output: Path, parts: Sequence[Part], plan: RunIdentity | None, remote: RemoteView | None) -> str | None:
    """What is wrong with the files of a dataset that is marked as complete, with the remedy; None when nothing is.

    A file is read only when it was touched since it was sealed. Raises `Broken` when it cannot be.
    """
    if not (output / SUCCESS).is_file():
        return None
    check = remote.part_check if remote else PartCheck(output)
    for wrong in check.damage(parts).values():
        if plan is None or not plan.keep_replies:
            return f"{wrong}: restore the file"
        again = f"`pipeline reparse {remote.address if remote else output} --job {plan.target or 'JOB.py'}`"
        return f"{wrong}: restore the file, or {again} makes it again at no cost"
    for stranger in check.unrecorded(parts):
        return f"{stranger} is not a part of this run: move it elsewhere"
    return None


def _parts_listed(output: Path, manifest: Mapping[str, Any]) -> list[Part]:
    """The parts that a manifest lists; its content is not trusted."""
    try:
        return [Part.from_json(part) for part in manifest.get("parts", ())]
    except ValueError as error:
        raise UsageError(f"{output / MANIFEST} is damaged: {error}") from error


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
    """When the lock was last taken: the beginning of the last start."""
    return datetime.fromtimestamp((folder.run / LOCK).stat().st_mtime, UTC)
