"""What spares a row work twice changes nothing: the outcome that is remembered, the reply that is copied."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import orjson

from pipeline.data import Reply, Request, Success, Usage
from pipeline.faults import Unavailable
from pipeline.job.reply_parser import LatestOutcome, ReplyParser


def replying(text: str) -> Reply:
    return Reply(orjson.dumps({"choices": [{"finish_reason": "stop", "message": {"content": text}}]}))


def test_only_the_same_reply_of_the_same_row_is_not_read_again() -> None:
    """Equal replies of other rows, other replies of the row, and a fault that was given a reply are."""
    latest = LatestOutcome(ReplyParser(None))
    first, other = replying("yes"), replying("no")
    known = latest.of(1, first)
    assert latest.of(1, first) is known
    assert latest.of(1, other) == Success(1, "no", other)
    assert latest.of(2, other) == Success(2, "no", other)
    fault = Unavailable("gone")
    assert latest.of(3, fault).reply is None
    fault.reply = first
    assert latest.of(3, fault) == Success(3, "yes", first)


def test_a_charged_reply_differs_in_its_place_and_its_cost_alone() -> None:
    given: dict[str, Any] = {
        "body": b"{}",
        "usage": Usage(1, 2, 3, 1),
        "attempts": 2,
        "latency_s": 0.5,
        "first_token_s": 0.25,
        "finished_at": 7,
        "model": "m",
        "traffic_type": "ON_DEMAND",
        "location": "here",
        "cost_usd": 3.0,
        "completion": object(),
        "asked": Request(1, {}),
        "transcript": "[]",
        "from_cache": True,
        "saved": Usage(1),
        "saved_usd": 0.5,
    }
    assert given.keys() == {one.name for one in fields(Reply)}
    reply = Reply(**given)
    charged, expected = reply.charged("there", 4.0), replace(reply, location="there", cost_usd=4.0)
    assert all(getattr(charged, name) is getattr(expected, name) or name == "cost_usd" for name in given)
    assert charged.cost_usd == 4.0
