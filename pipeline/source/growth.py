"""What an input has gained since its survey: new files, and rows at the end of text files. All else is a change.

A file of this machine is known by its size and modification time, else by its hash; an object by its version. A file
has grown if its first bytes are those that were surveyed and its rows among them are the same rows: a last line without
an end, which has gone on, is a changed row. An object cannot grow: a store only replaces it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.types as t

from pipeline.faults import Broken, UsageError
from pipeline.source.decompression import Stream
from pipeline.source.discovery import Discovery, FoundFile, Inputs, discover
from pipeline.source.files import BLOCK_BYTES, BeginningOfFile, InputFile, Located, digest_of, parquet_file
from pipeline.source.generations import ChunkSpans, Generation
from pipeline.source.identity import by_place, difference_from, joined_or_left, latest_entries, moved_to, where_found
from pipeline.source.jsonl import Line
from pipeline.source.reader import Source
from pipeline.source.run_parts import RowChoice
from pipeline.source.survey import BadLine, File, Position, Survey
from pipeline.source.text_records import layout_of
from pipeline.source.type_inference import ColumnTypes
from pipeline.source.type_promotion import widened

_BAD_LINES = 20
_CHECKED_ROWS = 4096
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Growth:
    """An input compared with its survey. With `differences`, one sentence each, it has changed, and not only grown."""

    known: Survey
    """The survey, with the current places of its files."""
    files: tuple[FoundFile, ...] = ()
    """The files with new rows: those that have grown, then the new ones, each in the order of the input."""
    notes: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    """The hashes of the files that have grown, by their paths."""

    @property
    def discovery(self) -> Discovery:
        """The files with new rows, to be surveyed."""
        return Discovery(self.files, self.known.format, self.notes)

    def joined(self, new: Survey, names: Iterable[str], added: str) -> Survey:
        """The survey of all rows, of which `new` is that of the new ones: they follow the known ones, in their order.

        `names` are the columns that must have the types that they have in the known rows; `added` is the time. Columns
        that only new rows have are left out. Raises `UsageError`, naming the column, if a type differs; `Broken` if a
        file changed meanwhile.
        """
        entries = [self._entry(found, file) for found, file in zip(self.files, new.files, strict=True)]
        new = replace(new, files=tuple(entries))
        for name in names:
            _require_type(self.known, new, name)
        known = moved_to(self.known, {file.path: file for file in entries if file.path in self.sha256})
        return _chained(known, new, added) if new.rows else known

    def _entry(self, found: FoundFile, file: File) -> File:
        if file.path in self.sha256 and self.sha256[file.path] != file.sha256:
            raise Broken(f"{file.path} changed while it was being read; start again once it is complete")
        return replace(file, name=_name(self.known.files[0], found), rows_before=found.rows_before)


def growth_of(
    survey: Survey,
    inputs: Inputs,
    include: str | Sequence[str] = (),
    *,
    rows: RowChoice = "ok",
    allow_partial: bool = False,
) -> Growth:
    """What an input has gained since its survey, which must be of all its rows. Only what seems changed is read."""
    try:
        now = discover(inputs, include, rows=rows, allow_partial=allow_partial)
    except UsageError as misuse:
        return Growth(survey, differences=(str(misuse),))
    if now.format != survey.format:
        return Growth(survey, differences=(f"the input was {survey.format}, and is {now.format}",))
    known = latest_entries(survey.files)
    places = by_place(known, now.files)
    places |= _renamed(known, now.files, places)
    taken = set(places.values())
    different = joined_or_left(known, [*taken]) if len(places) < len(known) else []
    moved: dict[str, File] = {}
    grown: dict[FoundFile, str] = {}
    for file in (file for file in known if file.path in places):
        found = places[file.path]
        sentence = difference_from(file, found)
        if sentence is None:
            moved[file.path] = where_found(file, found)
        elif isinstance(gained := _gained(survey, file, found), str):
            different.append(gained or sentence)
        else:
            moved[file.path] = replace(file, path=str(found.path))
            grown |= gained
    new = [found for found in now.files if found not in taken]
    return Growth(moved_to(survey, moved), (*grown, *new), now.notes, tuple(different), _by_path(grown))


def without_latest(survey: Survey) -> Survey | None:
    """The survey without the latest generation; None if it has only one, or if files have grown into the latest.

    The hash of what such a file held before is not kept.
    """
    if not survey.appended:
        return None
    latest = survey.appended[-1]
    earlier = {file.path for file in survey.files[: -latest.files]}
    if any(file.path in earlier for file in survey.files[-latest.files :]):
        return None
    rows = survey.rows - latest.rows
    bad = tuple(one for one in survey.bad_lines if one.ordinal < rows)
    return replace(
        survey,
        files=survey.files[: -latest.files],
        rows=rows,
        bad_lines=bad,
        bad_count=survey.bad_count - (len(survey.bad_lines) - len(bad)),  # of those that are listed
        chunks=survey.chunks[: -latest.chunks],
        appended=survey.appended[:-1],
        notes=(),
    )


def _by_path(grown: Mapping[FoundFile, str]) -> dict[str, str]:
    return {str(found.path): sha256 for found, sha256 in grown.items()}


def _renamed(known: Sequence[File], now: Sequence[FoundFile], places: Mapping[str, FoundFile]) -> dict[str, FoundFile]:
    """Known files that are no longer in their place, by their paths, and where the same content is now."""
    taken, renamed = set(places.values()), {}
    for file in (file for file in known if file.path not in places and not file.version):
        like = (one for one in now if one.size == file.size and not one.version and one not in taken)
        if (same := next((one for one in like if digest_of(str(one.path)) == file.sha256), None)) is not None:
            renamed[file.path] = same
            taken.add(same)
    return renamed


def _gained(survey: Survey, file: File, found: FoundFile) -> dict[FoundFile, str] | str:
    """A file that has grown, with its hash; else why it has not, in a sentence, or "" if there is no more to say."""
    if found.version or file.version or survey.format == "parquet" or found.size <= file.size:
        return ""
    if found.partitions != file.partitions or found.only_ok != file.only_ok:
        return ""
    before, now = _digests(found, file.size)
    if before != file.sha256:
        return f"{found.path} had {file.size:,} bytes, and of the {found.size:,} that it has now the first are others"
    rows = file.rows_before + file.rows
    start, compared = _last_start(survey, file.path)
    try:
        same = _begins_as_before(found, file.size, start, compared, survey)
    except UsageError as damaged:
        return str(damaged)
    if not same:
        return f"{found.path} goes on in its last row, which had no end when it was read: row {rows:,} of it is another"
    return {replace(found, size=found.size - file.size, rows_before=rows): now}


def _begins_as_before(found: Located, size: int, start: Position, rows: int, survey: Survey) -> bool:
    """Whether the rows of a file that has grown are still those that its first `size` bytes held.

    `rows` of them, from `start` on to the last, are compared: a last line that had no end may have gone on. Raises
    `UsageError` for compressed data that is damaged.
    """
    layout = layout_of(found, UsageError, survey.types)
    if not set(layout.columns) <= survey.columns.keys():
        return False
    with ExitStack() as files:

        def split(raw: InputFile) -> Iterator[Line]:
            stream = files.enter_context(Stream(files.enter_context(raw), UsageError))
            stream.seek(start.offset)
            return layout.split(stream.read, start)

        same = 0
        for before, now in zip_longest(split(BeginningOfFile(found, size)), islice(split(InputFile(found)), rows)):
            if before != now:
                return False
            same += 1
        return same == rows


def _digests(found: FoundFile, size: int) -> tuple[str, str]:
    """The SHA-256 of the first `size` bytes of a file, and of all of it."""
    digest = hashlib.sha256()
    with InputFile(found) as file:
        while size and (block := file.read(min(size, BLOCK_BYTES))):
            digest.update(block)
            size -= len(block)
        before = digest.hexdigest()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return before, digest.hexdigest()


def _last_start(survey: Survey, path: str) -> tuple[Position, int]:
    """The last position in a file that is known, and the number of its rows from there on."""
    starts = [0, *accumulate(file.rows for file in survey.files)]
    spans = ChunkSpans(survey.generations)
    total = next(file.rows_before + file.rows for file in reversed(survey.files) if file.path == path)
    for index in range(len(survey.chunks) - 1, -1, -1):
        chunk = survey.chunks[index]
        file = survey.files[chunk.file]
        if file.path == path:
            return chunk, total - (file.rows_before + spans.of(index).start - starts[chunk.file])
    return Position(0, 0, 1), total


def _name(known: File, found: FoundFile) -> str:
    """The name of a file below the folder that the known ones share; below that of the input if it is elsewhere."""
    folder = known.path.removesuffix(known.name)
    path = str(found.path)
    inside = folder != known.path and folder.endswith("/") and path.startswith(folder)
    return path.removeprefix(folder) if inside else found.name


def _chained(known: Survey, new: Survey, added: str) -> Survey:
    shifted = (Position(len(known.files) + chunk.file, chunk.offset, chunk.line) for chunk in new.chunks)
    bad = (BadLine(one.path, one.line_number, known.rows + one.ordinal, one.problem) for one in new.bad_lines)
    unknown = [name for name in new.columns if name not in known.columns]
    rows = known.rows + new.rows
    return replace(
        known,
        files=(*known.files, *new.files),
        rows=rows,
        bad_lines=(*known.bad_lines, *bad)[:_BAD_LINES],
        bad_count=known.bad_count + new.bad_count,
        mean_row_bytes=(known.mean_row_bytes * known.rows + new.mean_row_bytes * new.rows) / rows,
        chunks=(*known.chunks, *shifted),
        notes=(*new.notes, *_left_out(unknown)),
        appended=(*known.appended, Generation(new.rows, new.chunk_rows, len(new.files), added)),
        left_out=tuple(dict.fromkeys([*known.left_out, *unknown])),
    )


def _left_out(columns: Sequence[str]) -> Iterator[str]:
    if columns:
        shown = ", ".join(map(repr, columns[:_SHOWN])) + (", ..." if len(columns) > _SHOWN else "")
        yield f"columns that only the new rows have are left out, since the first rows fixed the columns: {shown}"


def _require_type(known: Survey, new: Survey, name: str) -> None:
    """Raises `UsageError` if a column has values in the new rows that its type in the known rows does not hold."""
    before, now = _type_in(known, name), _type_in(new, name)
    if name in known.json_columns or before is None or name not in new.columns:
        return
    if before == now and name not in new.json_columns:
        return
    wrong = _wrong_in_parquet(new, name, before) if new.format == "parquet" else _wrong_in_text(new, name, before)
    if wrong is not None:
        raise UsageError(
            f"column {name!r} is {before} in the rows of the run, and {wrong}, which would change the columns of all "
            f"parts: write the new rows with that type, or choose another --output, or start over with --fresh"
        )


def _type_in(survey: Survey, name: str) -> pa.DataType | None:
    schema = survey.arrow_schema()
    return schema.field(name).type if name in schema.names else None


def _wrong_in_parquet(new: Survey, name: str, before: pa.DataType) -> str | None:
    for file in new.files:
        with parquet_file(file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        kind = schema.field(name).type if name in schema.names and rows else pa.null()
        if name in dict(file.partitions):
            kind = pa.string()
        if not t.is_null(kind) and widened(before, kind) != before:
            return f"{kind} in {file.path}"
    return None


def _wrong_in_text(new: Survey, name: str, before: pa.DataType) -> str | None:
    """Reads the new rows again: their type alone does not say whether the values fit, as if there are none at all."""
    types = ColumnTypes(known={name: before})
    values = _values_of(new, name)
    while block := [{name: value} for value in islice(values, _CHECKED_ROWS)]:
        types.add(block)
        if types.as_json() or types.types()[name] != before:
            return f"the new rows hold values of another type ({_word(new, name)})"
    return None


def _values_of(new: Survey, name: str) -> Iterator[Any]:
    source = Source(new, needed=[name], kept=())
    for index in range(len(new.chunks)):
        for batch in source.chunk(index):
            yield from (row.values.get(name) for row in batch.rows)
    source.close()


def _word(new: Survey, name: str) -> str:
    return new.columns.get(name, "of no one type")
