"""The messages of a request: templates, functions of the row, media columns and few-shot examples, in that order."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data import Message
from pipeline.endpoint.redaction import said_of_row
from pipeline.faults import Fault, InvalidRow, UsageError
from pipeline.job.attachments import MediaColumn, attachments
from pipeline.job.columns import require_column
from pipeline.job.function_text import text_of
from pipeline.job.prompt import FUNCTIONS, Template

ContentPart = str | MediaColumn
"""A piece of a message: a Jinja2 template, or a column that holds media."""

Content = ContentPart | Sequence[ContentPart] | Callable[[Mapping[str, Any]], Any]
"""The content of a message; a function of the row returns the text, or a list of content parts."""

ROLES = ("system", "user", "assistant")


class Conversation:
    """Messages that are filled in from a row. The constructor compiles the templates; mistakes raise `UsageError`.

    `turns` are roles with their contents, each with the name of the job's field that it comes from.
    """

    def __init__(self, turns: Sequence[tuple[str, Content, str]]) -> None:
        self._turns = [(role, _compiled(content, field)) for role, content, field in turns]
        self._source = [[role, _source_of(content)] for role, content, _ in turns]

    def __bool__(self) -> bool:
        return bool(self._turns)

    @property
    def has_media(self) -> bool:
        """Whether any message includes media from a column."""
        return bool(self.media_columns)

    @property
    def media_columns(self) -> frozenset[str]:
        """The columns that hold media."""
        return frozenset(
            part.column
            for _, content in self._turns
            if isinstance(content, list)
            for part in content
            if isinstance(part, MediaColumn)
        )

    @property
    def columns(self) -> dict[str, str] | None:
        """Every column used by the messages, with the job's field that uses it; None when all may be needed."""
        named: dict[str, str] = {}
        for _, content in self._turns:
            if not isinstance(content, list):
                return None
            for part in content:
                if isinstance(part, MediaColumn):
                    named.setdefault(part.column, f"{part.kind}({part.column!r})")
                elif part.columns is None:
                    return None
                else:
                    named |= dict.fromkeys(sorted(part.columns - named.keys()), f"the template of `{part.field}`")
        return named

    def columns_needed(self, available: Sequence[str]) -> list[str]:
        """The input columns that the messages use. Raises `UsageError` when one is not in the input."""
        named = self.columns
        if named is None:
            return list(available)
        for name, who in named.items():
            require_column(name, available, who)
        if not named:
            self._refuse_single_braces(available)
        return [name for name in available if name in named or name in FUNCTIONS]

    def _refuse_single_braces(self, available: Sequence[str]) -> None:
        """Raises `UsageError` for a prompt that uses no column but has one in single braces, as in an f-string.

        Every row would send, and pay for, the same prompt.
        """
        written = dict.fromkeys(re.findall(r"\{(\w+)\}", self.fingerprint))
        if meant := [name for name in written if name in available]:
            name = meant[0]
            raise UsageError(
                f"the prompt has {{{name}}} in single braces, which stays as it is: write {{{{ {name} }}}}"
            )

    @property
    def fingerprint(self) -> str:
        """A text that is equal for conversations that produce the same messages."""
        return json.dumps(self._source, ensure_ascii=False)

    def messages(self, values: Mapping[str, Any]) -> list[Message]:
        """The messages for one row. Raises `InvalidRow` when a value that they need is missing."""
        return [{"role": role, "content": _filled(content, values)} for role, content in self._turns]


def examples_of(path: Path) -> list[tuple[str, Content, str]]:
    """The few-shot examples of a JSONL file, one `{"user": ..., "assistant": ...}` per line, used verbatim."""
    turns: list[tuple[str, Content, str]] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"the examples {str(path)!r} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
            user, assistant = pair["user"], pair["assistant"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}:{number}: an example is an object with `user` and `assistant`") from None
        turns += [("user", _verbatim(user), "examples"), ("assistant", _verbatim(assistant), "examples")]
    return turns


def turns_of(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, Content, str]]:
    """A job's `messages`: roles with their contents, checked."""
    turns: list[tuple[str, Content, str]] = []
    for number, message in enumerate(messages):
        if set(message) != {"role", "content"} or message["role"] not in ROLES:
            raise UsageError(
                f"messages[{number}] needs a `role` ({', '.join(ROLES)}) and a `content`, and nothing else"
            )
        turns.append((message["role"], message["content"], f"messages[{number}]"))
    return turns


class _Verbatim:
    """Text that is not a template."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, _: Mapping[str, Any]) -> str:
        return self.text


_Compiled = list[Template | MediaColumn] | Callable[[Mapping[str, Any]], Any]


def _verbatim(value: object) -> _Verbatim:
    return _Verbatim(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _compiled(content: Content, field: str) -> _Compiled:
    if callable(content):
        return content
    parts: list[Any] = [content] if isinstance(content, str) or not isinstance(content, Sequence) else list(content)
    if not parts or not all(isinstance(part, str | MediaColumn) for part in parts):
        raise UsageError(f"`{field}` is made of templates and media columns: image(...), audio(...), media(...)")
    return [part if isinstance(part, MediaColumn) else Template(part, field=field) for part in parts]


def _filled(content: _Compiled, values: Mapping[str, Any]) -> Any:
    if isinstance(content, _Verbatim):
        return content.text
    if not isinstance(content, list):
        return _returned(_called(content, values))
    if len(content) == 1 and isinstance(content[0], Template):
        return content[0].render(values)
    parts: list[Any] = []
    for part in content:
        if isinstance(part, Template):
            parts.append({"type": "text", "text": part.render(values)})
        else:
            parts += attachments(part, values)
    return parts


def _called(function: Callable[[Mapping[str, Any]], Any], values: Mapping[str, Any]) -> Any:
    try:
        return function(values)
    except Fault:
        raise
    except Exception as error:
        # The user's function may raise anything: the row fails, with the place in the function.
        code = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(code.filename).name}:{code.lineno}"
        said = said_of_row(str(error), values)
        raise InvalidRow(f"the prompt's function raised {type(error).__name__}: {said} ({place})") from error


def _returned(value: object) -> Any:
    if isinstance(value, str | list) and value:
        return value
    raise InvalidRow(f"the prompt's function returned {type(value).__name__}, not a text or a list of content parts")


def _source_of(content: Content) -> Any:
    if isinstance(content, str):
        return content
    if isinstance(content, _Verbatim):
        return {"text": content.text}
    if isinstance(content, MediaColumn):
        return {content.kind: content.column}
    if not callable(content):
        return [_source_of(part) for part in content]
    if isinstance(content, partial):
        bound = repr((content.args, sorted(content.keywords.items())))
        return [_source_of(content.func), re.sub(r" at 0x[0-9a-f]+", "", bound)]
    return text_of(content)
