"""Generations of an input: its first rows, and those that were appended later, each in chunks of a size of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Generation:
    """Rows that were taken into a run together, in chunks of `chunk_rows`.

    `files` is the number of entries that it has in the list of files; a file that has grown has one in each generation
    that has rows of it. `added` is when that was, in UTC; empty for the first.
    """

    rows: int
    chunk_rows: int
    files: int
    added: str = ""

    @property
    def chunks(self) -> int:
        """The number of its chunks; the last may have fewer rows."""
        return -(-self.rows // self.chunk_rows)


class ChunkSpans:
    """Which rows are in which chunk. No chunk has rows of two generations, so appended rows change no earlier chunk."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations = tuple(generations)
        self._rows = [0, *accumulate(one.rows for one in generations)]
        self._chunks = [0, *accumulate(one.chunks for one in generations)]
        self._files = [0, *accumulate(one.files for one in generations)]

    def of(self, chunk: int) -> range:
        """The ordinals of the rows of a chunk."""
        index = self._index(self._chunks, chunk)
        size = self._generations[index].chunk_rows
        first = self._rows[index] + (chunk - self._chunks[index]) * size
        return range(first, min(first + size, self._rows[index + 1]))

    def rows_of(self, chunks: range) -> range:
        """The ordinals of the rows of consecutive chunks."""
        return range(self._first_row(chunks.start), self._first_row(chunks.stop))

    def chunk_of(self, ordinal: int) -> int:
        """The chunk of a row."""
        index = self._index(self._rows, ordinal)
        return self._chunks[index] + (ordinal - self._rows[index]) // self._generations[index].chunk_rows

    def in_file(self, file: int) -> tuple[int, int]:
        """The first row of the generation that an entry of the list of files belongs to, and its rows per chunk."""
        index = self._index(self._files, file)
        return self._rows[index], self._generations[index].chunk_rows

    def _first_row(self, chunk: int) -> int:
        """The first row of a chunk; behind the last one, the number of rows."""
        return self.of(chunk).start if chunk < self._chunks[-1] else self._rows[-1]

    def _index(self, starts: Sequence[int], number: int) -> int:
        return min(bisect_right(starts, number) - 1, len(self._generations) - 1)
