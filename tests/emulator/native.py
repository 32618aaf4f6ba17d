"""OpenAI's form of a request as Gemini's own: a translator written for these tests alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.emulator.requests import Json

_MIME = {"wav": "audio/wav", "mp3": "audio/mpeg"}


def native_of(payload: Mapping[str, Any], spelt: Callable[[str], str] = lambda name: name) -> Json:
    """The native request, with the names of its fields as `spelt` spells them."""
    google = payload.get("extra_body", {}).get("google", {})
    config: Json = {
        "temperature": payload.get("temperature"),
        "candidateCount": payload.get("n"),
        "maxOutputTokens": payload.get("max_tokens"),
        "stopSequences": payload.get("stop"),
        "responseModalities": [each.upper() for each in payload["modalities"]] if "modalities" in payload else None,
        "thinkingConfig": google.get("thinking_config"),
        **_format(payload.get("response_format")),
    }
    mode = {"none": "NONE", "auto": "AUTO", "required": "ANY"}.get(payload.get("tool_choice", ""))
    functions = [tool["function"] for tool in payload.get("tools", ())]
    contents, system = _contents(payload["messages"])
    request: Json = {
        "contents": contents,
        "systemInstruction": {"parts": system} if system else None,
        "generationConfig": {name: value for name, value in config.items() if value is not None} or None,
        "tools": [{"functionDeclarations": functions}] if functions else None,
        "toolConfig": {"functionCallingConfig": {"mode": mode}} if mode else None,
        "cachedContent": google.get("cached_content"),
        "safetySettings": google.get("safety_settings"),
    }
    spelled: Json = _spelled({name: value for name, value in request.items() if value is not None}, spelt)
    return spelled


def _format(wanted: Any) -> Json:
    if wanted is None:
        return {}
    schema = {"responseJsonSchema": wanted["json_schema"]["schema"]} if wanted["type"] == "json_schema" else {}
    return {"responseMimeType": "application/json", **schema}


def _contents(messages: Any) -> tuple[list[Json], list[Json]]:
    contents: list[Json] = []
    system: list[Json] = []
    names: dict[str, str] = {}
    for message in messages:
        parts = [_part(part) for part in _listed(message.get("content"))]
        if message["role"] in {"system", "developer"}:
            system += parts
            continue
        role = "model" if message["role"] == "assistant" else "user"
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
            made = {"name": call["function"]["name"], "args": json.loads(call["function"]["arguments"])}
            signature = call.get("extra_content", {}).get("google", {}).get("thought_signature")
            parts.append({"functionCall": made, **({"thoughtSignature": signature} if signature else {})})
        if message["role"] == "tool":
            told = {"name": names[message["tool_call_id"]], "response": {"result": message["content"]}}
            parts = [{"functionResponse": told}]
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        else:
            contents.append({"role": role, "parts": parts})
    return contents, system


def _listed(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _part(part: Json) -> Json:
    if part["type"] == "text":
        return {"text": part["text"]}
    if part["type"] == "input_audio":
        return {"inlineData": {"mimeType": _MIME[part["input_audio"]["format"]], "data": part["input_audio"]["data"]}}
    url = part["image_url"]["url"]
    if not url.startswith("data:"):
        return {"fileData": {"mimeType": "image/png", "fileUri": url}}
    mime_type, _, data = url.removeprefix("data:").partition(";base64,")
    return {"inlineData": {"mimeType": mime_type, "data": data}}


_FREE = frozenset({"args", "response", "responseJsonSchema", "parameters", "labels"})
"""Fields whose value is somebody else's object: its names are left alone."""


def _spelled(value: Any, spelt: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {spelt(name): inner if name in _FREE else _spelled(inner, spelt) for name, inner in value.items()}
    return [_spelled(inner, spelt) for inner in value] if isinstance(value, list) else value
