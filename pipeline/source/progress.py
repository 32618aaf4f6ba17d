"""How far a survey is, for whoever shows it while another thread surveys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class SurveyProgress:
    """Counts of a survey: all 0 before it has found its files, and for ever if none is needed.

    `all_bytes` is 0 where files are not read to their ends, as Parquet in a store. Bytes are those of the files as they
    are stored.
    """

    all_files: int = 0
    all_bytes: int = 0
    files: int = 0
    bytes: int = 0
    rows: int = 0

    def begin(self, files: int, size: int) -> None:
        """Start to count; also again, if everything must be read once more."""
        self.all_files, self.all_bytes = files, size
        self.files = self.bytes = self.rows = 0

    @property
    def is_known(self) -> bool:
        """Whether there is anything to show."""
        return self.all_files > 0

    @property
    def done(self) -> int:
        """Bytes that were read; or files, where bytes are not counted."""
        return self.bytes if self.all_bytes else self.files

    @property
    def total(self) -> int:
        """What `done` will be at the end."""
        return self.all_bytes or self.all_files
