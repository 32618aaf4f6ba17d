"""Derives from the options of `pipeline eval` the evaluations, the runs of their jobs, and the endpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.host import Terminal
from pipeline.evaluation.definition import Eval, load_evaluation
from pipeline.evaluation.gold import read_gold
from pipeline.evaluation.workspace import ANSWER_KEY, EvalWorkspace, at_commit, name_of, settings_in
from pipeline.execution.emulation import simulation_of
from pipeline.execution.identity import inputs_of, survey_of
from pipeline.execution.options import connection_of, settings_of
from pipeline.execution.settings import Settings
from pipeline.execution.target import Target
from pipeline.job.loader import file_and_name, overridden
from pipeline.store.address import local_path

if TYPE_CHECKING:
    from pipeline.cli.options import RunOptions
    from pipeline.job.job import Job


def subject_of(target: str, options: RunOptions, repeats: int | None, *, least: int = 1) -> EvalWorkspace:
    """The evaluation that the command line describes, with at `least` that many repeats and its gold data read."""
    evaluation = _changed(load_evaluation(target), options, repeats)
    evaluation = evaluation.replace(repeats=max(least, evaluation.repeats))
    gold = read_gold(evaluation, survey_of(evaluation.job, limit=options.limit))
    output = local_path(options.output) if options.output else Path("out") / name_of(target)
    return EvalWorkspace(evaluation, target, output, gold, options.emulate, options.limit is not None)


def subject_at(reference: str, subject: EvalWorkspace, options: RunOptions) -> EvalWorkspace:
    """The same rows and graders, for the job as of a commit, changed by the same options."""
    inputs = [str(local_path(path).absolute()) for path in inputs_of(subject.evaluation.job)]
    path, name = file_and_name(subject.target)
    target = os.path.relpath(path) + (f":{name}" if name else "")  # an absolute path would name the current file

    def load() -> Job:
        return _changed(load_evaluation(target), options, None).job.replace(input=inputs)

    return at_commit(subject, reference, load)


def runs_of(subject: EvalWorkspace, options: RunOptions) -> list[tuple[Job, Settings]]:
    """The runs to make: the job, once for each repeat."""
    job = subject.evaluation.job
    connection = connection_of(options, job)
    return [
        (job, settings_in(subject, settings_of(options, subject.target, output, connection, repeat=repeat)))
        for repeat, output in enumerate(subject.outputs)
    ]


def place_of(subject: EvalWorkspace, options: RunOptions) -> Target:
    """Where to ask. An emulator is given the gold data, so that it errs only as `--field-error` says."""
    simulation = simulation_of(options)
    if simulation is not None:
        simulation = [*simulation, f"--answer-key={subject.folder / ANSWER_KEY}"]
    return Target(connection_of(options, subject.evaluation.job), simulation, Terminal(options.quiet))


def _changed(evaluation: Eval, options: RunOptions, repeats: int | None) -> Eval:
    changes = {"model": options.model, "input": options.inputs, **options.of_input()}
    job = overridden(evaluation.job, changes, options.assignments or ())
    return evaluation.replace(job=job, repeats=repeats or evaluation.repeats)
