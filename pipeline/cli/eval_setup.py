"""Derives from the options of `pipeline eval` the evaluations, and the endpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.configuration import job_defaults
from pipeline.cli.host import Terminal
from pipeline.evaluation.definition import Eval, load_evaluation
from pipeline.evaluation.preparation import changed_by, target_of, workspace_of
from pipeline.evaluation.workspace import EvalWorkspace, at_commit, name_of
from pipeline.execution.identity import inputs_of
from pipeline.execution.target import Target
from pipeline.job.loader import file_and_name, overridden
from pipeline.store.address import is_address, local_path

if TYPE_CHECKING:
    from pipeline.cli.options import RunOptions
    from pipeline.job.job import Job


def subject_of(
    target: str, options: RunOptions, repeats: int | None, *, least: int = 1, address: str | None = None
) -> EvalWorkspace:
    """The evaluation that the command line describes, with at `least` that many repeats and its gold data read."""
    evaluation = _changed(load_evaluation(target), options, repeats)
    evaluation = evaluation.replace(repeats=max(least, evaluation.repeats))
    output = local_path(options.output) if options.output else Path("out") / name_of(target)
    return workspace_of(evaluation, target, output, options, address=address)


def subject_at(reference: str, subject: EvalWorkspace, options: RunOptions) -> EvalWorkspace:
    """The same rows and graders, for the job as of a commit, changed by the same options."""
    found = map(str, inputs_of(subject.evaluation.job))
    inputs = [path if is_address(path) else str(local_path(path).absolute()) for path in found]
    path, name = file_and_name(subject.target)
    target = os.path.relpath(path) + (f":{name}" if name else "")  # an absolute path would name the current file

    def load() -> Job:
        return _changed(load_evaluation(target), options, None).job.replace(input=inputs)

    return at_commit(subject, reference, load)


def place_of(subject: EvalWorkspace, options: RunOptions) -> Target:
    """Where to ask."""
    return target_of(subject, options, Terminal(options.quiet))


def _changed(evaluation: Eval, options: RunOptions, repeats: int | None) -> Eval:
    configured = evaluation.replace(job=overridden(evaluation.job, job_defaults(evaluation.job)))
    return changed_by(
        configured, options, inputs=options.inputs, assignments=options.assignments or (), repeats=repeats
    )
