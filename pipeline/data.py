"""The values that travel: rows, requests, replies, outcomes. Frozen, and of the standard library only."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pipeline.faults import Fault

Message = Mapping[str, Any]
"""One chat message as the endpoint takes it: `role`, `content`, and what else the role allows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the input.

    `ordinal` is its position over all input files, from 0: its identity. `values` holds the columns that were
    read. A record that cannot be read at all (a broken line) has `problem` set, in words, and no values.
    """

    ordinal: int
    values: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: `payload` is the JSON body of one chat completion, never changed after it was made."""

    ordinal: int
    payload: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    calls: CallLog | None = field(default=None, compare=False, repr=False)
    """The log of the row's calls, where one is kept."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more calls, in disjoint kinds except `cached`, which is part of `input`.

    `output` never includes `reasoning`, whichever way the server counts; both are billed as output.
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
    """What was answered, as it came.

    `body` is the response body, byte for byte, and always holds a chat completion (see `pipeline.endpoint.wire`).
    `usage` is the sum over every call that this row has cost, and None when the server did not say of one of them;
    `attempts` counts the calls that used up a try.
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
    """What all calls of the row cost; None when no price is known."""
    completion: object = field(default=None, compare=False, repr=False)
    """The body as it was read once already, if it was; never stored."""
    asked: Request | None = field(default=None, compare=False, repr=False)
    """The last request of a row that took several turns: what is asked again goes on from there. Never stored."""
    transcript: str | None = None
    """The messages of all turns as JSON, when the job keeps them."""
    from_cache: bool = False
    """Whether every call of the row was answered by the reply cache, so that nothing was paid for it now."""
    saved: Usage = _NO_TOKENS
    """The part of `usage` that came out of the reply cache: an earlier call has paid it."""
    saved_usd: float = 0.0
    """The part of `cost_usd` that did."""

    def charged(self, location: str | None, cost_usd: float | None) -> Reply:
        """The reply, with where it came from and what it cost.

        Field by field: every call passes here, and `dataclasses.replace` takes twice the time.
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
        """What was paid now, in tokens; None when that is not known."""
        if self.from_cache:
            return _NO_TOKENS
        return None if self.usage is None else self.usage - self.saved

    @property
    def paid_usd(self) -> float | None:
        """What was paid now, in dollars; None when that is not known."""
        if self.from_cache:
            return 0.0
        return None if self.cost_usd is None else self.cost_usd - self.saved_usd


def together(before: Reply | None, reply: Reply) -> Reply:
    """The later reply, with what both cost."""
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
"""The one idea: a request goes in, a reply comes out, or a fault is raised."""


class CallLog(Protocol):
    """What the calls of a row were answered: see `policy.row_calls`."""

    async def answered(self, request: Request, ask: Ask) -> Reply:
        """The reply to the next call."""

    async def keep(self) -> None:
        """Keeps what was answered so far, durably within a tick: another call may follow, or fail."""

    async def carried_out(self, run: Callable[[], Awaitable[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """What the tools have said that the last answer calls."""

    def paid_in_vain(self, reply: Reply) -> None:
        """A call failed that was paid for all the same."""


@dataclass(frozen=True, slots=True)
class Success:
    """A row with its value: the fields of the job's schema as plain values, or the answer's text without one."""

    ordinal: int
    value: Any
    reply: Reply


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that ended in a fault. `reply` is there when the endpoint did answer (and was paid)."""

    ordinal: int
    fault: Fault
    reply: Reply | None = None


Outcome = Success | Failure

Entry = Reply | Fault
"""What is recorded of a row: a reply as it came, or the fault that ended it."""


PARTS = "data"
"""The folder in an output folder that holds its parts, and nothing else: what a reader of folders is given."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """One Parquet file of a part."""

    name: str
    rows: int
    bytes: int
    sha256: str
    stamp: str = field(default="", compare=False)
    """What the file system said of the file when it was sealed; changes whenever the file does."""

    @property
    def path(self) -> str:
        """Where the file is, below the output folder."""
        return f"{PARTS}/{self.name}"


@dataclass(frozen=True, slots=True)
class Part:
    """A sealed chunk: what the manifest says of it. Tokens and dollars are sums of what was paid for its rows.

    `rows`, `ok`, `failed`, tokens and dollars are of the whole part; `bytes`, `sha256` and `stamp` of its first file,
    which holds all of it unless the rows are so large that `more` follow.
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
    """Replies whose price is not known, and which `cost_usd` therefore leaves out."""
    unmetered: int = 0
    """Replies without usage, which the sums of tokens leave out."""
    from_cache: int = 0
    """Rows that the reply cache answered, and nobody paid for now."""
    failures: Sequence[Mapping[str, Any]] = ()
    """The failed rows by kind: see `pipeline.failures`."""
    more: tuple[PartFile, ...] = ()
    stamp: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[PartFile, ...]:
        """The files that hold the rows, in the order of the rows."""
        rows = self.rows - sum(file.rows for file in self.more)
        return (PartFile(self.name, rows, self.bytes, self.sha256, self.stamp), *self.more)

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Where each file is below the output folder, the ordinal of its first row, and how many rows it has."""
        first = self.first
        for file in self.files:
            yield file.path, first, file.rows
            first += file.rows

    @staticmethod
    def from_json(known: Any) -> Part:
        """The part that `dataclasses.asdict` or the manifest wrote.

        Raises `ValueError` for anything else, such as a foreign path.
        """
        try:
            more = tuple(PartFile(**_by_name(file)) for file in known.get("more", ()))
            part = Part(**{**_by_name(known), "more": more, "failures": tuple(known.get("failures", ()))})
            numbers = [part.chunk, part.first, part.ok, part.failed, part.rows, part.bytes, part.cost_usd]
            sane = all(isinstance(number, int | float) and number >= 0 for number in numbers)
            named = all(is_part_name(file.name) and file.rows >= 0 for file in part.files)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"no part: {error}") from error
        if not sane or not named:
            raise ValueError("no part: its numbers or names make no sense")
        return part


_PART_FILE = re.compile(r"part-\d{6,}(_\d{2,})?\.parquet")


def _by_name(file: Any) -> dict[str, Any]:
    """A file's description with its name, where the manifest has its path."""
    return {**file, "name": file["name"].removeprefix(f"{PARTS}/")}


def is_part_name(name: str) -> bool:
    """Whether a file of this name, in the folder of the parts, is one that a run writes."""
    return _PART_FILE.fullmatch(name) is not None
