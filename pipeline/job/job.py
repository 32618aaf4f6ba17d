"""Job: how a row becomes a request, and a reply becomes a typed value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.data import CallLog, Entry, Outcome, Request, Row
from pipeline.faults import InvalidRow, UsageError
from pipeline.job.columns import Added, Projection, added_columns, kept_columns
from pipeline.job.conversation import Content, Conversation, examples_of, turns_of
from pipeline.job.reply_parser import LatestOutcome, ReplyParser
from pipeline.job.row_requests import request_columns, request_of
from pipeline.job.tools import Tool, tool_choice_of, tool_of
from pipeline.schema.from_json_schema import schema_file
from pipeline.schema.from_pydantic import AnswerSchema, shape_of

THOUGHTS = "thinking"
"""The tag that marks thought summaries, unless the job sets one: without a tag they would be mixed into the text."""

_PLAIN = (
    "temperature",
    "top_p",
    "max_tokens",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "reasoning_effort",
    "n",
)
_TIERS = {
    "dedicated": {"X-Vertex-AI-LLM-Request-Type": "dedicated"},
    "shared": {"X-Vertex-AI-LLM-Request-Type": "shared"},
    "priority": {"X-Vertex-AI-LLM-Shared-Request-Type": "priority"},
    "flex": {"X-Vertex-AI-LLM-Request-Type": "shared", "X-Vertex-AI-LLM-Shared-Request-Type": "flex"},
}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Job:
    """What to do with every row of an input.

    `system` and `user` are templates over the row's columns, functions of the row, or lists of templates and media
    columns (`image("photo")`, `audio(...)`, `media(...)`, with files below `media_root`). `messages` gives whole
    conversations instead, `examples` a JSONL file of few-shot pairs. Without a prompt, each row must contain its own
    request: a `messages` column, or OpenAI's batch format (`custom_id`, `method`, `url`, `body`).

    An input that is the output of another run must be complete, unless `allow_partial`; its ok rows are read, or all of
    them (`input_rows`). `types` gives types to columns of CSV, which are text otherwise.

    `schema` is a pydantic model, a JSON Schema (a dict or a .json file) or "json_object": the answer is then
    validated and becomes the `parsed` column; without a schema the answer is text. With `n` above 1 it is a list. An
    answer that does not fit is asked for again, with the error, up to `repairs` times; a truncated one once, with a
    higher limit. Times of day are text in the dataset, which every reader accepts; `time_as="time"` makes them
    Parquet's time type, for which Spark and Delta reject the whole file.

    `tools` are Python functions or pydantic models. Functions are run, each within `tool_timeout_s` seconds, and their
    results sent back, for at most `max_turns` turns of at most `max_calls_per_turn` calls each; with
    `execute_tools=False` the calls are only recorded.

    `keep` names the input columns that are copied to the output (default: all without binary values); `rename` gives
    some of them other names, or all of them names that BigQuery accepts ("bigquery"); `key` names the column that
    identifies a row to people; `add` names columns that say where a row comes from (default: `row` if there is no
    key). `max_failed` is how many rows may fail before the run counts as failed (exit 3): a number of rows, or a share
    below 1.

    `timeout_s` is the total deadline of one attempt, `row_timeout_s` of the row, `idle_timeout_s` the longest silence
    within a stream, all in seconds. `attempts` is the maximum number of attempts per row on transient faults; the
    default is five, and more while many rows fail. `locations` spreads the calls over several Vertex locations.
    `prices` gives US dollars per million tokens by model (`input`, `output`, `cached`), where the built-in prices are
    not yours.
    """

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    model: str = ""
    input: str | Path | Sequence[str | Path] | None = None
    include: str | Sequence[str] = ()
    input_rows: Literal["ok", "all"] = "ok"
    allow_partial: bool = False
    types: dict[str, Literal["integer", "number", "boolean"]] = Field(default_factory=dict)
    output: str | Path | None = None

    system: Content | None = None
    user: Content | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    examples: str | Path | None = None
    media_root: str | Path | None = None
    schema: type[BaseModel] | dict[str, Any] | str | Path | None = None
    time_as: Literal["text", "time"] = "text"

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    n: int | None = Field(default=None, ge=1, le=8)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    stream: bool = False
    modalities: Sequence[Literal["text", "image", "audio"]] | None = None
    web_search: bool = False
    tier: Literal["flex", "priority", "dedicated", "shared"] | None = None
    google: dict[str, Any] | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    tools: Sequence[Any] = ()
    tool_choice: str | None = None
    execute_tools: bool = True
    max_turns: int = Field(default=8, ge=1)
    max_calls_per_turn: int = Field(default=32, ge=1)
    tool_timeout_s: float = Field(default=60.0, gt=0)
    transcript: bool = False
    repairs: int = Field(default=1, ge=0)

    key: str | None = None
    keep: Sequence[str] | None = None
    rename: dict[str, str] | Literal["bigquery"] = Field(default_factory=dict)
    add: Sequence[Added] | None = None

    max_failed: float = Field(default=0.1, ge=0)
    locations: Sequence[str] = ()
    prices: dict[str, dict[str, float]] = Field(default_factory=dict)
    attempts: int | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=300.0, gt=0)
    row_timeout_s: float | None = Field(default=None, gt=0)
    idle_timeout_s: float = Field(default=60.0, gt=0)

    def __post_init__(self) -> None:
        if self.reasoning_effort is not None and self._thinking_config is not None:
            raise UsageError("`reasoning_effort` and google's `thinking_config` exclude each other: keep one of them")
        if self.user is not None and self.messages:
            raise UsageError("`user` and `messages` exclude each other: put the text into `messages`")
        if self.carries_requests and (self.system is not None or self.examples is not None):
            raise UsageError("`system` and `examples` need a `user` prompt (or `messages`) to go with")
        if (self.stream or self.tools) and (self.n or 1) > 1:
            raise UsageError("`n` answers go with neither `stream` nor `tools`")
        # Compiled now, so that mistakes in them are found when the job is created.
        _ = self.conversation, self.reader, self._parameters

    def replace(self, **changes: Any) -> Job:
        """The same job with some fields changed, validated like a new one."""
        return dataclasses.replace(self, **changes)

    @cached_property
    def conversation(self) -> Conversation:
        """The compiled messages."""
        system = [] if self.system is None else [("system", self.system, "system")]
        shots = [] if self.examples is None else examples_of(Path(self.examples))
        user = [] if self.user is None else [("user", self.user, "user")]
        return Conversation([*system, *shots, *turns_of(self.messages), *user])

    @cached_property
    def shape(self) -> AnswerSchema | None:
        """The compiled schema; None when the answer is text or any JSON object."""
        if self.schema is None or self.schema == "json_object":
            return None
        schema = schema_file(Path(self.schema)) if isinstance(self.schema, str | Path) else self.schema
        shape = shape_of(schema, self.name)
        return shape.with_times_as_text() if self.time_as == "text" else shape

    @cached_property
    def _outcomes(self) -> LatestOutcome:
        return LatestOutcome(self.reader)

    @cached_property
    def reader(self) -> ReplyParser:
        """The parser for the job's replies."""
        config = self._thinking_config or {}
        thoughts = config.get("include_thoughts") or config.get("includeThoughts")
        marker = (self.google or {}).get("thought_tag_marker", THOUGHTS) if thoughts else None
        return ReplyParser(self.shape, self.schema == "json_object", marker, (self.n or 1) > 1)

    @cached_property
    def tool_list(self) -> list[Tool]:
        """The compiled tools."""
        return [tool_of(tool) for tool in self.tools]

    @property
    def runs_tools(self) -> bool:
        """Whether tool calls are executed."""
        return self.execute_tools and any(tool.function is not None for tool in self.tool_list)

    @property
    def carries_requests(self) -> bool:
        """Whether each row of the input contains its own request."""
        return self.user is None and not self.messages

    def projection(self, types: Mapping[str, str]) -> Projection:
        """What the job uses of an input with columns of these types. Raises `UsageError` if it does not fit them."""
        kept = self.columns_kept(types)
        return Projection(kept=kept, added=self.columns_added(kept), needed=self.columns_needed(list(types)))

    def columns_needed(self, available: Sequence[str]) -> list[str]:
        """The input columns that requests need. Raises `UsageError` when one is not in the input."""
        if self.carries_requests:
            return request_columns(available, self.model)
        return self.conversation.columns_needed(available)

    def columns_kept(self, types: Mapping[str, str]) -> dict[str, str]:
        """Output name by input column, in input order. Raises `UsageError` for unknown columns and name conflicts."""
        return kept_columns(types, keep=self.keep, rename=self.rename, key=self.key, add=self.add)

    def columns_added(self, kept: Mapping[str, str]) -> tuple[Added, ...]:
        """The columns that say where a row comes from. Raises `UsageError` when a kept column has such a name."""
        return added_columns(kept, add=self.add, key=self.key)

    def request(self, row: Row, calls: CallLog | None = None) -> Request:
        """The request for a row, with the log of its calls. Pure. Raises `InvalidRow` when none can be made."""
        if row.problem is not None:
            raise InvalidRow(row.problem)
        asked = (
            request_of(row.values, self.model)
            if self.carries_requests
            else {"messages": self.conversation.messages(row.values)}
        )
        return Request(row.ordinal, {**self._parameters, **asked}, _TIERS.get(self.tier or "", {}), calls)

    def outcome(self, ordinal: int, result: Entry) -> Outcome:
        """The outcome of a row. Pure, so that a stored reply can be parsed again with another schema."""
        return self._outcomes.of(ordinal, result)

    def fingerprint(self) -> dict[str, str]:
        """Everything that affects the answers and the columns, field by field, as comparable text."""
        own = {"model", "response_format", "tools"} - self.extra.keys()
        parameters = {name: value for name, value in self._parameters.items() if name not in own}
        turns = {name: getattr(self, name) for name in ("execute_tools", "max_turns", "transcript")}
        added = {"add": self.add, **({"types": self.types} if self.types else {})}  # nothing where none are given
        return {
            "model": self.model,
            "prompt": self.conversation.fingerprint,
            "schema": self.shape.fingerprint if self.shape else str(self.schema or ""),
            "parameters": _canonical({**parameters, "tier": self.tier}),
            "tools": _canonical({"tools": [tool.definition for tool in self.tool_list], **turns}) if self.tools else "",
            "columns": _canonical({"key": self.key, "keep": self.keep, "rename": self.rename or None, **added}),
        }

    @property
    def _thinking_config(self) -> dict[str, Any] | None:
        google = self.google or {}
        return google.get("thinking_config", google.get("thinkingConfig"))

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        payload: dict[str, Any] = {"model": self.model} if self.model else {}
        payload |= {name: getattr(self, name) for name in _PLAIN if getattr(self, name) is not None}
        lists = {"stop": self.stop, "modalities": self.modalities}
        payload |= {name: value if isinstance(value, str) else list(value) for name, value in lists.items() if value}
        if self.stream:
            # Vertex always sends the usage; others only on request.
            payload |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.web_search:
            payload["web_search_options"] = {}
        if self.tools:
            payload["tools"] = [tool.definition for tool in self.tool_list]
        if self.tool_choice is not None:
            payload["tool_choice"] = tool_choice_of(self.tool_choice, self.tool_list)
        google = dict(self.google or {})
        if self.reader.marker is not None:
            google.setdefault("thought_tag_marker", self.reader.marker)
        if google:
            # In the request body, Google's options are nested under a literal `extra_body` key.
            payload["extra_body"] = {"google": google}
        if self.shape is not None:
            payload["response_format"] = self.shape.response_format
        elif self.schema == "json_object":
            payload["response_format"] = {"type": "json_object"}
        return payload | self.extra


def _canonical(value: Mapping[str, Any]) -> str:
    given = {name: inner for name, inner in value.items() if inner is not None}
    return json.dumps(given, sort_keys=True, ensure_ascii=False, default=str)
