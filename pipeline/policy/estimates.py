"""Estimates what a call will use before it is sent, from its size and the most that similar calls have used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.data import Request, Usage

BYTES_PER_TOKEN = 2.0
"""Before any answer: prose has about four bytes per token, digits and code two (a conservative guess)."""

MEDIA_TOKENS = 1500.0
"""Before any answer, per image, recording or document: a large image for Gemini
(https://ai.google.dev/gemini-api/docs/tokens); video may be far more, and is learned from the first answer."""

ANSWER_TOKENS = 500.0
"""Before any answer, thinking included, if the request sets no limit."""

MEASURED_BYTES_PER_TOKEN = 3.0
"""For a call answered without usage, request and reply alike (a guess that errs on the high side)."""


@dataclass(frozen=True, slots=True)
class Size:
    """What is known about a request before it is sent."""

    model: str | None
    text: int
    """Bytes of UTF-8, tools and schema included."""
    media: int
    """Images, recordings and documents."""
    cap: int | None
    """The most tokens that all its answers together may have, if the request limits them."""


def size_of(request: Request) -> Size:
    """The size of a request, whatever a row put into it; media count the same before and after loading."""
    payload = request.payload
    text, media = _written(payload.get("tools")) + _written(payload.get("response_format")), 0
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list | tuple) else ():
        content = message.get("content") if isinstance(message, Mapping) else message
        for part in content if isinstance(content, list | tuple) else (content,):
            written = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(written, str):
                text += len(written.encode("utf-8", "replace"))
            elif part is not None:
                media += 1
        text += _written(message.get("tool_calls")) if isinstance(message, Mapping) else 0
    model = payload.get("model")
    return Size(model if isinstance(model, str) else None, text, media, _cap(payload))


def usage_by_size(size: Size, body: bytes) -> Usage:
    """Estimated usage of a call whose server reported none, from the bytes of request and reply."""
    read = size.text / MEASURED_BYTES_PER_TOKEN + size.media * MEDIA_TOKENS
    return Usage(input=1 + round(read), output=1 + round(len(body) / MEASURED_BYTES_PER_TOKEN))


Maxima = Mapping[tuple[str, int, int], float]
"""The learned maxima, by kind and size."""

_OUTPUT, _BEYOND_CAP, _FACTOR = ("output", 0, 0), ("beyond the cap", 0, 0), ("price, to the standard one", 0, 0)


@dataclass(slots=True)
class CallEstimate:
    """The most that calls have used, by size: what is reserved for the next one.

    Input is assumed to grow with the text, in buckets by powers of two; output does not depend on it. Everything
    learned is in `maxima`, so the estimates of several processes merge by taking the larger of each value.
    """

    maxima: dict[tuple[str, int, int], float] = field(default_factory=dict)

    def of(self, size: Size) -> Usage:
        """The tokens to reserve."""
        return Usage(input=round(self._input(size)), output=round(self._output(size)))

    @property
    def factor(self) -> float:
        """The highest ratio of actual cost to the standard price of the tokens: above 1 for a more expensive tier."""
        return self.maxima.get(_FACTOR, 1.0)

    def learn(self, size: Size, usage: Usage, factor: float = 0.0) -> bool:
        """A call of this size was answered; returns whether the estimate grew."""
        answered = usage.output + usage.reasoning
        seen: dict[tuple[str, int, int], float] = {
            ("input", size.media.bit_length(), size.text.bit_length()): usage.input,
            _OUTPUT: answered,
            _BEYOND_CAP: float(size.cap is not None and answered > size.cap),
            _FACTOR: factor,
        }
        return self.learn_all(seen)

    def learn_all(self, maxima: Maxima) -> bool:
        """Merges what another estimate has learned; returns whether this one grew."""
        grown = {key: value for key, value in maxima.items() if value > self.maxima.get(key, -1.0)}
        self.maxima |= grown
        return bool(grown)

    def _input(self, size: Size) -> float:
        media, bucket = size.media.bit_length(), size.text.bit_length()
        known = {key[2]: value for key, value in self.maxima.items() if key[:2] == ("input", media)}
        if not known:
            return size.text / BYTES_PER_TOKEN + size.media * MEDIA_TOKENS
        smaller = [other for other in known if other <= bucket]
        if not smaller:
            return known[min(known)]
        nearest = max(smaller)
        # Larger than any text so far: tokens per byte as for the smallest text of the nearest bucket.
        scale = 1.0 if nearest == bucket else size.text / max(1, 1 << nearest >> 1)
        return max(known[nearest] * scale, *(known[other] for other in smaller))

    def _output(self, size: Size) -> float:
        most = self.maxima.get(_OUTPUT)
        if most is None:
            return ANSWER_TOKENS if size.cap is None else size.cap
        return most if size.cap is None or self.maxima.get(_BEYOND_CAP) else min(most, size.cap)


def _cap(payload: Mapping[str, Any]) -> int | None:
    caps = [payload.get(name) for name in ("max_tokens", "max_completion_tokens")]
    known = [cap for cap in caps if isinstance(cap, int) and cap > 0]
    answers = payload.get("n")
    return min(known) * (answers if isinstance(answers, int) and answers > 1 else 1) if known else None


def _written(value: object) -> int:
    """Bytes of a value as JSON; 0 if it cannot be serialised, since it is not sent either."""
    if not value:
        return 0
    try:
        return len(orjson.dumps(value, default=str))
    except TypeError:
        return 0
