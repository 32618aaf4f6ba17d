"""Sealed Parquet parts, the manifest, the success marker: a plain dataset for any reader.

The Arrow schema is fixed before the first row and is the same in every part. A part is written in the run's own
folder, synced, and renamed into the folder of the parts, which is then synced: a reader sees only complete parts, at
any moment. A part's name and bytes are functions of the job, the rows and their replies, so writing it again is
harmless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import PARTS, Entry, Failure, Outcome, Part, PartFile, Reply, Usage
from pipeline.endpoint.wire import Answer, Completion
from pipeline.failures import Failures
from pipeline.faults import Broken, Fault
from pipeline.job.parsing import ReplyParser
from pipeline.storage.batches import bounded_batches, parquet_at, slices
from pipeline.storage.codec import decode, encode
from pipeline.storage.durable import FILES, PRIVATE_FILE, PRIVATE_FOLDER, FileSystem, stamp_of

SUCCESS = "_SUCCESS"
MANIFEST = "_manifest.json"
RUN = "_run"

FILE_BYTES = 1 << 30
"""Uncompressed bytes after which a part continues in another file: readers that load a whole string column into one
array with 32-bit offsets fail at 2 GiB."""

_CALL = pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments", pa.string())])
_MEDIUM = pa.struct([("mime_type", pa.string()), ("data", pa.binary())])

RESPONSE = pa.struct(
    [
        ("text", pa.string()),
        ("reasoning", pa.string()),
        ("tool_calls", pa.list_(pa.field("element", _CALL))),
        ("media", pa.list_(pa.field("element", _MEDIUM))),
        ("finish_reason", pa.string()),
        ("model", pa.string()),
        ("id", pa.string()),
        ("location", pa.string()),
        ("traffic_type", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("from_cache", pa.bool_()),
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("transcript", pa.string()),
    ]
)
ERROR = pa.struct([("type", pa.string()), ("message", pa.string()), ("http_status", pa.int32())])
STATUS = pa.dictionary(pa.int32(), pa.string())

_REPLIES = pa.schema([("ordinal", pa.int64()), ("meta", pa.binary()), ("body", pa.binary())])
_DICTIONARIES = ["status", "response.finish_reason", "response.model", "error.type"]


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
        counts = _Counts()
        with _written(part_name(chunk)):
            with ExitStack() as files:
                keep = files.enter_context(self._replies_kept(chunk)) if replies else None
                part = _PartWriter(self, chunk, files)
                with closing(part):
                    for columns, some in slices(kept, entries):
                        _require_rows(some, first + counts.rows)
                        if keep is not None:
                            keep.write_batch(_encoded(some))
                        part.write(self._batch(_table(columns, self.kept), some, counts))
            sealed = part.sealed()
            self._remove_others(chunk, sealed)
        return counts.part(chunk, first, sealed)

    def opened(self, path: Path, files: ExitStack) -> BinaryIO:
        """A new file, renamed to `path` when `files` exits without an error."""
        # Not in the parts folder: ClickHouse reads hidden files too.
        return files.enter_context(self._files.atomic_writer(path, written_in=self.folder / RUN))

    def _remove_others(self, chunk: int, sealed: Sequence[PartFile]) -> None:
        """Removes surplus files of a part that was sealed before with more files than now."""
        known = {file.name for file in sealed}
        others = self.parts.glob(f"{part_name(chunk).removesuffix('.parquet')}_*.parquet")
        self._files.remove([path for path in others if path.name not in known])

    def _batch(self, kept: pa.Table, entries: Sequence[tuple[int, Entry]], counts: _Counts) -> pa.RecordBatch:
        read = [self._reader.read(ordinal, entry) for ordinal, entry in entries]
        outcomes = [outcome for outcome, _ in read]
        counts.add(outcomes)
        failures = [outcome if isinstance(outcome, Failure) else None for outcome in outcomes]
        status = [int(failure is not None) for failure in failures]
        values = [None if isinstance(outcome, Failure) else outcome.value for outcome in outcomes]
        ours = [
            pa.DictionaryArray.from_arrays(pa.array(status, pa.int32()), pa.array(["ok", "failed"])),
            pa.array(values, type=self.schema.field("parsed").type),
            _responses([(outcome.reply, completion) for outcome, completion in read]),
            _errors([failure.fault if failure else None for failure in failures]),
        ]
        theirs = [column.combine_chunks() for column in kept.columns]
        return pa.RecordBatch.from_arrays([*theirs, *ours], schema=self.schema)

    def preview(self, kept: Sequence[pa.RecordBatch], entries: Sequence[tuple[int, Entry]]) -> pa.RecordBatch:
        """Rows as `seal` would write them, before the part is sealed."""
        return self._batch(_table(kept, self.kept), entries, _Counts())

    def finish(self, manifest: Mapping[str, Any], *, success: bool) -> None:
        """Writes the manifest, then the success marker that make and schedulers wait for (or removes it)."""
        self.unfinish()
        with _written("the manifest"):
            self._files.write_atomic(self.folder / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
            if success:
                self._files.write_atomic(self.folder / SUCCESS, b"")

    def discard(self, chunk: int) -> None:
        """Removes a part, and its kept replies, after its rows have been put back into the journal."""
        with _written(part_name(chunk)):
            self._files.remove([self.parts / part_name(chunk), _replies_path(self.folder, chunk)])

    def unfinish(self) -> None:
        """Removes the success marker while the dataset is being changed."""
        with _written(SUCCESS):
            self._files.remove([self.folder / SUCCESS])

    @contextmanager
    def _replies_kept(self, chunk: int) -> Iterator[pq.ParquetWriter]:
        """A writer for the kept replies of one part; they are durable when the block exits without an error."""
        path = _replies_path(self.folder, chunk)
        self._files.make_folder(path.parent, mode=PRIVATE_FOLDER)
        with self._files.atomic_writer(path, mode=PRIVATE_FILE) as file, _writer(file, _REPLIES) as writer:
            yield writer


def output_schema(kept: pa.Schema, reader: ReplyParser) -> pa.Schema:
    """The columns of the output: those copied from the input, then ours."""
    ours = [("status", STATUS), ("parsed", reader.parsed_type()), ("response", RESPONSE), ("error", ERROR)]
    return pa.schema([*kept, *(pa.field(name, kind) for name, kind in ours)])


def part_name(chunk: int, number: int = 0) -> str:
    """The name of a chunk's part, and of its additional files; lexical order is row order up to a million parts."""
    return f"part-{chunk:06d}_{number:02d}.parquet" if number else f"part-{chunk:06d}.parquet"


def kept_replies(folder: Path, chunk: int) -> Iterator[tuple[int, Entry]]:
    """The entries that `seal` kept beside a part, in order. Raises `Broken` when they are missing or damaged."""
    try:
        with parquet_at(_replies_path(folder, chunk)) as file:
            for batch in bounded_batches(file):
                for ordinal, meta, body in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield ordinal, decode(meta, body)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(chunk, error) from error


def require_replies(folder: Path, chunk: int) -> None:
    """Raises `Broken` when the replies kept beside a part are not there, or their pages are not what was written."""
    try:
        with parquet_at(_replies_path(folder, chunk)) as file:
            for _ in bounded_batches(file):
                pass
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(chunk, error) from error


def _unreadable(chunk: int, error: Exception) -> Broken:
    message = f"the kept replies of {part_name(chunk)} cannot be read: {error}"
    return Broken(f"{message}; restore the file, or use --fresh to ask again")


class _Counts:
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


class _PartWriter:
    """The files of a part while they are written; all are renamed into place when `files` exits without an error."""

    def __init__(self, dataset: Dataset, chunk: int, files: ExitStack) -> None:
        self._dataset = dataset
        self._chunk = chunk
        self._files = files
        self._written: list[tuple[Path, _Digest, int]] = []
        self._begin()

    def _begin(self) -> None:
        path = self._dataset.parts / part_name(self._chunk, len(self._written))
        self._digest = _Digest(self._dataset.opened(path, self._files))
        self._writer = _writer(self._digest, self._dataset.schema)
        self._path, self._rows, self._bytes = path, 0, 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a row group; starts another file when this one would exceed `FILE_BYTES`."""
        if self._rows and self._bytes + batch.nbytes > FILE_BYTES:
            self.close()
            self._begin()
        self._writer.write_batch(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes

    def close(self) -> None:
        """Writes the footer of the file that is being written."""
        self._writer.close()
        self._written.append((self._path, self._digest, self._rows))

    def sealed(self) -> list[PartFile]:
        """The files written, once they are in place."""
        return [
            PartFile(path.name, rows, digest.size, digest.hexdigest(), stamp_of(path))
            for path, digest, rows in self._written
        ]


class _Digest:
    """A binary file that is hashed while it is written."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.size

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


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


def _replies_path(folder: Path, chunk: int) -> Path:
    # A Parquet file without the suffix: DuckDB reads every *.parquet below a folder as part of the dataset.
    return folder / RUN / "replies" / f"part-{chunk:06d}.replies"


def _encoded(entries: Sequence[tuple[int, Entry]]) -> pa.RecordBatch:
    rows = [(ordinal, *encode(entry)) for ordinal, entry in entries]
    return pa.RecordBatch.from_arrays(_columns(rows, _REPLIES), schema=_REPLIES)


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    names = {field.name for field in schema}
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in _DICTIONARIES if name.split(".")[0] in names],
        write_page_checksum=True,
        write_page_index=True,
    )


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


def _responses(replies: Sequence[tuple[Reply | None, Completion | None]]) -> pa.StructArray:
    """Column by column: several times faster than a list of dicts."""
    rows = [_NOTHING if reply is None else _response(reply, completion or _EMPTY) for reply, completion in replies]
    return _structs(RESPONSE, _columns(rows, RESPONSE), [reply for reply, _ in replies])


_NOTHING = (None,) * len(RESPONSE)


_EMPTY = Completion((), None, None, None, None, None)


def _response(reply: Reply, completion: Completion) -> tuple[Any, ...]:
    answer = completion.answers[0] if completion.answers else Answer()
    return (
        answer.text,
        answer.reasoning,
        [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in answer.tool_calls],
        [{"mime_type": media.mime_type, "data": media.data} for media in answer.media],
        answer.finish_reason,
        completion.model,
        completion.id,
        reply.location,
        completion.traffic_type,
        *_tokens(reply.usage),
        reply.cost_usd,
        reply.from_cache,
        reply.attempts,
        reply.latency_s,
        reply.first_token_s,
        reply.finished_at,
        reply.transcript,
    )


def _tokens(usage: Usage | None) -> tuple[int | None, ...]:
    return (None,) * 4 if usage is None else (usage.input, usage.output, usage.reasoning, usage.cached)


def _errors(faults: Sequence[Fault | None]) -> pa.StructArray:
    arrays = [
        pa.array([type(fault).__name__ if fault else None for fault in faults], pa.string()),
        pa.array([fault.message if fault else None for fault in faults], pa.string()),
        pa.array([fault.http_status if fault else None for fault in faults], pa.int32()),
    ]
    return _structs(ERROR, arrays, faults)


def _columns(rows: Sequence[tuple[Any, ...]], fields: Iterable[pa.Field]) -> list[pa.Array]:
    return [pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), fields, strict=True)]


def _structs(kind: pa.StructType, arrays: Sequence[pa.Array], values: Sequence[object]) -> pa.StructArray:
    """Structs of these fields, null where the value is None.

    `StructArray.from_arrays` would load pyarrow.compute, a tenth of a run's start, to invert its mask.
    """
    is_valid = pa.array([value is not None for value in values], pa.bool_()).buffers()[1]
    return pa.StructArray.from_buffers(kind, len(values), [is_valid], children=list(arrays))
