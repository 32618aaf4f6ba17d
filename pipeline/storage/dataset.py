"""Sealed Parquet parts, the manifest, the success marker: a plain dataset for any reader.

The Arrow schema is fixed before the first row and is the same in every part. A part is written in the run's own
folder, synced, and renamed into the folder of the parts, which is then synced: a reader sees only complete parts, at
any moment. A part's name and bytes are functions of the job, the rows and their replies, so writing it again is
harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from pipeline.data import PARTS, Entry, Outcome, Part, PartFile, Usage
from pipeline.faults import Broken
from pipeline.job.reply_parser import ReplyParser
from pipeline.storage.batches import slices
from pipeline.storage.durable import FILES, FileSystem
from pipeline.storage.kept_replies import encoded, replies_path, replies_writer
from pipeline.storage.output_columns import output_columns, output_schema
from pipeline.storage.part_writer import PartWriter, part_name
from pipeline.storage.run_folder import MANIFEST, RUN, SUCCESS
from pipeline.totals.failures import Failures


class Dataset:
    """The parts of one output folder, in which the parts folder and the run folder must exist.

    `kept` is the schema of the copied input columns, under their output names; `reader` parses the entries of the
    journal. `metadata` goes into the footer of every part. Raises `Broken` when the disk fails.
    """

    def __init__(
        self, folder: Path, kept: pa.Schema, reader: ReplyParser, metadata: Mapping[str, str], files: FileSystem = FILES
    ) -> None:
        self.folder = folder
        self.parts = folder / PARTS
        self.kept = kept
        self._reader = reader
        self._files = files
        self.schema = output_schema(kept, reader).with_metadata(dict(metadata))

    def seal(
        self,
        chunk: int,
        first: int,
        kept: Iterable[pa.RecordBatch],
        entries: Iterable[tuple[int, Entry]],
        *,
        replies: bool,
    ) -> Part:
        """Writes one part, durably: its rows' copied columns, and their entries in the same order.

        Both are consumed lazily, about 16 MiB in memory at a time. With `replies`, the endpoint's replies are kept
        beside the part, byte for byte, so that it can be rebuilt under another schema.
        """
        counts = _PartCounts()
        with _written(part_name(chunk)):
            # Files are renamed into place as the stack unwinds, the last one first. The kept replies entered first, so
            # they come last: a part whose replies are not there yet is not recorded either, and is written again.
            with ExitStack() as files:
                keep = files.enter_context(replies_writer(self.folder, chunk, self._files)) if replies else None
                part = PartWriter(self.parts, chunk, self.schema, lambda path: self._opened(path, files))
                with closing(part):
                    for columns, some in slices(kept, entries):
                        _require_rows(some, first + counts.rows)
                        if keep is not None:
                            keep.write_batch(encoded(some))
                        part.write(self._batch(_table(columns, self.kept), some, counts))
            sealed = part.sealed()
            known = {file.name for file in sealed}
            # Surplus files, of a part that was sealed before with more of them.
            self._files.remove([path for path in self._files_of(chunk) if path.name not in known])
        return counts.part(chunk, first, sealed)

    def _opened(self, path: Path, files: ExitStack) -> BinaryIO:
        """A new file, renamed to `path` when `files` exits without an error."""
        # Not in the parts folder: ClickHouse reads hidden files too.
        return files.enter_context(self._files.atomic_writer(path, written_in=self.folder / RUN))

    def _files_of(self, chunk: int) -> list[Path]:
        """Every file that a part may have: its first, and the ones that a large part continued in."""
        name = part_name(chunk)
        return [self.parts / name, *self.parts.glob(f"{name.removesuffix('.parquet')}_*.parquet")]

    def _batch(self, kept: pa.Table, entries: Sequence[tuple[int, Entry]], counts: _PartCounts) -> pa.RecordBatch:
        read = [self._reader.read(ordinal, entry) for ordinal, entry in entries]
        counts.add([outcome for outcome, _ in read])
        # A row group is one array per column: the batches of its slice are joined, which 16 MiB cannot overflow.
        theirs = [column.combine_chunks() for column in kept.columns]
        ours = output_columns(read, self.schema.field("parsed").type)
        return pa.RecordBatch.from_arrays([*theirs, *ours], schema=self.schema)

    def preview(self, kept: Sequence[pa.RecordBatch], entries: Sequence[tuple[int, Entry]]) -> pa.RecordBatch:
        """Rows as `seal` would write them, before the part is sealed."""
        return self._batch(_table(kept, self.kept), entries, _PartCounts())

    def finish(self, manifest: Mapping[str, Any], *, success: bool) -> None:
        """Writes the manifest, then the success marker that make and schedulers wait for (or removes it)."""
        # First: a marker beside a manifest of other parts would say that these are complete.
        self.unfinish()
        with _written("the manifest"):
            self._files.write_atomic(self.folder / MANIFEST, manifest_bytes(manifest))
            if success:
                self._files.write_atomic(self.folder / SUCCESS, b"")

    def discard(self, chunk: int) -> None:
        """Removes a part, and its kept replies, after its rows have been put back into the journal."""
        with _written(part_name(chunk)):
            self._files.remove([*self._files_of(chunk), replies_path(self.folder, chunk)])

    def unfinish(self) -> None:
        """Removes the success marker while the dataset is being changed."""
        with _written(SUCCESS):
            self._files.remove([self.folder / SUCCESS])


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as its file has it."""
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"


class _PartCounts:
    """Sums over the outcomes of a part."""

    def __init__(self) -> None:
        self.rows = 0
        self._failures = Failures()
        self._usage = Usage()
        self._cost = 0.0
        self._unpriced = 0
        self._unmetered = 0
        self._from_cache = 0

    def add(self, outcomes: Sequence[Outcome]) -> None:
        self.rows += len(outcomes)
        self._failures += Failures.of(outcomes)
        for outcome in outcomes:
            if outcome.reply is not None:
                paid_usd = outcome.reply.paid_usd
                paid = outcome.reply.paid
                self._usage += paid or Usage()
                self._unmetered += paid is None
                self._cost += paid_usd or 0.0
                self._unpriced += paid_usd is None
                self._from_cache += outcome.reply.from_cache

    def part(self, chunk: int, first: int, files: Sequence[PartFile]) -> Part:
        return Part(
            chunk=chunk,
            name=files[0].name,
            first=first,
            rows=self.rows,
            ok=self.rows - self._failures.count,
            failed=self._failures.count,
            bytes=files[0].bytes,
            sha256=files[0].sha256,
            stamp=files[0].stamp,
            more=tuple(files[1:]),
            input_tokens=self._usage.input,
            output_tokens=self._usage.output,
            reasoning_tokens=self._usage.reasoning,
            cached_tokens=self._usage.cached,
            cost_usd=self._cost,
            unpriced=self._unpriced,
            unmetered=self._unmetered,
            from_cache=self._from_cache,
            failures=tuple(self._failures.bare().to_json()),
        )


@contextmanager
def _written(what: str) -> Iterator[None]:
    """A block in which every disk error is raised as `Broken`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{what} cannot be written: {error}; was the output folder moved or removed?"
        raise Broken(f"{message} Put it back, then run again") from error
    except OSError as error:
        raise Broken(f"{what} cannot be written: {error}; fix the disk, then run again") from error


def _require_rows(entries: Sequence[tuple[int, Entry]], first: int) -> None:
    """Raises when an entry is missing: a gap would put every later reply into the wrong row."""
    ordinals = [ordinal for ordinal, _ in entries]
    if ordinals != list(range(first, first + len(entries))):
        raise RuntimeError(f"the entries from row {first} on are not those of consecutive rows")


def _table(kept: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The batches under their output names."""
    if not schema.names:
        return pa.Table.from_batches(kept)
    named = [pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in kept]
    # Each batch may have its own dictionary, and one array can hold only one.
    return pa.Table.from_batches(named, schema).unify_dictionaries()
