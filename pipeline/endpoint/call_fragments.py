"""Puts the tool calls of a streamed answer together from their fragments. In linear time.

Fragments of a call are distinguished by their id or, if a fragment has none, by their index: Google sends the id with
every fragment and sometimes a wrong index, OpenAI sends the id once and then only the index. Other servers number
nothing, repeat ids, or draw a new id for each fragment; then the brackets of the arguments tell where a call ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.endpoint.messages import ReceivedCall, whole_arguments

_NONE = ("{}", "null")
"""What some servers send first in the place of arguments that follow."""

_LONGEST_NONE = max(map(len, _NONE))

_MARKS = re.compile(r'["\\{}\[\]]')


@dataclass(slots=True)
class _ArrivingCall:
    """A call whose arguments are arriving; their brackets are counted, so that nothing is examined twice."""

    id: str
    name: str = ""
    extra: Mapping[str, Any] | None = None
    arguments: list[str] = field(default_factory=list)
    is_whole: bool = False
    """Whether the arguments' object is closed: what follows belongs to another call."""
    delta: int = 0
    """The last delta that it was part of, counted from 1."""
    _depth: int = 0
    _in_text: bool = False
    _escaped_at: int = -1
    _length: int = 0

    def is_named(self, piece: str) -> None:
        """Takes a name, which most servers repeat and some send in pieces."""
        # A name is complete once arguments arrive; a repeated one is not appended to itself.
        if self.name and piece and not self.arguments and not piece.startswith(self.name):
            piece = self.name + piece
        self.name = piece or self.name

    def is_told_again_by(self, text: str) -> bool:
        """Whether the text is the complete arguments, sent once more or at first, rather than their next piece."""
        if not text.strip() or not (self.is_whole or self._length <= _LONGEST_NONE):
            return False
        so_far = "".join(self.arguments).strip()
        return text.lstrip()[0] == "{" if so_far in _NONE else self.is_whole and so_far == text.strip()

    def written(self) -> dict[str, Any]:
        """The call as an unstreamed message has it."""
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        # Thought signatures are in there: Gemini refuses a turn that comes back without them.
        extra = {"extra_content": self.extra} if self.extra else {}
        return {"id": self.id, "type": "function", "function": function, **extra}

    def add(self, text: str) -> None:
        """Adds a piece of the arguments."""
        if not text:
            return
        if self.is_told_again_by(text):
            self.arguments.clear()
            self._depth, self._in_text, self._escaped_at, self._length = 0, False, -1, 0
        self.arguments.append(text)
        # Parsing all of it after each piece, to learn whether it is whole, would take quadratic time.
        for mark in _MARKS.finditer(text):
            self._count(mark.group(), self._length + mark.start())
        self._length += len(text)

    def _count(self, mark: str, at: int) -> None:
        if self._in_text:
            if at == self._escaped_at:  # also across two pieces: the position counts from the first
                return
            if mark == "\\":
                self._escaped_at = at + 1
            elif mark == '"':
                self._in_text = False
        elif mark == '"':
            self._in_text = True
        elif mark != "\\":
            self._depth += 1 if mark in "{[" else -1
            self.is_whole = self._depth == 0 and mark == "}"


def _meant(arguments: str) -> object:
    """What arguments mean, however they are written."""
    text = whole_arguments(arguments)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


class StreamedCalls:
    """The calls of one choice, in the order in which they began."""

    def __init__(self) -> None:
        self._all: list[_ArrivingCall] = []
        self._by_id: dict[str, _ArrivingCall] = {}
        self._by_index: dict[int, _ArrivingCall] = {}
        self._deltas = 0

    def add(self, fragments: Sequence[ReceivedCall]) -> None:
        """Adds the fragments of one delta, each of a different call."""
        self._deltas += 1
        for position, fragment in enumerate(fragments):
            call = self._call_of(fragment, position)
            call.delta = self._deltas
            call.is_named(fragment.name)
            call.add(fragment.arguments)
            extra = fragment.raw.get("extra_content")
            if isinstance(extra, dict):
                call.extra = extra

    def are_all_of(self, calls: Sequence[ReceivedCall]) -> bool:
        """Whether other calls are these, in the same order."""
        if len(calls) != len(self._all):
            return False
        ours = [(call.name, _meant("".join(call.arguments))) for call in self._all]
        return ours == [(call.name, _meant(call.arguments)) for call in calls]

    def whole(self) -> list[dict[str, Any]]:
        """The calls as an unstreamed message has them."""
        return [call.written() for call in self._all]

    def _call_of(self, fragment: ReceivedCall, position: int) -> _ArrivingCall:
        index = position if fragment.index is None else fragment.index
        at_index = self._by_index.get(index)
        known = self._begun(fragment, at_index)
        if known is not None and (known.delta == self._deltas or self._is_over(known, at_index, fragment)):
            known = None  # another call that came with the same id, or with neither id nor index
        if known is None:
            known = _ArrivingCall(fragment.id)
            self._all.append(known)
            self._by_id[fragment.id] = known
        self._by_id.setdefault(fragment.id, known)
        self._by_index[index] = known
        return known

    def _begun(self, fragment: ReceivedCall, at_index: _ArrivingCall | None) -> _ArrivingCall | None:
        """The call that a fragment continues, found by its id and its index."""
        if not fragment.id or (at_index is not None and at_index.id == fragment.id):
            return at_index  # also where two calls bear the same id
        known = self._by_id.get(fragment.id)
        if known is None and not fragment.name and at_index is not None and not at_index.is_whole:
            return at_index  # some servers draw another id for each fragment
        return known

    @staticmethod
    def _is_over(known: _ArrivingCall, at_index: _ArrivingCall | None, fragment: ReceivedCall) -> bool:
        """Whether this fragment can only be of another call: this one has all its arguments, or another name."""
        # 1. Nothing can follow a closed object, except the same arguments once more, or those it stood in for.
        if known.is_whole:
            is_same = bool(fragment.id) and fragment.index is not None and known is at_index
            again = is_same and known.is_told_again_by(fragment.arguments)
            return known is not at_index or (bool(fragment.arguments.strip()) and not again)
        # 2. Without id and index, only the name tells two calls apart.
        unplaced = not fragment.id and fragment.index is None
        return unplaced and bool(fragment.name and known.name) and fragment.name != known.name
