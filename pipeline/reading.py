"""From a reply to its value: which answers are whole, which end in a fault, and what was only thought aloud."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data import Failure, Outcome, Reply, Success
from pipeline.faults import Cut, Fault, Refused, Unparsable
from pipeline.redaction import redacted
from pipeline.shapes import Shape, bare_json
from pipeline.wire import Answer, Completion, read_completion


@dataclass(frozen=True, slots=True)
class Reader:
    """How a job's replies are read: pure, so that a kept reply can be read again under another schema.

    `marker` is the tag around thought summaries, when the job asks for them. `several` makes the value a list, one
    item for each answer, null where that answer is no good.
    """

    shape: Shape | None
    json_object: bool = False
    marker: str | None = None
    several: bool = False

    def completion(self, reply: Reply) -> Completion:
        """The completion that a reply holds, with thoughts and text told apart."""
        read = reply.completion
        completion = read if isinstance(read, Completion) else read_completion(reply.body)
        if self.marker is None:
            return completion
        return replace(completion, answers=tuple(_split_thoughts(answer, self.marker) for answer in completion.answers))

    def outcome(self, ordinal: int, result: Reply | Fault) -> Outcome:
        """What became of a row."""
        return self.read(ordinal, result)[0]

    def read(self, ordinal: int, result: Reply | Fault) -> tuple[Outcome, Completion | None]:
        """What became of a row, and the completion that it was read from, if there was one."""
        if isinstance(result, Fault):
            return Failure(ordinal, result), None
        completion: Completion | None = None
        try:
            completion = self.completion(result)
            return Success(ordinal, self._value(completion), result), completion
        except Fault as fault:
            return Failure(ordinal, fault.without_trace(), result), completion

    def parsed_type(self) -> Any:
        """The Arrow type of the `parsed` column."""
        import pyarrow as pa

        one = pa.string() if self.shape is None else self.shape.arrow_type()
        return pa.list_(pa.field("element", one)) if self.several else one

    def _value(self, completion: Completion) -> Any:
        if completion.blocked:
            raise Refused(f"the prompt was blocked: {redacted(completion.blocked)[:300]}")
        if not completion.answers:
            raise Refused("the endpoint gave no answer (no choices): the prompt was probably blocked")
        if not self.several:
            return self._one(completion.answers[0], completion)
        values: list[Any] = []
        faults: list[Fault] = []
        for answer in completion.answers:
            try:
                values.append(self._one(answer, completion))
            except Fault as fault:
                values.append(None)
                faults.append(fault)
        if len(faults) == len(values):
            raise faults[0]
        return values

    def _one(self, answer: Answer, completion: Completion) -> Any:
        _require_whole(answer, completion)
        if self.shape is None and not self.json_object:
            return answer.text
        if not answer.text:
            if answer.tool_calls or answer.media:
                return None
            raise Unparsable("the answer is empty")
        return self.shape.plain(self.shape.parse(answer.text)) if self.shape else _json_object(answer.text)


def _require_whole(answer: Answer, completion: Completion) -> None:
    """Raises `Refused` or `Cut`, with the reason that was given, unless this is a whole answer."""
    if answer.finish_reason == "content_filter":
        raise Refused("the answer was blocked by the content filter")
    if answer.refusal:
        raise Refused(f"the model refused: {redacted(answer.refusal)[:300]}")
    if answer.finish_reason == "length":
        spent = completion.usage.reasoning
        thinking = f", {spent} of them on thinking" if spent else ""
        raise Cut(f"the answer was cut at max_tokens after {completion.usage.output + spent} tokens{thinking}")
    if not answer.has_message:
        raise Refused(f"the answer holds no message (finish_reason {answer.finish_reason!r})")


def _json_object(text: str) -> str:
    """The answer's JSON text, out of its fence, when it is one JSON object."""
    bare = bare_json(text)
    try:
        value = json.loads(bare, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Unparsable("the answer is not JSON") from None
    if not isinstance(value, dict):
        raise Unparsable("the answer is JSON, but no object")
    return bare


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _split_thoughts(answer: Answer, marker: str) -> Answer:
    """Takes `<marker>...</marker>` blocks off the front of the text; a block that never ends is all thought."""
    block = re.compile(rf"\s*<{re.escape(marker)}>(.*?)(?:</{re.escape(marker)}>|\Z)", re.DOTALL)
    text, thoughts = answer.text or "", []
    while (found := block.match(text)) is not None:
        thoughts.append(found.group(1).strip())
        text = text[found.end() :]
    if not thoughts:
        return answer
    reasoning = "\n\n".join(filter(None, [answer.reasoning, *thoughts]))
    return replace(answer, reasoning=reasoning, text=text.lstrip() or None)
