"""`pipeline run --append` with an output, or an input, in a bucket: the same as in folders, on any machine."""

from __future__ import annotations

import json
import os
import signal
import time

from tests.commands import CHUNK, ended
from tests.test_remote_runs import PLACE, Cloud, cloud

__all__ = ["cloud"]

FIRST, NEW = 20, CHUNK + 100


def lines(first: int, last: int) -> str:
    return "".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(first, last))


def versions(cloud: Cloud, prefix: str = "nightly/out/") -> dict[str, str]:
    keys = [info.key for info in cloud.store.listing() if info.key.startswith(prefix)]
    return {key: cloud.store.head(key).version for key in keys}


def records(cloud: Cloud) -> list[dict[str, int]]:
    return [json.loads(data) for key, data in cloud.objects().items() if "/_run/parts/" in key]


def test_o1_an_append_that_is_killed_goes_on_on_another_machine(cloud: Cloud) -> None:
    """Two processes; each start finds nothing of the one before it on its disk. Objects of earlier parts stay."""
    assert cloud.run("--append").json.items() >= {"status": "complete", "requests": FIRST}.items()
    first = versions(cloud, "nightly/out/data/") | versions(cloud, "nightly/out/_run/parts/")
    cloud.lose_the_disk()
    with cloud.shell.folder.joinpath("rows.jsonl").open("a") as file:
        file.write(lines(FIRST, FIRST + NEW))
    cloud.control(latency=0.005)
    with cloud.shell.started(*cloud.arguments("--append", "--processes", "2")) as child:
        while len(records(cloud)) < 2:
            assert child.poll() is None, ended(child)
            time.sleep(0.02)
        assert "nightly/out/_SUCCESS" not in cloud.objects()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    cloud.control(latency=0.0)
    left = FIRST + NEW - sum(record["rows"] for record in records(cloud))
    cloud.lose_the_disk()
    done = cloud.run("--append", "--processes", "2")
    assert done.json.items() >= {"status": "complete", "ok": FIRST + NEW}.items(), done
    assert done.json["requests"] <= left
    assert [row["id"] for row in cloud.rows()] == list(range(FIRST + NEW))
    assert first.items() <= versions(cloud).items()
    generations = json.loads(cloud.objects()["nightly/out/_manifest.json"])["generations"]
    assert [(one["first_row"], one["rows"]) for one in generations] == [(0, FIRST), (FIRST, NEW)]


def test_nothing_new_changes_no_object_that_readers_wait_for(cloud: Cloud) -> None:
    assert cloud.run("--append").code == 0
    before = versions(cloud)
    done = cloud.run("--append")
    assert (done.code, done.json["status"], done.json["requests"]) == (0, "complete", 0)
    assert "nothing new" in done.err
    shown = {"nightly/out/_SUCCESS", "nightly/out/_manifest.json", "nightly/out/data/part-000000.parquet"}
    after = versions(cloud)
    assert {name: after[name] for name in shown} == {name: before[name] for name in shown}


def test_segments_of_an_append_that_was_stopped_go_once_their_rows_are_in_parts(cloud: Cloud) -> None:
    assert cloud.run("--append").code == 0
    with cloud.shell.folder.joinpath("rows.jsonl").open("a") as file:
        file.write(lines(FIRST, FIRST + 60))
    cloud.control(latency=0.25)
    with cloud.shell.started(*cloud.arguments("--append", "-c", "2")) as child:
        while cloud.stats()["requests"] < FIRST + 5:
            assert child.poll() is None, ended(child)
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        stopped = ended(child)
    cloud.control(latency=0.0)
    assert stopped.code == 143, stopped
    assert [name for name in versions(cloud) if "/_run/journal/" in name]
    cloud.lose_the_disk()
    done = cloud.run("--append")
    assert done.json.items() >= {"status": "complete", "ok": FIRST + 60}.items()
    assert stopped.json["requests"] + done.json["requests"] == 60
    assert not [name for name in versions(cloud) if "/_run/journal/" in name]


def test_objects_are_known_by_their_versions(cloud: Cloud) -> None:
    """One that was replaced is refused by its name, also if it only has more rows; new ones are asked alone."""
    cloud.store.put("raw/b.jsonl", lines(0, 3).encode())
    place = ("--append", "-i", "gs://bucket/raw/")
    assert cloud.run(*place).json["requests"] == 3
    cloud.store.put("raw/a.jsonl", lines(3, 5).encode())
    assert cloud.run(*place).json.items() >= {"requests": 2, "ok": 5}.items()
    assert [row["id"] for row in cloud.rows()] == list(range(5))
    cloud.store.put("raw/b.jsonl", lines(0, 4).encode())
    done = cloud.run(*place)
    assert done.code == 2
    assert "gs://bucket/raw/b.jsonl was replaced" in done.err
    assert f"the input of {PLACE} has changed where it was read already" in done.err
