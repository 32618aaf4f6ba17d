"""The metrics of a run by OpenTelemetry: the extra `otel`, whose packages are loaded here only.

There are no spans: a run of a million rows would have millions. The histograms are exact in counts and sums by bucket,
since calls are counted by the same bounds, over all processes of the run; within a bucket, values are its mean.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.endpoint.redaction import redact_tokens
from pipeline.faults import UsageError
from pipeline.report import genai_names as names
from pipeline.report.metrics import METRICS, Metric, RunMetrics
from pipeline.text import printable
from pipeline.totals.histogram import CallDurations, CallTokens, Histogram

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram as HistogramInstrument
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics import MeterProvider

REMEDY = "install the extra: pip install 'vertex-pipeline[otel]'"


def is_installed() -> bool:
    """Whether the packages of the extra are there."""
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.exporter") is not None


def provider_by_otlp() -> MeterProvider:
    """A provider that exports by OTLP over HTTP; its endpoint, headers and interval come from the OTEL_ variables.

    Raises `UsageError` if the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError:
        raise UsageError(f"--otel needs OpenTelemetry, which is not installed: {REMEDY}") from None
    return MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])


class ExportTrouble(logging.Handler):
    """Keeps the first warning of OpenTelemetry, whose exporter logs every try from a thread of its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: str | None = None

    def attach(self) -> None:
        """Makes this the only handler of what OpenTelemetry logs, or `logging` prints it amid the progress."""
        tree = logging.getLogger("opentelemetry")
        tree.handlers[:] = [self]
        tree.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the first record, redacted: its address may have a password."""
        self.first = self.first or printable(redact_tokens(record.getMessage()))


class OtelMetrics:
    """The instruments of one run. `update` is to be called from time to time, and before the provider is flushed."""

    def __init__(self, provider: MeterProvider, run: RunMetrics) -> None:
        self._provider = provider
        self._run = run
        self._seen: dict[str, Histogram] = {}
        meter = provider.get_meter("pipeline")
        shared = {
            names.OPERATION_NAME: names.CHAT,
            names.PROVIDER_NAME: names.VERTEX_AI,
            names.REQUEST_MODEL: run.labels["model"],
        }
        self._shared = {name: value for name, value in shared.items() if value}
        self._durations = meter.create_histogram(
            names.OPERATION_DURATION, "s", explicit_bucket_boundaries_advisory=CallDurations.BOUNDS
        )
        self._tokens = meter.create_histogram(
            names.TOKEN_USAGE, "{token}", explicit_bucket_boundaries_advisory=CallTokens.BOUNDS
        )
        for metric in METRICS:
            if metric.kind == "histogram":
                continue  # it is OPERATION_DURATION
            create = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            create(otel_name(metric), [self._observer(metric)], description=metric.help)

    def update(self, run: RunMetrics) -> None:
        """Takes the present figures, which are not changed any more: see `Counters.snapshot`."""
        self._run = run
        counters = run.counters
        self._record(self._durations, "durations", counters.durations, {})
        for kind, tokens in ((names.INPUT, counters.input_tokens), (names.OUTPUT, counters.output_tokens)):
            self._record(self._tokens, kind, tokens, {names.TOKEN_TYPE: kind})

    def close(self) -> None:
        """Exports what was taken last, and ends."""
        self._provider.shutdown()

    def _record(
        self, instrument: HistogramInstrument, key: str, present: Histogram, attributes: Mapping[str, str]
    ) -> None:
        before = self._seen.get(key) or type(present)()
        self._seen[key] = present
        for bucket, count in enumerate(present.counts):
            if new := count - before.counts[bucket]:
                mean = (present.sums[bucket] - before.sums[bucket]) / new
                for _ in range(new):
                    instrument.record(mean, {**self._shared, **attributes})

    def _observer(self, metric: Metric) -> Any:
        from opentelemetry.metrics import Observation

        def observe(_: object) -> Iterator[Observation]:
            found = metric.read(self._run)
            if not isinstance(found, Histogram):
                for labels, value in found:
                    yield Observation(value, {**self._run.labels, **labels})

        return observe


def otel_name(metric: Metric) -> str:
    """The name of a metric as OpenTelemetry writes them: with dots, and without the unit and `_total`."""
    bare = metric.name.removeprefix("pipeline_").removesuffix("_total").removesuffix("_seconds")
    return f"pipeline.{bare}"
