"""The keyword options of calls from Python: the names of the command line, checked like there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict

from pipeline.execution.deadline import duration_s
from pipeline.execution.options import CallOptions
from pipeline.faults import UsageError
from pipeline.store.address import local_path
from pipeline.text import nearest


class RunKeywords(TypedDict, total=False):
    """Options of `pipeline.run` and its kin. docs/running.md describes each under its name on the command line."""

    include: str | Sequence[str]
    input_rows: str
    allow_partial: bool
    model: str
    limit: int
    concurrency: int
    adaptive: bool
    rpm: float
    tpm: float
    budget_usd: float
    budget_tokens: float
    prices: str | Path
    assume_price: str
    give_up_after: float
    hedge_share: float
    fresh: bool
    retry_failed: bool
    fail_fast: bool
    keep_replies: bool
    drain_timeout: float
    deadline: float | str
    cache: bool
    cache_dir: str | Path
    project: str
    location: str | Sequence[str]
    endpoint_id: str
    base_url: str | Sequence[str]
    credentials: str | Path
    emulate: bool
    latency: float
    quota_rps: float
    token_lifetime: float
    fault: str | Sequence[str]
    field_error: str | Sequence[str]
    state_dir: str | Path
    progress: bool


ELSEWHERE = {
    "processes": "calls from Python use one process; `pipeline run JOB.py --processes N` shares the work",
    "input": "name the input with `rows`",
    "inputs": "name the input with `rows`",
    "set": "change the job itself, as in job.replace(temperature=0)",
    "assignments": "change the job itself, as in job.replace(temperature=0)",
    "quiet": "nothing is shown unless progress=True",
    "json": "the result has a `summary`",
    "as_json": "the result has a `summary`",
    "report": "`pipeline report OUTPUT` writes the report",
    "log_level": "configure `logging` for the loggers below `pipeline`",
    "log_format": "configure `logging` for the loggers below `pipeline`",
    "metrics": "the result has a `summary`; `pipeline run --metrics FILE` writes a file",
    "otel": "`pipeline run --otel` sends metrics",
}
"""Options of the command line that calls from Python do not take, and what does the same there."""

_LEAST: Mapping[str, float] = {
    "limit": 1,
    "concurrency": 1,
    "rpm": 0.001,
    "tpm": 1,
    "budget_usd": 1e-9,
    "budget_tokens": 1,
    "give_up_after": 0,
    "hedge_share": 0,
    "drain_timeout": 0,
    "deadline": 0.001,
    "latency": 0,
    "quota_rps": 0.001,
    "token_lifetime": 0.1,
}
_WHOLE = ("limit", "concurrency")
_LISTS = ("include", "location", "base_url", "fault", "field_error")
_PATHS = ("prices", "cache_dir", "credentials", "state_dir")
_FLAGS = ("allow_partial", "adaptive", "fresh", "retry_failed", "fail_fast", "keep_replies", "cache", "emulate")
_VARIABLES = {
    "project": "GOOGLE_CLOUD_PROJECT",
    "location": "GOOGLE_CLOUD_LOCATION",
    "base_url": "OPENAI_BASE_URL",
    "cache_dir": "PIPELINE_CACHE_DIR",
    "state_dir": "PIPELINE_STATE_DIR",
}
"""The variables that stand for options that are not given, as for the command line."""


def options_of(keywords: Mapping[str, Any]) -> tuple[CallOptions, Path | None]:
    """The options, and the folder for the state of runs whose output is an address.

    None stands for an option that is not given. Raises `UsageError` for an unknown option or a value that it does not
    take.
    """
    given = {name: value for name, value in keywords.items() if value is not None and name != "progress"}
    for name in given:
        _require_known(name)
    for name, variable in _VARIABLES.items():
        if name not in given and (text := os.environ.get(variable)):
            given[name] = text.split() if name in _LISTS else text
    found = {name: _value(name, value) for name, value in given.items()}
    state_dir = found.pop("state_dir", None)
    return CallOptions(**found), state_dir


def _require_known(name: str) -> None:
    if name in ELSEWHERE:
        raise UsageError(f"there is no option {name!r} in Python: {ELSEWHERE[name]}")
    known = [one.name for one in fields(CallOptions)]
    if name not in (*known, "state_dir"):
        raise UsageError(f"there is no option {name!r}{nearest(name, [*known, 'state_dir', 'progress'])}")


def _value(name: str, value: Any) -> Any:
    if name in _LISTS:
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
        if not all(isinstance(one, str) for one in texts):
            raise UsageError(f"{name} takes a text or a list of texts, not {value!r}")
        return texts
    if name in _PATHS:
        if not isinstance(value, str | Path):
            raise UsageError(f"{name} takes a path, not {value!r}")
        return local_path(value)
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise UsageError(f"{name} is True or False, not {value!r}")
        return value
    if name == "deadline" and isinstance(value, str):
        return duration_s(value)
    if name in _LEAST:
        kind = int if name in _WHOLE else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not value >= _LEAST[name]:
            whole = "whole " if name in _WHOLE else ""
            raise UsageError(f"{name} takes a {whole}number from {_LEAST[name]:g} on, not {value!r}")
    if name == "hedge_share" and value > 0.5:
        raise UsageError(f"hedge_share takes a number up to 0.5, not {value!r}")
    return value


_FLAG = re.compile(r"--([a-z][a-z-]+)")
_AS_PARAMETERS = {"output": "output", "input": "rows", **{name: f"{name}=True" for name in _FLAGS}}


@contextmanager
def in_python() -> Iterator[None]:
    """A block whose `UsageError` names options as Python does: `fresh=True` for `--fresh`."""
    try:
        yield
    except UsageError as error:
        raise type(error)(_FLAG.sub(_parameter, str(error))) from error.__cause__


def _parameter(flag: re.Match[str]) -> str:
    name = flag[1].replace("-", "_")
    if name.startswith("no_") and name[3:] in _FLAGS:
        return f"{name[3:]}=False"
    known = name in RunKeywords.__annotations__ or name in _AS_PARAMETERS
    return _AS_PARAMETERS.get(name, name) if known else flag[0]
