"""Options from variables and from `[tool.pipeline]`: which one counts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import app
from pipeline.cli.configuration import ConfiguredCommand, option_name, options_of, variable_of
from tests.commands import JOB, Shell
from tests.servers import Answer, Call, chat, served

GROUP: Any = typer.main.get_command(app)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(3)
    return shell


def configured(shell: Shell, *arguments: str, **variables: str) -> dict[str, tuple[Any, str]]:
    """The value of each option, and where it is from, as `pipeline config` says."""
    done = Shell(shell.folder, {**shell.variables, **variables}).pipeline("config", *arguments, "--json")
    assert done.code == 0, done
    return {one["option"]: (one["value"], one["from"]) for one in done.json["options"]}


def test_a_flag_overrides_a_variable_that_overrides_the_job_that_overrides_the_file(shell: Shell) -> None:
    asked: list[str] = []

    def answer(call: Call) -> Answer:
        asked.append(call.json()["model"])
        return chat('{"answer": "a"}')

    shell.write("pyproject.toml", '[tool.pipeline]\nmodel = "file"\nlimit = 1\n')
    nameless = shell.write("nameless.py", JOB.replace('    model="google/gemini-test",\n', ""))
    with served(answer) as server:

        def model_of(job: str, *flags: str, **variables: str) -> str:
            asked.clear()
            one = Shell(shell.folder, {**shell.variables, **variables})
            done = one.pipeline("run", job, "--base-url", server.base_url, "--fresh", "--quiet", *flags)
            assert done.code == 0, done
            [model] = asked  # the file's limit counts in each of them
            return model

        assert model_of("job.py", "--model", "flag", PIPELINE_MODEL="variable") == "flag"
        assert model_of("job.py", PIPELINE_MODEL="variable") == "variable"
        assert model_of("job.py") == "google/gemini-test"
        assert model_of(nameless.name) == "file"
        assert model_of(nameless.name, "--processes", "2") == "file"  # workers load the job by themselves


def test_the_nearest_file_with_the_table_counts_and_its_paths_are_relative_to_it(shell: Shell) -> None:
    shell.write(
        "pyproject.toml", '[tool.pipeline]\ncache-dir = "replies"\ninput = ["rows.jsonl", "gs://b/x"]\nrpm = 5\n'
    )
    below = shell.folder / "below" / "further"
    below.mkdir(parents=True)
    (below / "pyproject.toml").write_text('[project]\nname = "pipeline"\n')  # it has no table of ours
    found = configured(Shell(below, shell.variables))
    assert found["--cache-dir"] == (str(shell.folder / "replies"), "[tool.pipeline]")
    assert found["--input"] == ([str(shell.folder / "rows.jsonl"), "gs://b/x"], "[tool.pipeline]")
    assert found["--rpm"] == ("5", "[tool.pipeline]")


def test_a_table_of_a_command_and_a_profile_override_the_table(shell: Shell) -> None:
    shell.write(
        "pyproject.toml",
        "[tool.pipeline]\nrpm = 1\nconcurrency = 1\ntpm = 1\n"
        "[tool.pipeline.eval]\nrpm = 2\n"
        "[tool.pipeline.profiles.nightly]\nconcurrency = 3\n"
        "[tool.pipeline.profiles.nightly.eval]\ntpm = 4\n",
    )
    assert [configured(shell)[name][0] for name in ("--rpm", "--concurrency", "--tpm")] == ["1", "1", "1"]
    assert [configured(shell, "eval")[name][0] for name in ("--rpm", "--concurrency", "--tpm")] == ["2", "1", "1"]
    for arguments, variables in ((("eval", "--profile", "nightly"), {}), (("eval",), {"PIPELINE_PROFILE": "nightly"})):
        found = configured(shell, *arguments, **variables)
        assert found["--tpm"] == ("4", "[tool.pipeline.profiles.nightly.eval]")
        assert found["--concurrency"] == ("3", "[tool.pipeline.profiles.nightly]")
    assert shell.pipeline("--profile", "nightly", "config", "--json").json["profile"] == "nightly"


def test_config_says_where_each_value_is_from_and_tells_no_secret(shell: Shell) -> None:
    shell.write("pyproject.toml", '[tool.pipeline]\nbase-url = ["https://user:CANARY-7@example.invalid/v1"]\n')
    found = configured(shell, "--job", "job.py", PIPELINE_RPM="30", PIPELINE_QUIET="")
    assert found["--rpm"] == ("30", "PIPELINE_RPM")
    assert found["--model"] == ("google/gemini-test", "job")
    assert found["--quiet"] == (False, "default")
    assert "CANARY" not in str(found["--base-url"])
    assert "CANARY" not in str(configured(shell, OPENAI_BASE_URL="https://user:CANARY-7@example.invalid/v1"))
    assert "PIPELINE_RPM" in Shell(shell.folder, {"PIPELINE_RPM": "30"}).pipeline("config").out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("concurency = 3", "[tool.pipeline] has no option 'concurency'; did you mean 'concurrency'?"),
        ('concurrency = "many"', "concurrency in [tool.pipeline]"),
        ("concurrency = 0", "concurrency in [tool.pipeline]"),
        ("concurrency = true", "concurrency in [tool.pipeline] is a text or a number, not True"),
        ('cache = "yes"', "cache in [tool.pipeline] is true or false, not 'yes'"),
        ("state-dir = 3", "state-dir in [tool.pipeline] is a text, not 3"),
        ("prices = 1.5", "prices in [tool.pipeline] is a text, not 1.5"),
        ("input = [1]", "input in [tool.pipeline] is a list of texts, not [1]"),
        ("fresh = true", "--fresh is for the command line only"),
        ("[tool.pipeline.runn]\nrpm = 1", "there is no command 'runn' for [tool.pipeline.runn]; did you mean 'run'?"),
        ("[tool.pipeline.show]\nrpm = 1", "[tool.pipeline.show] has no option 'rpm'"),
        ("[tool.pipeline.profiles]\nnightly = 3", "[tool.pipeline.profiles.nightly] is a table, not 3"),
        ("x = ", "is not TOML"),
    ],
)
def test_what_the_file_cannot_say_is_refused_before_anything_is_done(shell: Shell, text: str, said: str) -> None:
    shell.write("pyproject.toml", f"[tool.pipeline]\n{text}\n")
    done = shell.pipeline("run", "job.py", "--emulate")
    assert done.code == 2
    assert said in done.err, done.err
    assert str(shell.folder / "pyproject.toml") in done.err
    assert not (shell.folder / "out").exists()
    assert shell.pipeline("run", "--help").code == 0


def test_a_variable_that_is_refused_is_named_with_its_value(shell: Shell) -> None:
    def refused(**variables: str) -> str:
        done = Shell(shell.folder, {**shell.variables, **variables}).pipeline("run", "job.py", "--emulate")
        assert (done.code, (shell.folder / "out").exists()) == (2, False)
        return done.err

    assert "PIPELINE_CONCURRENCY takes a whole number, not 'many'" in refused(PIPELINE_CONCURRENCY="many")
    assert "PIPELINE_RPM takes at least 0.001, not 'nan'" in refused(PIPELINE_RPM="nan")
    assert "PIPELINE_CACHE does not take 'maybe'" in refused(PIPELINE_CACHE="maybe")


def test_a_limit_above_every_number_of_rows_is_none(shell: Shell) -> None:
    shell.write("in.csv", "id,text\n1,a\n2,b\n")
    for command in ("plan", "run"):
        emulated = ["--emulate"] if command == "run" else []
        done = shell.pipeline(command, "job.py", "--input", "in.csv", "--limit", "9" * 25, "--json", *emulated)
        assert (done.code, done.json["rows"]) == (0, 2), done


def test_the_help_names_each_variable_once(shell: Shell) -> None:
    assert shell.pipeline("run", "--help").out.count("PIPELINE_STATE_DIR") == 1


def test_a_profile_that_is_not_there_is_refused_with_the_nearest(shell: Shell) -> None:
    assert "there is no profile 'x'" in shell.pipeline("run", "job.py", "--profile", "x").err
    shell.write("pyproject.toml", "[tool.pipeline.profiles.nightly]\nrpm = 1\n")
    assert "did you mean 'nightly'?" in shell.pipeline("run", "job.py", "--profile=nightl").err
    assert "--profile takes the name" in shell.pipeline("run", "job.py", "--profile").err


def test_every_option_of_every_command_has_a_variable(shell: Shell) -> None:
    named = dict(GROUP.commands) | {f"cache {name}": one for name, one in GROUP.commands["cache"].commands.items()}
    for name, command in named.items():
        if name == "cache":
            continue
        assert isinstance(command, ConfiguredCommand), name
        for option in options_of(command):
            if option_name(option) not in {"fresh", "set", "help"}:
                assert option.envvar, (name, option.name)
                assert option.envvar[0] == variable_of(option_name(option)), (name, option.name)
    assert configured(shell, PIPELINE_PROJECT="ours", GOOGLE_CLOUD_PROJECT="theirs")["--project"][0] == "ours"


@given(
    st.dictionaries(
        st.sampled_from(["rpm", "input", "cache", "run", "profiles", "budget_usd", "output", "quiet"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=3,
    )
)
def test_a_table_of_any_types_is_read_or_refused(table: dict[str, Any]) -> None:
    from pipeline.cli import configuration
    from pipeline.faults import UsageError

    command = GROUP.commands["run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "_table_above", lambda _: (Path("/p/pyproject.toml"), table))
        try:
            found = configuration.configuration_of(GROUP, command, None)
            context = GROUP.make_context("pipeline", ["run"], resilient_parsing=True)
            found.of_options(command, context)
        except UsageError as error:
            assert "/p/pyproject.toml" in str(error)  # noqa: PT017 - it is refused, or not
