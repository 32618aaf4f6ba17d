"""Files are whole or absent, whatever call fails in between, and there after a power cut once they are said to be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.durable import FILES, TEMPORARY, FileSystem


@dataclass
class FailingSystem:
    """The system's calls, noted; the one with the number `fails_at` fails, as on a full disk."""

    fails_at: int = -1
    calls: list[str] = field(default_factory=list)

    def files(self) -> FileSystem:
        return FileSystem(
            **{each.name: self._noted(each.name, getattr(FILES, each.name)) for each in fields(FileSystem)}
        )

    def _noted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments)

        return noted


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_takes_its_place_with_its_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with FILES.atomic_writer(path) as file:
        file.write(b"first ")
        assert not path.exists()
        file.write(b"and last")
    assert contents(tmp_path) == {"file": b"first and last"}


def test_large_contents_are_written_to_their_end(tmp_path: Path) -> None:
    def little_by_little(descriptor: int, data: Any) -> int:
        return os.write(descriptor, data[:1000])

    content = os.urandom(100_000)
    FileSystem(write=little_by_little).write_atomic(tmp_path / "file", content)
    assert contents(tmp_path) == {"file": content}


def test_a_failure_of_the_writer_leaves_what_was_there_before(tmp_path: Path) -> None:
    FILES.write_atomic(tmp_path / "file", b"old")

    def fail_in_the_middle() -> None:
        with FILES.atomic_writer(tmp_path / "file") as file:
            file.write(b"new, but not who")
            file.flush()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail_in_the_middle()
    assert (tmp_path / "file").read_bytes() == b"old"
    FILES.write_atomic(tmp_path / "file", b"new")
    assert contents(tmp_path) == {"file": b"new"}


def test_p3_a_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path: Path) -> None:
    disk = FailingSystem()
    disk.files().write_atomic(tmp_path / "file", b"content")
    assert disk.calls == ["open", "write", "sync", "replace", "open", "sync"]


def test_p3_a_removal_is_synced(tmp_path: Path) -> None:
    FILES.write_atomic(tmp_path / "file", b"")
    disk = FailingSystem()
    disk.files().remove([tmp_path / "file", tmp_path / "was never there"])
    assert disk.calls == ["unlink", "unlink", "open", "sync"]
    assert contents(tmp_path) == {}


def test_p4_whichever_call_fails_the_file_is_the_old_or_the_new_one_and_no_sync_is_tried_again(tmp_path: Path) -> None:
    failed = 0
    while True:
        FILES.write_atomic(tmp_path / "file", b"old")
        disk = FailingSystem(failed)
        try:
            disk.files().write_atomic(tmp_path / "file", b"new")
        except OSError:
            assert (tmp_path / "file").read_bytes() in {b"old", b"new"}
            assert disk.calls[failed + 1 :].count("sync") == 0
            failed += 1
        else:
            break
    assert failed == 6
    assert contents(tmp_path) == {"file": b"new"}


def test_a_file_that_is_not_whole_yet_is_hidden_from_readers_of_a_dataset_and_can_be_told(tmp_path: Path) -> None:
    with FILES.atomic_writer(tmp_path / "part.parquet"):
        (path,) = tmp_path.iterdir()
        assert path.name.startswith(".")
        assert path.suffix == TEMPORARY


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_s6_a_file_has_the_mode_that_was_asked_for_from_its_first_byte_on(mode: int, tmp_path: Path) -> None:
    with FILES.atomic_writer(tmp_path / "file", mode=mode):
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & 0o777 == mode
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_s6_a_private_folder_is_private_also_when_it_was_there_before(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    FILES.make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    FILES.make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            FILES.make_folder(folder)


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FILES.sync_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        FILES.write_atomic(tmp_path / "nowhere" / "file", b"")
