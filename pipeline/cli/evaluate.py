"""`pipeline eval`, `grade`, `gate`, `compare` and `bless`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import EVALUATION, AsJson, RunOptions, StateFolder, with_options
from pipeline.cli.remote_output import address_of
from pipeline.cli.stores import reading_stores
from pipeline.faults import UsageError
from pipeline.store.address import Address, local_path, local_text, place_of
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.evaluation.graders.verdicts import Graded
    from pipeline.evaluation.workspace import EvalWorkspace

EvalFileArgument = Annotated[
    str,
    typer.Argument(metavar="FILE.py", help="A file with an evaluation: FILE.py or FILE.py:NAME.", parser=local_text),
]
Evaluated = Annotated[str, typer.Argument(help="The output folder of `pipeline eval`, or its address.")]
JobFile = Annotated[
    str | None,
    typer.Option(
        "--job", "-j", metavar="FILE.py", help="The evaluation's file (default: the one that ran).", parser=local_text
    ),
]
Common = Annotated[
    bool,
    typer.Option(
        "--common-rows",
        metavar="",
        help="If gold data or graders have changed, compare only the rows they have in common.",
        rich_help_panel=EVALUATION,
    ),
]


@with_options
def evaluate(
    target: EvalFileArgument,
    *,
    repeats: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many times to ask every row.",
            min=1,
            show_default="the evaluation's",
            rich_help_panel=EVALUATION,
        ),
    ] = None,
    vs_ref: Annotated[
        str | None,
        typer.Option(
            "--vs-ref",
            help="Compare with the job as of this commit.",
            metavar="GITREF",
            rich_help_panel=EVALUATION,
        ),
    ] = None,
    noise_floor: Annotated[
        bool,
        typer.Option(
            "--noise-floor",
            metavar="",
            help="Ask every row twice, and record how many flip although nothing changed.",
            rich_help_panel=EVALUATION,
        ),
    ] = False,
    common: Common = False,
    state_dir: StateFolder = None,
    options: RunOptions,
) -> int:
    """Run a job on gold data, grade its answers, and apply the gates."""
    from pipeline.cli.remote_evaluation import evaluated_at

    place = place_of(options.output or "")  # refused now, before the job is loaded
    if vs_ref is not None and noise_floor:
        raise UsageError("--vs-ref and --noise-floor cannot be combined: run one after the other")
    with reading_stores(options.credentials), ExitStack() as stack:
        address = None
        if isinstance(place, Address):
            address = str(place).rstrip("/")
            options = replace(options, output=str(stack.enter_context(evaluated_at(place, state_dir))))
        return _evaluate(target, repeats, vs_ref, options, address, noise_floor=noise_floor, common=common)


def _evaluate(
    target: str,
    repeats: int | None,
    vs_ref: str | None,
    options: RunOptions,
    address: str | None,
    *,
    noise_floor: bool,
    common: bool,
) -> int:
    """Evaluates in a folder of this machine; `address` is that of the output which is a copy of it."""
    from pipeline.cli.eval_output import report_result, report_stopped
    from pipeline.cli.eval_setup import place_of, subject_at, subject_of
    from pipeline.cli.report import prompts_of, put_page
    from pipeline.cli.samples import for_the_eye
    from pipeline.evaluation import workspace
    from pipeline.evaluation.judges import ask_all, judged, require_prices
    from pipeline.evaluation.preparation import runs_of
    from pipeline.execution.group import execute_group

    options = replace(options, cache=options.cache is not False)
    subject = subject_of(target, options, repeats, least=2 if noise_floor else 1, address=address)
    rival = None if vs_ref is None else subject_at(vs_ref, subject, options)
    reference = None if rival or noise_floor else workspace.baseline_of(subject, common=common)
    subject.check(reference)
    subjects = [subject] if rival is None else [subject, rival]
    jobs = [run for one in subjects for run in runs_of(one, options)]
    require_prices(subject, jobs[0][1])
    place = place_of(subject, options)
    with execute_group(jobs, place, begin=lambda: workspace.begin(subjects)) as together:
        rounds = [] if together.stopped else ask_all(subjects, jobs[0][1], place, together.paid)
        if (last := [together, *rounds][-1]).stopped:
            return report_stopped(last, as_json=options.as_json)
        graded, notes = judged(subject, subject.graded())
        if noise_floor:
            return _noise(subject, graded, as_json=options.as_json)
        if rival is not None:
            others, _ = judged(rival, rival.graded())
            reference = workspace.reference_of(str(vs_ref), subject, rival, others, common=common)
        assessment = subject.assessed(graded, reference, notes)
        own = together.first(subject.evaluation.repeats)
        code = report_result(assessment, subject, [own, *rounds], as_json=options.as_json)
    if options.report:
        with for_the_eye("the page of the evaluation"):
            page = put_page(subject.output, assessment=assessment, prompts=prompts_of(subject))
            shown = f"{address}/{page.name}" if address else str(page)
            print(f"report      {printable(shown)}", file=sys.stderr)
    return code


def _noise(subject: EvalWorkspace, graded: Sequence[Graded], *, as_json: bool) -> int:
    """Stores and prints which rows flip between two identical repeats."""
    from pipeline.cli.eval_output import report_noise
    from pipeline.evaluation.assessment import noise_of, write_noise
    from pipeline.evaluation.workspace import plan_in

    noise = noise_of(subject.evaluation, graded)
    write_noise(subject.folder, noise, subject.scores((), plan_in(subject.output).job))
    return report_noise(noise, subject.place, as_json=as_json)


def grade(evaluated: Evaluated, *, job: JobFile = None, common: Common = False, as_json: AsJson = False) -> int:
    """Grade the answers of a finished run again and apply the gates, without a call."""
    from pipeline.cli.eval_output import report_result
    from pipeline.cli.remote_evaluation import graded_at
    from pipeline.evaluation import workspace
    from pipeline.evaluation.judges import judged

    with reading_stores(), graded_at(evaluated) as folder:
        subject = workspace.subject_in(folder, job, address_of(evaluated))
        graded, notes = judged(subject, subject.graded())
        reference = workspace.reference_in(subject, common=common)
        return report_result(subject.assessed(graded, reference, notes), subject, [], as_json=as_json)


def gate(evaluated: Evaluated, *, job: JobFile = None, common: Common = False, as_json: AsJson = False) -> int:
    """Apply the gates to a graded run again, without a call."""
    from pipeline.cli.eval_output import report_result
    from pipeline.cli.remote_evaluation import graded_at
    from pipeline.evaluation import workspace
    from pipeline.evaluation.results import read

    with reading_stores(), graded_at(evaluated) as folder:
        subject = workspace.subject_in(folder, job, address_of(evaluated))
        workspace.same_graders(subject)
        reference = workspace.reference_in(subject, common=common)
        return report_result(subject.assessed(tuple(read(subject.folder)), reference), subject, [], as_json=as_json)


def compare(
    before: Annotated[
        str, typer.Argument(help="An output of `pipeline eval`, a folder or an address, or a baseline file.")
    ],
    after: Annotated[str, typer.Argument(help="The later one, of either kind.")],
    *,
    common: Common = False,
    as_json: AsJson = False,
) -> int:
    """Compare two evaluated runs row by row."""
    from pipeline.cli.eval_output import report_comparison
    from pipeline.cli.remote_evaluation import evaluation_at
    from pipeline.evaluation.assessment import Reference, comparable_rows, read_scores
    from pipeline.evaluation.comparison import compare as compared

    with reading_stores(), evaluation_at(before) as earlier, evaluation_at(after) as later:
        of = address_of(before) or str(earlier)
        reference, scores = Reference(of=of, scores=read_scores(earlier), common_only=common), read_scores(later)
    rows, notes = comparable_rows(reference, scores)
    return report_comparison(compared(rows, scores.rows, common_only=common), reference, scores, notes, as_json=as_json)


def bless(
    evaluated: Evaluated,
    *,
    to: Annotated[
        Path | None, typer.Option(help="The baseline file (default: the evaluation's).", parser=local_path)
    ] = None,
    allow_emulated: Annotated[bool, typer.Option("--allow-emulated", help="Accept answers of the emulator.")] = False,
) -> int:
    """Save the scores of a run as the baseline for later runs."""
    from pipeline.cli.remote_evaluation import evaluation_at
    from pipeline.evaluation import workspace

    with reading_stores(), evaluation_at(evaluated) as folder:
        print(workspace.blessed(folder, to, allow_emulated=allow_emulated))
    return 0
