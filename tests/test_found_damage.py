"""Damage in the journal, the kept replies, the plan: found before it becomes an answer, and before anything is lost."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Entry, Reply, Usage
from pipeline.faults import Broken, Refused
from pipeline.storage.codec import decode, encode
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import entries_in, turns_in
from tests.commands import Shell
from tests.damage import cut, swapped_for_a_folder, zeroed
from tests.mutations import mutated
from tests.servers import Served
from tests.small_run import ROWS, run, server_of_capitals, shell_with_rows  # noqa: F401 - fixtures

OUTPUT = "out/a_job"

SAID = b'{"choices":[{"message":{"content":"one"}}]}'
PAID = Reply(SAID, Usage(1, 2, 3, 4), transcript="[]", cost_usd=0.5)
ENTRIES: list[Entry] = [Reply(SAID), PAID, Refused("no", http_status=400)]
ENTRIES.append(Refused("no"))
ENTRIES[-1].reply = PAID  # type: ignore[union-attr] # a fault


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(damaged)


@given(st.sampled_from(ENTRIES), st.integers(0, 10**4), st.booleans())
def test_p13_a_bit_that_flips_in_an_entry_never_makes_another_of_it(entry: Entry, bit: int, first: bool) -> None:  # noqa: FBT001 - a parameter of the test
    meta, said = encode(entry)
    damaged = (flipped(meta, bit), said) if first else (meta, flipped(said, bit))
    assert encode(decode(meta, said)) == (meta, said)
    try:
        read = decode(*damaged)
    except ValueError:
        return
    assert encode(read) == (meta, said)  # a bit of the checksum's own name


def test_p13_a_bit_that_flips_in_the_journal_is_damage_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path)):
        pass
    with closing(sqlite3.connect(path)) as database:
        meta, said = encode(PAID)
        database.execute("INSERT INTO entries VALUES (7, ?, ?)", (meta, said.replace(b"one", b"two")))
        database.execute("INSERT INTO turns VALUES (8, 0, x'00', ?, ?, NULL)", (meta, said.replace(b"one", b"two")))
        database.commit()
    with pytest.raises(Broken, match="entry of row 7 cannot be read"):
        list(entries_in(path, 0, 10))
    with pytest.raises(Broken, match=r"answer of a row that is not finished .*DELETE FROM turns"):
        turns_in(path, 0, 10)


@pytest.mark.parametrize("damage", [cut, zeroed, Path.unlink, swapped_for_a_folder])
def test_p13_replies_that_cannot_be_read_leave_a_whole_dataset_whole(
    damage: object, shell: Shell, server: Served
) -> None:
    """A re-parse that cannot be finished is not begun: neither the marker nor a part is touched."""
    assert run(shell, server).code == 0
    before = shell.output()
    damage(shell.folder / OUTPUT / "_run/replies/part-000000.replies")  # type: ignore[operator] # a function
    done = shell.pipeline("reparse", OUTPUT, "--job", "job.py")
    assert (done.code, "the kept replies of part-000000.parquet cannot be read" in done.err) == (1, True), done
    assert (shell.folder / OUTPUT / "_SUCCESS").exists()
    assert (run(shell, server).json["status"], shell.output()) == ("complete", before)


def test_p13_status_and_report_do_not_call_a_damaged_dataset_complete(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    part = shell.folder / OUTPUT / "data/part-000000.parquet"
    content = part.read_bytes()
    damages: list[tuple[bytes | None, str]] = [
        (None, "is missing"),
        (bytes(len(content)), "was changed since it was sealed"),
        (flipped(content, 12_345), "was changed since it was sealed"),
    ]
    for damaged, told in damages:
        part.unlink(missing_ok=True)
        if damaged is not None:
            part.write_bytes(damaged)
        found = shell.pipeline("status", OUTPUT, "--json").json
        assert (
            found["status"],
            told in found["reason"],
            f"`pipeline reparse {OUTPUT} --job job.py`" in found["reason"],
        ) == ("stopped", True, True)
    part.unlink()
    assert shell.pipeline("report", OUTPUT).code == 0
    page = (shell.folder / OUTPUT / "_report.html").read_text()
    assert "part-000000.parquet is missing" in page
    part.write_bytes(content)
    assert shell.pipeline("status", OUTPUT, "--json").json["status"] == "complete"


def test_p13_status_knows_parts_that_its_journal_does_not(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    (shell.folder / OUTPUT / "_run/journal.sqlite").write_bytes(b"")
    found = shell.pipeline("status", OUTPUT, "--json").json
    assert (found["status"], "is not a part of this run" in found["reason"]) == ("stopped", True)


@pytest.mark.parametrize("name", ["_manifest.json", "_run/events.jsonl"])
def test_p13_a_folder_in_the_place_of_a_file_is_no_bug_of_ours(name: str, shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    swapped_for_a_folder(shell.folder / OUTPUT / name)
    for command in ("status", "report"):
        done = shell.pipeline(command, OUTPUT)
        assert done.code in {0, 2}
        assert "Traceback" not in done.err


def test_p13_a_plan_with_a_value_of_any_type_in_any_place_is_read_or_refused(shell: Shell, server: Served) -> None:
    """Whatever plan.json holds, these commands end with a sentence, and no row is asked again."""
    assert run(shell, server).code == 0
    plan = shell.folder / OUTPUT / "_run/plan.json"
    good = json.loads(plan.read_bytes())
    dice = Random(12)
    for number in range(60):
        plan.write_text(json.dumps(mutated(good, dice, 1 + number % 2)))
        for command in (
            ("status", OUTPUT),
            ("run", "job.py", "--base-url", server.base_url, "--quiet"),
        ):
            done = shell.pipeline(*command)
            assert done.code in {0, 2}, (number, command, done)
            assert "Traceback" not in done.err
    assert len(server.calls) == ROWS
