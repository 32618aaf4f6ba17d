"""The log on stderr, as text for people or as JSON with the fields of Cloud Logging, beside the lines of the progress.

The fields: https://cloud.google.com/logging/docs/structured-logging and, for containers, what Cloud Run and GKE read
from standard error. One line is one record.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from pipeline.endpoint.redaction import redact_tokens
from pipeline.text import printable

_ROOT = Path(__file__).parents[2]
_CLEAR_LINE = "\r\x1b[J"
_LABELS = ("job", "run_id")
"""Fields of the event that begins a run, which all later records carry as labels."""

_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")
"""The time at the beginning of a line of the progress."""

_SEVERITIES = {"error": "ERROR", "note": "NOTICE"}
"""The severity of a printed line by its first word; all others are INFO."""


def _moment(created: float) -> str:
    """The time of a record as RFC 3339 has it, in UTC."""
    return f"{datetime.fromtimestamp(created, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _message(record: logging.LogRecord) -> str:
    """The message on one line; that of a record which is not one of our events is redacted here."""
    message = record.getMessage()
    return message if getattr(record, "event", None) else printable(redact_tokens(message))


class TextFormatter(logging.Formatter):
    """A line for people: time, level, event, message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        event = getattr(record, "event", None) or record.name
        return f"{_moment(record.created)} {record.levelname} {event}: {_message(record)}"


class JsonFormatter(logging.Formatter):
    """A line of JSON for Cloud Logging."""

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        event = getattr(record, "event", None)
        if event == "run.start":
            self._labels = {name: str(fields[name]) for name in _LABELS if name in fields}
        severity = record.levelname if record.levelname in logging.getLevelNamesMapping() else "DEFAULT"
        return self.line(severity, record.created, _message(record), {"event": event, **fields}, _origin(record))

    def line(
        self, severity: str, created: float, message: str, fields: dict[str, Any], origin: dict[str, Any] | None = None
    ) -> str:
        """A line with these fields; of ours, `fields` has what is not None."""
        content: dict[str, Any] = {"severity": severity, "time": _moment(created), "message": message}
        content |= {name: value for name, value in fields.items() if value is not None and name not in content}
        content |= {"logging.googleapis.com/labels": self._labels} if self._labels else {}
        content |= origin or {}
        return json.dumps(content)


def _origin(record: logging.LogRecord) -> dict[str, Any]:
    path = Path(record.pathname)
    file = str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else path.name
    place = {"file": file, "line": str(record.lineno), "function": record.funcName or ""}
    return {"logger": record.name, "logging.googleapis.com/sourceLocation": place}


class StderrHandler(logging.Handler):
    """Writes lines to stderr, above the bars if any are drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        from tqdm import tqdm

        from pipeline.cli.progress import draws_bar

        try:
            clear = _CLEAR_LINE if draws_bar() else ""  # what a stage before the first call has drawn
            tqdm.write(clear + self.format(record), file=sys.stderr)
        except Exception:  # noqa: BLE001 - nothing that logs may fail the run
            self.handleError(record)


class JsonLines(io.TextIOBase):
    """Standard error on which every line is a JSON record: printed lines become messages. Not a terminal."""

    def __init__(self, stream: TextIO, formatter: JsonFormatter) -> None:
        self._stream = stream
        self._formatter = formatter
        self._begun = ""

    def write(self, text: str) -> int:
        """Writes the lines that are complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        whole = [self._recorded(line) for line in lines if line.strip()]
        if whole:
            self._stream.write("".join(f"{line}\n" for line in whole))
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Flushes what was written."""
        self._stream.flush()

    def fileno(self) -> int:
        """The descriptor below."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """False: nothing is drawn, and nothing is coloured."""
        return False

    def _recorded(self, line: str) -> str:
        if line.startswith('{"severity":'):
            return line
        line = _STAMP.sub("", line)
        severity = _SEVERITIES.get(line.partition(":")[0], "INFO")
        created = logging.makeLogRecord({}).created
        return self._formatter.line(severity, created, printable(redact_tokens(line)), {"event": "printed"})


@contextmanager
def logged(level: str, form: Literal["text", "json"]) -> Iterator[None]:
    """Logs what `pipeline` logs on stderr while the block runs.

    As JSON, whatever else is printed there becomes records too, from now until the process ends: also the error in
    which the command may end.
    """
    tree, handler = logging.getLogger("pipeline"), StderrHandler()
    formatter = JsonFormatter() if form == "json" else TextFormatter()
    handler.setFormatter(formatter)
    if isinstance(formatter, JsonFormatter):
        sys.stderr = JsonLines(sys.stderr, formatter)
    before = tree.level
    tree.setLevel(level.upper())
    tree.addHandler(handler)
    try:
        yield
    finally:
        tree.removeHandler(handler)
        tree.setLevel(before)
