"""Generates text that matches a regular expression: best effort, for the simple ones that schemas use."""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Callable

from pipeline.emulator.answers.seeded import Dice

Make = Callable[[Dice], str]

_CLASSES = {
    "d": string.digits,
    "w": string.ascii_letters + string.digits + "_",
    "s": " ",
    "D": string.ascii_lowercase,
    "W": "-",
    "S": string.ascii_lowercase + string.digits,
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_ANY = string.ascii_lowercase + string.digits
_PRINTABLE = string.ascii_letters + string.digits + " _-.,:;!?@#/()+*"
_TRIES = 12


def fitting(pattern: str, dice: Dice) -> str | None:
    """A text in which the pattern is found; None when the tries found none.

    Look-arounds, back-references and Unicode classes are ignored while a candidate is generated; a candidate that
    does not match in the end is discarded.
    """
    found = readable(pattern)
    if found is None:
        return None
    make = _Reader(pattern).read()
    return next((text for text in (make(dice) for _ in range(_TRIES)) if found.search(text)), None)


def readable(pattern: str) -> re.Pattern[str] | None:
    """The pattern, compiled; None when Python cannot compile it."""
    with warnings.catch_warnings(action="ignore"):  # warnings about future nested sets
        try:
            return re.compile(pattern)
        except re.error:
            return None


class _Reader:
    """Recursive descent over a pattern: alternatives of sequences of repeated atoms."""

    def __init__(self, pattern: str) -> None:
        self.rest = pattern

    def read(self) -> Make:
        branches = [self._sequence()]
        while self._skip("|"):
            branches.append(self._sequence())
        return lambda dice: dice.pick(branches)(dice)

    def _sequence(self) -> Make:
        atoms: list[Make] = []
        while self.rest and self.rest[0] not in "|)":
            atoms.append(self._repeated(self._atom()))
        return lambda dice: "".join(atom(dice) for atom in atoms)

    def _repeated(self, atom: Make) -> Make:
        counted = re.match(r"\{(\d*)(,?)(\d*)\}", self.rest)
        if self._skip("*"):
            least, most = 0, 3
        elif self._skip("+"):
            least, most = 1, 4
        elif self._skip("?"):
            least, most = 0, 1
        elif counted and (counted[1] or counted[3]):
            self.rest = self.rest[counted.end() :]
            least = int(counted[1] or 0)
            most = int(counted[3]) if counted[3] else least + 3 if counted[2] else least
        else:
            return atom
        self._skip("?") or self._skip("+")
        return lambda dice: "".join(atom(dice) for _ in range(least + dice.below(most - least + 1)))

    def _atom(self) -> Make:
        first, self.rest = self.rest[0], self.rest[1:]
        match first:
            case "(":
                return self._group()
            case "[":
                return _one_of(self._members())
            case "^" | "$":
                return _one_of("")
            case ".":
                return _one_of(_ANY)
            case "\\":
                return _one_of(self._escaped())
            case _:
                return _one_of(first)

    def _group(self) -> Make:
        look_around = re.match(r"\?<?[=!]", self.rest)
        if start := re.match(r"\?(?:<?[=!]|:|P?<\w+>)", self.rest):
            self.rest = self.rest[start.end() :]
        inner = self.read()
        self._skip(")")
        return _one_of("") if look_around else inner

    def _members(self) -> str:
        negated = self._skip("^")
        members: list[str] = []
        while self.rest and (self.rest[0] != "]" or not members):
            members.append(self._member())
        self._skip("]")
        listed = "".join(members)
        return "".join(char for char in _PRINTABLE if char not in listed) if negated else listed

    def _member(self) -> str:
        first, self.rest = self.rest[0], self.rest[1:]
        chars = self._escaped() if first == "\\" else first
        if len(chars) == 1 and re.match(r"-[^\]]", self.rest):
            self._skip("-")
            last, self.rest = self.rest[0], self.rest[1:]
            end = self._escaped() if last == "\\" else last
            return "".join(map(chr, range(ord(chars), min(ord(end), ord(chars) + 1000) + 1)))
        return chars

    def _escaped(self) -> str:
        letter, self.rest = self.rest[:1], self.rest[1:]
        if letter in {"b", "B", "A", "Z", "z"}:
            return ""
        return _CLASSES.get(letter) or _ESCAPES.get(letter, letter)

    def _skip(self, char: str) -> bool:
        if not self.rest.startswith(char):
            return False
        self.rest = self.rest[len(char) :]
        return True


def _one_of(chars: str) -> Make:
    return (lambda dice: dice.pick(chars)) if chars else (lambda _: "")
