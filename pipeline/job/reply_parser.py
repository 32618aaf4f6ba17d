"""Parses a reply into its value: decides which answers are complete, and separates thoughts from the text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data import Failure, Outcome, Reply, Success
from pipeline.endpoint.finish_reasons import fault_of, fault_of_all
from pipeline.endpoint.wire import Completion, CompletionChoice, completion_of_reply
from pipeline.faults import Fault, Unparsable
from pipeline.schema.shape import AnswerSchema, bare_json


@dataclass(frozen=True, slots=True)
class ReplyParser:
    """Parses a job's replies. Pure, so that a stored reply can be parsed again with another schema.

    `marker` is the tag around thought summaries, if the job asks for them. `several` makes the value a list with one
    item per answer, null where that answer is unusable.
    """

    shape: AnswerSchema | None
    json_object: bool = False
    marker: str | None = None
    several: bool = False

    def completion(self, reply: Reply) -> Completion:
        """The completion in a reply, with thoughts separated from the text."""
        completion = completion_of_reply(reply)
        if self.marker is None:
            return completion
        return replace(completion, answers=tuple(_split_thoughts(answer, self.marker) for answer in completion.answers))

    def outcome(self, ordinal: int, result: Reply | Fault) -> Outcome:
        """The outcome of a row."""
        return self.read(ordinal, result)[0]

    def read(self, ordinal: int, result: Reply | Fault) -> tuple[Outcome, Completion | None]:
        """The outcome of a row, and the completion that it was parsed from, if there was one."""
        if isinstance(result, Fault):
            return self._after_all(ordinal, result)
        completion: Completion | None = None
        try:
            completion = self.completion(result)
            return Success(ordinal, self._value(completion), result), completion
        except Fault as fault:
            return Failure(ordinal, fault.without_trace(), result), completion

    def _after_all(self, ordinal: int, fault: Fault) -> tuple[Outcome, Completion | None]:
        """The outcome of a row that ended in a fault: a failure, with its last answer if there was one.

        After a failed repair, that is the answer that did not fit; it may fit another schema. An answer that calls
        tools does not count: the row was not finished.
        """
        if not isinstance(fault.reply, Reply):
            return Failure(ordinal, fault), None
        outcome, completion = self.read(ordinal, fault.reply)
        calls_tools = completion is not None and any(answer.tool_calls for answer in completion.answers)
        if isinstance(outcome, Success) and not calls_tools:
            return outcome, completion
        return Failure(ordinal, fault, fault.reply), completion

    def instance_of(self, success: Success) -> Any:
        """The value of a row as its schema makes it: a model instance, where `Success.value` has plain values."""
        if self.shape is None:
            return success.value
        answers = self.completion(success.reply).answers
        return [self._instance(one) for one in answers] if self.several else self._instance(answers[0])

    def _instance(self, answer: CompletionChoice) -> Any:
        """None for an answer without a value, which a row may have beside others, or beside its media."""
        try:
            return self.shape.parse(answer.text) if self.shape is not None and answer.text else None
        except Unparsable:
            return None

    def parsed_type(self) -> Any:
        """The Arrow type of the `parsed` column."""
        import pyarrow as pa

        one = pa.string() if self.shape is None else self.shape.arrow_type()
        return pa.list_(pa.field("element", one)) if self.several else one

    def _value(self, completion: Completion) -> Any:
        fault = fault_of_all(completion)
        if fault is not None:
            raise fault
        if not self.several:
            return self._one(completion.answers[0], completion)
        values: list[Any] = []
        faults: list[Fault] = []
        for answer in completion.answers:
            try:
                values.append(self._one(answer, completion))
            except Fault as error:
                values.append(None)
                faults.append(error)
        if len(faults) == len(values):
            raise faults[0]
        return values

    def _one(self, answer: CompletionChoice, completion: Completion) -> Any:
        fault = fault_of(answer, completion)
        if fault is not None:
            raise fault
        text = answer.text
        if text is None or not text.strip():
            if answer.tool_calls or answer.media:
                return None
            raise Unparsable(_empty(completion))
        if self.shape is not None:
            return self.shape.plain(self.shape.parse(text))
        return _json_object(text) if self.json_object else text


class LatestOutcome:
    """Outcomes by a reader, remembering the latest: a row's reply is parsed on arrival and again when it is recorded.

    Used by one thread.
    """

    def __init__(self, reader: ReplyParser) -> None:
        self._reader = reader
        self._latest: tuple[int, Reply, Outcome] | None = None

    def of(self, ordinal: int, result: Reply | Fault) -> Outcome:
        """The outcome of a row."""
        if self._latest is not None and self._latest[0] == ordinal and self._latest[1] is result:
            return self._latest[2]
        outcome = self._reader.outcome(ordinal, result)
        if isinstance(result, Reply):  # a fault may get its reply later
            self._latest = ordinal, result, outcome
        return outcome


def _empty(completion: Completion) -> str:
    """The message for an answer without text. Counted output tokens suggest a response format that we do not know."""
    counted = completion.usage.output if completion.usage else 0
    return "the answer is empty" + (f", though {counted} tokens of output were counted" if counted else "")


def _json_object(text: str) -> str:
    """The answer's JSON text without its code fence. Raises `Unparsable` unless it is one JSON object."""
    bare = bare_json(text)
    try:
        value = json.loads(bare, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Unparsable("the answer is not JSON") from None
    if not isinstance(value, dict):
        raise Unparsable("the answer is JSON, but not an object")
    return bare


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _split_thoughts(answer: CompletionChoice, marker: str) -> CompletionChoice:
    """Removes leading `<marker>...</marker>` blocks from the text; a block that is not closed extends to the end."""
    block = re.compile(rf"\s*<{re.escape(marker)}>(.*?)(?:</{re.escape(marker)}>|\Z)", re.DOTALL)
    text, thoughts, at = answer.text or "", [], 0
    while (found := block.match(text, at)) is not None:
        thoughts.append(found.group(1).strip())
        at = found.end()
    if not thoughts:
        return answer
    reasoning = "\n\n".join(filter(None, [answer.reasoning, *thoughts]))
    return replace(answer, reasoning=reasoning, text=text[at:].lstrip() or None)
