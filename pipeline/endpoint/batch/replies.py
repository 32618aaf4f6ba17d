"""The reply in an answer by batch, by the same functions as one that was asked for online."""

from __future__ import annotations

from pipeline.data import Reply
from pipeline.endpoint.batch.backend import TRAFFIC_TYPE, BatchAnswer
from pipeline.endpoint.finish_reasons import worth_another_try
from pipeline.endpoint.wire import read_completion, usage_in
from pipeline.faults import Fault, Unavailable


def reply_of(answer: BatchAnswer, *, finished_at: int, traffic_type: str = TRAFFIC_TYPE) -> Reply:
    """The reply, without location and cost. `finished_at` is in microseconds since 1970.

    Raises the fault of a row that has no answer. An answer that is worth another try, or has only a usage, is the
    `reply` of its fault: it was paid for. A usage that the server does not give is unknown, not zero.
    """
    if answer.fault is not None:
        raise answer.fault
    if answer.body is None:
        raise Unavailable("the batch has no answer for this row")
    try:
        completion = read_completion(answer.body)
    except Fault as fault:
        if (usage := usage_in(answer.body)) is not None:
            fault.reply = Reply(answer.body, usage, finished_at=finished_at, traffic_type=traffic_type)
        raise
    reply = Reply(
        answer.body,
        usage=completion.usage,
        finished_at=finished_at,
        model=completion.model,
        traffic_type=traffic_type,
        completion=completion,
    )
    again = worth_another_try(completion)
    if again is not None:
        again.reply = reply
        raise again
    return reply
