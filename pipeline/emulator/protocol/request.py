"""A chat completion request, checked as Vertex checks it: unknown parameters are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.emulator.protocol.content import Medium, Spoken, read_message
from pipeline.emulator.protocol.dialect import check_structured
from pipeline.emulator.protocol.extensions import (
    PLAIN,
    UNTHINKING,
    Extensions,
    Thinking,
    read_extensions,
    read_thinking,
)
from pipeline.emulator.protocol.fingerprint import digest_of
from pipeline.emulator.protocol.tools import (
    CompletedCalls,
    FunctionDeclaration,
    read_choice,
    read_functions,
    read_turns,
)
from pipeline.emulator.protocol.wire import JsonMapping, invalid

MOST_CHOICES = 8
TEXT_ALONE = frozenset({"text"})
MODALITIES = frozenset({"text", "image", "audio"})

_OBJECT, _FLAG = (dict, type(None)), (bool, type(None))  # isinstance with a union takes ten times as long


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request. `prompt` is the text of the last user message, `characters` the length of all messages.

    `digest` identifies the messages in 16 bytes, by what they say: see `fingerprint`. `response_format` is the
    request's, or None for text. `functions` are those that may be called; with `must_call` one must be. `turns` are
    their calls since the last user message. `varied` means that answers may differ from each other.
    """

    model: str
    messages: Sequence[JsonMapping]
    prompt: str
    characters: int
    digest: bytes
    media: tuple[Medium, ...] = ()
    n: int = 1
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    varied: bool = True
    thinking: Thinking = UNTHINKING
    extensions: Extensions = PLAIN
    response_format: JsonMapping | None = None
    functions: tuple[FunctionDeclaration, ...] = ()
    must_call: bool = False
    turns: tuple[CompletedCalls, ...] = ()
    modalities: frozenset[str] = TEXT_ALONE
    stream: bool = False


def read_request(body: bytes, *, default_model: str | None) -> ChatRequest:
    """The request in a body; raises a 400. `default_model` serves a body without `model`."""
    return request_of(_read_payload(body), default_model=default_model)


def request_of(payload: JsonMapping, *, default_model: str | None = None) -> ChatRequest:
    """The request in a payload that was parsed already; raises a 400."""
    _check_payload(payload)
    read = _read_messages(payload.get("messages"))
    model = _read_model(payload.get("model", default_model))
    extensions = read_extensions(payload)
    response_format = _read_format(payload.get("response_format"))
    functions, must_call = _read_tools(payload, model, response_format)
    turns = read_turns(payload["messages"], read, signed=_signs(model))  # before the digest, which trusts the calls
    return ChatRequest(
        model=model,
        messages=payload["messages"],
        prompt=_read_prompt(read),
        characters=sum(len(spoken.text) for spoken in read),
        digest=digest_of(payload["messages"]),
        media=tuple(medium for spoken in read for medium in spoken.media),
        n=_read_count(payload, "n", MOST_CHOICES) or 1,
        stop=_read_stop(payload.get("stop")),
        max_tokens=_read_count(payload, "max_completion_tokens") or _read_count(payload, "max_tokens"),
        varied=payload.get("temperature") != 0,
        thinking=read_thinking(payload.get("reasoning_effort"), extensions.thinking_config),
        extensions=extensions,
        response_format=response_format,
        functions=functions,
        must_call=must_call,
        turns=turns,
        modalities=_read_modalities(payload.get("modalities")),
        stream=payload.get("stream") is True,
    )


def _read_prompt(read: Sequence[Spoken]) -> str:
    """What the user said last: neighbouring messages are one, as they are in Gemini's own requests."""
    turns = [spoken for spoken in read if spoken.role not in {"system", "developer"}]
    users = [index for index, spoken in enumerate(turns) if spoken.role == "user"]
    if not users:
        return read[-1].text
    first = last = users[-1]
    while first and turns[first - 1].role == "user":
        first -= 1
    return "\n".join(spoken.text for spoken in turns[first : last + 1] if spoken.text)


def _read_payload(body: bytes) -> JsonMapping:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"Invalid JSON payload received. {error}") from None
    if not isinstance(payload, dict):
        raise invalid("Invalid JSON payload received. The request is not an object.")
    return payload


def _check_payload(payload: JsonMapping) -> None:
    if not isinstance(payload.get("web_search_options", {}), _OBJECT):
        raise invalid("web_search_options must be an object.")
    if not isinstance(payload.get("stream"), _FLAG):
        raise invalid("stream must be true or false.")


def _read_messages(messages: Any) -> list[Spoken]:
    if not isinstance(messages, list) or not messages:
        raise invalid("Unable to submit request because at least one message is required in `messages`.")
    return [read_message(message, index) for index, message in enumerate(messages)]


def _read_model(model: Any) -> str:
    if not isinstance(model, str) or not model:
        raise invalid("`model` is required: google/MODEL.")
    return model


def _read_tools(
    payload: JsonMapping, model: str, response_format: JsonMapping | None
) -> tuple[tuple[FunctionDeclaration, ...], bool]:
    functions = read_functions(payload)
    if functions and response_format is not None and _is_second_generation(model):
        raise invalid("Function calling with a response mime type: 'application/json' is unsupported")
    return read_choice(payload, functions)


def _is_second_generation(model: str) -> bool:
    return "gemini-2" in model


def _signs(model: str) -> bool:
    """Whether a model requires its thought signatures back: Gemini 3 and later."""
    return "gemini" in model and not _is_second_generation(model)


def _read_count(payload: JsonMapping, name: str, most: int | None = None) -> int | None:
    value = payload.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
        bounds = "at least 1" if most is None else f"between 1 and {most}"
        raise invalid(f"{name} must be a whole number, {bounds}, not {value!r}.")
    return value


def _read_stop(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise invalid("stop must be a string or a list of strings.")
    return tuple(text for text in texts if text)


def _read_modalities(modalities: Any) -> frozenset[str]:
    if not modalities:
        return TEXT_ALONE
    if not isinstance(modalities, list) or not all(each in MODALITIES for each in map(str, modalities)):
        raise invalid(f"modalities are {', '.join(sorted(MODALITIES))}, not {modalities!r}.")
    return frozenset(modalities)


def _read_format(response_format: Any) -> JsonMapping | None:
    if response_format is None:
        return None
    if not isinstance(response_format, dict) or not isinstance(response_format.get("type"), str):
        raise invalid("response_format must be an object with a type.")
    if response_format["type"] != "json_schema":
        return response_format if response_format["type"] in {"json_object", "application/json"} else None
    inner = response_format.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise invalid("response_format.json_schema.schema must be an object.")
    check_structured(inner["schema"])
    return response_format
