"""Prepares an evaluation for its runs: its gold data, the runs of its repeats, and where they are executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.definition import Eval
from pipeline.evaluation.gold import read_gold
from pipeline.evaluation.workspace import ANSWER_KEY, EvalWorkspace, settings_in
from pipeline.execution.emulation import simulation_of
from pipeline.execution.identity import survey_of
from pipeline.execution.options import CallOptions, connection_of, settings_of
from pipeline.execution.settings import Settings
from pipeline.execution.target import Supervisor, Target
from pipeline.job.loader import overridden

if TYPE_CHECKING:
    from pipeline.job.job import Job


def changed_by(
    evaluation: Eval,
    options: CallOptions,
    *,
    inputs: Sequence[str | Path] | None = None,
    assignments: Sequence[str] = (),
    repeats: int | None = None,
) -> Eval:
    """The evaluation with the overrides of its job, and of its repeats."""
    changes = {"model": options.model, "input": inputs, **options.of_input()}
    job = overridden(evaluation.job, changes, assignments)
    return evaluation.replace(job=job, repeats=repeats or evaluation.repeats)


def workspace_of(
    evaluation: Eval, target: str, output: Path, options: CallOptions, *, address: str | None = None
) -> EvalWorkspace:
    """The evaluation with its gold data read, in an output folder, which is a copy of that at `address` if given."""
    gold = read_gold(evaluation, survey_of(evaluation.job, limit=options.limit))
    return EvalWorkspace(evaluation, target, output, gold, options.emulate, options.limit is not None, address)


def runs_of(subject: EvalWorkspace, options: CallOptions, *, in_host: bool = False) -> list[tuple[Job, Settings]]:
    """The runs to make: the job, once for each repeat. `in_host` as in `Settings`."""
    job = subject.evaluation.job
    connection = connection_of(options, job)
    made = [
        settings_in(subject, settings_of(options, subject.target, output, connection, repeat=repeat))
        for repeat, output in enumerate(subject.outputs)
    ]
    return [(job, replace(settings, in_host=in_host)) for settings in made]


def target_of(subject: EvalWorkspace, options: CallOptions, supervisor: Supervisor) -> Target:
    """Where to ask. An emulator is given the gold data, so that it errs only as `--field-error` says."""
    simulation = simulation_of(options)
    if simulation is not None:
        simulation = [*simulation, f"--answer-key={subject.folder / ANSWER_KEY}"]
    return Target(connection_of(options, subject.evaluation.job), simulation, supervisor)
