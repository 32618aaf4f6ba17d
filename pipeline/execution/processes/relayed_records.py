"""Log records of worker processes, which the parent logs: only one process writes beside the progress."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Self

_MOST_RECORDS = 1000
"""Records kept between two reports; more are dropped and counted."""

_KEPT = ("name", "levelno", "levelname", "created", "pathname", "filename", "lineno", "funcName", "threadName")


class RelayedRecords(logging.Handler):
    """Keeps what this process logs until its next report."""

    def __init__(self, level: int, number: int) -> None:
        super().__init__(level)
        self._number = number
        self._kept: list[Mapping[str, Any]] = []
        self._dropped = 0

    @classmethod
    def attached(cls, level: int, number: int) -> Self:
        """The only handler of this process for what `pipeline` logs; `number` is the worker's."""
        records, tree = cls(level, number), logging.getLogger("pipeline")
        # A forked process has its parent's handlers, which write to the terminal.
        tree.handlers[:] = [records]
        tree.setLevel(level)
        tree.propagate = False
        return records

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record, in a form that can be pickled."""
        if len(self._kept) >= _MOST_RECORDS:
            self._dropped += 1
            return
        known = {name: getattr(record, name) for name in _KEPT}
        fields = {**getattr(record, "fields", {}), "worker": self._number}
        self._kept.append(
            {**known, "msg": record.getMessage(), "event": getattr(record, "event", None), "fields": fields}
        )

    def take(self) -> list[Mapping[str, Any]]:
        """The records since the last call of this method."""
        self.acquire()
        try:
            taken, self._kept = self._kept, []
            dropped, self._dropped = self._dropped, 0
        finally:
            self.release()
        if dropped:
            logging.getLogger(__name__).warning("%d records were dropped", dropped)
        return taken


def log_relayed(records: Iterable[Mapping[str, Any]]) -> None:
    """Logs records of a worker in this process, as if they were its own."""
    for record in records:
        logger = logging.getLogger(record["name"])
        if logger.isEnabledFor(record["levelno"]):
            logger.handle(logging.makeLogRecord(dict(record)))
