"""The facts of a run, read from its output folder in bounded memory, even while it is active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.data import Part
from pipeline.execution.run_rows import key_column
from pipeline.execution.run_status import RunRecord, Status, read_record
from pipeline.report.scan import NOT_SCANNED, RunFindings, scan
from pipeline.report.timeline import EMPTY, ENOUGH, Timeline, timeline_of
from pipeline.source import Survey
from pipeline.storage.remote.hydration import RemoteView
from pipeline.storage.remote.part_files import is_readable
from pipeline.storage.run_folder import EVENTS, REPEATS, RunFolder, RunIdentity

_TOKENS = ("input", "output", "reasoning", "cached")


@dataclass(frozen=True, slots=True)
class InputFileFacts:
    """An input file, with the number of its rows used."""

    path: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run of a job, as recorded in its folder.

    `ok` and `failed` rows are done; `pending` ones are answered but not sealed, so it is not known yet which of the two
    they are. Tokens and dollars are what the run was charged, over all its starts; they exclude the `unpriced` calls.
    `seconds` is the active time, without the pauses between its `starts`; None when unknown.
    """

    output: str
    job: str
    model: str
    status: Status
    simulated: bool
    run_id: str
    created: str
    version: str
    rows: int
    ok: int
    failed: int
    pending: int = 0
    tokens: Mapping[str, int]
    cost_usd: float
    unpriced: int = 0
    from_cache: int = 0
    fingerprint: Mapping[str, str]
    inputs: tuple[InputFileFacts, ...] = ()
    parts: int = 0
    bytes: int = 0
    seconds: float | None = None
    timeline: Timeline = EMPTY
    findings: RunFindings = NOT_SCANNED
    repeats: int = 1
    notes: tuple[str, ...] = ()
    read_at: str = ""
    """When the folder was read, in ISO 8601."""

    @property
    def done(self) -> int:
        """Rows that need no further call."""
        return self.ok + self.failed + self.pending

    @property
    def left(self) -> int:
        """Rows still to be asked."""
        return max(0, self.rows - self.done)

    @property
    def success(self) -> float | None:
        """The share of ok rows among the ok and failed ones."""
        known = self.ok + self.failed
        return self.ok / known if known else None

    @property
    def starts(self) -> int:
        """How often the run was started or resumed, as far as known."""
        return max(self.timeline.starts, 1 + len(self.timeline.resumed))

    @property
    def rows_per_s(self) -> float | None:
        """Rows done per second of active time."""
        return self.done / self.seconds if self.seconds and self.done else None


def run_facts(output: Path, remote: RemoteView | None = None) -> RunFacts:
    """Reads what a run left in its folder, or what it has written so far.

    For a finished run, the plan or the manifest is enough. Raises `UsageError` when both are missing. `remote` as for
    `read_record`.
    """
    record = read_record(output, remote=remote)
    plan, manifest, parts = record.plan, record.manifest, record.parts
    present = [part for part in parts if all(is_readable(output / file.path) for file in part.files)]
    timeline = timeline_of(RunFolder(output).run / EVENTS)
    # Rows record when they were answered, but not pauses: they only replace the events of a single short start.
    by_time = len(timeline.points) < (2 if timeline.starts > 1 else ENOUGH)
    findings = scan(output, present, key_column(_fingerprint(plan, manifest)), by_time=by_time)
    if len(findings.timeline.points) > len(timeline.points):
        timeline = replace(findings.timeline, starts=timeline.starts, seconds=timeline.seconds or findings.seconds)
    ok, failed, pending = record.counts
    return RunFacts(
        output=remote.address if remote else str(output),
        **_identity(plan, manifest),
        status=record.status,
        rows=record.rows,
        ok=ok,
        failed=failed,
        pending=pending,
        tokens={kind: getattr(record.charged, f"{kind}_tokens") for kind in _TOKENS},
        cost_usd=record.charged.cost_usd,
        unpriced=record.charged.unpriced_calls,
        from_cache=sum(part.from_cache for part in parts),
        inputs=_inputs(plan, manifest),
        parts=len(parts),
        bytes=sum(file.bytes for part in parts for file in part.files),
        seconds=timeline.seconds,
        timeline=timeline,
        findings=findings,
        repeats=1 + sum(path.is_dir() for path in (output / REPEATS).glob("*")),
        notes=tuple(_notes(record, present)),
        read_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _identity(plan: RunIdentity | None, manifest: Mapping[str, Any]) -> dict[str, Any]:
    fingerprint = _fingerprint(plan, manifest)
    run = manifest.get("run", {})
    return {
        "job": plan.job_name if plan else run["job"],
        "model": fingerprint.get("model") or "as the requests say",
        "simulated": plan.simulated if plan else manifest["simulated"],
        "run_id": plan.run_id if plan else run["id"],
        "created": plan.created if plan else run["created"],
        "version": plan.version if plan else run["version"],
        "fingerprint": fingerprint,
    }


def _fingerprint(plan: RunIdentity | None, manifest: Mapping[str, Any]) -> Mapping[str, str]:
    fingerprint: Mapping[str, str] = plan.job if plan else manifest["job"]
    return fingerprint


def _inputs(plan: RunIdentity | None, manifest: Mapping[str, Any]) -> tuple[InputFileFacts, ...]:
    files = [asdict(file) for file in Survey.from_json(plan.survey).files] if plan else manifest["input"]
    return tuple(InputFileFacts(file["path"], file["rows"], file["size"], file["sha256"]) for file in files)


def _notes(record: RunRecord, present: Sequence[Part]) -> list[str]:
    parts, notes = record.parts, []
    if len(present) < len(parts):
        notes.append(f"{len(parts) - len(present)} parts are not in the folder: their rows are counted, and not shown")
    ok, failed, _ = record.counts
    unsealed = ok + failed - sum(part.rows for part in parts)
    if record.is_settled and unsealed:
        notes.append(f"latencies leave out {unsealed} rows that are not sealed yet")
        if record.failures.count > sum(part.failed for part in parts):
            notes.append(f"failed rows, sealed or not: {record.failures.in_words()}")
    if record.status == "stopped" and record.reason is not None:
        notes.append(f"stopped: {record.reason}")
    return notes
