"""Job: how a row becomes a request, and a reply becomes a typed value."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.data import Failure, Message, Outcome, Reply, Request, Row, Success
from pipeline.faults import Cut, Fault, Misuse, Refused, Unparsable, Unusable
from pipeline.prompt import Template
from pipeline.schema import Shape, shape_of
from pipeline.wire import Answer, Completion, read_completion

OURS = ("status", "parsed", "response", "error")
"""The output columns that the pipeline adds, after the input's own."""

Prompt = str | Callable[[Mapping[str, Any]], Any]
"""A Jinja2 template over the row's columns, or a function of the row that returns the text."""

_CARRIERS = ("body", "messages")
"""Columns of an input whose rows are requests already."""

_BATCH_URLS = ("/v1/chat/completions", "/chat/completions")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True, strict=False))
class Job:
    """What to do with every row of an input.

    `system` and `user` are templates over the row's columns, or functions of the row. `schema` is a pydantic model
    (or a JSON Schema as a dict): the answer is then validated and becomes the `parsed` column; without one the
    answer is text. Without a prompt, each row must carry its own request: a `messages` column, or OpenAI's batch
    format (`custom_id`, `method`, `url`, `body`).

    `keep` names the input columns that are copied to the output (default: all but binary ones), `rename` gives
    some of them other names, `key` names the one that people know a row by. `max_failed` is how many rows may
    fail before the run counts as failed (exit 3): a number of rows, or a share below 1. `timeout_s` is the total
    deadline of one attempt, `attempts` how often a row is tried against passing faults.
    """

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    model: str = ""
    input: str | Path | Sequence[str | Path] | None = None
    output: str | Path | None = None

    system: Prompt | None = None
    user: Prompt | None = None
    schema: type[BaseModel] | dict[str, Any] | None = None

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    google: dict[str, Any] | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    key: str | None = None
    keep: Sequence[str] | None = None
    rename: dict[str, str] = Field(default_factory=dict)

    max_failed: float = Field(default=0.1, ge=0)
    attempts: int = Field(default=5, gt=0)
    timeout_s: float = Field(default=300.0, gt=0)

    def __post_init__(self) -> None:
        if self.reasoning_effort is not None and "thinking_config" in (self.google or {}):
            raise Misuse("`reasoning_effort` and google's `thinking_config` exclude each other: keep one of them")
        self.templates  # noqa: B018 - compiled now, so that a broken template is found when the job is made

    def replace(self, **changes: Any) -> Job:
        """The same job with some fields changed, validated like a new one."""
        return dataclasses.replace(self, **changes)

    @cached_property
    def shape(self) -> Shape | None:
        """The compiled schema; None when the answer is text."""
        return None if self.schema is None else shape_of(self.schema, self.name)

    @cached_property
    def templates(self) -> Mapping[str, Template]:
        """The compiled prompt templates, by field."""
        prompts = {"system": self.system, "user": self.user}
        return {name: Template(text, field=name) for name, text in prompts.items() if isinstance(text, str)}

    @property
    def carries_requests(self) -> bool:
        """Whether each row of the input is a request by itself."""
        return self.user is None and self.system is None

    def columns_needed(self, available: Sequence[str]) -> list[str]:
        """The input columns that requests are made of. Raises `Misuse` when one is not in the input."""
        if self.carries_requests:
            found = [name for name in _CARRIERS if name in available]
            if not found:
                raise Misuse(
                    f"the job has no `user` prompt, and the input has no `messages` or `body` column "
                    f"(its columns: {', '.join(available)}): give the job a prompt"
                )
            return [name for name in ("body", "messages", "method", "url") if name in available]
        if any(callable(prompt) for prompt in (self.system, self.user)):
            return list(available)
        needed: set[str] = set()
        for field, template in self.templates.items():
            if template.columns is None:
                return list(available)
            for name in sorted(template.columns):
                _require(name, available, f"the template of `{field}`")
            needed |= template.columns
        return [name for name in available if name in needed]

    def columns_kept(self, types: Mapping[str, str]) -> dict[str, str]:
        """Output name by input column, in input order. Raises `Misuse` on unknown columns and clashing names."""
        for name in [*(self.keep or ()), *self.rename, *([self.key] if self.key else [])]:
            _require(name, list(types), "the job")
        chosen = [
            name
            for name, kind in types.items()
            if (name in self.keep or name == self.key if self.keep is not None else kind not in _BINARY)
        ]
        kept = {name: self.rename.get(name, name) for name in chosen}
        for source, target in kept.items():
            if target in OURS:
                raise Misuse(
                    f"the input column {source!r} has the name of an output column: leave it out with `keep`, "
                    f'or give it another name: rename={{"{source}": "input_{source}"}}'
                )
        if len({name.lower() for name in kept.values()}) < len(kept):
            raise Misuse(f"two output columns would have the same name (case aside): {', '.join(kept.values())}")
        return kept

    def request(self, row: Row) -> Request:
        """What to ask for this row. Pure. Raises `Unusable` when the row cannot be asked."""
        if row.problem is not None:
            raise Unusable(row.problem)
        payload = self._carried(row.values) if self.carries_requests else {"messages": self._messages(row.values)}
        return Request(row.ordinal, {**self._parameters, **payload})

    def outcome(self, ordinal: int, result: Reply | Fault) -> Outcome:
        """What became of a row: pure, so that a kept reply can be read again under another schema."""
        if isinstance(result, Fault):
            return Failure(ordinal, result)
        try:
            return Success(ordinal, self._value(read_completion(result.body)), result)
        except Fault as fault:
            return Failure(ordinal, fault, result)

    def fingerprint(self) -> dict[str, str]:
        """Everything that shapes the answers and the columns, field by field, as text that can be compared."""
        return {
            "model": self.model,
            "system": _source(self.system),
            "user": _source(self.user),
            "schema": self.shape.fingerprint if self.shape else "",
            "parameters": json.dumps(
                {name: value for name, value in self._parameters.items() if name not in {"model", "response_format"}},
                sort_keys=True,
                default=str,
            ),
            "key": self.key or "",
            "keep": json.dumps(list(self.keep) if self.keep is not None else None),
            "rename": json.dumps(self.rename, sort_keys=True),
        }

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "max_tokens", "seed", "frequency_penalty", "presence_penalty")
        payload: dict[str, Any] = {"model": self.model} if self.model else {}
        payload |= {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.stop is not None:
            payload["stop"] = self.stop if isinstance(self.stop, str) else list(self.stop)
        if self.reasoning_effort is not None:
            payload["reasoning_effort"] = self.reasoning_effort
        if self.google:
            # On the wire Google's own options are nested under a literal `extra_body`.
            payload["extra_body"] = {"google": self.google}
        if self.shape is not None:
            payload["response_format"] = self.shape.response_format
        return payload | self.extra

    def _messages(self, values: Mapping[str, Any]) -> list[Message]:
        messages: list[Message] = []
        for role, prompt in (("system", self.system), ("user", self.user)):
            if prompt is not None:
                text = prompt(values) if callable(prompt) else self.templates[role].render(values)
                messages.append({"role": role, "content": text})
        return messages

    def _carried(self, values: Mapping[str, Any]) -> dict[str, Any]:
        body = _json_value(values.get("body"))
        if body is None:
            body = {"messages": _json_value(values.get("messages"))}
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
            raise Unusable("the row carries no request: `messages` must be a list with at least one message")
        if values.get("url") not in {None, *_BATCH_URLS} or str(values.get("method") or "POST").upper() != "POST":
            raise Unusable(f"only POST {_BATCH_URLS[0]} can be asked, not {values.get('method')} {values.get('url')}")
        if not (self.model or body.get("model")):
            raise Unusable("neither the row nor the job names a model: give one with --model")
        own = {"model": self.model} if self.model else {}
        return {**body, **own, "stream": False} if body.get("stream") else {**body, **own}

    def _value(self, completion: Completion) -> Any:
        answer = _settled(completion)
        if self.shape is None:
            return answer.text
        if answer.tool_calls and not answer.text:
            return None
        if not answer.text:
            raise Unparsable("the answer is empty")
        return self.shape.plain(self.shape.parse(answer.text))


_BINARY = {"binary", "large_binary"}


def _settled(completion: Completion) -> Answer:
    """The answer, when there is a whole one; otherwise `Refused` or `Cut`, with the reason that was given."""
    if completion.blocked:
        raise Refused(f"the prompt was blocked: {completion.blocked}")
    if not completion.answers:
        raise Refused("the endpoint gave no answer (no choices): the prompt was probably blocked")
    answer = completion.answers[0]
    if answer.finish_reason == "content_filter":
        raise Refused("the answer was blocked by the content filter")
    if answer.refusal:
        raise Refused(f"the model refused: {answer.refusal[:300]}")
    if answer.finish_reason == "length":
        spent = completion.usage.reasoning
        thinking = f", {spent} of them on thinking" if spent else ""
        raise Cut(f"the answer was cut at max_tokens after {completion.usage.output + spent} tokens{thinking}")
    if not answer.has_message:
        raise Refused(f"the answer holds no message (finish_reason {answer.finish_reason!r})")
    return answer


def _require(name: str, available: Sequence[str], who: str) -> None:
    if name not in available:
        raise Misuse(f"{who} names the column {name!r}, which is not in the input{nearest(name, available)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is not known: the closest one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"


def _source(prompt: Prompt | None) -> str:
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    try:
        return inspect.getsource(prompt)
    except OSError:
        code = prompt.__code__ if inspect.isfunction(prompt) else None
        return hashlib.sha256(code.co_code if code else repr(type(prompt)).encode()).hexdigest()


def _json_value(value: object) -> Any:
    """Requests in Parquet, and nested values of mixed types, are stored as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise Unusable("the row's request is not JSON") from None
