"""The emulator's answers: JSON for a schema, a small JSON object, a few sentences, function calls, or media."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import orjson

from pipeline.emulator.answers.compiler import compiled
from pipeline.emulator.answers.facts import Facts, subject_of
from pipeline.emulator.answers.hints import Scene
from pipeline.emulator.answers.made_media import AUDIO_TOKENS_A_SECOND, IMAGE_TOKENS, SECONDS, picture, tone
from pipeline.emulator.answers.mutations import altered, erred
from pipeline.emulator.answers.nodes import NOTHING
from pipeline.emulator.answers.seeded import Dice
from pipeline.emulator.answers.tool_calls import next_calls
from pipeline.emulator.protocol.content import CHARACTERS_PER_TOKEN
from pipeline.emulator.protocol.request import ChatRequest
from pipeline.emulator.protocol.tools import FunctionCall

READ_FOR_PROSE = 500  # characters: a longer text is not read to its end
READ_FOR_FACTS = 20_000  # characters: the same
QUOTED = 400  # characters of a tool's result

_OPENINGS = (
    "This is about",
    "The text turns on",
    "It deals with",
    "The subject is",
    "It concerns",
    "It speaks of",
    "Here we read of",
    "The matter is",
)
_SHOWN = "shown shows description describe depicts seen content contents caption transcript summary"
_ANSWERED = f"{_SHOWN} answer result response reply text explanation"


@dataclass(frozen=True, slots=True)
class EmulatedMedia:
    """A generated file, and its number of tokens."""

    mime_type: str
    data: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class EmulatedAnswer:
    """One choice: `text` is None if there is none, for example because thinking used up the tokens."""

    text: str | None
    finish_reason: str
    thoughts: str | None = None
    calls: tuple[FunctionCall, ...] = ()
    media: EmulatedMedia | None = None


@dataclass(frozen=True, slots=True)
class _Matter:
    """The input of an answer: the facts of the prompt, its attachments, and the results of tools."""

    facts: Facts
    attached: str = ""
    tool_results: str = ""
    quotes: Mapping[str, str] = field(default_factory=dict)
    known: Any = NOTHING
    """The answer key's answer for this prompt."""


def answers(
    request: ChatRequest, seed: int, errors: Mapping[str, float] | None = None, key: Mapping[str, Any] | None = None
) -> tuple[list[EmulatedAnswer], int]:
    """The choices for a request, and their reasoning tokens in total: a function of the arguments alone.

    `errors` maps fields to shares of wrong answers, `key` maps prompts to answers: see `Options`.
    """
    reasoning = reasoning_tokens(request)
    room = None if request.max_tokens is None else request.max_tokens - reasoning
    secret = seed.to_bytes(8, "big", signed=True)
    keys = [blake2b(request.digest + bytes([n]), key=secret, digest_size=16).digest() for n in range(request.n)]
    thoughts = _thoughts(request) if request.thinking.shown and reasoning else None
    calls = next_calls(request, seed)
    if calls:
        reason = "tool_calls" if room is None or room > 0 else "length"
        return [EmulatedAnswer(None, reason, thoughts, calls if reason == "tool_calls" else ())] * request.n, reasoning
    matter = replace(_matter(request), known=(key or {}).get(request.prompt, NOTHING))
    return [_answer(request, matter, keys, n, room, thoughts, errors or {}) for n in range(request.n)], reasoning


def reasoning_tokens(request: ChatRequest) -> int:
    """Between a tenth and a half of the thinking budget, the same share for the same messages; at most `max_tokens`."""
    budget = request.thinking.budget
    if not budget:
        return 0
    spent = budget * (26 + request.digest[0] % 103) // 256
    return min(max(1, spent), request.max_tokens or spent + 1)


def tokens_in(characters: int) -> int:
    """The number of tokens for a number of characters."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


def _matter(request: ChatRequest) -> _Matter:
    subject = subject_of(request.prompt)[:READ_FOR_FACTS]
    if not request.media and not request.turns:
        return _Matter(Facts(subject))
    attached = "; ".join(medium.description for medium in request.media)
    results = [(done.call.name, done.result) for turn in request.turns for done in turn]
    said = " ".join(dict.fromkeys(f"{name} says {result[:QUOTED]}." for name, result in results))
    lines = [line for _, result in results for line in _labelled(result)]
    quotes = dict.fromkeys(_SHOWN.split(), attached) if attached else {}
    quotes |= dict.fromkeys(_ANSWERED.split(), said) if said else {}
    return _Matter(Facts("\n".join([*lines, subject])), attached, said, quotes)


def _labelled(result: str) -> list[str]:
    """The members of a tool's result as lines `name: value`."""
    try:
        value = orjson.loads(result)
    except orjson.JSONDecodeError:
        return [result[:QUOTED]]
    members = value.items() if isinstance(value, dict) else [("result", value)]
    return [f"{name.replace('_', ' ')}: {inner}" for name, inner in members]


def _answer(
    request: ChatRequest,
    matter: _Matter,
    keys: Sequence[bytes],
    n: int,
    room: int | None,
    thoughts: str | None,
    errors: Mapping[str, float],
) -> EmulatedAnswer:
    media = _media(request, Dice(keys[n]))
    if media and "text" not in request.modalities:
        return EmulatedAnswer(None, "stop", thoughts, media=media)
    text, reason = _shortened(_text(request, matter, keys, n, errors), request.stop, room)
    return EmulatedAnswer(text, reason, thoughts, media=media)


def _media(request: ChatRequest, dice: Dice) -> EmulatedMedia | None:
    if "image" in request.modalities:
        return EmulatedMedia("image/png", picture(dice), IMAGE_TOKENS)
    if "audio" in request.modalities:
        return EmulatedMedia("audio/wav", tone(dice), math.ceil(AUDIO_TOKENS_A_SECOND * SECONDS))
    return None


def _text(request: ChatRequest, matter: _Matter, keys: Sequence[bytes], n: int, errors: Mapping[str, float]) -> str:
    if request.response_format is None and isinstance(matter.known, str):
        return matter.known
    if request.response_format is None:
        return _prose(matter, Dice(keys[0]), n if request.varied else 0)
    if request.response_format["type"] != "json_schema":
        if matter.known is not NOTHING:
            return _json(matter.known)
        return _object(matter, n if request.varied else 0)
    node = compiled(orjson.dumps(request.response_format["json_schema"]["schema"]))
    scene = Scene(matter.facts, Dice(keys[0]), quotes=matter.quotes)
    value = node.find(scene) if matter.known is NOTHING else matter.known
    value = node.invent(scene) if value is NOTHING else value
    if n and request.varied:
        value = altered(node, value, Scene(matter.facts, Dice(keys[n]), quotes=matter.quotes))
    return _json(erred(node, value, errors, keys[n], scene) if errors else value)


def _object(matter: _Matter, n: int) -> str:
    facts = matter.facts
    about = [sentence.value[:200] for sentence in facts.sentences] or [""]
    return _json(
        {
            "about": about[n % len(about)],
            "dates": [found.value for found in facts.dates],
            "names": [found.value for found in facts.names],
            "keywords": list(facts.words[n : n + 5]),
            **({"attached": matter.attached} if matter.attached else {}),
            **({"told": matter.tool_results} if matter.tool_results else {}),
        }
    )


def _prose(matter: _Matter, dice: Dice, n: int) -> str:
    if matter.tool_results:
        return matter.tool_results
    facts = Facts(matter.facts.text[:READ_FOR_PROSE])
    words = list(facts.words[:3]) or ["nothing in particular"]
    listed = ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]
    sentences = [f"{_OPENINGS[(dice.below(len(_OPENINGS)) + n) % len(_OPENINGS)]} {listed}."]
    if matter.attached:
        sentences.append(f"With it came: {matter.attached}.")
    if facts.names:
        sentences.append(f"It names {', '.join(found.value for found in facts.names[:4])}.")
    if facts.dates:
        sentences.append(f"It gives the date {facts.dates[0].value}.")
    if facts.sentences:
        quoted = facts.sentences[(dice.below(len(facts.sentences)) + n) % len(facts.sentences)]
        sentences.append(f"It says: {quoted.value[:300]}")
    return " ".join(sentences)


def _thoughts(request: ChatRequest) -> str:
    words = Facts(request.prompt[:READ_FOR_PROSE]).words[:3]
    asked = f"The question turns on {', '.join(words)}." if words else "The question is short."
    return f"**Reading the request**\n\n{asked} I look for what the text itself says, and answer with that.\n"


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _shortened(text: str, stop: tuple[str, ...], room: int | None) -> tuple[str | None, str]:
    ends = [at for at in map(text.find, stop) if at >= 0]
    text = text[: min(ends, default=len(text))]
    if room is None or tokens_in(len(text)) <= room:
        return text, "stop"
    return text[: room * CHARACTERS_PER_TOKEN] or None, "length"
