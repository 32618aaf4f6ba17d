"""What a finished run of an evaluation comes to: graded, scored, compared with its baseline, and decided upon.

No call is made here: everything follows from the gold data, the run's answers, the votes that judges cast, and the
baseline. So a run can be judged again at no cost.
"""

from __future__ import annotations

import hashlib
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
from pipeline.evaluation.graders.grading import Gold, grade_row
from pipeline.evaluation.graders.verdicts import Graded, Scored
from pipeline.evaluation.nested import with_nested
from pipeline.evaluation.reducers import Flaky, flaky, scored
from pipeline.evaluation.stats.tables import Confusion, Tables, confusions, tables
from pipeline.faults import NothingToDo, UsageError
from pipeline.storage.dataset import MANIFEST
from pipeline.storage.durable import FILES

FOLDER = "_eval"
SCORES = "scores.json"
NOISE = "noise.json"
REFERENCE = "reference.json"
REPEATS = "_repeats"

_HEADLINES = ("row_correct", "schema_valid", "accuracy", "f1", "f1_macro")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """All that is known of a run of an evaluation.

    `graded` has every row of every repeat, `tables`, `confusions` and `flaky` what they come to. `comparison` is with
    `against` (a baseline's file, a commit), when there is one. `notes` are what a reader must know, a sentence each.
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
        """Whether a gate says that the run is not good enough."""
        return any(decision.outcome == "fail" for decision in self.decisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a run is compared with. `of` says what that is. `common_only` allows other data or graders."""

    of: str
    scores: Baseline
    common_only: bool = False


def output_of(output: Path, repeat: int) -> Path:
    """Where the answers of a repeat are: those of the first are the dataset, the others lie inside of it."""
    return output if repeat == 0 else output / REPEATS / f"{repeat:03d}"


def status_of(output: Path) -> str:
    """What has become of a run: `complete`, `failed` (too many rows), or `stopped` while rows are left to ask."""
    try:
        return str(orjson.loads((output / MANIFEST).read_bytes())["status"])
    except FileNotFoundError:
        return "stopped"


def require_finished(output: Path) -> None:
    """Raises `UsageError` when rows of the run in a folder, or of one of its repeats, are left to ask."""
    for folder in (output, *sorted((output / REPEATS).glob("*"))):
        if status_of(folder) == "stopped":
            raise UsageError(f"the run in {folder} is not finished: the same `pipeline eval` again resumes it")


def graded_rows(evaluation: Eval, gold: Sequence[Gold], output: Path) -> tuple[Graded, ...]:
    """Every row of every repeat, graded but for what judges have to say.

    Raises `UsageError` when the answers are not those to the gold data.
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
    """The scores of a run, with the fingerprints of what they were made from; `job` is that of the job which ran."""
    return Baseline(
        evaluation=name,
        model=job["model"],
        version=__version__,
        simulated=simulated,
        repeats=evaluation.repeats,
        job={field: _digest(text) for field, text in job.items()},
        graders={field: _digest(text) for field, text in fingerprints(evaluation.graders).items()},
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
    """The run, judged. Raises `UsageError` when the reference is of other data or graders and this is not allowed."""
    before, comparison, told = None, None, list(notes)
    if reference is not None:
        before, told_of = comparable_rows(reference, scores)
        told += told_of
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
        notes=tuple(told),
    )


def comparable_rows(reference: Reference, scores: Baseline) -> tuple[tuple[Scored, ...], list[str]]:
    """The reference's rows that may be compared, and what is to be said of it.

    Raises `UsageError` for what is unlike: answers of the emulator and real ones always, changed data or graders unless
    `common_only`, which leaves only the rows that are the same in both.
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
        *([f"graded otherwise: {', '.join(graders)}"] if graders else []),
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
    """The scores of these rows alone."""
    return replace(
        scores,
        rows=tuple(row for row in scores.rows if row.row in rows),
        data={row: data for row, data in scores.data.items() if row in rows},
    )


def noise_of(evaluation: Eval, graded: Sequence[Graded]) -> Comparison:
    """What differs between the first two repeats, in which nothing was changed."""
    first, second = ([row for row in graded if row.repeat == repeat] for repeat in (0, 1))
    return compare(scored(first), scored(second), least=evaluation.least, seed=evaluation.seed)


def write_noise(folder: Path, noise: Comparison, scores: Baseline) -> None:
    """Keeps what flips by itself, for the scores of later runs of the same job under the same graders."""
    FILES.make_folder(folder)
    flips = sorted([*noise.broken, *noise.fixed])
    kept = {"share": len(flips) / noise.rows, "rows": flips, "of": _what_flips(scores)}
    FILES.write_atomic(folder / NOISE, orjson.dumps(kept))


def with_noise(scores: Baseline, folder: Path) -> Baseline:
    """The scores with what was kept by `write_noise`, if it was, and still holds."""
    try:
        noise = orjson.loads((folder / NOISE).read_bytes())
    except FileNotFoundError:
        return scores
    if noise.get("of") != _what_flips(scores):
        return scores
    return replace(scores, noise=noise["share"], flaky=tuple(noise["rows"]))


def keep_reference(folder: Path, reference: Reference) -> None:
    """Keeps what a run was compared with where that is no file of its own: the job at another commit."""
    FILES.make_folder(folder)
    kept = {"of": reference.of, "scores": to_text(reference.scores, timed=True)}
    FILES.write_atomic(folder / REFERENCE, orjson.dumps(kept))


def kept_reference(folder: Path) -> Reference | None:
    """What was kept by `keep_reference`, if anything was."""
    try:
        kept = orjson.loads((folder / REFERENCE).read_bytes())
    except FileNotFoundError:
        return None
    return Reference(of=kept["of"], scores=from_text(kept["scores"]))


def write(folder: Path, assessment: Assessment) -> None:
    """Keeps what was graded and scored, so that it can be decided upon again."""
    FILES.make_folder(folder)
    results.write(folder, assessment.graded)
    FILES.write_atomic(folder / SCORES, to_text(assessment.scores, timed=True).encode())


def read_scores(path: Path) -> Baseline:
    """The scores of a finished run (its output folder) or of a baseline (a file). Raises `UsageError` without any."""
    if path.is_dir():
        require_finished(path)
    file = path / FOLDER / SCORES if path.is_dir() else path
    try:
        return from_text(file.read_text())
    except FileNotFoundError:
        remedy = "run `pipeline eval` first" if path.is_dir() else "write it with `pipeline bless`"
        raise UsageError(f"there is no {file}: {remedy}") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _what_flips(scores: Baseline) -> str:
    return _digest(orjson.dumps([scores.job, scores.graders], option=orjson.OPT_SORT_KEYS).decode())


def _differs(before: Baseline, now: Baseline, field: str) -> bool:
    return before.graders.get(field) != now.graders.get(field)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
