"""What the emulator has counted since it started, or since the last reset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.emulator.wire import Tokens


@dataclass(slots=True)
class Stats:
    """Counters of the chat endpoint. Prompts are kept as 16-byte digests, about 150 bytes each in all.

    `statuses` counts what was sent, by HTTP status; `dropped` stands for a closed connection, `499` for a client that
    left before its answer. `answered` counts, per prompt, completions sent whole: what a real endpoint would bill.
    """

    requests: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    answers: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seen: dict[bytes, int] = field(default_factory=dict)
    answered: dict[bytes, int] = field(default_factory=dict)

    def begin(self) -> None:
        """A request has arrived."""
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self, status: str) -> None:
        """It is over."""
        self.in_flight -= 1
        self.statuses[status] += 1

    def sight(self, digest: bytes) -> int:
        """How many times this prompt had come before; counts it."""
        before = self.seen.get(digest, 0)
        self.seen[digest] = before + 1
        return before

    def bill(self, digest: bytes, tokens: Tokens) -> None:
        """A completion was sent whole."""
        self.answers += 1
        self.answered[digest] = self.answered.get(digest, 0) + 1
        self.input_tokens += tokens.prompt
        self.output_tokens += tokens.completion
        self.reasoning_tokens += tokens.reasoning

    def as_dict(self) -> dict[str, Any]:
        """The counters for `/stats`, but those of the tokens of access."""
        return {
            "simulated": True,
            "requests": self.requests,
            "by_status": dict(sorted(self.statuses.items())),
            "distinct_prompts": len(self.seen),
            "answered_prompts": len(self.answered),
            "answers": self.answers,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }
