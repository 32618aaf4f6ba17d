"""The emulator's options and its address: plain values; standard library only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

FAULT_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "400": "INVALID_ARGUMENT",
        "401": "UNAUTHENTICATED, as if the token had expired",
        "403": "PERMISSION_DENIED",
        "404": "NOT_FOUND, as if the model did not exist",
        "408": "request time-out, an HTML page of the front end",
        "413": "request too large, an HTML page of the front end",
        "429": "RESOURCE_EXHAUSTED",
        "499": "CANCELLED",
        "500": "INTERNAL",
        "502": "bad gateway, an HTML page of the front end",
        "503": "UNAVAILABLE",
        "504": "DEADLINE_EXCEEDED",
        "drop": "the connection is closed without an answer",
        "partial": "the connection is closed in the middle of the body",
        "hang": "no answer until the client disconnects",
        "html200": "status 200 with an HTML page",
        "list200": "status 200 with a list-wrapped error",
        "truncated": "status 200 with truncated JSON",
        "empty": "status 200 with an empty body",
        "no_choices": "a completion without `choices`",
        "empty_choices": "a completion with `choices: []`",
        "no_message": "a choice without `message`",
        "length": "finish_reason `length` and no content: thinking used up the tokens",
        "content_filter": "finish_reason `content_filter` and null content",
        "blocked": "the prompt is blocked, in one of its three forms",
        "fenced": "the answer inside a Markdown fence",
        "invalid_json": "an answer that is not JSON",
        "wrong_schema": "an answer that is JSON, but not the schema's",
        "big_signature": "a thought signature of 10 kB",
        "no_usage": "a completion without `usage`",
        "stream_cut": "a stream whose connection is closed before its end (unstreamed: partial)",
        "stream_stall": "a stream that stalls until the client disconnects (unstreamed: hang)",
        "stream_error": "a list-wrapped 503 in the middle of a stream (unstreamed: 503)",
        "stream_error_object": "the same error as a plain object (unstreamed: 503)",
        "empty_ids": "tool calls with empty ids",
        "same_ids": "tool calls that all have the same id",
        "bad_arguments": "a tool call with invalid arguments, until the model gets the error",
        "unknown_tool": "a call of a tool that does not exist, until the model gets the error",
        "tool_stop": "tool calls with finish_reason `stop`",
    }
)


BUCKET_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "403": "AccessDenied",
        "429": "SlowDown",
        "500": "InternalError",
        "503": "ServiceUnavailable",
        "slow": "the answer comes two seconds later",
        "drop": "the connection is closed, and nothing was done",
        "lost": "what was asked is done, and the connection is closed without an answer",
        "cut": "the connection is closed in the middle of a body: an upload is not stored, a download stops half-way",
    }
)
BATCH_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "row_failed": "rows: a status with a 429 inside a sentence, and no response",
        "row_missing": "rows: no line in the output",
        "row_doubled": "rows: the same line twice",
        "row_unknown_key": "rows: a key, and labels, that were never sent",
        "row_no_candidates": "rows: a response with `candidates: []`",
        "row_blocked": "rows: a response with `promptFeedback` and no candidates",
        "row_cut": "rows: half an answer, with finish reason MAX_TOKENS",
        "job_failed": "jobs: FAILED after 60 % of the rows, which are in the output",
        "job_expired": "jobs: EXPIRED after 60 % of the rows, which are in the output",
        "job_partial": "jobs: PARTIALLY_SUCCEEDED, with 90 % of the rows",
        "job_stuck": "jobs: PENDING until they are cancelled",
        "job_denied": "jobs: FAILED at once, since the service agent may not read the input",
        "create_lost": "requests that create a job: it exists, but the connection is closed without an answer",
        "create_429": "requests that create a job: RESOURCE_EXHAUSTED, and there is no job",
        "create_503": "requests that create a job: UNAVAILABLE, and there is no job",
        "get_429": "requests for a job or a list of jobs: RESOURCE_EXHAUSTED",
        "get_503": "requests for a job or a list of jobs: UNAVAILABLE",
    }
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._:@-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the emulator behaves. Times are in seconds, shares between 0 and 1.

    `latency` is the time of every answer, or its median when `latency_sigma` (of a log-normal) is above 0.
    `quota_rps` refills a bucket that holds one second's worth and starts full; an empty bucket answers 429.
    `faults` maps a kind to its share of the requests; `poison` maps a text to the kind that every prompt with this
    text always gets. `retry_after` is sent unchanged with 429 and 503; `retry_info` goes into the body of a 429.
    `models` and `unknown_models` are shell patterns: a model that matches none of the first, or one of the second, is
    answered 404, and so is a name that is not `publisher/model`. Raises `ValueError` for values out of range.

    `quota_rps` is refilled up to `quota_window_s` seconds' worth; with `quota_fixed` the same amount is
    granted in every window of `quota_window_s` seconds instead. `capacity_schedule` changes it over time: pairs of
    seconds since the first request and requests per second from then on (0 for none). A location in `down_locations`
    answers 503; `location_latency` sets the latency of single locations.

    `field_errors` maps a field of the answers (`date`, or `lines.quantity` inside a list or an object) to the share of
    the answers in which it is wrong, though valid: another date or number, another enum value, other words, null or
    one item fewer. Which answers those are depends on seed, messages and field; a larger share includes those of a
    smaller one. `answer_key` maps prompts (the text of the last user message) to answers, to which `field_errors`
    still applies. With `nonce` every answer has a unique id, and `/stats/answers` lists them.

    `buckets` names the buckets of a local Cloud Storage; there are no others. `bucket_faults` maps a kind of
    `BUCKET_FAULTS` to its share of the requests whose method and key match the shell pattern `bucket_fault_on`, as in
    `PUT *.parquet`. `bucket_ahead_s` is how many seconds the clock of the buckets is ahead of that of this machine.

    A batch job takes `batch_delay` seconds of its clock: a quarter of them it waits. With `batch_clock` "manual" that
    clock stands still until `/control` moves it by `batch_advance` seconds. Its output, `batch_files` objects, has the
    rows in an order of the seed, with the ids that `batch_echo` names: the row's `key`, the request's `labels`, both,
    or none. `batch_faults` maps kinds of `BATCH_FAULTS` to shares of the rows, jobs or requests. A job with more rows
    than `batch_most_rows`, or input objects of more bytes than `batch_most_bytes`, fails.
    """

    port: int = 0
    project: str = "emulated-project"
    latency: float = 0.0
    latency_sigma: float = 0.0
    location_latency: Mapping[str, float] = field(default_factory=dict)
    quota_rps: float | None = None
    quota_window_s: float = 1.0
    quota_fixed: bool = False
    capacity_schedule: tuple[tuple[float, float], ...] = ()
    quota_in_flight: int | None = None
    down_locations: tuple[str, ...] = ()
    token_life: float = 3600.0
    faults: Mapping[str, float] = field(default_factory=dict)
    poison: Mapping[str, str] = field(default_factory=dict)
    retry_after: str | None = None
    retry_info: float | None = None
    error_style: Literal["list", "object"] = "list"
    field_errors: Mapping[str, float] = field(default_factory=dict)
    answer_key: Mapping[str, Any] = field(default_factory=dict)
    nonce: bool = False
    buckets: tuple[str, ...] = ()
    bucket_faults: Mapping[str, float] = field(default_factory=dict)
    bucket_fault_on: str = "*"
    batch_delay: float = 1.0
    batch_clock: Literal["real", "manual"] = "real"
    batch_echo: Literal["key", "labels", "both", "none"] = "labels"
    batch_files: int = 1
    batch_faults: Mapping[str, float] = field(default_factory=dict)
    batch_most_rows: int = 200_000
    batch_most_bytes: int = 1_000_000_000
    bucket_ahead_s: float = 0.0
    models: tuple[str, ...] = ("*/*",)
    unknown_models: tuple[str, ...] = ()
    seed: int = 0
    directory: Path | None = None

    def __post_init__(self) -> None:
        for kind in self.faults:
            check_kind(kind)
        for kind in self.poison.values():
            _check_poison(kind)
        if any(not 0 <= share <= 1 for share in self.faults.values()) or sum(self.faults.values()) > 1 + 1e-9:
            raise ValueError(f"faults: shares lie between 0 and 1 and add up to 1 at most, not {dict(self.faults)}")
        if self.latency < 0 or self.latency_sigma < 0:
            raise ValueError("latency and latency_sigma cannot be negative")
        if self.token_life <= 0:
            raise ValueError("token_life must be above 0 seconds")
        if self.quota_rps is not None and self.quota_rps <= 0:
            raise ValueError("quota_rps must be above 0; leave it out for no quota")
        if self.quota_in_flight is not None and self.quota_in_flight < 0:
            raise ValueError("quota_in_flight cannot be negative")
        if self.quota_window_s <= 0:
            raise ValueError("quota_window_s must be above 0 seconds")
        check_schedule(self.capacity_schedule)
        self._check_answers()
        self._check_locations()

    def _check_answers(self) -> None:
        if self.error_style not in {"list", "object"}:
            raise ValueError(f"error_style is 'list' or 'object', not {self.error_style!r}")
        if not isinstance(self.retry_after, str | None):
            raise ValueError(f"retry_after is the text of a header, such as '5', not {self.retry_after!r}")  # noqa: TRY004 (all options: one error)
        if self.retry_info is not None and self.retry_info < 0:
            raise ValueError("retry_info cannot be negative")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError("seed is a whole number of 64 bits")
        if not all(isinstance(text, str) for text in (*self.models, *self.unknown_models, *self.poison)):
            raise ValueError("models, unknown_models and poison are texts")
        for path, share in self.field_errors.items():
            check_field_error(path, share)
        self._check_buckets()
        self._check_batches()
        if not isinstance(self.nonce, bool):
            raise ValueError(f"nonce is true or false, not {self.nonce!r}")  # noqa: TRY004 (all options: one error)

    def serves(self, model: str) -> bool:
        """Whether this model is served."""
        known = any(fnmatchcase(model, pattern) for pattern in self.models)
        unknown = any(fnmatchcase(model, pattern) for pattern in self.unknown_models)
        return known and not unknown and _MODEL.fullmatch(model) is not None

    def _check_buckets(self) -> None:
        for name in self.buckets:
            if not isinstance(name, str) or not _BUCKET.fullmatch(name):
                raise ValueError(f"a bucket has 3 to 63 lower-case letters, digits, '-', '_' and '.', not {name!r}")
            if name == "stats":
                raise ValueError("a bucket cannot be called 'stats': the emulator's own /stats is there")
        for kind in self.bucket_faults:
            if kind not in BUCKET_FAULTS:
                raise ValueError(f"unknown kind of bucket fault {kind!r}; known kinds: {', '.join(BUCKET_FAULTS)}")
        shares = self.bucket_faults.values()
        if any(not 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            raise ValueError(f"bucket_faults: shares from 0 to 1, at most 1 together, not {dict(self.bucket_faults)}")
        if self.bucket_faults and not self.buckets:
            raise ValueError("bucket_faults are for buckets, and there is none: name one with --bucket")
        if not isinstance(self.bucket_ahead_s, int | float):
            raise ValueError(f"bucket_ahead_s is a number of seconds, not {self.bucket_ahead_s!r}")  # noqa: TRY004 (as below)
        if not isinstance(self.bucket_fault_on, str):
            raise ValueError(f"bucket_fault_on is a pattern, as in 'PUT *', not {self.bucket_fault_on!r}")  # noqa: TRY004 (all options: one error)

    def _check_batches(self) -> None:
        if not 0 <= self.batch_delay < math.inf:
            raise ValueError(f"batch_delay is a number of seconds, 0 or more, not {self.batch_delay!r}")
        if self.batch_clock not in {"real", "manual"}:
            raise ValueError(f"batch_clock is 'real' or 'manual', not {self.batch_clock!r}")
        if self.batch_echo not in {"key", "labels", "both", "none"}:
            raise ValueError(f"batch_echo is 'key', 'labels', 'both' or 'none', not {self.batch_echo!r}")
        if min(self.batch_files, self.batch_most_rows, self.batch_most_bytes) < 1:
            raise ValueError("batch_files, batch_most_rows and batch_most_bytes are whole numbers above 0")
        for kind in self.batch_faults:
            if kind not in BATCH_FAULTS:
                raise ValueError(f"unknown kind of batch fault {kind!r}; known kinds: {', '.join(BATCH_FAULTS)}")
        for group in ("row", "job", "create", "get"):
            shares = [share for kind, share in self.batch_faults.items() if kind.startswith(f"{group}_")]
            if any(not 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
                raise ValueError(f"batch_faults: shares from 0 to 1, at most 1 together for {group}_*, not {shares}")

    def _check_locations(self) -> None:
        if not all(isinstance(location, str) for location in (*self.down_locations, *self.location_latency)):
            raise ValueError("locations are texts")
        if any(seconds < 0 for seconds in self.location_latency.values()):
            raise ValueError("location_latency cannot be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorAddress:
    """The address of a running emulator, and the credentials it accepts."""

    base_url: str
    origin: str
    token_uri: str
    metadata_host: str
    stats_url: str
    credentials_file: str
    authorized_user_file: str
    project: str

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def environment(self) -> dict[str, str]:
        """Environment variables for a process that is to get its tokens from the emulated metadata server.

        They must be set before google-auth is imported, with GOOGLE_APPLICATION_CREDENTIALS unset and no gcloud
        login in CLOUDSDK_CONFIG, since both take precedence. NO_PROXY bypasses a configured proxy.
        """
        return {
            "GCE_METADATA_HOST": self.metadata_host,
            "GCE_METADATA_IP": self.metadata_host,
            "GOOGLE_CLOUD_PROJECT": self.project,
            "NO_PROXY": "127.0.0.1,localhost",
        }


def check_kind(kind: str) -> str:
    """The kind, if it is one of `FAULT_KINDS`; otherwise raises `ValueError` with the list."""
    if kind not in FAULT_KINDS:
        raise ValueError(f"unknown fault kind {kind!r}; known kinds: {', '.join(FAULT_KINDS)}")
    return kind


def _check_poison(kind: str) -> str:
    """The kind, if prompts can have it: one of `FAULT_KINDS`, or of the kinds of `BATCH_FAULTS` for rows."""
    return kind if kind in BATCH_FAULTS and kind.startswith("row_") else check_kind(kind)


def check_schedule(schedule: Sequence[tuple[float, float]]) -> None:
    """Raises `ValueError` unless times ascend from 0 or later and rates are not negative."""
    times = [time for time, _ in schedule]
    if any(not 0 <= number < math.inf for step in schedule for number in step) or sorted(set(times)) != times:
        raise ValueError(f"capacity_schedule: ascending seconds, and rates of 0 or more, not {schedule!r}")


def check_field_error(path: str, share: float) -> None:
    """Raises `ValueError` unless the path consists of names and the share is from 0 to 1."""
    if not isinstance(path, str) or not all(path.split(".")):
        raise ValueError(f"a field is written NAME or NAME.NAME, as in lines.quantity, not {path!r}")
    if not 0 <= share <= 1:
        raise ValueError(f"the share of wrong answers lies between 0 and 1, not {share}")


def parse_schedule(text: str) -> tuple[tuple[float, float], ...]:
    """`"0:100,20:200"` as `((0, 100), (20, 200))`: seconds and requests per second. Raises `ValueError`."""
    try:
        pairs = [tuple(map(float, step.split(":"))) for step in text.split(",")]
        schedule = tuple((time, rate) for time, rate in pairs)
    except ValueError:
        raise ValueError(f"a schedule is written SECONDS:RPS,SECONDS:RPS, as in 0:100,20:200, not {text!r}") from None
    check_schedule(schedule)
    return schedule


def parse_field_error(text: str) -> tuple[str, float]:
    """`"lines.quantity=0.1"` as `("lines.quantity", 0.1)`. Raises `ValueError`."""
    path, _, share = text.partition("=")
    try:
        number = float(share)
    except ValueError:
        raise ValueError(f"a field error is written FIELD=SHARE, as in date=0.1, not {text!r}") from None
    check_field_error(path.strip(), number)
    return path.strip(), number


def load_answer_key(path: Path) -> dict[str, Any]:
    """The answers by prompt, from a file with one line `{"prompt": ..., "answer": ...}` each. Raises `ValueError`."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
        return {line["prompt"]: line["answer"] for line in lines}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the answer key {path} cannot be read: {type(error).__name__}: {error}") from None


def parse_fault(text: str) -> tuple[str, float]:
    """`"503=0.1"` as `("503", 0.1)`. Raises `ValueError` for an unknown kind or a share outside 0 to 1."""
    kind, share = _kind_and_share(text)
    return check_kind(kind), share


def parse_bucket_fault(text: str) -> tuple[str, float]:
    """`"503=0.1"` as `("503", 0.1)`. Raises `ValueError` for a share outside 0 to 1; `Options` checks the kind."""
    return _kind_and_share(text)


def parse_batch_fault(text: str) -> tuple[str, float]:
    """`"row_missing=0.1"` as `("row_missing", 0.1)`; the same."""
    return _kind_and_share(text)


def _kind_and_share(text: str) -> tuple[str, float]:
    kind, _, share = text.partition("=")
    try:
        number = float(share)
    except ValueError:
        raise ValueError(f"a fault is written KIND=SHARE, as in 503=0.1, not {text!r}") from None
    if not 0 <= number <= 1:
        raise ValueError(f"the share of a fault lies between 0 and 1, not {share.strip()}")
    return kind.strip(), number


def parse_poison(text: str) -> tuple[str, str]:
    """`"row 17=500"` as `("row 17", "500")`: the last `=` separates. Raises `ValueError` for an unknown kind."""
    needle, separator, kind = text.rpartition("=")
    if not separator or not needle:
        raise ValueError(f"poison is written TEXT=KIND, as in 'row 17=500', not {text!r}")
    return needle, _check_poison(kind.strip())
