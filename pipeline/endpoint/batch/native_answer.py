"""A result line of Vertex AI's batch prediction, with Gemini's own response, as an answer of OpenAI's form.

Nothing in a line is believed: every field may be missing, null or of another type. The forms are those of published
lines; https://cloud.google.com/vertex-ai/docs/reference/rest/v1/GenerateContentResponse has the response's fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pipeline.endpoint.batch.backend import TRAFFIC_TYPE, BatchAnswer
from pipeline.endpoint.batch.row_faults import fault_in
from pipeline.endpoint.redaction import redact_quotes
from pipeline.endpoint.untrusted_json import (
    as_integer,
    as_name,
    as_position,
    as_text,
    dig,
    json_text,
    objects,
    read,
)
from pipeline.faults import Fault, Unavailable

KEY_LABEL = "pipeline_row"
"""The label that repeats the key inside the request, which comes back whole."""

_FINISH_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"), "content_filter"),
}
"""Others keep their own names, in lower case: see `pipeline.endpoint.finish_reasons`."""


def read_native_line(line: bytes) -> BatchAnswer:
    """The answer in a line. Never raises: a line that cannot be read is an answer without a key, with its fault."""
    try:
        return read(line, lambda document: _answer(document, line))
    except ValueError:
        # Not quoted: a line repeats its request.
        return BatchAnswer(None, None, Unavailable(f"a result line of {len(line)} bytes is not JSON"), line)


def _answer(document: object, line: bytes) -> BatchAnswer:
    key = _key(document)
    if not isinstance(document, dict):
        return BatchAnswer(key, None, Unavailable("a result line is JSON, but not an object"), line)
    status, response = document.get("status"), document.get("response")
    for error in (status, document.get("error"), dig(response, "error")):
        if (isinstance(error, str) and error.strip()) or (isinstance(error, dict) and error):
            return BatchAnswer(key, None, _discreet(fault_in(error), document.get("request")), line)
    if not isinstance(response, dict) or not response:
        return BatchAnswer(key, None, Unavailable("the batch gave this row no response"), line)
    return BatchAnswer(key, orjson.dumps(completion_of_native(response)), None, line)


def _discreet(fault: Fault, request: object) -> Fault:
    """The fault without quotes from the row's own texts."""
    parts = [part for content in objects(dig(request, "contents")) for part in objects(content.get("parts"))]
    fault.message = redact_quotes(fault.message, [text for part in parts if isinstance(text := part.get("text"), str)])
    fault.args = (fault.message,)
    return fault


def _key(document: object) -> str | None:
    """The key of a line, or the label that repeats it; None if there is neither, or they differ."""
    key = as_name(dig(document, "key"))
    label = as_name(dig(document, "request", "labels", KEY_LABEL))
    return None if key and label and key != label else key or label or None


def completion_of_native(response: Mapping[str, Any]) -> dict[str, Any]:
    """A native response as a chat completion of the compatible endpoint.

    Thoughts become `reasoning_content`, so that they need no tags. Raises `Rounded` (see `untrusted_json.read`).
    """
    candidates = objects(response.get("candidates"))
    feedback = response.get("promptFeedback", response.get("prompt_feedback"))
    reason = as_text(dig(feedback, "blockReason") or dig(feedback, "block_reason"))
    identity = as_text(response.get("responseId"))
    version = as_text(response.get("modelVersion"))
    return {
        "choices": [_choice(candidate, number, identity or "") for number, candidate in enumerate(candidates)],
        **({"promptFeedback": {"blockReason": reason}} if reason else {}),
        **({"id": identity} if identity else {}),
        **({"model": _model(version)} if version else {}),
        "object": "chat.completion",
        **_usage(response.get("usageMetadata")),
    }


def _model(version: str) -> str:
    return version if "/" in version else f"google/{version}"


def _choice(candidate: Mapping[str, Any], number: int, identity: str) -> dict[str, Any]:
    content = candidate.get("content")
    parts = objects(dig(content, "parts"))
    message: dict[str, Any] = {"role": "assistant"}
    text = _joined(parts, thought=False)
    if text is not None:
        message["content"] = text
    if thoughts := _joined(parts, thought=True):
        message["reasoning_content"] = thoughts
    calls = [_call(part["functionCall"], part, f"function-call-{identity}-{number}-{index}")
             for index, part in enumerate(parts) if isinstance(part.get("functionCall"), dict)]  # fmt: skip
    if calls:
        message["tool_calls"] = calls
    if (media := _media(parts)) is not None:
        message["audio"] = media
    index = as_position(candidate.get("index"))
    reason = _finish_reason(candidate.get("finishReason"))
    return {
        "index": number if index is None else index,
        "message": message,
        "finish_reason": "tool_calls" if calls and reason == "stop" else reason,
    }


def _finish_reason(reason: object) -> str | None:
    name = as_text(reason)
    if not name or name.endswith("_UNSPECIFIED"):
        return None
    return _FINISH_REASONS.get(name) or name.lower()


def _joined(parts: Sequence[Mapping[str, Any]], *, thought: bool) -> str | None:
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str) and _is_thought(part) is thought]
    if not texts:
        return None
    return "\n\n".join(filter(None, map(str.strip, texts))) if thought else "".join(texts)


def _is_thought(part: Mapping[str, Any]) -> bool:
    return part.get("thought") in (True, "true")


def _call(call: Mapping[str, Any], part: Mapping[str, Any], own_id: str) -> dict[str, Any]:
    arguments = call.get("args")
    signature = as_text(part.get("thoughtSignature"))
    return {
        "id": as_name(call.get("id")) or own_id,
        "type": "function",
        "function": {
            "name": as_text(call.get("name")) or "",
            "arguments": (json_text(arguments) or "") if arguments is not None else "{}",
        },
        **({"extra_content": {"google": {"thought_signature": signature}}} if signature else {}),
    }


def _media(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first medium that is an answer, where the compatible endpoint has it. The images of thoughts are drafts."""
    for part in parts:
        data, mime_type = as_text(dig(part, "inlineData", "data")), as_text(dig(part, "inlineData", "mimeType"))
        if data and not _is_thought(part):
            about = {"extra_content": {"google": {"mime_type": mime_type}}} if mime_type else {}
            # Natively, base64 may be URL-safe (https://protobuf.dev/programming-guides/json/).
            return {"data": data.replace("-", "+").replace("_", "/"), **about}
    return None


def _usage(metadata: object) -> dict[str, Any]:
    """The usage; tokens of tool results are input. The traffic type is ours: Vertex AI says ON_DEMAND here too."""
    if not isinstance(metadata, dict) or not metadata:
        return {}
    counts = {name: _count(metadata.get(native)) for name, native in _COUNTS.items()}
    prompt, of_tools = counts["prompt_tokens"], _count(metadata.get("toolUsePromptTokenCount"))
    if isinstance(prompt, int) and isinstance(of_tools, int):
        counts["prompt_tokens"] = prompt + of_tools
    usage: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
    details = {
        "completion_tokens_details": ("reasoning_tokens", _count(metadata.get("thoughtsTokenCount"))),
        "prompt_tokens_details": ("cached_tokens", _count(metadata.get("cachedContentTokenCount"))),
    }
    usage |= {name: {inner: count} for name, (inner, count) in details.items() if count is not None}
    return {"usage": usage | {"extra_properties": {"google": {"traffic_type": TRAFFIC_TYPE}}}}


_COUNTS = {
    "prompt_tokens": "promptTokenCount",
    "completion_tokens": "candidatesTokenCount",
    "total_tokens": "totalTokenCount",
}


def _count(value: object) -> int | str | None:
    """A count for `pipeline.endpoint.usage`, which checks it: a 64-bit integer is text in Google's JSON."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isdecimal() and len(text) < 19 else text[:64]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = as_integer(value)
    return number if number is None or abs(number) < 2**63 else None
