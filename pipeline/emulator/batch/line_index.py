"""The lines of a job's input: only where each begins is kept beside the objects themselves."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence


class LineIndex:
    """The lines of some JSON Lines files, one after the other. Lines of whitespace are no rows."""

    def __init__(self, contents: Sequence[bytes]) -> None:
        self._contents = contents
        self._firsts = [0]
        """The number of rows before each file, and before where it is read."""
        self._starts, self._ends = array("Q"), array("Q")
        self._position = 0

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        """The line of a row that was found, counted from 0."""
        content = self._contents[bisect_right(self._firsts, index) - 1]
        return content[self._starts[index] : self._ends[index]]

    def find(self, most: int) -> bool:
        """Reads up to `most` lines further; whether there are more."""
        for _ in range(most):
            while self._position >= len(self._contents[len(self._firsts) - 1]):
                if len(self._firsts) == len(self._contents):
                    return False
                self._firsts.append(len(self))
                self._position = 0
            content = self._contents[len(self._firsts) - 1]
            found = content.find(b"\n", self._position)
            end = len(content) if found < 0 else found
            if content[self._position : end].strip():
                self._starts.append(self._position)
                self._ends.append(end)
            self._position = end + 1
        return True
