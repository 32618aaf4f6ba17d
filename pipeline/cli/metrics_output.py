"""Hands the metrics of runs on while they work: to a file for Prometheus, and to OpenTelemetry."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from pipeline.faults import UsageError
from pipeline.report.metrics import RunMetrics, exposition, last_success_in
from pipeline.storage.durable import FILES

if TYPE_CHECKING:
    from pipeline.execution.finish import Summary
    from pipeline.execution.run import Run
    from pipeline.report.otel import ExportTrouble, OtelMetrics

EVERY_S = 15.0
"""Interval of the writes, in seconds: the usual one of Prometheus' scrapes."""


@dataclass(slots=True)
class MetricsTarget:
    """Where the metrics of runs go: `file`, if given, and OpenTelemetry, if `otel`.

    Runs that are executed together share their counters, and are one export.
    """

    file: Path | None = None
    otel: bool = False
    _export: MetricsExport | None = None
    _runs: Sequence[Run] = ()

    async def keep(self, runs: Sequence[Run]) -> None:
        """Exports the metrics of these runs until it is cancelled."""
        if self.file is not None or self.otel:
            await self._export_of(runs).keep()

    def end(self, runs: Sequence[Run], summaries: Sequence[Summary]) -> None:
        """Exports the figures at the end; waits for the server of OpenTelemetry, ten seconds or so at most."""
        if self.file is not None or self.otel:
            export = self._export_of(runs)
            export.end(summaries)
            export.close()

    def _export_of(self, runs: Sequence[Run]) -> MetricsExport:
        if self._export is None or self._runs is not runs:
            self._export, self._runs = MetricsExport(self.file, runs, otel=self.otel), runs
        return self._export


def metrics_target(file: Path | None, *, otel: bool, is_asked: bool) -> MetricsTarget:
    """The target for a file and for OpenTelemetry, which `is_asked` for by the user or only by a variable.

    Raises `UsageError` if the folder of the file is missing, or what the user asked for is not installed. A variable
    counts only where it is: it may be there for other programs.
    """
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise UsageError(f"--metrics {file}: name a file in a folder that exists")
    if not otel:
        return MetricsTarget(file)
    from pipeline.report.otel import REMEDY, is_installed

    if is_asked and not is_installed():
        raise UsageError(f"--otel needs OpenTelemetry, which is not installed: {REMEDY}")
    return MetricsTarget(file, is_installed())


class MetricsExport:
    """The export of one start."""

    def __init__(self, file: Path | None, runs: Sequence[Run], *, otel: bool = False) -> None:
        from pipeline.execution.finish import shard_of_run

        context, self._file = runs[0].context, file
        self._trouble: str | None = None
        self._counters = context.counters
        plan = context.plan
        labels = {"job": plan.job_name, "model": str(plan.job.get("model") or "")}
        labels |= {"shard": shard} if (shard := shard_of_run(runs[0])) else {}
        info = {"run_id": plan.run_id, "version": plan.version, "simulated": str(plan.simulated).lower()}
        self._metrics = RunMetrics(
            counters=self._counters,
            labels=labels,
            info={**info, "output": runs[0].output},
            is_running=True,
            started_at=datetime.fromisoformat(runs[0].started).timestamp(),
            last_success_at=None if file is None else last_success_in(_text_of(file), labels),
        )
        self._otel: OtelMetrics | None = None
        self._otel_trouble: ExportTrouble | None = None
        if otel:
            from pipeline.report.otel import ExportTrouble, OtelMetrics, provider_by_otlp

            self._otel_trouble = ExportTrouble()
            self._otel_trouble.attach()
            self._otel = OtelMetrics(provider_by_otlp(), self._metrics)

    async def keep(self) -> None:
        """Exports now and every `EVERY_S` seconds, until it is cancelled."""
        while True:
            self._metrics = replace(self._metrics, counters=self._counters.snapshot())
            await to_thread.run_sync(self._export)
            await anyio.sleep(EVERY_S)

    def end(self, summaries: Sequence[Summary]) -> None:
        """Exports the figures at the end."""
        metrics = replace(self._metrics, counters=self._counters.snapshot(), is_running=False)
        if all(summary.status in ("complete", "done") for summary in summaries):
            finished = max(datetime.fromisoformat(summary.finished) for summary in summaries)
            metrics = replace(metrics, last_success_at=finished.timestamp())
        self._metrics = metrics
        self._export()
        if self._trouble is not None:
            print(f"note: the metrics could not be written: {self._trouble}", file=sys.stderr)

    def close(self) -> None:
        """Sends what OpenTelemetry has not sent yet; waits for its server, some seconds at most."""
        if self._otel is not None:
            self._otel.close()
        if self._otel_trouble is not None and self._otel_trouble.first is not None:
            print(f"note: the metrics could not be exported: {self._otel_trouble.first}", file=sys.stderr)

    def _export(self) -> None:
        if self._otel is not None:
            self._otel.update(self._metrics)
        if self._file is None:
            return
        try:
            FILES.write_atomic(self._file, exposition(self._metrics).encode())
        except OSError as error:  # the dataset is worth more than its metrics
            if self._trouble != str(error):
                self._counters.notices.append(f"the metrics cannot be written: {error}")
            self._trouble = str(error)


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError:
        return ""
