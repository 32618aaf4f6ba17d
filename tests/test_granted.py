"""The rates that were granted, from one start to the next: what is kept, and what is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Reply, Request
from pipeline.execution.rate_memory import GrantedRates, state_file
from pipeline.pace import AdaptiveRate
from pipeline.policy import LocalUpstream
from pipeline.storage.run_folder import RATES
from tests.commands import JOB, Shell
from tests.servers import chat, served


async def never(_: Request) -> Reply:
    raise AssertionError("nothing is asked")


def lane(name: str, known: float | None) -> LocalUpstream:
    """A lane that was granted so much: a start at that rate whose limit is known."""
    rate = AdaptiveRate(known=known)
    if known is not None:
        rate._state.limit.found()
        rate.rate = known
    return LocalUpstream(name, never, rate=rate)


def test_what_was_granted_is_found_again_by_the_endpoints_names(tmp_path: Path) -> None:
    rates = GrantedRates(tmp_path, tmp_path / "state" / "job.json")
    rates.save(
        [lane("here", 12.5), lane("there", 80.0), lane("unknown", None), LocalUpstream("bare", never, rate=None)]
    )
    assert rates.load() == {"here": 12.5, "there": 80.0}
    assert (tmp_path / RATES).stat().st_mode & 0o777 == 0o600


def test_another_run_folder_of_the_job_begins_with_what_the_last_one_was_granted(tmp_path: Path) -> None:
    beyond = tmp_path / "state" / "job.json"
    for folder, rate in (("monday", 10.0), ("tuesday", 20.0)):
        (tmp_path / folder).mkdir()
        GrantedRates(tmp_path / folder, beyond).save([lane("here", rate)])
    (tmp_path / "wednesday").mkdir()
    assert GrantedRates(tmp_path / "wednesday", beyond).load() == {"here": 20.0}
    assert GrantedRates(tmp_path / "monday", beyond).load() == {"here": 20.0}
    assert GrantedRates(tmp_path / "monday").load() == {"here": 10.0}


ANYTHING = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(
    content=st.binary(max_size=50)
    | st.fixed_dictionaries(
        {}, optional={"version": st.sampled_from([1, 2, "1", None]),
                      "rates": ANYTHING | st.dictionaries(st.text(), ANYTHING)},
    )
)  # fmt: skip
def test_whatever_else_a_file_holds_is_passed_over(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    if isinstance(content, dict):
        try:
            content = orjson.dumps(content)
        except TypeError:  # an integer that JSON cannot hold
            return
    (folder / RATES).write_bytes(content)
    for rate in GrantedRates(folder).load().values():
        assert 0 < rate <= 1e6


def test_a_state_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    GrantedRates(tmp_path, tmp_path / "file" / "job.json").save([lane("here", 10.0)])
    assert GrantedRates(tmp_path).load() == {"here": 10.0}


def test_a_job_has_one_file_for_each_model_and_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first = state_file("job", "google/m", ["a", "b"])
    assert first == state_file("job", "google/m", ["b", "a"])
    assert first is not None
    assert first.is_relative_to(tmp_path / "vertex-pipeline" / "rates")
    assert len({first, state_file("other", "google/m", ["a", "b"]), state_file("job", "google/n", ["a", "b"])}) == 3
    assert state_file("job", None, ["a"]) != state_file("job", None, ["a", "b"])


def test_without_a_state_folder_of_that_name_it_is_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative one counts as none, as the specification has it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        kept = state_file("job", "m", ["a"])
        assert kept is not None
        assert kept.is_relative_to(tmp_path / ".local" / "state" / "vertex-pipeline")


def test_a_run_keeps_its_rate_in_its_folder_and_in_the_users_state(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(200)
    with served(lambda _: chat('{"answer": "a"}')) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet")
    assert done.code == 0, done
    own = tmp_path / "out/a_job/_run" / RATES
    (beyond,) = (tmp_path / ".local/state/vertex-pipeline/rates").iterdir()
    assert own.read_bytes() == beyond.read_bytes()
    assert list(orjson.loads(own.read_bytes())["rates"]) == [server.base_url.split("/")[2]]


def test_a_simulated_run_keeps_its_rate_in_its_folder_only(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(200)
    assert shell.pipeline("run", "job.py", "--emulate", "--quiet").code == 0
    assert GrantedRates(tmp_path / "out/a_job/_run").load()
    assert not (tmp_path / ".local").exists()
