"""Derives from the options of `pipeline eval` the evaluations, the runs of their jobs, and the endpoint."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.host import Target
from pipeline.cli.run import connection_of, settings_of, simulation_of
from pipeline.evaluation.assessment import output_of
from pipeline.evaluation.at_commit import commit_of, loaded_at
from pipeline.evaluation.definition import Eval, load_evaluation
from pipeline.evaluation.gold import read_gold
from pipeline.evaluation.workspace import ANSWER_KEY, REFERENCE, EvalWorkspace, name_of, without_unknown
from pipeline.execution.run import Settings, inputs_of, survey_of
from pipeline.faults import UsageError
from pipeline.job.loader import overridden
from pipeline.store.address import local_path

if TYPE_CHECKING:
    from pipeline.cli.options import RunOptions
    from pipeline.job.job import Job


def subject_of(target: str, options: RunOptions, repeats: int | None, *, least: int = 1) -> EvalWorkspace:
    """The evaluation that the command line describes, with at `least` that many repeats and its gold data read."""
    evaluation = _changed(load_evaluation(target), options, repeats)
    evaluation = evaluation.replace(repeats=max(least, evaluation.repeats))
    gold = read_gold(evaluation, survey_of(evaluation.job, limit=options.limit))
    output = options.output or Path("out") / name_of(target)
    return EvalWorkspace(evaluation, target, output, gold, options.emulate, options.limit is not None)


def subject_at(reference: str, subject: EvalWorkspace, options: RunOptions) -> EvalWorkspace:
    """The same rows and graders, for the job as of a commit."""
    inputs = [str(local_path(path).absolute()) for path in inputs_of(subject.evaluation.job)]
    path, _, name = subject.target.partition(":")
    target = os.path.relpath(path) + (f":{name}" if name else "")  # an absolute path would name the current file

    def load() -> Job:
        there = _changed(load_evaluation(target), options, None)
        return there.job.replace(input=inputs)

    commit = commit_of(reference)
    try:
        job = loaded_at(commit, load)
    except UsageError as error:
        raise UsageError(f"at {reference}: {error}") from error
    known = set((job.shape.json_schema.get("properties") or {}) if job.shape else subject.evaluation.fields)
    fields = {name: grader for name, grader in subject.evaluation.fields.items() if name in known}
    evaluation = subject.evaluation.replace(job=job, fields=fields, gates=())
    gold = tuple(without_unknown(one, evaluation) for one in subject.gold)
    return replace(subject, evaluation=evaluation, gold=gold, output=subject.output / REFERENCE)


def runs_of(subject: EvalWorkspace, options: RunOptions) -> list[tuple[Job, Settings]]:
    """The runs to make: the job, once for each repeat."""
    evaluation = subject.evaluation
    connection = connection_of(options, evaluation.job)
    # The answer key affects the emulator's answers. It is part of the cache key, though not of the run's identity.
    known = f" knowing {hashlib.sha256(subject.answer_key).hexdigest()[:16]}" if subject.simulated else ""
    runs = []
    for repeat in range(evaluation.repeats):
        settings = settings_of(options, subject.target, output_of(subject.output, repeat), connection, repeat=repeat)
        if settings.fail_fast == "job":  # gates need all rows, and may be about how many of them fail
            settings = replace(settings, fail_fast="alike")
        reuse = settings.bounds.reuse
        if reuse is not None:
            bounds = replace(settings.bounds, reuse=replace(reuse, endpoint=reuse.endpoint + known))
            settings = replace(settings, bounds=bounds, supersede=True)
        runs.append((evaluation.job, replace(settings, fresh=settings.fresh or subject.simulated)))
    return runs


def place_of(subject: EvalWorkspace, options: RunOptions) -> Target:
    """Where to ask. An emulator is given the gold data, so that it errs only as `--field-error` says."""
    simulation = simulation_of(options)
    if simulation is not None:
        simulation = [*simulation, f"--answer-key={subject.folder / ANSWER_KEY}"]
    return Target(connection_of(options, subject.evaluation.job), simulation, quiet=options.quiet)


def _changed(evaluation: Eval, options: RunOptions, repeats: int | None) -> Eval:
    changes = {"model": options.model, "input": options.inputs, **options.of_input()}
    job = overridden(evaluation.job, changes, options.assignments or ())
    return evaluation.replace(job=job, repeats=repeats or evaluation.repeats)
