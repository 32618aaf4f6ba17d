"""Damage is found before a dataset is called whole, and a folder that was received is data: it runs nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Part, Reply, Usage
from pipeline.faults import Broken, Refused
from pipeline.storage.codec import decode, encode
from pipeline.storage.durable import stamp_of
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import entries_in, read_state
from pipeline.storage.reply_cache import Cache, export
from tests.commands import JOB, ROOT, Shell, ended
from tests.damage import (
    cut,
    flipped,
    flipped_in_place_and_its_times_put_back,
    grown,
    swapped_for_a_folder,
    swapped_for_a_pipe,
    zeroed,
)
from tests.servers import Call, Held, Says, Served, served
from tests.small_run import ROWS, capitals, run, server_of_capitals, shell_with_rows  # noqa: F401 - fixtures


def part(shell: Shell) -> Path:
    return shell.folder / "out/a_job/data/part-000000.parquet"


def success(shell: Shell) -> Path:
    return shell.folder / "out/a_job/_SUCCESS"


# Parts


DAMAGES = [Path.unlink, zeroed, flipped, flipped_in_place_and_its_times_put_back, cut, grown]
ODD = [swapped_for_a_folder, swapped_for_a_pipe]


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
@pytest.mark.parametrize("damage", [*DAMAGES, *ODD])
def test_p13_damage_to_a_sealed_part_is_found_before_the_marker_is_written_again(
    damage: Callable[[Path], None],
    marked: bool,  # noqa: FBT001 - a parameter of the test
    shell: Shell,
    server: Served,
) -> None:
    assert run(shell, server).code == 0
    damage(part(shell))
    if not marked:
        success(shell).unlink()
    done = run(shell, server)
    assert done.code == 2
    assert f"error: {Path('out/a_job/data/part-000000.parquet')} " in done.err
    assert "reparse" in done.err
    assert not success(shell).exists()
    assert len(server.calls) == ROWS


@pytest.mark.parametrize("damage", DAMAGES)
def test_p13_a_damaged_part_is_made_again_from_the_kept_replies_without_a_call(
    damage: Callable[[Path], None], shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    before = shell.output()
    damage(part(shell))
    done = shell.pipeline("reparse", "out/a_job", "--job", "job.py", "--json")
    assert done.json.items() >= {"status": "complete", "ok": ROWS, "requests": 0}.items()
    assert shell.output() == before
    assert run(shell, server).json["requests"] == 0
    assert len(server.calls) == ROWS


def test_p13_a_damaged_part_whose_input_has_changed_stays_as_it_is(shell: Shell, server: Served) -> None:
    """Its kept columns would be those of other rows."""
    assert run(shell, server).code == 0
    cut(part(shell))
    shell.rows(ROWS + 1)
    done = shell.pipeline("reparse", "out/a_job", "--job", "job.py")
    assert (done.code, "the input is no longer what it was read from" in done.err) == (2, True), done


def test_p13_a_part_that_was_only_touched_or_copied_is_whole(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    part(shell).touch()
    shutil.copytree(shell.folder / "out", shell.folder / "copy")
    assert run(shell, server).json["status"] == "complete"
    assert run(shell, server, "--output", "copy/a_job").json["requests"] == 0
    assert len(server.calls) == ROWS


def test_p13_a_file_that_is_no_part_of_the_run_is_found_where_readers_would_read_it(
    shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    stray = part(shell).with_name("part-000001.parquet")
    shutil.copy(part(shell), stray)
    done = run(shell, server)
    assert (done.code, done.err.strip().endswith("is not a part of this run: move it elsewhere")) == (2, True), done


def late(call: Call) -> Says:
    """The last row waits, so that the first chunk is sealed while the run goes on."""
    return Held(capitals(call)) if call.prompt == "Say text 1100" else capitals(call)


@pytest.mark.parametrize("damage", [Path.unlink, zeroed, flipped])
def test_p13_a_part_that_is_damaged_during_the_run_is_found_at_its_end(
    damage: Callable[[Path], None], shell: Shell
) -> None:
    shell.rows(1101, heavy=True)
    with (
        served(late) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--quiet", "--json") as child,
    ):
        journal = shell.folder / "out/a_job/_run/journal.sqlite"
        while not (part(shell).exists() and read_state(journal)[0]):  # its stamp is taken before it is recorded
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(0.05)  # or it would be changed in the same tick of the disk's clock
        damage(part(shell))
        server.release()
        done = ended(child)
    assert done.code == 1, done
    assert done.json.items() >= {"status": "stopped", "left": 1000}.items()
    assert "part-000000.parquet" in done.json["reason"]
    assert not success(shell).exists()
    assert "Traceback" not in done.err


def test_p13_status_calls_a_run_complete_only_where_the_marker_is(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    assert shell.pipeline("status", "out/a_job", "--json").json["status"] == "complete"
    success(shell).unlink()
    assert shell.pipeline("status", "out/a_job", "--json").json["status"] == "stopped"


@pytest.mark.parametrize("damage", [Path.unlink, zeroed, cut, swapped_for_a_folder])
def test_p13_who_looks_at_a_damaged_dataset_is_told_so_in_a_sentence(
    damage: Callable[[Path], None], shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    damage(part(shell))
    shown = shell.pipeline("show", "out/a_job")
    assert (shown.code, "part-000000.parquet cannot be read" in shown.err) == (1, True), shown
    for command in (("plan", "job.py"), ("status", "out/a_job")):
        assert shell.pipeline(*command).code == 0
    assert "Traceback" not in shell.pipeline("report", "out/a_job").err


def test_p13_a_file_with_the_stamp_of_its_sealing_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data/part-000000.parquet"
    path.parent.mkdir()
    path.write_bytes(b"content")
    sealed = Part(0, path.name, 0, 1, 1, 0, 7, "another sha256", 0, 0, 0, 0, stamp=stamp_of(path))
    assert PartCheck(tmp_path).damage([sealed]) == {}
    path.touch()
    assert PartCheck(tmp_path).damage([sealed]) == {0: f"{path} was changed since it was sealed"}


# The journal


GARBAGE = [b"{", b"", b"[]", b"{}", b"null", b'{"fault": "Nonesuch", "http_status": 1}', b'{"fault": "annotations"}']
TYPED = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from([Reply(b"{}"), Reply(b"{}", transcript="[]"), Refused("no", http_status=400)]), st.data())
def test_p13_an_entry_with_any_value_in_any_field_is_read_or_called_damaged(entry: object, data: st.DataObject) -> None:
    meta, said = encode(entry)  # type: ignore[arg-type] # one of two kinds
    known = json.loads(meta)
    known[data.draw(st.sampled_from(sorted(known)))] = data.draw(TYPED)
    try:
        read = decode(json.dumps(known).encode(), said)
    except ValueError:
        return
    assert encode(read)


@pytest.mark.parametrize("meta", GARBAGE)
def test_p13_garbage_in_the_journal_names_its_row_and_the_remedy(meta: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path)):
        pass
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO entries VALUES (7, ?, x'00')", (meta,))
        database.commit()
    with pytest.raises(Broken, match=r"entry of row 7 cannot be read.*DELETE FROM entries WHERE ordinal = 7"):
        list(entries_in(path, 0, 10))


@pytest.mark.parametrize(
    "known",
    [b"{", b"[]", b"{}", b"5", {"name": "../../etc/x.parquet"}, {"name": "/x"}, {"rows": "1"}, {"more": [{"name": 1}]}],
)
def test_s8_a_part_of_the_journal_is_a_file_of_its_own_folder_or_damage(known: object, tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    good = dict(zip(("chunk", "name", "first", "rows", "ok"), (0, "part-000000.parquet", 0, 1, 1), strict=True))
    rest = dict.fromkeys(("failed", "bytes", "input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"), 0)
    whole = {**good, **rest, "sha256": ""}
    stored = known if isinstance(known, bytes) else json.dumps({**whole, **dict(known)}).encode()  # type: ignore[call-overload] # a dict
    with closing(Journal(path)) as journal:
        journal.seal(Part.from_json(whole))
    assert [one.name for one in read_state(path)[0]] == ["part-000000.parquet"]
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE parts SET part = ?", (stored,))
        database.commit()
    with pytest.raises(Broken, match="the journal is damaged"):
        read_state(path)


@pytest.mark.parametrize("left", [None, b""], ids=["gone", "empty"])
def test_p13_a_journal_that_is_lost_between_two_starts_does_not_have_all_rows_asked_again(
    left: bytes | None, shell: Shell, server: Served
) -> None:
    assert run(shell, server).code == 0
    for path in (shell.folder / "out/a_job/_run").glob("journal*"):
        path.unlink()
    if left is not None:
        (shell.folder / "out/a_job/_run/journal.sqlite").write_bytes(left)
    done = run(shell, server)
    assert (done.code, "knows of no part: restore the journal, or use --fresh" in done.err) == (2, True), done
    assert len(server.calls) == ROWS
    assert run(shell, server, "--fresh").json["requests"] == ROWS


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("act", ["the journal removed", "the folder moved", "the folder removed"])
def test_p13_a_folder_that_goes_during_the_run_is_told_with_the_remedy(act: str, processes: str, shell: Shell) -> None:
    shell.rows(1101, heavy=True)
    out = shell.folder / "out/a_job"
    flags = ("--quiet", "--no-adaptive", "--processes", processes)
    with (
        served(late) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, *flags) as child,
    ):
        while not list((out / "data").glob("part-*.parquet")):
            assert child.poll() is None
            time.sleep(0.01)
        if act == "the journal removed":
            for path in (out / "_run").glob("journal*"):
                path.unlink()
        elif act == "the folder moved":
            out.rename(shell.folder / "elsewhere")
        else:
            shutil.rmtree(out)
        server.release()
        done = ended(child)
    assert done.code == 1, done
    assert "Traceback" not in done.err, done.err
    assert "error: " in done.err
    assert "run again" in done.err.lower()


def test_p13_what_a_killed_export_leaves_beside_its_file_goes_with_the_next(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "cache", "endpoint")):
        pass
    left = tmp_path / ".file.abc.tmp"
    left.write_bytes(b"half")
    left.with_name(".file.abc.tmp-journal").write_bytes(b"half")
    assert export(tmp_path / "cache", tmp_path / "file") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "file"]


EXPORTING = """
import os, sys, time
from pathlib import Path
from pipeline.storage.reply_cache.file import temporary_beside
with temporary_beside(Path(sys.argv[1])) as path:
    print(path, flush=True)
    sys.stdin.read()
"""


def test_p13_an_export_at_work_keeps_its_file_while_another_begins(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "cache", "endpoint")):
        pass
    command = [sys.executable, "-c", EXPORTING, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=-1, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout
        assert child.stdin
        theirs = Path(child.stdout.readline().strip())
        export(tmp_path / "cache", tmp_path / "file")
        assert theirs.exists()
        child.send_signal(signal.SIGKILL)
        child.wait()
        export(tmp_path / "cache", tmp_path / "file")
        assert not theirs.exists()


# A folder that was received


EVIL = """
from pathlib import Path
Path({mark!r}).write_text("run")
from pipeline import Job
job = Job(name="a_job", model="m", input="rows.jsonl", user="Say {{{{ text }}}}")
"""
COMMANDS = ["show", "status", "report", "grade", "gate", "bless", "plan"]


def planted(shell: Shell, server: Served, where: str, *, digest: str | None = None) -> Path:
    """A run whose plan names a file of somebody else's; the file that would be written if it ran."""
    assert run(shell, server).code == 0
    received = shell.folder / "received/run"
    shutil.copytree(shell.folder / "out/a_job", received)
    mark = shell.folder / "mark"
    file = shell.folder / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(EVIL.format(mark=str(mark)))
    plan = json.loads((received / "_run/plan.json").read_bytes())
    plan["target"] = where
    plan["target_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest() if digest is None else digest
    (received / "_run/plan.json").write_text(json.dumps(plan))
    eval_folder = received / "_eval"
    eval_folder.mkdir()
    (eval_folder / "scores.json").write_text("{}")
    return mark


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["received/run/_run/x.py", "received/run/x.py", "received/run/_run/x.py:job"])
def test_s8_no_command_runs_a_file_of_the_folder_that_it_looks_at(
    where: str, command: str, shell: Shell, server: Served
) -> None:
    mark = planted(shell, server, where.partition(":")[0])
    target = ("job.py", "--output", "received/run") if command == "plan" else ("received/run",)
    done = shell.pipeline(command, *target)
    assert not mark.exists()
    assert "Traceback" not in done.err


def test_s8_a_link_does_not_lead_out_of_the_folder(shell: Shell, server: Served) -> None:
    mark = planted(shell, server, "received/run/_run/x.py")
    (shell.folder / "innocent.py").symlink_to(shell.folder / "received/run/_run/x.py")
    plan = shell.folder / "received/run/_run/plan.json"
    plan.write_text(plan.read_text().replace("received/run/_run/x.py", "innocent.py"))
    assert "nothing out of an output folder is run unasked" in shell.pipeline("show", "received/run").err
    assert not mark.exists()


@pytest.mark.parametrize(
    "target", ["\0.py", "loop.py", "../" * 50 + "x.py", "x" * 5000 + ".py", "/dev/stdin.py", ".py"]
)
def test_s8_a_target_that_is_no_path_is_none(target: str, shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    (shell.folder / "loop.py").symlink_to("loop.py")
    plan = shell.folder / "out/a_job/_run/plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_bytes()), "target": target}))
    done = shell.pipeline("show", "out/a_job")
    assert (done.code, "note: requests are not shown" in done.err) == (0, True), done


@pytest.mark.parametrize("digest", ["", "0" * 64])
def test_s8_a_file_outside_of_the_folder_is_not_run_unless_it_is_the_one_that_ran(
    digest: str, shell: Shell, server: Served
) -> None:
    mark = planted(shell, server, "elsewhere/x.py", digest=digest)
    assert "has changed since the run" in shell.pipeline("show", "received/run").err
    assert not mark.exists()


def test_s8_a_file_that_the_user_names_is_run(shell: Shell, server: Served) -> None:
    mark = planted(shell, server, "received/run/x.py")
    done = shell.pipeline("show", "received/run", "--job", "received/run/x.py")
    assert (done.code, mark.exists()) == (0, True), done
    assert "Say text 0" in done.out


def test_s8_the_job_that_ran_is_shown_as_long_as_it_is_the_same(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    assert "Say text 0" in shell.pipeline("show", "out/a_job").out
    shell.write("job.py", JOB + "# a word more\n")
    changed = shell.pipeline("show", "out/a_job")
    assert (changed.code, "Say text 0" in changed.out) == (0, False)
    assert "has changed since the run: if it is the right one, name it with --job" in changed.err
    assert "Say text 0" in shell.pipeline("show", "out/a_job", "--job", "job.py").out
    assert run(shell, server).json["requests"] == 0  # the next start takes note of it
    assert "Say text 0" in shell.pipeline("show", "out/a_job").out


def test_s8_a_job_of_another_prompt_is_refused_where_it_is_named(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    shell.write("other.py", JOB.replace("Say", "Shout"))
    done = shell.pipeline("show", "out/a_job", "--job", "other.py")
    assert (done.code, "is not the one that was asked" in done.err) == (2, True), done


@pytest.mark.parametrize("content", ["", "[]", "5", '{"job": 1}', '{"survey": {}}', "\xff"])
def test_s8_a_plan_that_is_none_is_refused_in_a_sentence(content: str, shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    plan = shell.folder / "out/a_job/_run/plan.json"
    plan.write_text(content, encoding="latin-1")
    for command in ("show", "status", "report"):
        done = shell.pipeline(command, "out/a_job")
        assert done.code == 2, (command, done)


def test_a_usage_in_words_is_damage(tmp_path: Path) -> None:
    meta = json.dumps({"usage": ["a", 1, 2, 3], "transcript": None}).encode()
    with pytest.raises(ValueError, match="whole numbers"):
        decode(meta, b"{}")
    assert decode(json.dumps({"usage": [1, 2, 3, 4], "transcript": None}).encode(), b"{}") == Reply(
        b"{}", Usage(1, 2, 3, 4)
    )
    assert not list(tmp_path.iterdir())


def test_parts_that_were_written_are_read_by_any_reader(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    assert pq.read_table(shell.folder / "out/a_job").num_rows == ROWS
