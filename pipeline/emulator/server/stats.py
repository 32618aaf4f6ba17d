"""Counters since the emulator started, or since the last reset."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.emulator.protocol.wire import TokenCounts

MOST_ANSWERS = 200_000
"""The number of answers remembered one by one; the oldest are dropped first."""


class Given(NamedTuple):
    """An answer sent completely: the digest of its messages, its id, and Unix time in microseconds."""

    prompt: bytes
    ident: str
    at: int


@dataclass(slots=True)
class Stats:
    """Counters of the chat endpoint. Prompts are kept as 16-byte digests, about 150 bytes each in total.

    `statuses` counts responses by HTTP status; `dropped` is a closed connection, `499` a client that disconnected
    before its answer. `answered` counts, per prompt, completions sent completely: those a real endpoint would bill.
    `tool_calls` and `tool_results` are those of such completions, and of the requests they answered.
    """

    requests: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    answers: int = 0
    tool_calls: int = 0
    tool_results: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    by_location: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seen: dict[bytes, int] = field(default_factory=dict)
    answered: dict[bytes, int] = field(default_factory=dict)
    given: deque[Given] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))

    def begin(self) -> None:
        """Counts a request that has arrived."""
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self, status: str, location: str) -> None:
        """Counts the end of a request."""
        self.in_flight -= 1
        self.statuses[status] += 1
        self.by_location[location][status] += 1

    def sight(self, digest: bytes) -> int:
        """Counts a prompt; returns how often it came before."""
        before = self.seen.get(digest, 0)
        self.seen[digest] = before + 1
        return before

    def bill(self, digest: bytes, tokens: TokenCounts, *, tool_calls: int = 0, tool_results: int = 0) -> None:
        """Counts a completion that was sent completely."""
        self.answers += 1
        self.answered[digest] = self.answered.get(digest, 0) + 1
        self.input_tokens += tokens.prompt
        self.output_tokens += tokens.completion
        self.reasoning_tokens += tokens.reasoning
        self.tool_calls += tool_calls
        self.tool_results += tool_results

    def as_dict(self) -> dict[str, Any]:
        """The counters for `/stats`, except those of access tokens."""
        locations = sorted(self.by_location.items())
        return {
            "simulated": True,
            "requests": self.requests,
            "by_status": dict(sorted(self.statuses.items())),
            "by_location": {location: dict(sorted(statuses.items())) for location, statuses in locations},
            "distinct_prompts": len(self.seen),
            "answered_prompts": len(self.answered),
            "answers": self.answers,
            "tool_calls": self.tool_calls,
            "tool_results": self.tool_results,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }
