"""The contents of Gemini's own request, as messages of OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.emulator.protocol.dialect import violations
from pipeline.emulator.protocol.native_fields import Fields
from pipeline.emulator.protocol.wire import JsonObject, invalid

_CONTENT = "role parts"
_PART = """
text inlineData fileData functionCall functionResponse executableCode codeExecutionResult thought thoughtSignature
videoMetadata mediaResolution partMetadata
"""
_DATA = ("text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult")
_ANSWERS = frozenset({"result", "output", "content"})


def messages_of(root: Fields) -> list[JsonObject]:
    """The messages of a request's `systemInstruction` and `contents`. Raises a 400."""
    contents = root.get("contents")
    if isinstance(contents, dict):
        raise violations([("contents", "Invalid value at 'contents', a list is expected")])
    if not isinstance(contents, list) or not contents:
        raise invalid("Unable to submit request because at least one contents field is required.")
    system = root.get("systemInstruction")
    messages = [] if system is None else [_system(system)]
    open_calls: list[tuple[str, str]] = []
    for index, content in enumerate(contents):
        messages += _messages(content, index, open_calls)
    return messages


@dataclass(slots=True)
class _Said:
    """What one content says, taken apart."""

    parts: list[JsonObject] = field(default_factory=list)
    calls: list[JsonObject] = field(default_factory=list)
    results: list[JsonObject] = field(default_factory=list)


def _system(instruction: Any) -> JsonObject:
    fields = Fields.of(instruction, "system_instruction", _CONTENT)
    texts = [Fields.of(part, f"system_instruction.parts[{n}]", _PART).get("text") for n, part in _parts(fields)]
    if not all(isinstance(text, str) for text in texts):
        raise invalid("system_instruction can only have text parts.")
    return {"role": "system", "content": "\n".join(texts)}


def _messages(content: Any, index: int, open_calls: list[tuple[str, str]]) -> Iterator[JsonObject]:
    place = f"contents[{index}]"
    fields = Fields.of(content, place, _CONTENT)
    role = fields.get("role")
    if role not in ("user", "model", "function"):  # a tuple, for the role may be anything
        raise invalid("Please use a valid role: user, model.")
    said = _Said()
    for number, part in _parts(fields):
        _read_part(part, f"{place}.parts[{number}]", said, open_calls)
    yield from said.results
    if said.parts or said.calls or not said.results:
        message: JsonObject = {"role": "assistant" if role == "model" else "user", "content": _content(said.parts)}
        if said.calls:
            open_calls[:] = [(call["id"], call["function"]["name"]) for call in said.calls]
            message["tool_calls"] = said.calls
        yield message


def _parts(fields: Fields) -> Iterator[tuple[int, Any]]:
    parts = fields.get("parts")
    if not isinstance(parts, list) or not parts:
        raise invalid(
            "Unable to submit request because it must include at least one parts field, which describes the prompt "
            "input."
        )
    return iter(enumerate(parts))


def _content(parts: Sequence[JsonObject]) -> Any:
    """Texts alone as one text, as OpenAI's clients send them."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return list(parts)


def _read_part(part: Any, place: str, said: _Said, open_calls: list[tuple[str, str]]) -> None:
    fields = Fields.of(part, place, _PART)
    given = [name for name in _DATA if fields.get(name) is not None]
    if len(given) > 1:
        raise violations([(place, f"Invalid value at '{place}': oneof field 'data' is already set.")])
    if fields.get("thought") is True or (not given and fields.get("thoughtSignature")):
        return
    match given:
        case ["text"]:
            fields.require("text", str, "TYPE_STRING")
            said.parts.append({"type": "text", "text": fields.get("text")})
        case ["inlineData"]:
            blob = Fields.of(fields.get("inlineData"), f"{place}.inline_data", "mimeType data displayName")
            url = f"data:{blob.get('mimeType', '')};base64,{blob.get('data', '')}"
            said.parts.append({"type": "image_url", "image_url": {"url": url}})
        case ["fileData"]:
            file = Fields.of(fields.get("fileData"), f"{place}.file_data", "mimeType fileUri displayName")
            if not file.get("mimeType"):
                raise invalid("Unable to submit request because it must have a mimeType parameter with fileData.")
            said.parts.append({"type": "image_url", "image_url": {"url": file.get("fileUri", "")}})
        case ["functionCall"]:
            said.calls.append(_call(fields, place, len(said.calls)))
        case ["functionResponse"]:
            said.results.append(_result(fields, place, open_calls))
        case ["executableCode" | "codeExecutionResult"]:
            return
        case _:
            raise invalid(f"Unable to submit request because {place} has no data: text, inlineData, fileData ...")


def _call(fields: Fields, place: str, number: int) -> JsonObject:
    call = Fields.of(fields.get("functionCall"), f"{place}.function_call", "id name args partialArgs willContinue")
    function = {"name": call.get("name"), "arguments": orjson.dumps(call.get("args", {})).decode()}
    ident = str(call.get("id") or f"{place}.{number}")
    signature = fields.get("thoughtSignature")
    extra = {"extra_content": {"google": {"thought_signature": signature}}} if signature else {}
    return {"id": ident, "type": "function", "function": function, **extra}


def _result(fields: Fields, place: str, open_calls: list[tuple[str, str]]) -> JsonObject:
    """A tool's message: it belongs to the call of its id or else to the first open one of its function."""
    known = "id name response parts willContinue scheduling"
    response = Fields.of(fields.get("functionResponse"), f"{place}.function_response", known)
    ident, name = response.get("id"), response.get("name")
    found = next((each for each in open_calls if (each[0] == ident if ident else each[1] == name)), None)
    if found is not None:
        open_calls.remove(found)
    told = response.get("response", {})
    if isinstance(told, dict) and len(told) == 1 and told.keys() <= _ANSWERS:
        told = next(iter(told.values()))
    text = told if isinstance(told, str) else orjson.dumps(told).decode()
    return {"role": "tool", "tool_call_id": found[0] if found else "", "content": text}
