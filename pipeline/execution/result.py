"""The result of a run for Python: what it cost, and its dataset, which is read when it is asked for."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.data import PARTS
from pipeline.faults import UsageError
from pipeline.store.address import Address, place_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from pipeline.execution.finish import Summary

_SAMPLE_ROWS = 5
_FIGURES = ("status", "rows", "ok", "failed", "requests", "cost_usd", "seconds", "output")


class RunResult:
    """A run that has ended: its `summary`, and its rows as a table. Nothing is read before a method asks for it.

    Its table has the rows of all parts, which are whole chunks: all rows of a run that has ended, and fewer of one that
    was stopped, though none that is recorded is lost. `path` is its output: a folder, or an address, whose parts are
    fetched whenever they are read. A run without an `output` is in a temporary folder, which is removed with this
    object.
    """

    def __init__(
        self,
        summary: Summary,
        *,
        rows: int,
        temporary: Path | None = None,
        credentials: Path | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.summary = summary
        self._rows = rows
        self.notes = tuple(notes)
        """What to know about the input, in sentences, such as files that were skipped."""
        self._credentials = credentials
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    @property
    def path(self) -> str:
        """The output: a folder, or an address."""
        return self.summary.output

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        one = self.summary
        simulated = ", SIMULATED" if one.simulated else ""
        return f"<RunResult {one.status}: {one.ok} ok, {one.failed} failed, {one.left} left{simulated}, in {self.path}>"

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows in input order, as an Arrow table; of the given columns only, if there are any."""
        import pyarrow as pa

        with self._parts() as parts:
            return pa.concat_tables(list(_tables(parts, columns))) if parts else pa.table({})

    def failed(self) -> pa.Table:
        """The failed rows; `error` says why each failed."""
        import pyarrow as pa

        with self._parts() as parts:
            tables = [_failed_of(table) for table in _tables(parts, None)]
            return pa.concat_tables(tables) if tables else pa.table({})

    def polars(self) -> pl.DataFrame:
        """The rows as a frame of Polars. Raises `UsageError` where that is not installed."""
        try:
            import polars as pl
        except ImportError:
            raise UsageError("this needs Polars: pip install polars") from None
        found = pl.from_arrow(self.table())
        if not isinstance(found, pl.DataFrame):
            raise TypeError("a table makes a frame")
        return found

    def pandas(self) -> pd.DataFrame:
        """The rows as a frame of pandas, whose columns keep their Arrow types. Raises `UsageError` as `polars` does."""
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("this needs pandas: pip install pandas") from None
        return self.table().to_pandas(types_mapper=pd.ArrowDtype)

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures of the run and, of an output on this machine, its first rows."""
        simulated = "<p><b>SIMULATED</b>: answers of the emulator, not of a model</p>" if self.summary.simulated else ""
        figures = [(name, getattr(self.summary, name)) for name in _FIGURES]
        rows = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in figures)
        return f"{simulated}<table>{rows}</table>{self._sample_html()}"

    def _sample_html(self) -> str:
        import pyarrow.parquet as pq

        folder = place_of(self.path)
        first = [] if isinstance(folder, Address) else _parts_in(folder)[:1]
        if not first:
            return ""
        with pq.ParquetFile(first[0]) as file:
            names = [name for name in file.schema_arrow.names if name not in ("response", "error")]
            batch = next(file.iter_batches(_SAMPLE_ROWS, columns=names), None)
        records = [] if batch is None else batch.to_pylist()
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_short(record[name]))}</td>' for name in names)}</tr>" for record in records
        )
        return f"<table><tr>{head}</tr>{body}</table>"

    @contextmanager
    def _parts(self) -> Iterator[list[Path]]:
        """The files of the dataset, in order; those of an address are on this machine within the block."""
        place = place_of(self.path)
        if isinstance(place, Path):
            yield _parts_in(place)
            return
        from pipeline.endpoint.store_access import store_access
        from pipeline.execution.output_place import objects_at
        from pipeline.storage.remote.hydration import fetch_parts, snapshot
        from pipeline.store.stores import opened_stores

        with store_access(self._credentials) as access, opened_stores(access), TemporaryDirectory() as folder:
            objects = objects_at(place)
            snapshot(objects, Path(folder) / "out")
            fetch_parts(objects, Path(folder) / "out")
            yield _parts_in(Path(folder) / "out")


def _parts_in(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("part-*.parquet"))


def _tables(parts: Sequence[Path], columns: Sequence[str] | None) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    for part in parts:
        with pq.ParquetFile(part) as file:
            yield file.read(columns=columns)


def _failed_of(table: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["status"].cast(pa.string()), "failed"))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
