"""The log of a row's calls: what was answered is kept before anything may fail, and answers the same call again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Ask, Failure, Reply, Request, Row, Success, Usage
from pipeline.execution.chunks import answered
from pipeline.faults import BudgetExhausted, Fault, Refused, Truncated, Unavailable, Unparsable
from pipeline.job.attachments import Attachment
from pipeline.job.job import Job
from pipeline.job.reply_parser import ReplyParser
from pipeline.job.tools import tool_of
from pipeline.job.turns import Turn, digest_of
from pipeline.policy import RowCalls, logged
from pipeline.policy.repair import repairing
from pipeline.policy.tool_loop import ToolLimits, with_tools
from pipeline.schema.from_pydantic import shape_of
from pipeline.storage.codec import decode, encode
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import worker_journal_path
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

USAGE = Usage(10, 5, 3, 2)


def reply(content: str | None, *calls: str, finish: str = "stop", **more: Any) -> Reply:
    made = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in calls]
    message: dict[str, Any] = {"role": "assistant", "content": content} | ({"tool_calls": made} if made else {})
    body = orjson.dumps({"choices": [{"index": 0, "finish_reason": finish, "message": message}]})
    return Reply(body, **{"usage": USAGE, "cost_usd": 0.25, "latency_s": 1.0, **more})


@dataclass
class ScriptedModel:
    """Says one thing after the other, and remembers what it was asked."""

    says: Sequence[Reply | Exception]
    asked: list[Request] = field(default_factory=list)

    async def ask(self, request: Request) -> Reply:
        self.asked.append(request)
        said = self.says[min(len(self.asked), len(self.says)) - 1]
        if isinstance(said, Exception):
            raise said
        return said


@dataclass
class MemoryTurns:
    """Turns in memory, in the order in which they came."""

    turns: dict[int, Turn] = field(default_factory=dict)
    written: int = 0

    async def put_turn(self, _: int, number: int, turn: Turn) -> None:
        self.turns[number] = turn
        self.written += 1


class Tools:
    """A tool, and how often it ran: it says something else each time."""

    def __init__(self) -> None:
        self.ran = 0

    def ask_for(self, model: ScriptedModel, max_turns: int = 5) -> Ask:
        async def count() -> str:  # in a thread it would outlast its deadline: virtual time does not wait for those
            """How often it ran."""
            self.ran += 1
            return f"{self.ran} times"

        return with_tools(
            logged(model.ask), [tool_of(count)], ToolLimits(turns=max_turns, calls=32, timeout_s=9.0), transcript=False
        )


def request(calls: RowCalls | None = None, **payload: Any) -> Request:
    return Request(3, {"messages": [{"role": "user", "content": "?"}], **payload}, calls=calls)


async def entry(ask: Ask, calls: RowCalls) -> Reply | Fault:
    """What becomes of a row, as the work on chunks finds it out."""
    return await answered(Job(name="j", model="m", user="{{ t }}"), ask, Row(3, {"t": "?"}), calls)


async def test_a_row_of_one_call_writes_nothing() -> None:
    books = MemoryTurns()
    assert await entry(logged(ScriptedModel([reply("done")]).ask), RowCalls(3, books)) == reply("done")
    assert books.written == 0


async def test_m3_a_turn_is_kept_before_its_tools_run_and_its_results_before_the_next_call() -> None:
    books = MemoryTurns()
    seen: list[dict[int, object]] = []

    class Looking(ScriptedModel):
        async def ask(self, request: Request) -> Reply:
            seen.append({number: turn.results for number, turn in books.turns.items()})
            return await super().ask(request)

    async def run() -> str:
        """Looks, too."""
        seen.append({number: turn.results for number, turn in books.turns.items()})
        return "x"

    model = Looking([reply(None, "run"), reply("done")])
    ask = with_tools(logged(model.ask), [tool_of(run)], ToolLimits(turns=5, calls=32, timeout_s=9.0), transcript=False)
    await ask(request(RowCalls(3, books)))
    results = [{"role": "tool", "tool_call_id": "run", "content": "x"}]
    assert seen == [{}, {0: None}, {0: results}]


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
async def test_m3_a_row_that_was_stopped_goes_on_where_it_was(stopped_after: int) -> None:
    """With neither calls nor tools repeated, however often it is stopped, and the same reply in the end."""
    says = [reply(None, "count"), reply(None, "count"), reply(None, "count"), reply("done")]
    books, tools = MemoryTurns(), Tools()
    first = ScriptedModel([*says[:stopped_after], BudgetExhausted("enough")])
    with pytest.raises(BudgetExhausted):
        await entry(tools.ask_for(first), RowCalls(3, books))
    with pytest.raises(BudgetExhausted):
        await entry(tools.ask_for(ScriptedModel([BudgetExhausted("still")])), RowCalls(3, books, dict(books.turns)))
    second = ScriptedModel(says[stopped_after:])
    calls = RowCalls(3, books, dict(books.turns))
    final = await entry(tools.ask_for(second), calls)
    assert isinstance(final, Reply)
    assert (final.usage, final.cost_usd, final.attempts) == (Usage(40, 20, 12, 8), 1.0, 4)
    assert (len(second.asked), tools.ran) == (4 - stopped_after, 3)
    whole = Tools()
    assert await entry(whole.ask_for(ScriptedModel(says)), RowCalls(3, MemoryTurns())) == final


async def test_m3_what_was_kept_answers_the_same_request_only() -> None:
    books = MemoryTurns()
    with pytest.raises(BudgetExhausted):
        await Tools().ask_for(ScriptedModel([reply(None, "count"), BudgetExhausted("enough")]))(
            request(RowCalls(3, books))
        )
    model = ScriptedModel([reply("another")])
    calls = RowCalls(3, books, dict(books.turns))
    assert await Tools().ask_for(model)(request(calls, temperature=1)) == reply("another")
    assert len(model.asked) == 1


@pytest.mark.parametrize("fault", [Refused("no", http_status=400), Unavailable("down"), Truncated("again")])
async def test_m3_a_fault_of_a_later_call_carries_what_all_calls_cost(fault: Fault) -> None:
    books = MemoryTurns()
    ended = await entry(
        Tools().ask_for(ScriptedModel([reply(None, "count"), reply(None, "count"), fault])), RowCalls(3, books)
    )
    assert isinstance(ended, type(fault))
    assert isinstance(ended.reply, Reply)
    assert (ended.reply.usage, ended.reply.cost_usd) == (Usage(20, 10, 6, 4), 0.5)


async def test_m3_a_row_that_never_ends_its_turns_is_cut_and_stays_cut() -> None:
    ended = await entry(Tools().ask_for(ScriptedModel([reply(None, "count")]), max_turns=3), RowCalls(3, MemoryTurns()))
    assert isinstance(ended, Truncated)
    outcome = ReplyParser(None).outcome(3, ended)
    assert isinstance(outcome, Failure)
    assert outcome.reply is not None
    assert outcome.reply.usage == Usage(30, 15, 9, 6)


async def test_m3_a_call_that_failed_and_was_paid_is_in_the_cost_of_its_row() -> None:
    calls = RowCalls(3, MemoryTurns())

    async def ask(asked: Request) -> Reply:
        assert asked.calls is not None
        asked.calls.paid_in_vain(reply("half"))
        return reply("done")

    final = await entry(logged(ask), calls)
    assert isinstance(final, Reply)
    assert (final.body, final.usage, final.attempts) == (reply("done").body, Usage(20, 10, 6, 4), 1)

    async def fails(asked: Request) -> Reply:
        assert asked.calls is not None
        asked.calls.paid_in_vain(reply("half"))
        raise Unavailable("odd")

    ended = await entry(logged(fails), RowCalls(3, MemoryTurns()))
    assert isinstance(ended, Unavailable)
    assert ended.reply == reply("half", attempts=0)


async def test_m3_an_answer_is_kept_before_a_bug_in_its_reading_ends_the_run() -> None:
    books = MemoryTurns()

    def buggy(*_: object) -> Success:
        raise ZeroDivisionError

    model = ScriptedModel([reply("one")])
    with pytest.raises(ZeroDivisionError):
        await repairing(logged(model.ask), buggy, 1)(request(RowCalls(3, books)))
    assert books.turns[0].reply == reply("one")
    again = ScriptedModel([reply("two")])
    fixed = repairing(logged(again.ask), lambda ordinal, got: Success(ordinal, "x", got), 1)
    assert await fixed(request(RowCalls(3, books, dict(books.turns)))) == reply("one")
    assert again.asked == []


# What becomes of a row that ended in a fault after an answer.


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ANOTHER = {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}


def refused(answer: Reply | None) -> Refused:
    fault = Refused("too long", http_status=400)
    fault.reply = answer
    return fault


def test_m3_the_answer_whose_repair_was_refused_counts_under_a_schema_that_it_fits() -> None:
    fault = refused(reply('{"b": "x"}'))
    under, over = (ReplyParser(shape_of(schema, "r")) for schema in (SCHEMA, ANOTHER))
    failed = under.outcome(3, fault)
    assert (type(failed), failed.reply) == (Failure, fault.reply)
    assert isinstance(failed, Failure)
    assert failed.fault is fault
    assert over.outcome(3, fault) == Success(3, {"b": "x"}, reply('{"b": "x"}'))


def test_a_fault_without_an_answer_is_as_before() -> None:
    assert ReplyParser(None).outcome(3, fault := refused(None)) == Failure(3, fault)


@given(
    st.sampled_from([Refused, Unavailable, Truncated, Unparsable]),
    st.text(),
    st.none() | st.integers(100, 599),
    st.none() | st.builds(reply, st.text(), usage=st.none() | st.just(USAGE), transcript=st.none() | st.text()),
)
def test_m3_a_fault_is_read_back_as_it_was_written_with_its_reply(
    kind: type[Fault], message: str, status: int | None, answer: Reply | None
) -> None:
    fault = kind(message.encode("utf-8", "replace").decode(), http_status=status)
    fault.reply = answer and replace(
        answer, transcript=answer.transcript and answer.transcript.encode("utf-8", "replace").decode()
    )
    read = decode(*encode(fault))
    assert isinstance(read, kind)
    assert (read.message, read.http_status, read.reply) == (fault.message, status, fault.reply)


# In the journal.


async def no_entry(journal: Journal, ordinal: int, *turns: tuple[int, Turn]) -> None:
    for number, turn in turns:
        await journal.put_turn(ordinal, number, turn)
    journal.commit()


TURNS = (
    (0, Turn(b"0", reply(None, "count"), [{"role": "tool", "tool_call_id": "count", "content": "é"}])),
    (1, Turn(b"1", reply("x", transcript="t"))),
)


def plain(found: dict[int, dict[int, Turn]]) -> dict[int, list[tuple[bytes, bytes, object]]]:
    return {
        row: [(turn.digest, turn.reply.body, turn.results) for _, turn in sorted(turns.items())]
        for row, turns in found.items()
    }


KEPT = [(turn.digest, turn.reply.body, turn.results) for _, turn in TURNS]


def test_m3_turns_are_there_until_their_row_is_done(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    for ordinal in (3, 4, 5):
        anyio.run(no_entry, journal, ordinal, *TURNS)
    journal.close()
    journal = Journal(path)
    assert plain(journal.turns(0, 5)) == {3: KEPT, 4: KEPT}
    anyio.run(journal.put, 3, reply("done"))
    journal.commit()
    journal.forget([5])
    assert plain(journal.turns(0, 9)) == {4: KEPT}
    journal.close()


def test_m3_turns_of_a_worker_that_is_gone_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    own = Journal(worker_journal_path(path, 1))
    anyio.run(no_entry, own, 3, *TURNS)
    own.close()
    journal = Journal(path)
    journal.absorb(worker_journal_path(path, 1))
    assert plain(journal.turns(0, 9)) == {3: KEPT}
    journal.close()


def test_two_requests_have_one_digest_only_if_all_of_them_is_the_same() -> None:
    def of(content: Any, **more: Any) -> bytes:
        return digest_of(Request(0, {"messages": [{"role": "user", "content": content}], **more}))

    image = [Attachment("image", "photo", b"one")]
    contents = ["a", "b", image, [Attachment("image", "photo", b"two")], [Attachment("image", "photo", "one.png")]]
    digests = [of(content) for content in contents] + [of("a", temperature=0)]
    assert len(set(digests)) == len(digests)
    assert of("a") == of("a")
    assert of(list(image)) == of(image)
    assert len(of(object())) == 32
