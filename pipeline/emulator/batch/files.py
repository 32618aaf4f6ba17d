"""Files of OpenAI's API: uploaded by a client, or written by a batch; in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from pipeline.emulator.protocol.wire import JsonObject


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file. `created` is Unix time in seconds."""

    ident: str
    name: str
    purpose: str
    created: int
    data: bytes = field(repr=False)

    def shown(self) -> JsonObject:
        """The file as OpenAI shows it."""
        return {
            "id": self.ident,
            "object": "file",
            "bytes": len(self.data),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass(slots=True)
class FileStore:
    """The files by their ids, in the order in which they came."""

    files: dict[str, StoredFile] = field(default_factory=dict)
    _count: int = 0

    def add(self, name: str, purpose: str, data: bytes) -> StoredFile:
        """A new file."""
        self._count += 1
        found = StoredFile(f"file-{self._count:024}", name, purpose, int(time.time()), data)
        self.files[found.ident] = found
        return found

    def extend(self, ident: str, data: bytes) -> None:
        """Adds to the end of a file, unless it was removed meanwhile."""
        if ident in self.files:
            self.files[ident] = replace(self.files[ident], data=self.files[ident].data + data)
