"""Loads a job from a Python file, or makes one for an input that contains its requests; applies overrides."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.faults import UsageError
from pipeline.job.errors import advised, explained
from pipeline.job.job import Job
from pipeline.job.local_imports import importable_beside
from pipeline.text import nearest

_T = TypeVar("_T")

_JOB_FILE = re.compile(r"(.*?\.py)(?::(.*))?", re.DOTALL)


def is_job_file(target: str) -> bool:
    """Whether a target names a Python file rather than an input."""
    return _JOB_FILE.fullmatch(target) is not None


def file_and_name(target: str) -> tuple[str, str]:
    """The file of a target, and the name of what it defines, as in `a.py:NAME`; empty if none is given.

    Folders may have colons in their names, too: `out:1/a.py`.
    """
    found = _JOB_FILE.fullmatch(target)
    path, name = (found[1], found[2]) if found else target.partition(":")[::2]
    return path, name or ""


def sha256_of(target: str) -> str | None:
    """The digest of a job's file; None when the target names no file, or it cannot be read."""
    if not is_job_file(target):
        return None
    try:
        return hashlib.sha256(Path(file_and_name(target)[0]).read_bytes()).hexdigest()
    except OSError:
        return None


def load_job(target: str) -> Job:
    """The job defined by a Python file: `FILE.py`, or `FILE.py:NAME` if it is not called `job`."""
    return load_defined(target, Job, "job", "write `job = Job(...)`")


def load_defined(target: str, kind: type[_T], usual: str, remedy: str) -> _T:
    """The object of type `kind` in a Python file: by its name in the target, its `usual` name, or as the only one."""
    path_text, name = file_and_name(target)
    path = Path(path_text)
    if not path.is_file():
        beside = [str(other) for other in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        close = nearest(path_text, beside)
        raise UsageError(f"there is no job file {path_text!r}{close if 'did you mean' in close else ''}")
    try:
        path_text.encode()
    except UnicodeEncodeError:  # bytes that are not text come from the system as lone surrogates
        raise UsageError(f"{path_text!a}: a name that is not UTF-8 cannot be recorded; rename it") from None
    module = _run_file(path)
    value = getattr(module, name or usual, None)
    if isinstance(value, kind):
        return value
    found = {key: value for key, value in vars(module).items() if isinstance(value, kind)}
    if value is None and len(found) == 1 and not name:
        return next(iter(found.values()))
    missing = f"{path_text} defines no {usual} called {name or usual!r}"
    if found:
        raise UsageError(f"{missing}; it has {', '.join(found)}: name one as {path_text}:{next(iter(found))}")
    if value is not None:
        raise UsageError(f"{missing}: that is a {type(value).__name__}; {remedy}")
    raise UsageError(f"{missing}; {_other_kind(path_text, module) or remedy}")


def _other_kind(path: str, module: ModuleType) -> str | None:
    """The command for what a file does define, if it has an evaluation instead of a job, or the reverse."""
    kinds = {type(one).__name__ for one in vars(module).values() if type(one).__module__.startswith("pipeline.")}
    if "Eval" in kinds:
        return f"it has an evaluation: `pipeline eval {path}` runs it"
    return f"it has a job: `pipeline run {path}` runs it" if "Job" in kinds else None


def job_of_requests(paths: Sequence[str]) -> Job:
    """A job without a prompt, for an input whose rows already are requests."""
    stem = Path(paths[0]).name.split(".")[0]
    name = "".join(char if char.isalpha() or char.isdecimal() or char == "-" else "_" for char in stem)
    return Job(name=name.strip("_-") or "requests", input=list(paths))


def overridden(job: Job, changes: Mapping[str, Any], assignments: Sequence[str] = ()) -> Job:
    """The job with fields changed: `changes` by name, then `FIELD=VALUE` texts (`google.thinking_config.x=1` too)."""
    merged = {name: value for name, value in changes.items() if value is not None}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set takes FIELD=VALUE, not {assignment!r}")
        field, *keys = path.strip().split(".")
        _require_field(field)
        current = merged.get(field, getattr(job, field))
        merged[field] = _assigned(current, keys, _value(text))
    try:
        return job.replace(**merged) if merged else job
    except ValidationError as error:
        raise UsageError(explained(error)) from None


def _run_file(path: Path) -> ModuleType:
    """The module of a job file. It can import from its folder and the working directory, after all other paths."""
    importable_beside(path)
    name = f"pipeline_job_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through sys.modules
    try:
        spec.loader.exec_module(module)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {explained(error)}") from None
    except SystemExit as error:  # it would end the run with its own exit code
        message = f"a job file is loaded, not run: remove its sys.exit({error.code})"
        raise UsageError(f"{_place(error, path)}: {message}") from None
    except Exception as error:  # a user's file may raise anything, and the user has to fix it
        raise UsageError(f"{_place(error, path)}: {type(error).__name__}: {_reason(error)}") from error
    return module


class _Uncached(SourceFileLoader):
    """Ignores bytecode, which counts as current when a change left the time (in seconds) and the size the same."""

    def path_stats(self, path: Any) -> Any:
        raise OSError(f"no bytecode is wanted of {path}")


def _reason(error: Exception) -> str:
    """The message of an error in a job file, with the remedy if there is just one."""
    match error:
        case SyntaxError():  # its text would repeat the place
            return error.msg
        case ImportError() if "relative import" in str(error):
            return f"{error}: a job file belongs to no package, so write `from name import ...` without the dot"
        case ModuleNotFoundError(name=str(name)):
            file = f"{name.partition('.')[0]}.py"
            return f"{error}: install it into the environment of `pipeline`, or put {file} beside the job file"
        case EOFError():
            return f"{error}: a job file cannot ask questions"
    return str(error)


def _place(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _require_field(name: str) -> None:
    known = [field.name for field in fields(Job)]
    if name not in known:
        raise UsageError(f"a job has no field {name!r}{advised(name, known)}")


def _value(text: str) -> Any:
    """The parsed value if the text is JSON (0.5, true, ["a"]), otherwise the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _assigned(current: Any, keys: Sequence[str], value: Any) -> Any:
    if not keys:
        return value
    inner = dict(current) if isinstance(current, Mapping) else {}
    inner[keys[0]] = _assigned(inner.get(keys[0]), keys[1:], value)
    return inner
