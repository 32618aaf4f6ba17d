"""What may happen to a file on a disk."""

from __future__ import annotations

import os
from pathlib import Path


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def flipped_in_place_and_its_times_put_back(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def swapped_for_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swapped_for_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
