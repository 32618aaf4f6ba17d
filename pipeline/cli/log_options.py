"""The options of logs and metrics, and what is set up for them before a command runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.store.address import local_path

if TYPE_CHECKING:
    from pipeline.cli.metrics_output import MetricsTarget

_PRINTED = "What is printed"

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option(
        "--log-level",
        help="Log events of this level and above on stderr.",
        case_sensitive=False,
        show_default="no log; info with --log-format",
        rich_help_panel=_PRINTED,
    ),
]
LogFormat = Annotated[
    Literal["text", "json", "auto"] | None,
    typer.Option(
        "--log-format",
        help="json: Cloud Logging's fields, for everything on stderr; auto: json in Cloud Run and Kubernetes.",
        show_default="auto",
        rich_help_panel=_PRINTED,
    ),
]
MetricsFile = Annotated[
    Path | None,
    typer.Option(
        "--metrics",
        metavar="FILE",
        help="Write Prometheus metrics to this file, every 15 seconds and at the end.",
        parser=local_path,
        rich_help_panel=_PRINTED,
    ),
]
OpenTelemetry = Annotated[
    bool | None,
    typer.Option(
        "--otel/--no-otel",
        metavar="",
        help="Export OpenTelemetry metrics by OTLP.",
        show_default="if OTEL_EXPORTER_OTLP_ENDPOINT is set",
        rich_help_panel=_PRINTED,
    ),
]

OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
"""Variables that turn the export by OpenTelemetry on."""

CONTAINERS = ("K_SERVICE", "CLOUD_RUN_JOB", "KUBERNETES_SERVICE_HOST")
"""Variables that Cloud Run services, Cloud Run jobs and Kubernetes set for every container."""


def chosen_format(given: str | None, environment: Mapping[str, str]) -> Literal["text", "json"]:
    """The format of the log: the one given or, for `auto`, that of the place where this runs."""
    if given in ("text", "json"):
        return "json" if given == "json" else "text"
    return "json" if any(environment.get(name) for name in CONTAINERS) else "text"


def metrics_of(file: Path | None, *, otel: bool | None) -> MetricsTarget | None:
    """Where metrics go, by the options and OpenTelemetry's variables; None if they go nowhere."""
    wants_otel = otel or (otel is None and any(map(os.environ.get, OTLP_VARIABLES)))
    if file is None and not wants_otel:
        return None
    from pipeline.cli.metrics_output import metrics_target

    return metrics_target(file, otel=wants_otel, is_asked=otel is True)


@contextmanager
def logging_on_stderr(level: str | None, given_format: str | None) -> Iterator[None]:
    """Logs on stderr while the block runs, if either was given."""
    if level is None and given_format is None:
        yield
        return
    from pipeline.cli.log_format import logged

    with logged(level or "info", chosen_format(given_format, os.environ)):
        yield
