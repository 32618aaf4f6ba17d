"""Hands the metrics of runs on while they work: to a file for Prometheus, and to OpenTelemetry."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    from pipeline.report.otel import OtelMetrics

EVERY_S = 15.0
"""Interval of the writes, in seconds: the usual one of Prometheus' scrapes."""


@dataclass(frozen=True, slots=True)
class MetricsTarget:
    """Where metrics go: `file`, if given, and OpenTelemetry, if `otel`."""

    file: Path | None = None
    otel: bool = False

    @contextmanager
    def exported(self, runs: Sequence[Run]) -> Iterator[MetricsExport | None]:
        """Exports the metrics of runs that share their counters, the last ones at the end; None if they go nowhere."""
        if self.file is None and not self.otel:
            yield None
            return
        export = MetricsExport(self.file, runs, otel=self.otel)
        try:
            yield export
        finally:
            export.close()


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
        context, self._file = runs[0].context, file
        self._trouble: str | None = None
        self._counters = context.counters
        plan = context.plan
        labels = {"job": plan.job_name, "model": str(plan.job.get("model") or "")}
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
        if otel:
            from pipeline.report.otel import OtelMetrics, provider_by_otlp

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
        if all(summary.status == "complete" for summary in summaries):
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
