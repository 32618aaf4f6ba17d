"""What the emulator answers: JSON for a schema, a small JSON object, or a few sentences of the prompt's own words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b

import orjson

from pipeline.emulator.dice import Dice
from pipeline.emulator.filling import NOTHING
from pipeline.emulator.finding import Facts, subject_of
from pipeline.emulator.hints import Scene
from pipeline.emulator.request import ChatRequest
from pipeline.emulator.schema import compiled

CHARACTERS_PER_TOKEN = 4
READ_FOR_PROSE = 500  # characters: a longer text is not read further
READ_FOR_FACTS = 20_000  # characters: the same


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice: `text` is None when the thinking left no tokens for it."""

    text: str | None
    finish_reason: str


def answers(request: ChatRequest, seed: int) -> tuple[list[Answer], int]:
    """The choices for a request, and the reasoning tokens of all of them: a function of its arguments alone."""
    reasoning = reasoning_tokens(request)
    room = None if request.max_tokens is None else request.max_tokens - reasoning
    facts = Facts(subject_of(request.prompt)[:READ_FOR_FACTS])
    key = seed.to_bytes(8, "big", signed=True)
    dice = [Dice(blake2b(request.digest + bytes([n]), key=key, digest_size=16).digest()) for n in range(request.n)]
    return [_shortened(_text(request, facts, each), request.stop, room) for each in dice], reasoning


def reasoning_tokens(request: ChatRequest) -> int:
    """Between a tenth and a half of the thinking budget, the same share for the same messages; `max_tokens` at most."""
    if not request.thinking:
        return 0
    spent = request.thinking * (26 + request.digest[0] % 103) // 256
    return min(max(1, spent), request.max_tokens or spent + 1)


def tokens_in(characters: int) -> int:
    """How many tokens this many characters count as."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


def _text(request: ChatRequest, facts: Facts, dice: Dice) -> str:
    if request.response_format is None:
        return _prose(facts, dice)
    if request.response_format["type"] != "json_schema":
        return _object(facts)
    node = compiled(orjson.dumps(request.response_format["json_schema"]["schema"]))
    scene = Scene(facts, dice)
    value = node.find(scene)
    return _json(node.invent(scene) if value is NOTHING else value)


def _object(facts: Facts) -> str:
    return _json(
        {
            "about": next((sentence.value[:200] for sentence in facts.sentences), ""),
            "dates": [found.value for found in facts.dates],
            "names": [found.value for found in facts.names],
            "keywords": list(facts.words[:5]),
        }
    )


def _prose(whole: Facts, dice: Dice) -> str:
    facts = Facts(whole.text[:READ_FOR_PROSE])
    words = list(facts.words[:3]) or ["nothing in particular"]
    listed = ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]
    sentences = [f"{dice.pick(('This is about', 'The text turns on', 'It deals with'))} {listed}."]
    if facts.names:
        sentences.append(f"It names {', '.join(found.value for found in facts.names[:4])}.")
    if facts.dates:
        sentences.append(f"It gives the date {facts.dates[0].value}.")
    if facts.sentences:
        sentences.append(f"It says: {dice.pick(facts.sentences).value[:300]}")
    return " ".join(sentences)


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _shortened(text: str, stop: tuple[str, ...], room: int | None) -> Answer:
    ends = [at for at in map(text.find, stop) if at >= 0]
    text = text[: min(ends, default=len(text))]
    if room is None or tokens_in(len(text)) <= room:
        return Answer(text, "stop")
    return Answer(text[: room * CHARACTERS_PER_TOKEN] or None, "length")
