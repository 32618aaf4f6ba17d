"""The answers of a batch job, each assigned to its row by its key, and recorded as online answers are.

They come in any order, and the service may leave out a row, send one twice, or send what nobody asked. So they are read
twice: first the keys alone, to find answers that cannot be assigned; then those that can are recorded. Nothing is
guessed: a row without one certain answer counts as not answered.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import orjson
from anyio import to_thread

from pipeline.data import Entry, Failure, Outcome, Reply, Usage
from pipeline.endpoint.batch.backend import BatchAnswer, BatchBackend, BatchJob
from pipeline.endpoint.batch.replies import reply_of
from pipeline.endpoint.prices import Prices
from pipeline.execution.batch.settings import STRAY_SHARE
from pipeline.execution.batch.spool import ordinal_of
from pipeline.faults import Fault, Halt, ProviderUnusable, Transient, Truncated, Unparsable
from pipeline.job.job import Job
from pipeline.job.turns import FIRST_REQUEST, Turn
from pipeline.storage.journal import Journal
from pipeline.storage.submissions import Submission
from pipeline.totals.ledger import NOTHING, Charges

_PORTION_ROWS = 500
_PORTION_BYTES = 8 << 20
"""What is recorded in one transaction, at most about."""

_UNSEEN, _DISPUTED = 0, 1
_NO_TOKENS = Usage()

RAW = "batch_answer"
"""The field of a recorded body that holds the line as it was received, without the request that it repeats."""


@dataclass(frozen=True, slots=True)
class AnswerKeys:
    """What the first reading has found: which rows have one certain answer."""

    rows: int
    digests: array[int]
    """By position of the row: a digest of its answer, or why it has none."""
    keyless: int = 0
    foreign: int = 0
    """Answers with a key that was not sent in this job."""
    repeated: int = 0
    """Answers that came again, unchanged: the first one counts."""
    disputed: int = 0
    """Rows with two answers that differ: neither counts."""

    @property
    def strays(self) -> int:
        """Answers that cannot be assigned."""
        return self.keyless + self.foreign + self.disputed

    @property
    def missing(self) -> int:
        """Rows without any answer."""
        return sum(digest == _UNSEEN for digest in self.digests)

    def is_certain(self, position: int) -> bool:
        """Whether the row has one answer, and no other."""
        return self.digests[position] > _DISPUTED

    def report(self) -> str:
        """What is wrong, for people; empty if nothing is."""
        found = {
            "without a key": self.keyless,
            "with a key that was not sent": self.foreign,
            "sent twice, unchanged": self.repeated,
            "sent twice with different content": self.disputed,
        }
        return ", ".join(f"{count} {what}" for what, count in found.items() if count)


@dataclass(slots=True)
class Collected:
    """What the second reading has recorded."""

    charged: Charges = NOTHING
    answered: int = 0
    """Rows that have an answer, as values or not."""
    to_repair: int = 0
    """Answers that are cut or do not fit: the endpoint is asked to correct them."""
    failed: dict[str, int] = field(default_factory=dict)
    """Rows that the service could not answer this time, by reason."""

    def count_failure(self, fault: Fault) -> None:
        """Counts a row that is asked again."""
        reason = type(fault).__name__ if fault.http_status is None else f"{type(fault).__name__} {fault.http_status}"
        self.failed[reason] = self.failed.get(reason, 0) + 1


class Collection:
    """The answers of one ended job. `now` gives Unix time in seconds; `count` takes the outcome of each new row."""

    def __init__(  # noqa: PLR0913 - what a row is read, priced and recorded with
        self,
        backend: BatchBackend,
        submission: Submission,
        *,
        job: Job,
        prices: Prices,
        journal: Journal,
        is_recorded: Callable[[int], bool],
        count: Callable[[Outcome], None],
        now: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._submission = submission
        self._job = job
        self._prices = prices
        self._journal = journal
        self._is_recorded = is_recorded
        self._count = count
        self._now = now
        self._entries: list[tuple[int, Entry]] = []
        self._outcomes: list[Outcome] = []
        self._turns: list[tuple[int, int, Turn]] = []
        self._bytes = 0

    async def keys(self, job: BatchJob) -> AnswerKeys:
        """Reads the keys. Raises `ProviderUnusable` if too many answers cannot be assigned: then none is recorded."""
        digests = array("Q", bytes(8 * self._submission.rows))
        keyless = foreign = repeated = disputed = 0
        async for answer in self._backend.results(job):
            position = self._position(answer)
            if position is None:
                keyless, foreign = keyless + (answer.key is None), foreign + (answer.key is not None)
                continue
            digest, known = _digest(answer), digests[position]
            if known == _UNSEEN:
                digests[position] = digest
            elif known == digest:
                repeated += 1
            elif known != _DISPUTED:
                digests[position] = _DISPUTED
                disputed += 1
        found = AnswerKeys(self._submission.rows, digests, keyless, foreign, repeated, disputed)
        if found.strays > max(1.0, STRAY_SHARE * found.rows):
            raise ProviderUnusable(
                f"the answers of batch job {self._submission.name} cannot be assigned to rows ({found.report()}), so "
                f"none is recorded: run without --batch to ask these rows online, or with it to submit them again"
            )
        return found

    async def record(self, job: BatchJob, keys: AnswerKeys) -> Collected:
        """Records the certain answers of rows that are not recorded yet. The charges are those of all answers."""
        collected = Collected()
        seen = bytearray(self._submission.rows)
        async for answer in self._backend.results(job):
            position = self._position(answer)
            if position is None or seen[position] or not keys.is_certain(position):
                continue
            seen[position] = 1
            self._take(answer, collected)
            if len(self._entries) + len(self._turns) >= _PORTION_ROWS or self._bytes >= _PORTION_BYTES:
                await self._flush()
        await self._flush()
        return collected

    def _take(self, answer: BatchAnswer, collected: Collected) -> None:
        ordinal = ordinal_of(answer.key or "")
        if ordinal is None:
            return
        entry: Entry
        try:
            reply = reply_of(answer, finished_at=round(self._now() * 1e6), traffic_type=self._backend.traffic_type)
        except Fault as fault:
            if isinstance(fault.reply, Reply):
                fault.reply = self._charged(fault.reply, collected)
            if isinstance(fault, Transient | Halt):
                collected.count_failure(fault)
                return
            entry = fault.without_trace()
        else:
            entry = replace(self._charged(reply, collected), body=_with_raw(answer, self._backend.traffic_type))
        collected.answered += 1
        if not self._is_recorded(ordinal):
            self._keep(ordinal, entry, collected)

    def _keep(self, ordinal: int, entry: Entry, collected: Collected) -> None:
        outcome = self._job.outcome(ordinal, entry)
        self._bytes += len(entry.body) if isinstance(entry, Reply) else 0
        fault = outcome.fault if isinstance(outcome, Failure) else None
        if isinstance(entry, Reply) and self._job.repairs and isinstance(fault, Truncated | Unparsable):
            # The answer to the first of its calls: the row goes on from it online, and does not pay for it again.
            self._turns.append((ordinal, 0, Turn(FIRST_REQUEST, entry)))
            collected.to_repair += 1
            return
        self._entries.append((ordinal, entry))
        self._outcomes.append(outcome)

    def _charged(self, reply: Reply, collected: Collected) -> Reply:
        model = self._job.model or reply.model
        cost = self._prices.cost(model, reply.usage, reply.traffic_type)
        collected.charged += Charges.of_call(reply.usage, cost, _NO_TOKENS)
        return reply.charged(reply.location, cost)

    async def _flush(self) -> None:
        entries, turns, outcomes = self._entries, self._turns, self._outcomes
        self._entries, self._turns, self._outcomes, self._bytes = [], [], [], 0
        if entries or turns:
            await to_thread.run_sync(partial(self._journal.record, entries, turns))
        for outcome in outcomes:
            self._count(outcome)

    def _position(self, answer: BatchAnswer) -> int | None:
        """The position of an answer's row in the job; None if it has no key that was sent."""
        ordinal = None if answer.key is None else ordinal_of(answer.key)
        return None if ordinal is None else self._submission.ordinals.position(ordinal)


def _digest(answer: BatchAnswer) -> int:
    """A number that tells an answer from another one, above those with a meaning of their own."""
    content = answer.body if answer.body is not None else repr(answer.fault).encode("utf-8", "replace")
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big") | 2


def _with_raw(answer: BatchAnswer, traffic_type: str) -> bytes:
    """The body as it is recorded: with its traffic type, and the received line where the body was made of it."""
    body = answer.body or b""
    try:
        document = orjson.loads(body)
        raw = None if body in answer.raw else orjson.loads(answer.raw)
    except orjson.JSONDecodeError:  # read by the tolerant reader alone: kept as it is
        return body
    if not isinstance(document, dict):
        return body
    usage = document.get("usage")
    if isinstance(usage, dict):
        known = usage.get("extra_properties")
        extra: dict[str, Any] = dict(known) if isinstance(known, dict) else {}
        google = extra.get("google")
        extra["google"] = {**(google if isinstance(google, dict) else {}), "traffic_type": traffic_type}
        document["usage"] = {**usage, "extra_properties": extra}
    if isinstance(raw, dict):
        document[RAW] = {name: value for name, value in raw.items() if name != "request"}
    return orjson.dumps(document)
