"""The input's files are found completely, once each and in a fixed order, or the user is told what to mend."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.faults import UsageError
from pipeline.source import Inputs, discover


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def found_in(inputs: Inputs) -> list[Path]:
    return [found.path for found in discover(inputs).files if isinstance(found.path, Path)]


def test_a_directory_is_searched_to_any_depth_for_known_suffixes(tmp_path: Path) -> None:
    expected = touch(tmp_path, "a.jsonl", "b.ndjson.gz", "c/d/e.JSONL.ZST", "f.ndjson", "g.json.xz", "h.jsonlines.bz2")
    touch(
        tmp_path, "_SUCCESS", "_run/x.jsonl", ".cache/y.jsonl", ".z.jsonl", "_m.jsonl", "read.me", "lost+found/i.jsonl"
    )
    assert sorted(found_in([tmp_path])) == sorted(expected)


def test_files_are_sorted_within_an_input_and_inputs_keep_their_order(tmp_path: Path) -> None:
    ten, two, one = touch(tmp_path, "b/10.parquet", "b/2.parquet", "a.pq")
    assert found_in([tmp_path / "b", one]) == [ten, two, one]
    assert found_in([tmp_path]) == [one, ten, two]


def test_a_file_found_several_times_counts_once_where_it_is_found_first(tmp_path: Path) -> None:
    one, two = touch(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "latest.jsonl").symlink_to(one)
    assert found_in([two, tmp_path, f"{tmp_path}/../{tmp_path.name}/a.jsonl"]) == [two, one]


def test_a_linked_directory_is_searched_and_a_circle_of_links_ends(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.jsonl", "input/b.jsonl")
    (tmp_path / "input" / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("circle", "another"):  # two of them: 2^40 paths before the system gives up
        (tmp_path / "input" / name).symlink_to(tmp_path / "input")
    assert [path.name for path in found_in([tmp_path / "input"])] == ["b.jsonl", "a.jsonl"]


def test_a_pattern_finds_files_and_directories(tmp_path: Path) -> None:
    paths = touch(tmp_path, "x1/a.jsonl", "x2.jsonl")
    touch(tmp_path, "x1/_b.jsonl", "_x3.jsonl", "y.jsonl")
    assert found_in([tmp_path / "*x*"]) == paths
    assert found_in(str(tmp_path / "**" / "[ax]*.jsonl")) == paths


def test_a_name_with_pattern_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    (path,) = touch(tmp_path, "a[1].jsonl")
    assert found_in([path]) == [path]


def test_relative_paths_come_back_absolute(tmp_path: Path) -> None:
    (path,) = touch(tmp_path, "a.jsonl")
    (found,) = found_in([os.path.relpath(path)])
    assert found == path


@pytest.mark.parametrize("name", ["missing.jsonl", "*.parquet", "empty"])
def test_an_input_that_matches_nothing_is_named_with_the_known_suffixes(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as refused:
        found_in([tmp_path / name])
    assert str(refused.value).startswith(f"no input file matches '{tmp_path / name}'; known suffixes: .jsonl, .ndjson,")


def test_no_input_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no input: name a file"):
        found_in([])


@pytest.mark.parametrize("pattern", ["a.yaml", "*"])
def test_a_named_file_of_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "a.yaml")
    with pytest.raises(UsageError, match=r"a\.yaml: unknown kind of file; .*\.ndjson"):
        found_in([tmp_path / pattern])


def test_jsonl_and_parquet_together_are_refused_naming_one_of_each(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl.gz", "c.parquet")
    with pytest.raises(UsageError, match=r"mixes JSONL \(.*a\.jsonl\) and Parquet \(.*c\.parquet\)"):
        found_in([tmp_path])


def test_a_dangling_link_is_refused_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"cannot read .*a\.jsonl: No such file"):
        found_in([tmp_path])


def test_a_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="not a regular file"):
        found_in([tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    (path,) = touch(tmp_path, "a.jsonl")
    path.chmod(0)
    with pytest.raises(UsageError, match="Permission denied"):
        found_in([path])
