"""A chat completion request, checked as Vertex checks it: what it does not know is ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from pipeline.emulator.wire import invalid

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MOST_CHOICES = 8
THINKING = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
DYNAMIC_THINKING = 8192

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request. `prompt` is the text of the last user message, `characters` the length of all messages.

    `digest` stands for the messages (whatever the order of their keys), in 16 bytes. `thinking` is the thinking budget
    in tokens. `response_format` is the request's, or None for text.
    """

    model: str
    messages: Sequence[Json]
    prompt: str
    characters: int
    digest: bytes
    n: int = 1
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    thinking: int = 0
    response_format: Json | None = None


def read_request(body: bytes, *, default_model: str | None) -> ChatRequest:
    """The request in a body; raises the 400. `default_model` serves a body without `model`."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"Invalid JSON payload received. {error}") from None
    if not isinstance(payload, dict):
        raise invalid("Invalid JSON payload received. The request is not an object.")
    if payload.get("stream"):
        raise invalid("stream: not emulated yet.")
    texts = _read_messages(payload.get("messages"))
    return ChatRequest(
        model=_read_model(payload.get("model", default_model)),
        messages=payload["messages"],
        prompt=next((text for role, text in reversed(texts) if role == "user"), texts[-1][1]),
        characters=sum(len(text) for _, text in texts),
        digest=digest_of(payload["messages"]),
        n=_read_count(payload, "n", MOST_CHOICES) or 1,
        stop=_read_stop(payload.get("stop")),
        max_tokens=_read_count(payload, "max_completion_tokens") or _read_count(payload, "max_tokens"),
        thinking=_read_thinking(payload),
        response_format=_read_format(payload.get("response_format")),
    )


def digest_of(messages: Any) -> bytes:
    """16 bytes that stand for the messages, whatever the order of their keys and the spaces between them."""
    return blake2b(orjson.dumps(messages, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _read_messages(messages: Any) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise invalid("Unable to submit request because at least one message is required in `messages`.")
    return [_read_message(message, index) for index, message in enumerate(messages)]


def _read_message(message: Any, index: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise invalid(f"messages[{index}] is not an object.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise invalid(f"Please use a valid role: system, user, assistant, tool. messages[{index}] has role {role!r}.")
    if content is None and role in {"assistant", "function"}:
        return role, ""
    if isinstance(content, str):
        return role, content
    if not isinstance(content, list) or not content:
        raise invalid(f"messages[{index}].content must be a string or a list of parts, and not empty.")
    return role, "\n".join(_read_part(part, index) for part in content)


def _read_part(part: Any, index: int) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise invalid(f"messages[{index}].content has a part without a type.")
    if part["type"] != "text":
        return ""
    if not isinstance(part.get("text"), str):
        raise invalid(f"messages[{index}].content has a text part without text.")
    return str(part["text"])


def _read_model(model: Any) -> str:
    if not isinstance(model, str) or not model:
        raise invalid("`model` is required: google/MODEL.")
    return model


def _read_count(payload: Json, name: str, most: int | None = None) -> int | None:
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


def _read_thinking(payload: Json) -> int:
    effort, config = payload.get("reasoning_effort"), _thinking_config(payload)
    if effort is not None and config:
        raise invalid("Only one of reasoning_effort and thinking_config may be set.")
    if effort is not None:
        return _read_level("reasoning_effort", effort)
    level = config.get("thinking_level", config.get("thinkingLevel"))
    budget = config.get("thinking_budget", config.get("thinkingBudget"))
    if level is not None and budget is not None:
        raise invalid("Only one of thinking_budget and thinking_level may be set.")
    if level is not None:
        return _read_level("thinking_level", str(level).lower())
    if budget is None:
        return 0
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < -1:
        raise invalid(f"thinking_budget must be a whole number of tokens, or -1, not {budget!r}.")
    return DYNAMIC_THINKING if budget == -1 else budget


def _read_level(name: str, level: Any) -> int:
    if level not in THINKING:
        raise invalid(f"{name} must be one of {', '.join(THINKING)}, not {level!r}.")
    return THINKING[level]


def _thinking_config(payload: Json) -> Json:
    extra = payload.get("extra_body")
    google = extra.get("google") if isinstance(extra, dict) else payload.get("google")
    config = google.get("thinking_config", google.get("thinkingConfig")) if isinstance(google, dict) else None
    return config if isinstance(config, dict) else {}


def _read_format(response_format: Any) -> Json | None:
    if response_format is None:
        return None
    if not isinstance(response_format, dict) or not isinstance(response_format.get("type"), str):
        raise invalid("response_format must be an object with a type.")
    if response_format["type"] != "json_schema":
        return response_format if response_format["type"] in {"json_object", "application/json"} else None
    inner = response_format.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise invalid("response_format.json_schema.schema must be an object.")
    return response_format
