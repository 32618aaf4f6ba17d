"""Which rows, jobs and requests of batch prediction get a fault: decided by a hash, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b

from pipeline.emulator.options import Options
from pipeline.emulator.protocol.request import ChatRequest
from pipeline.emulator.protocol.wire import Problem, exhausted, unavailable
from pipeline.emulator.server.chat import UNSAFE
from pipeline.emulator.server.faults import chosen

OF_THE_MODEL = frozenset(
    {"fenced", "invalid_json", "wrong_schema", "length", "content_filter", "blocked", "no_choices", "empty_choices"}
    | {"no_message", "no_usage", "bad_arguments", "unknown_tool"}
)
"""The kinds of `FAULT_KINDS` that a model makes, and not the endpoint: batch rows get their share of them too."""


def row_fault(asked: ChatRequest, options: Options, repeat: int) -> str | None:
    """The fault of a row whose messages were seen `repeat` times before. Poison comes first, then faults of rows."""
    shares = {kind: share for kind, share in options.batch_faults.items() if kind.startswith("row_")}
    shares |= {kind: share for kind, share in options.faults.items() if kind in OF_THE_MODEL}
    digest = blake2b(b"batch row" + asked.digest, digest_size=16).digest()
    kind = chosen(shares, options.poison, prompt=asked.prompt, digest=digest, repeat=repeat, seed=options.seed)
    return "blocked" if kind is None and asked.extensions.strict and UNSAFE in asked.prompt else kind


class CountedDraws:
    """Faults of jobs and requests, by their order: the second job gets the same one in every run with this seed."""

    def __init__(self, options: Callable[[], Options]) -> None:
        self._options = options
        self._counts: Counter[str] = Counter()

    def next(self, group: str) -> str | None:
        """The fault of the next one of a group: `job`, `create` or `get`; its kind without the group's name."""
        options = self._options()
        shares: Mapping[str, float] = options.batch_faults
        self._counts[group] += 1
        material = f"{options.seed}/{group}/{self._counts[group]}".encode()
        drawn = int.from_bytes(blake2b(material, digest_size=7).digest(), "big") / 2**56
        for kind, share in shares.items():
            if kind.startswith(f"{group}_") and (drawn := drawn - share) < 0:
                return kind.removeprefix(f"{group}_")
        return None

    def refuse(self, fault: str | None) -> None:
        """Raises the 429 or 503 of such a fault."""
        if fault == "429":
            raise exhausted(self._options().retry_info)
        if fault == "503":
            raise unavailable()


def failed_row(kind: str | None) -> Problem | None:
    """The error of a row that failed on demand; the message is that of googleapis/python-aiplatform#4485."""
    if kind != "row_failed":
        return None
    return Problem(429, "RESOURCE_EXHAUSTED", "Online prediction request quota exceeded for the base model.")
