"""The columns that the pipeline adds to the output: their types, and their values made of outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.data import Failure, Outcome, Reply, Usage
from pipeline.endpoint.wire import Completion, CompletionChoice
from pipeline.faults import Fault
from pipeline.job.reply_parser import ReplyParser

_CALL = pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments", pa.string())])
_MEDIUM = pa.struct([("mime_type", pa.string()), ("data", pa.binary())])

RESPONSE = pa.struct(
    [
        ("text", pa.string()),
        ("reasoning", pa.string()),
        ("tool_calls", pa.list_(pa.field("element", _CALL))),
        ("media", pa.list_(pa.field("element", _MEDIUM))),
        ("finish_reason", pa.string()),
        ("model", pa.string()),
        ("id", pa.string()),
        ("location", pa.string()),
        ("traffic_type", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("from_cache", pa.bool_()),
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("transcript", pa.string()),
    ]
)
ERROR = pa.struct([("type", pa.string()), ("message", pa.string()), ("http_status", pa.int32())])
STATUS = pa.dictionary(pa.int32(), pa.string())

_NOTHING = (None,) * len(RESPONSE)
_EMPTY = Completion((), None, None, None, None, None)


def output_schema(kept: pa.Schema, reader: ReplyParser) -> pa.Schema:
    """The columns of the output: those copied from the input, then ours."""
    ours = [("status", STATUS), ("parsed", reader.parsed_type()), ("response", RESPONSE), ("error", ERROR)]
    return pa.schema([*kept, *(pa.field(name, kind) for name, kind in ours)])


def output_columns(read: Sequence[tuple[Outcome, Completion | None]], parsed: pa.DataType) -> list[pa.Array]:
    """The columns of rows that were read, in the order of `output_schema`; `parsed` is the type of that column."""
    outcomes = [outcome for outcome, _ in read]
    failures = [outcome if isinstance(outcome, Failure) else None for outcome in outcomes]
    # Indices, not words: Arrow would look each word up in a hash table, and number them by first appearance.
    status = [int(failure is not None) for failure in failures]
    values = [None if isinstance(outcome, Failure) else outcome.value for outcome in outcomes]
    return [
        pa.DictionaryArray.from_arrays(pa.array(status, pa.int32()), pa.array(["ok", "failed"])),
        pa.array(values, type=parsed),
        _responses([(outcome.reply, completion) for outcome, completion in read]),
        _errors([failure.fault if failure else None for failure in failures]),
    ]


def _responses(replies: Sequence[tuple[Reply | None, Completion | None]]) -> pa.StructArray:
    """Column by column: several times faster than a list of dicts."""
    # Tuples, not dicts: Arrow looks up each key of each dict.
    rows = [_NOTHING if reply is None else _response(reply, completion or _EMPTY) for reply, completion in replies]
    return _structs(RESPONSE, columns_of(rows, RESPONSE), [reply for reply, _ in replies])


def _response(reply: Reply, completion: Completion) -> tuple[Any, ...]:
    answer = completion.answers[0] if completion.answers else CompletionChoice()
    return (
        answer.text,
        answer.reasoning,
        [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in answer.tool_calls],
        [{"mime_type": media.mime_type, "data": media.data} for media in answer.media],
        answer.finish_reason,
        completion.model,
        completion.id,
        reply.location,
        completion.traffic_type,
        *_tokens(reply.usage),
        reply.cost_usd,
        reply.from_cache,
        reply.attempts,
        reply.latency_s,
        reply.first_token_s,
        reply.finished_at,
        reply.transcript,
    )


def _tokens(usage: Usage | None) -> tuple[int | None, ...]:
    return (None,) * 4 if usage is None else (usage.input, usage.output, usage.reasoning, usage.cached)


def _errors(faults: Sequence[Fault | None]) -> pa.StructArray:
    arrays = [
        pa.array([type(fault).__name__ if fault else None for fault in faults], pa.string()),
        pa.array([fault.message if fault else None for fault in faults], pa.string()),
        pa.array([fault.http_status if fault else None for fault in faults], pa.int32()),
    ]
    return _structs(ERROR, arrays, faults)


def columns_of(rows: Sequence[tuple[Any, ...]], fields: Iterable[pa.Field]) -> list[pa.Array]:
    """The rows, one tuple each, as one array for each field."""
    return [pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), fields, strict=True)]


def _structs(kind: pa.StructType, arrays: Sequence[pa.Array], values: Sequence[object]) -> pa.StructArray:
    """Structs of these fields, null where the value is None.

    `StructArray.from_arrays` would load pyarrow.compute, a tenth of a run's start, to invert its mask.
    """
    is_valid = pa.array([value is not None for value in values], pa.bool_()).buffers()[1]
    return pa.StructArray.from_buffers(kind, len(values), [is_valid], children=list(arrays))
