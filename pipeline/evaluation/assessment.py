"""Assesses a finished run of an evaluation: grades, scores, compares with the baseline and decides the gates.

Makes no calls: everything follows from the gold data, the run's answers, the judges' votes and the baseline. So a run
can be assessed again at no cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from pipeline import __version__
from pipeline.evaluation import results
from pipeline.evaluation.baseline import Baseline, from_text, to_text
from pipeline.evaluation.comparison import Comparison, compare
from pipeline.evaluation.decisions import Decision, decide
from pipeline.evaluation.definition import Eval
from pipeline.evaluation.fingerprints import fingerprints
from pipeline.evaluation.gold import data_hash, read_answers
from pipeline.evaluation.graders.rows import Gold, grade_row
from pipeline.evaluation.graders.verdicts import Graded, Scored
from pipeline.evaluation.nested import with_nested
from pipeline.evaluation.reducers import Flaky, flaky, scored
from pipeline.evaluation.stats.tables import Confusion, Tables, confusions, tables
from pipeline.execution.run_status import status_of
from pipeline.faults import NothingToDo, UsageError
from pipeline.storage.durable import FILES
from pipeline.storage.run_folder import EVALUATION, REPEATS
from pipeline.text import short_hash

SCORES = "scores.json"
NOISE = "noise.json"
REFERENCE = "reference.json"

_HEADLINES = ("row_correct", "schema_valid", "accuracy", "f1", "f1_macro")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The complete result of an evaluation run.

    `graded` has every row of every repeat; `tables`, `confusions` and `flaky` summarise them. `comparison` is with
    `against` (a baseline file or a commit), if there is one. `notes` are caveats for the reader, a sentence each.
    """

    scores: Baseline
    graded: tuple[Graded, ...]
    tables: Tables
    confusions: tuple[Confusion, ...]
    flaky: tuple[Flaky, ...]
    decisions: tuple[Decision, ...]
    comparison: Comparison | None = None
    against: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a gate failed."""
        return any(decision.outcome == "fail" for decision in self.decisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The scores that a run is compared with. `of` names their origin.

    With `common_only`, changed gold data and graders are allowed, and only the rows that both have are compared.
    """

    of: str
    scores: Baseline
    common_only: bool = False


def output_of(output: Path, repeat: int) -> Path:
    """The folder of a repeat's answers: the first is the dataset itself, the others are folders inside it."""
    return output if repeat == 0 else output / REPEATS / f"{repeat:03d}"


def require_finished(output: Path) -> None:
    """Raises `UsageError` when the run in a folder, or one of its repeats, has rows left to ask."""
    for folder in (output, *sorted((output / REPEATS).glob("*"))):
        match status_of(folder):
            case "stopped":
                raise UsageError(f"the run in {folder} is not finished: the same `pipeline eval` again resumes it")
            case "running":
                raise UsageError(f"the run in {folder} is still in progress: wait until it has ended")


def graded_rows(evaluation: Eval, gold: Sequence[Gold], output: Path) -> tuple[Graded, ...]:
    """Every row of every repeat, graded except for the decisions of judges.

    Raises `UsageError` when the answers do not belong to the gold data.
    """
    rows: list[Graded] = []
    for repeat in range(evaluation.repeats):
        answers = list(read_answers(evaluation.job, output_of(output, repeat), repeat))
        if len(answers) != len(gold):
            raise UsageError(
                f"{output} has {len(answers)} answers to {len(gold)} rows of gold data: run `pipeline eval`"
            )
        rows += [grade_row(evaluation.graders, one, answer) for one, answer in zip(gold, answers, strict=True)]
    return tuple(rows)


def scores_of(
    evaluation: Eval,
    gold: Sequence[Gold],
    graded: Iterable[Graded],
    *,
    name: str,
    job: Mapping[str, str],
    simulated: bool,
) -> Baseline:
    """The scores of a run, with fingerprints of their origin; `job` is the fingerprint of the job that ran."""
    return Baseline(
        evaluation=name,
        model=job["model"],
        version=__version__,
        simulated=simulated,
        repeats=evaluation.repeats,
        job={field: short_hash(text) for field, text in job.items()},
        graders={field: short_hash(text) for field, text in fingerprints(evaluation.graders).items()},
        data={one.row: data_hash(one) for one in gold},
        rows=tuple(scored(graded, evaluation.reducer)),
    )


def assess(
    evaluation: Eval,
    scores: Baseline,
    graded: Sequence[Graded],
    reference: Reference | None = None,
    notes: Sequence[str] = (),
) -> Assessment:
    """Assesses the run. Raises `UsageError` when the reference has other data or graders and that is not allowed."""
    before, comparison, caveats = None, None, list(notes)
    if reference is not None:
        before, found_notes = comparable_rows(reference, scores)
        caveats += found_notes
        comparison = compare(
            before, scores.rows, common_only=reference.common_only, least=evaluation.least, seed=evaluation.seed
        )
    decisions = [
        decide(
            gate,
            scores.rows,
            baseline=before,
            common_only=reference is not None and reference.common_only,
            seed=evaluation.seed,
        )
        for gate in evaluation.gates
    ]
    found = tables(scores.rows, least=evaluation.least, seed=evaluation.seed)
    found = with_nested(found, graded, evaluation.graders, seed=evaluation.seed)
    headlines = {name: found.whole.measures[name].value for name in _HEADLINES}
    return Assessment(
        scores=replace(scores, measures={name: value for name, value in headlines.items() if value is not None}),
        graded=tuple(graded),
        tables=found,
        confusions=tuple(confusions(evaluation.graders, graded)),
        flaky=tuple(flaky(graded)),
        decisions=tuple(decisions),
        comparison=comparison,
        against=None if reference is None else reference.of,
        notes=tuple(caveats),
    )


def comparable_rows(reference: Reference, scores: Baseline) -> tuple[tuple[Scored, ...], list[str]]:
    """The reference's rows that may be compared, and notes about them.

    Raises `UsageError` when the runs are not comparable: emulated against real answers always, changed data or graders
    unless `common_only`, which keeps only the rows that are the same in both.
    """
    before = reference.scores
    if before.simulated != scores.simulated:
        which = "the emulator's" if before.simulated else "a real endpoint's"
        raise UsageError(f"{reference.of} has {which} answers, this run has not: bless a run of the same kind")
    changed = sorted(row for row, data in before.data.items() if scores.data.get(row, data) != data)
    added = sorted(scores.data.keys() - before.data.keys())
    graders = sorted(name for name in {*before.graders, *scores.graders} if _differs(before, scores, name))
    unlike = [
        *([f"{len(changed)} rows of the gold data were changed ({changed[0]})"] if changed else []),
        *([f"{len(added)} rows are new ({added[0]})"] if added else []),
        *([f"graded differently: {', '.join(graders)}"] if graders else []),
    ]
    if unlike and not reference.common_only:
        raise UsageError(
            f"{reference.of} is not comparable: {'; '.join(unlike)}. Bless a run again, or compare what is common "
            f"with --common-rows"
        )
    left_out = set(changed)
    rows = tuple(row for row in before.rows if row.row not in left_out)
    if reference.common_only and not any(row.row in scores.data for row in rows):
        raise NothingToDo(f"no row is the same as in {reference.of}, so nothing can be compared: bless a run again")
    said = [f"compared with {reference.of} on the common rows only: {'; '.join(unlike)}"] if unlike else []
    gone = len(before.data.keys() - scores.data.keys())
    if gone and not reference.common_only:
        said.append(f"{gone} rows of {reference.of} are missing: they count as failed")
    asked = [name for name in scores.job if before.job.get(name) != scores.job[name]]
    if asked:
        said.append(f"changed in the job since {reference.of}: {', '.join(asked)}")
    return rows, said


def only(scores: Baseline, rows: Collection[str]) -> Baseline:
    """The scores of these rows only."""
    return replace(
        scores,
        rows=tuple(row for row in scores.rows if row.row in rows),
        data={row: data for row, data in scores.data.items() if row in rows},
    )


def noise_of(evaluation: Eval, graded: Sequence[Graded]) -> Comparison:
    """Compares the first two repeats, between which nothing changed: the noise floor."""
    first, second = ([row for row in graded if row.repeat == repeat] for repeat in (0, 1))
    return compare(scored(first), scored(second), least=evaluation.least, seed=evaluation.seed)


def write_noise(folder: Path, noise: Comparison, scores: Baseline) -> None:
    """Saves the noise floor, for the scores of later runs of the same job under the same graders."""
    FILES.make_folder(folder)
    flips = sorted([*noise.broken, *noise.fixed])
    kept = {"share": len(flips) / noise.rows, "rows": flips, "of": _what_flips(scores)}
    FILES.write_atomic(folder / NOISE, orjson.dumps(kept))


def with_noise(scores: Baseline, folder: Path) -> Baseline:
    """The scores with the noise floor saved by `write_noise`, if there is one and it still applies."""
    try:
        noise = orjson.loads((folder / NOISE).read_bytes())
    except FileNotFoundError:
        return scores
    if noise.get("of") != _what_flips(scores):
        return scores
    return replace(scores, noise=noise["share"], flaky=tuple(noise["rows"]))


def keep_reference(folder: Path, reference: Reference) -> None:
    """Saves what a run was compared with if it has no file of its own: the job at another commit."""
    FILES.make_folder(folder)
    kept = {"of": reference.of, "scores": to_text(reference.scores, timed=True)}
    FILES.write_atomic(folder / REFERENCE, orjson.dumps(kept))


def kept_reference(folder: Path) -> Reference | None:
    """The reference saved by `keep_reference`, if any."""
    try:
        kept = orjson.loads((folder / REFERENCE).read_bytes())
    except FileNotFoundError:
        return None
    return Reference(of=kept["of"], scores=from_text(kept["scores"]))


def write(folder: Path, assessment: Assessment) -> None:
    """Saves the graded and scored rows, so that the gates can be decided again."""
    FILES.make_folder(folder)
    results.write(folder, assessment.graded)
    FILES.write_atomic(folder / SCORES, to_text(assessment.scores, timed=True).encode())


def read_scores(path: Path) -> Baseline:
    """The scores of a finished run (its output folder) or a baseline (a file). Raises `UsageError` without any."""
    if path.is_dir():
        require_finished(path)
    file = path / EVALUATION / SCORES if path.is_dir() else path
    try:
        return from_text(file.read_text())
    except FileNotFoundError:
        remedy = "run `pipeline eval` first" if path.is_dir() else "write it with `pipeline bless`"
        raise UsageError(f"there is no {file}: {remedy}") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _what_flips(scores: Baseline) -> str:
    return short_hash(orjson.dumps([scores.job, scores.graders], option=orjson.OPT_SORT_KEYS).decode())


def _differs(before: Baseline, now: Baseline, field: str) -> bool:
    return before.graders.get(field) != now.graders.get(field)
