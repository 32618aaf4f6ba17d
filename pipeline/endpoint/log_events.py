"""The events that a run logs, on the standard `logging` tree below `pipeline`; silent until somebody adds a handler.

Every text of a record passes the redaction of this package, whatever handler it goes to, and no event has a field for
the text of a row or of an answer. A record has two attributes of ours: `event`, a stable name, and `fields`, its
values. docs/logs.md lists them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.endpoint.redaction import redact_tokens
from pipeline.text import excerpt, printable

_MOST_TEXT = 500
"""Characters of a value that a record has at most."""

logging.getLogger("pipeline").addHandler(logging.NullHandler())  # or `logging` prints warnings of a library itself


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A kind of record: its level, its message as a format over its fields, and what it means."""

    level: int
    message: str
    fields: tuple[str, ...]
    meaning: str


_DEBUG, _INFO, _WARNING, _ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

EVENTS: Mapping[str, LogEvent] = {
    "run.start": LogEvent(
        _INFO,
        "{job} starts: {left} of {rows} rows are left, at most {concurrency} calls in flight",
        ("job", "run_id", "model", "output", "rows", "left", "concurrency", "simulated"),
        "A start begins to ask rows",
    ),
    "run.stop": LogEvent(_WARNING, "the run stops: {reason}", ("reason", "cause"), "The stop was requested, and why"),
    "run.end": LogEvent(
        _INFO,
        "{job} {status}: {ok} ok, {failed} failed, {left} left of {rows} rows; {requests} requests in {seconds:.1f} s",
        (
            "job", "run_id", "status", "reason", "rows", "ok", "failed", "left", "start_ok", "start_failed", "requests",
            "retries", "throttled", "hedged", "cache_hits", "calls", "input_tokens", "output_tokens",
            "reasoning_tokens", "cached_tokens", "cost_usd", "seconds", "output", "simulated", "shard",
        ),
        "A start has ended, with the figures of its summary",
    ),
    "run.waits": LogEvent(
        _INFO,
        "{waiting} rows wait for {waits_for}: {reason}",
        ("waiting", "waits_for", "wait_s", "reason", "in_flight", "retrying"),
        "What rows wait for, once a minute at most; `reason` has the words of the last fault",
    ),
    "row.retry": LogEvent(
        _INFO,
        "row {row} is asked again in {wait_s:.1f} s, attempt {attempt}: {reason}",
        ("row", "attempt", "wait_s", "fault", "http_status", "reason"),
        "A call failed in a way that may pass",
    ),
    "row.throttled": LogEvent(
        _DEBUG,
        "row {row} is refused by {lane} and waits {wait_s:.1f} s: {reason}",
        ("row", "lane", "wait_s", "retry_after_s", "reason"),
        "A call was refused for lack of quota (429)",
    ),
    "row.failed": LogEvent(
        _INFO,
        "row {row} failed: {fault}",
        ("row", "fault", "http_status"),
        "A row has ended without a value; its message is in the dataset only, since it may quote the row",
    ),
    "throttle.begin": LogEvent(
        _WARNING, "{lane} refuses calls for lack of quota: {reason}", ("lane", "reason"), "The first 429 in a while"
    ),
    "throttle.end": LogEvent(
        _INFO,
        "{lane} has refused nothing for {quiet_s:.0f} s; {refusals} calls were refused within {seconds:.0f} s",
        ("lane", "refusals", "seconds", "quiet_s"),
        "No 429 for some time, while calls were answered",
    ),
    "breaker.open": LogEvent(
        _WARNING,
        "{lane} counts as failed, only probes are sent: {reason}",
        ("lane", "reason"),
        "An endpoint as a whole has failed",
    ),
    "breaker.close": LogEvent(
        _INFO, "{lane} works again after {seconds:.0f} s", ("lane", "seconds"), "A failed endpoint has answered"
    ),
    "rate.change": LogEvent(
        _INFO,
        "{lane}: {reason}",
        ("lane", "rate_per_s", "reason"),
        "The rate was cut, raised after a test, or deliberately left, and why",
    ),
    "token.renewed": LogEvent(
        _INFO,
        "access token {number} has come, valid for {valid_s:.0f} s",
        ("number", "valid_s"),
        "An access token was fetched or renewed",
    ),
    "token.failed": LogEvent(
        _WARNING,
        "no access token, tried again in {wait_s:.1f} s: {reason}",
        ("wait_s", "reason"),
        "The token server did not answer with a token",
    ),
    "part.sealed": LogEvent(
        _INFO,
        "{part} is sealed: {rows} rows, {failed} of them failed",
        ("chunk", "part", "first_row", "rows", "ok", "failed", "bytes"),
        "A part of the dataset is written and recorded",
    ),
    "part.uploaded": LogEvent(
        _INFO, "{part} is in {output}", ("chunk", "part", "output", "bytes"), "A part is in the bucket and recorded"
    ),
    "lease.taken": LogEvent(
        _INFO,
        "the lease of {output} is taken",
        ("output", "owner", "before"),
        "A run has an output in a bucket to itself; `before` is the owner before",
    ),
    "lease.lost": LogEvent(_ERROR, "{reason}", ("output", "reason"), "Another run has taken over the output"),
    "worker.end": LogEvent(
        _WARNING,
        "worker {worker} has ended ({how}); another one goes on",
        ("worker", "how"),
        "A worker process has died",
    ),
}  # fmt: skip
"""Every event by its name. Names and fields are an interface: they may be added to, and are not changed."""


def log(logger: logging.Logger, event: str, /, **fields: Any) -> None:
    """Logs an event with its fields, if the logger is enabled for its level; does nothing else.

    Texts are redacted, cleaned and cut. Fields that are None are left out of the record.
    """
    kind = EVENTS[event]
    if not logger.isEnabledFor(kind.level):
        return
    clean = {name: _clean(fields.get(name)) for name in kind.fields}
    known = {name: value for name, value in clean.items() if value is not None}
    message = kind.message.format_map(clean)
    logger.log(kind.level, message, extra={"event": event, "fields": known}, stacklevel=2)


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return round(value, 6) if isinstance(value, float) else value
    return excerpt(printable(redact_tokens(str(value))), _MOST_TEXT)
