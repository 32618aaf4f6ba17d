"""Job files and overrides: what is wrong with one is said in a sentence, with the place and the remedy."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.data import Row
from pipeline.evaluation.definition import load_evaluation
from pipeline.faults import UsageError
from pipeline.job.errors import FIELD_WORDS
from pipeline.job.job import Job
from pipeline.job.loader import is_job_file, job_of_requests, load_job, overridden

HEAD = "from pipeline import Job\n"


@pytest.fixture(autouse=True)
def _imports_as_before() -> Iterator[None]:
    """Loading a job file makes its folder importable, which the next test must not notice."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def written(folder: Path, text: str, name: str = "my_job.py") -> str:
    path = folder / name
    path.write_text(dedent(text))
    return str(path)


def complaint(target: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_job(target)
    return str(caught.value)


# Which job.


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("jobs/extract.py", True),
        ("extract.py:other", True),
        ("rows.jsonl", False),
        ("rows.parquet", False),
        ("data/", False),
        ("a.py.jsonl", False),
        ("gs://bucket/rows.jsonl", False),
    ],
)
def test_a_python_file_is_a_job_file_and_nothing_else(target: str, expected: bool) -> None:  # noqa: FBT001 - a table
    assert is_job_file(target) is expected


def test_the_job_called_job_is_the_one(tmp_path: Path) -> None:
    target = written(tmp_path, HEAD + "other = Job(name='other', user='x')\njob = Job(name='it', user='x')\n")
    assert load_job(target).name == "it"
    assert load_job(f"{target}:other").name == "other"


def test_the_only_job_needs_no_name(tmp_path: Path) -> None:
    assert load_job(written(tmp_path, HEAD + "extract = Job(name='it', user='x')\n")).name == "it"


def test_of_several_jobs_without_the_name_one_must_be_named(tmp_path: Path) -> None:
    target = written(tmp_path, HEAD + "first = Job(name='a', user='x')\nsecond = Job(name='b', user='x')\n")
    assert (
        complaint(target) == f"{target} defines no job called 'job'; it has first, second: name one as {target}:first"
    )


def test_a_file_without_a_job_says_what_to_write(tmp_path: Path) -> None:
    target = written(tmp_path, "x = 1\n")
    assert complaint(target) == f"{target} defines no job called 'job'; write `job = Job(...)`"


def test_a_name_that_the_file_does_not_have_is_answered_with_those_it_has(tmp_path: Path) -> None:
    target = written(tmp_path, HEAD + "job = Job(name='a', user='x')\n")
    assert complaint(f"{target}:jop") == f"{target} defines no job called 'jop'; it has job: name one as {target}:job"


def test_something_else_that_is_called_job_is_no_job(tmp_path: Path) -> None:
    assert "defines no job called 'job'" in complaint(written(tmp_path, "def job(): ...\n"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert complaint(f"{tmp_path}/gone.py") == f"there is no job file '{tmp_path}/gone.py'"
    assert "there is no job file" in complaint(f"{tmp_path}:job")


# What a job file may do.


def test_a_job_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "TEXT = 'Say {{ word }}.'\n", "prompts_beside.py")
    job = load_job(written(tmp_path, HEAD + "from prompts_beside import TEXT\njob = Job(name='a', user=TEXT)\n"))
    assert job.request(Row(0, {"word": "hi"})).payload["messages"] == [{"role": "user", "content": "Say hi."}]


def test_models_of_a_job_file_with_postponed_annotations_are_resolved(tmp_path: Path) -> None:
    target = written(
        tmp_path,
        """\
        from __future__ import annotations
        import datetime
        from pydantic import BaseModel
        from pipeline import Job

        class Inner(BaseModel):
            day: datetime.date

        class Outer(BaseModel):
            inners: list[Inner]

        job = Job(name="a", user="x", schema=Outer)
        """,
    )
    shape = load_job(target).shape
    assert shape is not None
    assert str(shape.arrow_type()).startswith("struct<inners: list<element: struct<day: date32")


def test_two_job_files_of_the_same_name_are_two_jobs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, HEAD + f"job = Job(name='{name}', user='x')\n")
    assert [load_job(str(tmp_path / name / "my_job.py")).name for name in ("one", "two")] == ["one", "two"]


# What may be wrong with it.


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    target = written(tmp_path, HEAD + "\njob = Job(name='a'\n")
    assert complaint(target).startswith(f"{target}:3: SyntaxError: ")


def test_a_syntax_error_beside_the_job_file_is_told_with_its_own_place(tmp_path: Path) -> None:
    beside = written(tmp_path, "a = 1\nb = = 2\n", "broken_beside.py")
    target = written(tmp_path, "\n\n\n\nimport broken_beside\n")
    assert complaint(target).startswith(f"{beside}:2: SyntaxError: ")


def test_an_exception_is_told_with_the_line_of_the_job_file(tmp_path: Path) -> None:
    target = written(tmp_path, HEAD + "\nmodels = {}\nname = models['x']\n")
    assert complaint(target) == f"{target}:4: KeyError: 'x'"


def test_an_exception_in_a_library_is_told_with_the_line_that_called_it(tmp_path: Path) -> None:
    target = written(tmp_path, "import json\n\njson.loads('{')\n")
    assert complaint(target).startswith(f"{target}:3: JSONDecodeError: ")


def test_an_import_that_fails_is_told(tmp_path: Path) -> None:
    target = written(tmp_path, "import no_such_module_anywhere\n")
    said = complaint(target)
    assert said.startswith(f"{target}:1: ModuleNotFoundError: No module named 'no_such_module_anywhere': install it")


@pytest.mark.parametrize("schema", ["list[Answer]", "dict", "int", "[1]", "Answer(a=1)"])
def test_a_schema_of_another_kind_is_told_what_it_may_be(tmp_path: Path, schema: str) -> None:
    head = "from pydantic import BaseModel\nfrom pipeline import Job\nclass Answer(BaseModel):\n    a: int\n"
    target = written(tmp_path, f"{head}job = Job(name='a', user='x', schema={schema})\n")
    assert "for a list, wrap it in a model with one field" in complaint(target)
    assert "Path" not in complaint(target)


def test_an_unknown_field_is_answered_with_the_nearest(tmp_path: Path) -> None:
    target = written(tmp_path, HEAD + "job = Job(name='a', user='x', temprature=0)\n")
    assert complaint(target) == f"{target}: a job has no field 'temprature'; did you mean 'temperature'?"


def test_an_unknown_field_like_no_other_is_answered_with_where_all_are_listed(tmp_path: Path) -> None:
    said = complaint(written(tmp_path, HEAD + "job = Job(name='a', user='x', qqqq=0)\n"))
    assert said.endswith("a job has no field 'qqqq' (docs/jobs.md lists all)")


def test_a_missing_name_and_a_value_out_of_bounds_are_both_told(tmp_path: Path) -> None:
    said = complaint(written(tmp_path, HEAD + "job = Job(user='x', temperature=3)\n"))
    assert "the job needs a 'name'" in said
    assert "`temperature` takes at most 2, not 3" in said


def test_a_broken_template_is_told_with_the_file_the_field_and_its_line(tmp_path: Path) -> None:
    target = written(tmp_path, HEAD + "job = Job(name='a', user='Hello\\n{{ text')\n")
    assert complaint(target).startswith(f"{target}: the template of `user` is broken at line 2: ")


# Overrides.


class TextAnswer(BaseModel):
    text: str


JOB = Job(name="a", user="{{ text }}", schema=TextAnswer, temperature=0.0, google={"thinking_config": {"a": 1, "b": 2}})


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("temperature=0.5", "temperature", 0.5),
        ("max_tokens=100", "max_tokens", 100),
        ("stream=true", "stream", True),
        ("temperature=null", "temperature", None),
        ('stop=["a","b"]', "stop", ["a", "b"]),
        ("stop=END", "stop", "END"),
        ("user=Say {{ text }} = {{ text }}!", "user", "Say {{ text }} = {{ text }}!"),
        ("model=google/gemini-3.5-flash", "model", "google/gemini-3.5-flash"),
        (' model = "x"', "model", "x"),
        ("tier=flex", "tier", "flex"),
        ('rename={"a":"b"}', "rename", {"a": "b"}),
        ("rename.a=b", "rename", {"a": "b"}),
        ("extra.logit_bias.50256=-100", "extra", {"logit_bias": {"50256": -100}}),
        ("google.thinking_config.a=5", "google", {"thinking_config": {"a": 5, "b": 2}}),
        ("google.cached_content=x", "google", {"thinking_config": {"a": 1, "b": 2}, "cached_content": "x"}),
        ("google=null", "google", None),
    ],
)
def test_set_takes_values_typed_and_nested(assignment: str, field: str, value: object) -> None:
    assert getattr(overridden(JOB, {}, [assignment]), field) == value


def test_set_changes_a_copy_and_leaves_the_job_alone() -> None:
    overridden(JOB, {}, ["google.thinking_config.a=5", "temperature=1"])
    assert JOB.google == {"thinking_config": {"a": 1, "b": 2}}
    assert JOB.temperature == 0.0


def test_set_may_be_repeated_and_the_last_one_counts() -> None:
    job = overridden(JOB, {}, ["google.x=1", "google.y=2", "seed=1", "seed=2"])
    assert job.google == {"thinking_config": {"a": 1, "b": 2}, "x": 1, "y": 2}
    assert job.seed == 2


def test_flags_change_fields_and_absent_flags_change_none() -> None:
    assert overridden(JOB, {"model": "m", "input": None}).model == "m"
    assert overridden(JOB, {"model": None}) is JOB


def test_what_is_set_is_compiled_and_checked_like_what_was_written() -> None:
    job = overridden(JOB, {}, ["user=Now {{ other }}"])
    assert job.columns_needed(["other", "text"]) == ["other"]


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("temperature", "--set takes FIELD=VALUE, not 'temperature'"),
        ("temprature=1", "a job has no field 'temprature'; did you mean 'temperature'?"),
        ("=1", "a job has no field ''"),
        ("temperature=hot", "`temperature` takes a number, not 'hot'"),
        ("temperature=3", "`temperature` takes at most 2, not 3"),
        ("temperature.x=1", "`temperature` takes a number, not {'x': 1}"),
        ("temperature=NaN", "`temperature` takes at most 2, not nan"),
        ("max_tokens=0.5", "`max_tokens` takes a whole number, not 0.5"),
        ("name=a b", "`name` takes letters, digits, `_`, `-` and `.`"),
        ("reasoning_effort=low", "`reasoning_effort` and google's `thinking_config` exclude each other"),
        ("user={{ text", "the template of `user` is broken at line 1"),
        ("keep=id", "`keep` takes a list, as in ['id'], not 'id'"),
    ],
)
def test_what_cannot_be_set_is_told_in_a_sentence(assignment: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        overridden(JOB, {}, [assignment])
    assert str(caught.value).startswith(said)


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.text(), _JSON)
def test_no_assignment_raises_anything_but_misuse(text: str, value: Any) -> None:
    for assignment in (text, f"extra={text}", f"google.{text}={value}", f"temperature={value}", f"rename={value}"):
        try:
            job = overridden(JOB, {}, [assignment])
        except UsageError:
            continue
        assert isinstance(job, Job)


# Jobs for inputs that carry their requests.


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/messages.jsonl", "messages"),
        ("messages.jsonl.gz", "messages"),
        ("my requests (1).jsonl", "my_requests__1"),
        ("part-*.parquet", "part"),
        ("*.jsonl", "requests"),
        ("data/", "data"),
        ("größe.jsonl", "größe"),
    ],
)
def test_an_input_of_requests_is_a_job_called_after_its_file(path: str, name: str) -> None:
    job = job_of_requests([path, "more.jsonl"])
    assert (job.name, job.input, job.carries_requests) == (name, [path, "more.jsonl"], True)


@settings(deadline=None)
@given(st.text(min_size=1))
def test_any_input_has_a_name_for_its_job(path: str) -> None:
    assert job_of_requests([path.replace("\0", "")]).name


def test_a_job_file_is_read_anew_however_quickly_it_was_changed(tmp_path: Path) -> None:
    """Also when neither the second of its last change nor its size tells that it was."""
    target = written(tmp_path, "from pipeline import Job\njob = Job(name='a', user='one')\n")
    path = Path(target)
    stamp = path.stat()
    assert load_job(target).user == "one"
    path.write_text(path.read_text().replace("one", "two"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load_job(target).user == "two"


# Known words, and values of the wrong kind.


def test_every_known_word_is_no_field_and_leads_to_one() -> None:
    """What other tools call a field is answered with its name here, and the name exists."""
    known = {field.name for field in dataclasses.fields(Job)}
    words = [word for words in FIELD_WORDS for word in words.split()]
    assert len(words) == len(set(words))
    assert not known & set(words)
    for remedy in FIELD_WORDS.values():
        for name in re.findall(r"`(\w+)(?:=.*)?`", remedy):
            assert name in known, remedy


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("prompt='x'", "a job has no field 'prompt': the prompt is `user`"),
        ("user='x', response_model=dict", "a job has no field 'response_model': it is `schema`"),
        (
            "user='x', concurrency=5",
            "a job has no field 'concurrency': it is an option of `pipeline run`: --concurrency",
        ),
        ("user=5", "`user` takes a template as text, a function of the row, or a list of templates and media columns"),
        ("user='x', max_failed='10%'", "`max_failed` takes a number of rows, or a share below 1, not '10%'"),
        ("user='x', locations='us-central1'", "`locations` takes a list, as in ['us-central1'], not 'us-central1'"),
        ("messages=['hi']", "takes a list of dicts with `role` and `content`"),
        ("user='x', tools=['x']", "a tool is a Python function or a pydantic model, not 'x'"),
        ("user='{{ a | uper }}'", "there is no filter 'uper'; did you mean 'upper'?"),
        ("user='{% if a is defned %}x{% endif %}'", "there is no test 'defned'; did you mean 'defined'?"),
        ("user='{% if a %}{{ b | lowr }}{% endif %}'", "there is no filter 'lowr'; did you mean 'lower'?"),
    ],
)
def test_a_field_that_is_wrong_is_answered_with_what_to_write(fields: str, said: str, tmp_path: Path) -> None:
    """In one sentence, without the words of the validation library."""
    told = complaint(written(tmp_path, HEAD + f"job = Job(name='a', {fields})\n"))
    assert said in told
    assert "input should" not in told


def test_fields_by_position_are_answered_with_how_to_name_them(tmp_path: Path) -> None:
    """`Job("a", "google/x")` is what a newcomer tries first."""
    told = complaint(written(tmp_path, HEAD + "job = Job('a', 'google/x', 'rows.jsonl')\n"))
    assert told.endswith("a job takes its fields by name, as in Job(name=...)")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import sys\nsys.exit(3)\n", ":2: a job file is loaded, not run: remove its sys.exit(3)"),
        ("from .common import x\n", "write `from name import ...` without the dot"),
        ("import no_such.thing\n", "No module named 'no_such': install it into the environment of `pipeline`"),
        ("x = (1,\n", ":1: SyntaxError: '(' was never closed"),
        ("job = {'name': 'x'}\n", "defines no job called 'job': that is a dict; write `job = Job(...)`"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_what_to_change(source: str, said: str, tmp_path: Path) -> None:
    """Whatever a file does when it is loaded ends in a sentence with its place, never in an exit code of its own."""
    target = written(tmp_path, source)
    told = complaint(target)
    assert told.startswith(target)
    assert said in told
    assert told.count("my_job.py") == told.count(target)


def test_a_file_that_is_not_there_is_answered_with_its_neighbour(tmp_path: Path) -> None:
    """A typo in the path is found by its likeness."""
    written(tmp_path, HEAD, "moods.py")
    assert complaint(f"{tmp_path}/mood.py").endswith(f"mood.py'; did you mean '{tmp_path}/moods.py'?")


def test_a_file_of_the_other_kind_is_answered_with_its_command(tmp_path: Path) -> None:
    """A job is run, and an evaluation evaluated."""
    target = written(tmp_path, HEAD + "job = Job(name='a', user='x')\n")
    with pytest.raises(UsageError, match=f"it has a job: `pipeline run {target}` runs it"):
        load_evaluation(target)


@pytest.mark.parametrize("prompt", ["Say {text}", "Say {text} and {id}", "{{ 'a' }} {text}"])
def test_a_prompt_with_single_braces_is_refused_before_every_row_is_asked_the_same(prompt: str) -> None:
    """As in an f-string: the template would name no column."""
    with pytest.raises(UsageError, match=r"the prompt has \{text\} in single braces"):
        Job(name="a", user=prompt).columns_needed(["id", "text"])


@pytest.mark.parametrize("prompt", ["Say hi", "Answer as {json}", "Say {{ text }} as {text}"])
def test_other_single_braces_are_text(prompt: str) -> None:
    """A prompt may show JSON, or name its columns and have braces besides."""
    Job(name="a", user=prompt).columns_needed(["id", "text"])


def test_a_job_file_whose_name_is_not_utf8_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """The plan of a run names it, and is JSON."""
    path = tmp_path / os.fsdecode(b"\xff.py")
    path.write_text("")
    with pytest.raises(UsageError, match=r"udcff.py': a name that is not UTF-8 cannot be recorded; rename it"):
        load_job(str(path))
