"""The lines of a batch: how each is checked, answered and written, in Gemini's own form and in OpenAI's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol

import orjson

from pipeline.emulator.answers.answers import EmulatedAnswer, answers
from pipeline.emulator.batch.fault_draws import failed_row, row_fault
from pipeline.emulator.batch.native_bodies import response_of
from pipeline.emulator.protocol.native import read_native
from pipeline.emulator.protocol.request import ChatRequest, request_of
from pipeline.emulator.protocol.wire import JsonObject, Problem, TokenCounts, completion, not_found
from pipeline.emulator.server.bodies import calls_of, choices_of, counted
from pipeline.emulator.server.chat import Chat
from pipeline.emulator.server.faults import damaged_body, problem

_AS_ONLINE = {"row_blocked": "blocked", "row_no_candidates": "empty_choices", "row_cut": None, "row_doubled": None}


class MalformedLine(Exception):
    """A line for which a whole job fails: its number from 1, a code as OpenAI calls it, and what is wrong."""

    def __init__(self, number: int, code: str, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """The lines that a row became, none or two on demand, and whether it got a response."""

    lines: tuple[bytes, ...]
    succeeded: bool


class RowWriter(Protocol):
    """Answers the rows of one job."""

    def check(self, line: bytes, number: int) -> None:
        """Raises `MalformedLine` for a line with which the job cannot begin."""

    def write(self, line: bytes, number: int) -> WrittenRow:
        """The row, answered."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answered request. `kind` is its fault as the chat endpoint calls it."""

    asked: ChatRequest
    found: list[EmulatedAnswer]
    reasoning: int
    tokens: TokenCounts
    ident: str
    kind: str | None


@dataclass(slots=True)
class _Answerer:
    """Answers requests as the chat endpoint does, and counts them there."""

    chat: Chat
    parent: str

    def answer(self, asked: ChatRequest, fault: str | None, repeat: int) -> _Answered:
        """The answer under a fault. Raises the `Problem` of a row that fails."""
        options = self.chat.options
        error = failed_row(fault)
        if fault is not None and not fault.startswith("row_"):
            error = problem(fault, model=asked.model, parent=self.parent, retry_info=None)
        if error is not None:
            raise error
        kind = _AS_ONLINE.get(fault, fault) if fault else None
        found, reasoning = answers(asked, options.seed, options.field_errors, options.answer_key)
        if fault == "row_cut":
            found = [replace(each, text=_half(each.text), finish_reason="length", calls=()) for each in found]
        tokens = counted(asked, found, reasoning, kind)
        return _Answered(asked, found, reasoning, tokens, self.chat.ident(asked.digest, repeat), kind)

    def fault(self, asked: ChatRequest) -> tuple[str | None, int]:
        """The fault of the next request with these messages, and how many there were before."""
        repeat = self.chat.stats.sight(asked.digest)
        return row_fault(asked, self.chat.options, repeat), repeat

    def bill(self, answered: _Answered) -> None:
        """Counts an answer as one that is paid for."""
        calls = sum(len(calls_of(answered.asked, each, answered.kind)) for each in answered.found)
        results = len(answered.asked.turns[-1]) if answered.asked.turns else 0
        self.chat.bill(answered.asked.digest, answered.tokens, answered.ident, calls, results)


@dataclass(slots=True)
class NativeRows:
    """Rows of Gemini's own form; `date` returns the time as Google writes it."""

    chat: Chat
    model: str
    parent: str
    date: Callable[[], str]

    def check(self, line: bytes, number: int) -> None:
        """Only a line that is not a JSON object fails the job (inferred); a wrong request fails its row alone."""
        _read_object(line, number)

    def write(self, line: bytes, number: int) -> WrittenRow:  # noqa: ARG002 - the signature of `RowWriter`
        """The row, with its request as it was sent, under the ids that `batch_echo` names."""
        row: JsonObject = orjson.loads(line)
        answerer = _Answerer(self.chat, self.parent)
        fault = None
        try:
            asked = read_native(row.get("request"), self.model)
            fault, repeat = answerer.fault(asked)
            if fault == "row_missing":
                return WrittenRow((), succeeded=False)
            answered = answerer.answer(asked, fault, repeat)
        except Problem as error:
            return WrittenRow((self._line(row, fault, _sentence(error), {}),), succeeded=False)
        answerer.bill(answered)
        response = response_of(asked, answered.found, answered.reasoning, answered.tokens, answered.kind)
        response |= {"createTime": self.date(), "responseId": answered.ident}
        written = self._line(row, fault, "", dict(sorted(response.items())))
        return WrittenRow((written,) * (2 if fault == "row_doubled" else 1), succeeded=True)

    def _line(self, row: JsonObject, fault: str | None, status: str, response: JsonObject) -> bytes:
        """The output line, its members in the order of a published one."""
        echo, unknown = self.chat.options.batch_echo, fault == "row_unknown_key"
        request = row.get("request", {})
        if isinstance(request, dict) and "labels" in request:
            request = _with_labels(request, kept=echo in {"labels", "both"}, unknown=unknown)
        key = (
            {"key": _unknown(row["key"]) if unknown else row["key"]} if "key" in row and echo in {"key", "both"} else {}
        )
        done = self.date().removesuffix("Z")[:-3] + "+00:00"
        return orjson.dumps({"status": status, "processed_time": done, **key, "request": request, "response": response})


@dataclass(slots=True)
class OpenAIRows:
    """Rows of OpenAI's form: `{"custom_id", "method", "url", "body"}`. `model` replaces the body's, if given."""

    chat: Chat
    parent: str
    url: str = "/v1/chat/completions"
    model: str | None = None
    seen: set[bytes] = field(default_factory=set)

    def check(self, line: bytes, number: int) -> None:
        """Codes as OpenAI's, as far as they were published; the messages are inferred."""
        row = _read_object(line, number)
        for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
            if not isinstance(row.get(name), kind):
                raise MalformedLine(number, "missing_required_parameter", f"Missing required parameter: '{name}'.")
        if row["method"] != "POST":
            raise MalformedLine(number, "invalid_method", f"The method is POST, not {row['method'][:20]}.")
        if row["url"] != self.url:
            code, message = "mismatched_endpoint", "The URL of the request does not match the endpoint of the batch."
            raise MalformedLine(number, code, message)
        digest = blake2b(row["custom_id"].encode(), digest_size=8).digest()
        if digest in self.seen:
            message = f"The custom_id {row['custom_id'][:100]!r} is used by an earlier line."
            raise MalformedLine(number, "duplicate_custom_id", message)
        self.seen.add(digest)

    def write(self, line: bytes, number: int) -> WrittenRow:
        """The row: a chat completion, or the error in its place."""
        row: JsonObject = orjson.loads(line)
        answerer = _Answerer(self.chat, self.parent)
        fault = None
        try:
            asked = request_of({**row["body"], "stream": None, **({"model": self.model} if self.model else {})})
            if not self.chat.serves(asked.model, bare=True):
                raise not_found(asked.model, self.parent)
            fault, repeat = answerer.fault(asked)
            if fault == "row_missing":
                return WrittenRow((), succeeded=False)
            answered = answerer.answer(asked, fault, repeat)
        except Problem as error:
            body = {"error": {"message": error.message, "type": error.status, "param": None, "code": error.http_status}}
            return WrittenRow((self._line(row, number, fault, error.http_status, body),), succeeded=False)
        answerer.bill(answered)
        content = completion(
            model=asked.model,
            ident=answered.ident,
            created=int(time.time()),
            choices=choices_of(asked, answered.found, answered.reasoning, answered.kind),
            tokens=answered.tokens,
        )
        written = self._line(row, number, fault, 200, damaged_body(answered.kind, content, asked.digest))
        return WrittenRow((written,) * (2 if fault == "row_doubled" else 1), succeeded=True)

    def expired(self, line: bytes, number: int) -> bytes:
        """The line of a row that was not answered in time, as OpenAI documents it."""
        message = "This request could not be executed before the completion window expired."
        custom_id = orjson.loads(line)["custom_id"]
        error = {"code": "batch_expired", "message": message}
        return orjson.dumps({"id": f"batch_req_{number}", "custom_id": custom_id, "response": None, "error": error})

    def _line(self, row: JsonObject, number: int, fault: str | None, status: int, body: JsonObject) -> bytes:
        custom_id = _unknown(row["custom_id"]) if fault == "row_unknown_key" else row["custom_id"]
        response = {"status_code": status, "request_id": f"req_{number}", "body": body}
        return orjson.dumps({"id": f"batch_req_{number}", "custom_id": custom_id, "response": response, "error": None})


def _read_object(line: bytes, number: int) -> JsonObject:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise MalformedLine(number, "invalid_json_line", f"Line {number} is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise MalformedLine(number, "invalid_json_line", f"Line {number} is not a JSON object.")
    return row


def _sentence(error: Problem) -> str:
    """An error as the status of a row: a sentence with the body in it (googleapis/python-aiplatform#4485)."""
    return f"{error.status} error occurred: {error.body('object').decode()}"


def _with_labels(request: JsonObject, *, kept: bool, unknown: bool) -> JsonObject:
    rest = {name: value for name, value in request.items() if name != "labels"}
    if not kept:
        return rest
    labels: Any = request["labels"]
    if unknown and isinstance(labels, dict):
        labels = {name: _unknown(value) for name, value in labels.items()}
    return {**rest, "labels": labels}


def _unknown(key: Any) -> str:
    """A key like those that are sent, but another one."""
    return "unknown-" + blake2b(str(key).encode(), digest_size=6).hexdigest()


def _half(text: str | None) -> str | None:
    return text[: len(text) // 2] if text else text
