"""The values passed between packages: rows, requests, replies, outcomes. Frozen; standard library only."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pipeline.faults import Fault, InvalidRow

Message = Mapping[str, Any]
"""One chat message as the endpoint accepts it: `role`, `content`, and whatever else the role allows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the input.

    `ordinal` is its position across all input files, from 0, and its identity. `values` holds the columns that were
    read. A record that cannot be read at all (a broken line) has a `problem`, a message for people, and no values.
    """

    ordinal: int
    values: Mapping[str, Any]
    problem: str | None = None


class RowValues(dict[str, Any]):
    """The values of a row with unreadable columns; `problems` describes what is wrong with each of those.

    Accessing one of those by name raises `InvalidRow`, so that a prompt which does not use it can still be made.
    """

    def __init__(self, values: Mapping[str, Any], problems: Mapping[str, str]) -> None:
        super().__init__(values)
        self.problems = problems

    def __missing__(self, name: str) -> Any:
        if name in self.problems:
            raise InvalidRow(self.problems[name])
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`, but raises `InvalidRow` for columns that cannot be read."""
        return self[name] if name in self.problems else super().get(name, default)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `payload` is the JSON body of a chat completion and is never modified once made."""

    ordinal: int
    payload: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    calls: CallLog | None = field(default=None, compare=False, repr=False)
    """The log of the row's calls, if one is kept."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more calls. The kinds are disjoint, except that `cached` is part of `input`.

    `output` never includes `reasoning`, however the server counts; both are billed as output.
    """

    input: int = 0
    output: int = 0
    reasoning: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.reasoning + other.reasoning,
            self.cached + other.cached,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.input - other.input,
            self.output - other.output,
            self.reasoning - other.reasoning,
            self.cached - other.cached,
        )


_NO_TOKENS = Usage()


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, unmodified.

    `body` is the response body, byte for byte, and always holds a chat completion (see `pipeline.endpoint.wire`).
    `usage` is the sum over all calls made for this row, and None when the server reported none for one of them;
    `attempts` counts the calls that used up an attempt.
    Times are in seconds; `finished_at` is Unix time in microseconds, taken when the last byte arrived.
    """

    body: bytes
    usage: Usage | None = None
    attempts: int = 1
    latency_s: float = 0.0
    first_token_s: float | None = None
    finished_at: int = 0
    model: str | None = None
    traffic_type: str | None = None
    location: str | None = None
    """Which of several endpoints answered."""
    cost_usd: float | None = None
    """The cost of all calls for the row; None when no price is known."""
    completion: object = field(default=None, compare=False, repr=False)
    """The parsed body, if it was parsed already; never stored."""
    asked: Request | None = field(default=None, compare=False, repr=False)
    """The last request of a row that took several turns: a further request continues from it. Never stored."""
    transcript: str | None = None
    """The messages of all turns as JSON, when the job keeps them."""
    from_cache: bool = False
    """Whether the reply cache answered every call of the row, so that nothing was paid for it this time."""
    saved: Usage = _NO_TOKENS
    """The part of `usage` that came from the reply cache: an earlier call paid for it."""
    saved_usd: float = 0.0
    """The part of `cost_usd` that came from the reply cache."""

    def charged(self, location: str | None, cost_usd: float | None) -> Reply:
        """The reply with its location and cost.

        Field by field because every call runs this, and `dataclasses.replace` takes twice the time.
        """
        return Reply(
            self.body,
            self.usage,
            self.attempts,
            self.latency_s,
            self.first_token_s,
            self.finished_at,
            self.model,
            self.traffic_type,
            location,
            cost_usd,
            self.completion,
            self.asked,
            self.transcript,
            self.from_cache,
            self.saved,
            self.saved_usd,
        )

    @property
    def paid(self) -> Usage | None:
        """Tokens paid for this time, excluding cached replies; None when unknown."""
        if self.from_cache:
            return _NO_TOKENS
        if self.usage is None or self.saved is _NO_TOKENS:  # nothing came from the cache, as nearly always
            return self.usage
        return self.usage - self.saved

    @property
    def paid_usd(self) -> float | None:
        """US dollars paid this time, excluding cached replies; None when unknown."""
        if self.from_cache:
            return 0.0
        return None if self.cost_usd is None else self.cost_usd - self.saved_usd


def together(before: Reply | None, reply: Reply) -> Reply:
    """The later reply, with the usage, cost, attempts and time of both."""
    if before is None:
        return reply
    priced = before.cost_usd is not None and reply.cost_usd is not None
    metered = before.usage is not None and reply.usage is not None
    return replace(
        reply,
        usage=(before.usage or _NO_TOKENS) + (reply.usage or _NO_TOKENS) if metered else None,
        cost_usd=(before.cost_usd or 0.0) + (reply.cost_usd or 0.0) if priced else None,
        attempts=before.attempts + reply.attempts,
        latency_s=before.latency_s + reply.latency_s,
        first_token_s=before.first_token_s,
        from_cache=before.from_cache and reply.from_cache,
        saved=before.saved + reply.saved,
        saved_usd=before.saved_usd + reply.saved_usd,
    )


Ask = Callable[[Request], Awaitable[Reply]]
"""The central interface: takes a request, returns a reply or raises a fault."""


class CallLog(Protocol):
    """The recorded answers to a row's calls: see `policy.row_calls`."""

    async def answered(self, request: Request, ask: Ask) -> Reply:
        """The reply to the row's next call."""

    async def keep(self) -> None:
        """Records the answers so far, durably within a tick, since another call may follow, or fail."""

    async def tool_results(self, run: Callable[[], Awaitable[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """The results of the tools that the last answer calls."""

    def paid_in_vain(self, reply: Reply) -> None:
        """Records a call that failed but was billed."""


@dataclass(frozen=True, slots=True)
class Success:
    """A row with its value: the fields of the job's schema as plain values or, without a schema, the answer's text."""

    ordinal: int
    value: Any
    reply: Reply


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that ended in a fault. `reply` is set when the endpoint did answer (and was paid)."""

    ordinal: int
    fault: Fault
    reply: Reply | None = None


Outcome = Success | Failure

Entry = Reply | Fault
"""What is recorded for a row: the unmodified reply, or the fault that ended the row."""


PARTS = "data"
"""The subfolder of an output folder that holds its parts and nothing else: the path to give to dataset readers."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """One Parquet file of a part."""

    name: str
    rows: int
    bytes: int
    sha256: str
    stamp: str = field(default="", compare=False)
    """The file's metadata at the time it was sealed, from the file system; changes whenever the file does."""

    @property
    def path(self) -> str:
        """The file's path relative to the output folder."""
        return f"{PARTS}/{self.name}"


@dataclass(frozen=True, slots=True)
class Part:
    """A sealed chunk, as the manifest describes it. Tokens and dollars are sums of what was paid for its rows.

    `rows`, `ok`, `failed`, tokens and dollars describe the whole part; `bytes`, `sha256` and `stamp` its first file,
    which holds the whole part unless its rows are so large that the files in `more` follow.
    """

    chunk: int
    name: str
    first: int
    rows: int
    ok: int
    failed: int
    bytes: int
    sha256: str
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    cost_usd: float = 0.0
    unpriced: int = 0
    """Replies with an unknown price, which `cost_usd` therefore excludes."""
    unmetered: int = 0
    """Replies without usage, which the token sums exclude."""
    from_cache: int = 0
    """Rows that the reply cache answered, so that nothing was paid this time."""
    failures: Sequence[Mapping[str, Any]] = ()
    """The failed rows by kind: see `pipeline.totals.failures`."""
    more: tuple[PartFile, ...] = ()
    stamp: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[PartFile, ...]:
        """The files that hold the rows, in row order."""
        rows = self.rows - sum(file.rows for file in self.more)
        return (PartFile(self.name, rows, self.bytes, self.sha256, self.stamp), *self.more)

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """For each file: path relative to the output folder, ordinal of its first row, number of rows."""
        first = self.first
        for file in self.files:
            yield file.path, first, file.rows
            first += file.rows

    @staticmethod
    def from_json(known: Any) -> Part:
        """The part from the output of `dataclasses.asdict`, or from the manifest.

        Raises `ValueError` for anything else, such as a path outside the dataset.
        """
        try:
            more = tuple(PartFile(**_by_name(file)) for file in known.get("more", ()))
            part = Part(**{**_by_name(known), "more": more, "failures": tuple(known.get("failures", ()))})
            numbers = [part.chunk, part.first, part.ok, part.failed, part.rows, part.bytes, part.cost_usd]
            sane = all(isinstance(number, int | float) and number >= 0 for number in numbers)
            named = all(is_part_name(file.name) and file.rows >= 0 for file in part.files)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"not a part: {error}") from error
        if not sane or not named:
            raise ValueError("not a part: its numbers or names are invalid")
        return part


_PART_FILE = re.compile(r"part-\d{6,}(_\d{2,})?\.parquet")


def _by_name(file: Any) -> dict[str, Any]:
    """A file's description, with its name in place of the path that the manifest gives."""
    return {**file, "name": file["name"].removeprefix(f"{PARTS}/")}


def is_part_name(name: str) -> bool:
    """Whether a file name is one that a run gives to its part files."""
    return _PART_FILE.fullmatch(name) is not None
