"""The subject of the evaluation commands: an evaluation, its gold data, and the folder of its answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import Row
from pipeline.evaluation.assessment import (
    NOISE,
    SCORES,
    Assessment,
    Reference,
    assess,
    comparable_rows,
    graded_rows,
    keep_reference,
    kept_reference,
    only,
    output_of,
    read_scores,
    require_finished,
    scores_of,
    with_noise,
)
from pipeline.evaluation.at_commit import commit_of, loaded_at
from pipeline.evaluation.baseline import from_text, to_text
from pipeline.evaluation.definition import Eval, load_evaluation
from pipeline.evaluation.gates import require_rows
from pipeline.evaluation.gold import read_gold
from pipeline.evaluation.graders.judge import PENDING
from pipeline.evaluation.graders.rows import Gold
from pipeline.evaluation.graders.verdicts import Graded
from pipeline.evaluation.judge_job import JUDGE, VOTES
from pipeline.evaluation.results import read
from pipeline.execution.job_trust import target_of
from pipeline.execution.run_status import status_of
from pipeline.faults import Broken, InvalidRow, UsageError
from pipeline.job.loader import file_and_name
from pipeline.source import Survey, changed
from pipeline.storage.durable import FILES, PRIVATE_FILE
from pipeline.storage.run_folder import EVALUATION, REFERENCE, REPEATS, RunFolder, RunIdentity
from pipeline.store.address import local_path
from pipeline.text import short_hash

if TYPE_CHECKING:
    from pipeline.evaluation.baseline import Baseline
    from pipeline.execution.settings import Settings
    from pipeline.job.job import Job

ANSWER_KEY = "answer_key.jsonl"
HISTORY = "history.jsonl"
"""One line for every evaluation run into the folder."""


@dataclass(frozen=True)
class EvalWorkspace:
    """An evaluation with its gold data and output folder.

    `simulated` says whether the emulator answers, `sampled` whether only the first rows of the gold data are asked.
    """

    evaluation: Eval
    target: str
    output: Path
    gold: tuple[Gold, ...]
    simulated: bool
    sampled: bool = False
    address: str | None = None
    """The address of the output, where `output` is a copy of it."""

    @property
    def place(self) -> str:
        """The output, as its user named it."""
        return self.address or str(self.output)

    @property
    def name(self) -> str:
        """Its name: that of its file, followed by its own if the target names one."""
        return name_of(self.target)

    @property
    def folder(self) -> Path:
        """The folder of its results."""
        return self.output / EVALUATION

    def scores(self, graded: Sequence[Graded], job: Mapping[str, str]) -> Baseline:
        """The scores of graded rows; `job` is the fingerprint of the job that was asked."""
        scores = scores_of(self.evaluation, self.gold, graded, name=self.name, job=job, simulated=self.simulated)
        return with_noise(scores, self.folder)

    def check(self, reference: Reference | None) -> None:
        """Raises `UsageError`, before any call, when the result could not be compared or a gate not decided."""
        require_rows(self.evaluation.gates, [gold.slices for gold in self.gold])
        if reference is not None:
            comparable_rows(reference, self.scores((), self.evaluation.job.fingerprint()))

    def graded(self) -> tuple[Graded, ...]:
        """The answers in the folder, graded; questions to judges are still open."""
        return graded_rows(self.evaluation, self.gold, self.output)

    def assessed(self, graded: Sequence[Graded], reference: Reference | None, notes: Sequence[str] = ()) -> Assessment:
        """The assessment of the run in the folder."""
        extra = [f"only the first {len(self.gold)} rows were asked (--limit): nothing final"] if self.sampled else []
        baseline = self.evaluation.baseline
        if reference is None and baseline is not None:
            extra.append(f"there is no {baseline} to compare with: `pipeline bless {self.place}` writes it")
        scores = self.scores(graded, plan_in(self.output).job)
        return assess(self.evaluation, scores, graded, reference, [*notes, *extra])

    @property
    def outputs(self) -> list[Path]:
        """The folder of each repeat's answers."""
        return [output_of(self.output, repeat) for repeat in range(self.evaluation.repeats)]

    @property
    def status(self) -> str:
        """The status of the run in the folder, which this process has finished or read: the worst of its repeats."""
        found = {status_of(output, held=True) for output in self.outputs}
        return next(status for status in ("stopped", "failed", "complete") if status in found)

    @property
    def run_id(self) -> str:
        """The id of the run in the folder."""
        return plan_in(self.output).run_id

    @cached_property
    def answer_key(self) -> bytes:
        """The gold answers for the emulator: one line for each request that can be built."""
        return _answer_key(self)


def begin(subjects: Sequence[EvalWorkspace]) -> None:
    """Removes the results of earlier answers, which are about to be replaced. Votes, noise floor and history stay.

    For the emulator, the gold answers of all workspaces are written to the folder of the first.
    """
    for subject in subjects:
        repeats = sorted((subject.output / REPEATS).glob("*"))[subject.evaluation.repeats - 1 :]
        found = list(subject.folder.glob("*"))
        rounds = [path for path in found if path.name.startswith(JUDGE)]
        others = [path for path in rounds if not path.name.startswith(f"{JUDGE}{subject.run_id}")]
        for folder in [path for path in (*repeats, *others) if path.is_dir()]:
            shutil.rmtree(folder)
        made = [path for path in found if path.name not in (NOISE, VOTES, HISTORY) and path not in rounds]
        FILES.remove(path for path in (*made, *others) if path.is_file())
    first = subjects[0]
    if first.simulated:
        FILES.make_folder(first.folder)
        key = b"".join(subject.answer_key for subject in subjects)
        FILES.write_atomic(first.folder / ANSWER_KEY, key, mode=PRIVATE_FILE)


def at_commit(subject: EvalWorkspace, reference: str, load: Callable[[], Job]) -> EvalWorkspace:
    """The same rows and graders for the job that `load` loads as of a commit, as far as its schema has their fields."""
    commit = commit_of(reference)
    try:
        job = loaded_at(commit, load)
    except UsageError as error:
        raise UsageError(f"at {reference}: {error}") from error
    known = set((job.shape.json_schema.get("properties") or {}) if job.shape else subject.evaluation.fields)
    fields = {name: grader for name, grader in subject.evaluation.fields.items() if name in known}
    evaluation = subject.evaluation.replace(job=job, fields=fields, gates=())
    gold = tuple(_without_unknown(one, evaluation) for one in subject.gold)
    return replace(subject, evaluation=evaluation, gold=gold, output=subject.output / REFERENCE)


def settings_in(subject: EvalWorkspace, settings: Settings) -> Settings:
    """The settings of a run, as an evaluation needs them."""
    # Gates need all rows, and may be about how many of them fail.
    fail_fast = "alike" if settings.fail_fast == "job" else settings.fail_fast
    settings = replace(settings, fail_fast=fail_fast, fresh=settings.fresh or subject.simulated)
    reuse = settings.bounds.reuse
    if reuse is None:
        return settings
    # The answer key affects the emulator's answers. It is part of the cache key, though not of the run's identity.
    known = f" knowing {short_hash(subject.answer_key)}" if subject.simulated else ""
    bounds = replace(settings.bounds, reuse=replace(reuse, endpoint=reuse.endpoint + known))
    return replace(settings, bounds=bounds, supersede=True)


def name_of(target: str) -> str:
    """The name of a target's file, followed by that of the evaluation if given."""
    path, name = file_and_name(target)
    return "-".join(filter(None, [Path(path).stem, name]))


def plan_in(output: Path) -> RunIdentity:
    """The plan of the run in a folder. Raises `UsageError` when there is none."""
    return RunFolder(output).require()


def subject_in(output: Path, target: str | None, address: str | None = None) -> EvalWorkspace:
    """The evaluation of the finished run in a folder. Raises `UsageError` when its gold data has changed since."""
    plan = plan_in(output)
    require_finished(output)
    target = target_of(plan, output, target)
    found = Survey.from_json(plan.survey)
    if differences := changed(found):
        raise UsageError(f"the gold data has changed since the run: {differences[0]}; run `pipeline eval` again")
    evaluation = load_evaluation(target)
    # Judges and the number of repeats are those of the command line when it ran.
    evaluation = evaluation.replace(
        job=evaluation.job.replace(model=plan.job["model"] or evaluation.job.model),
        repeats=read_scores(output).repeats if (output / EVALUATION / SCORES).exists() else evaluation.repeats,
    )
    gold = read_gold(evaluation, found)
    return EvalWorkspace(evaluation, target, output, gold, plan.simulated, plan.limit is not None, address)


def baseline_of(subject: EvalWorkspace, *, common: bool) -> Reference | None:
    """The evaluation's baseline; None when it names none, or none has been blessed yet.

    A sample of the gold data is compared with the same rows of the baseline: rows not asked have not failed.
    """
    path = subject.evaluation.baseline
    if path is None or not local_path(path).exists():
        return None
    scores = read_scores(local_path(path))
    if subject.sampled:
        scores = only(scores, {gold.row for gold in subject.gold})
    return Reference(of=str(path), scores=scores, common_only=common)


def reference_in(subject: EvalWorkspace, *, common: bool) -> Reference | None:
    """What the run in the folder was compared with: the job at another commit, or else the current baseline."""
    kept = kept_reference(subject.folder)
    return baseline_of(subject, common=common) if kept is None else replace(kept, common_only=common)


def same_graders(subject: EvalWorkspace) -> None:
    """Raises `UsageError` when the leaves in the folder were graded by different graders than the file's."""
    before, now = read_scores(subject.output).graders, subject.scores((), plan_in(subject.output).job).graders
    if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        again = f"pipeline grade {subject.place} --job {subject.target}"
        raise UsageError(f"the graders of {', '.join(changed)} changed: run `{again}` to apply them")


def reference_of(
    name: str, subject: EvalWorkspace, rival: EvalWorkspace, graded: Sequence[Graded], *, common: bool
) -> Reference:
    """The rival as the subject's reference: same gold data, same graders. It is saved."""
    own, scores = subject.scores((), plan_in(subject.output).job), rival.scores(graded, plan_in(rival.output).job)
    scores = replace(scores, data=own.data, graders=own.graders)
    reference = Reference(of=name, scores=scores, common_only=common)
    keep_reference(subject.folder, reference)
    return reference


def blessed(output: Path, to: Path | None, *, allow_emulated: bool) -> Path:
    """Writes the baseline and reads it back; returns its path.

    Raises `UsageError` for a run that is incomplete, was sampled, has too many failed rows, or was emulated.
    """
    plan, scores = plan_in(output), read_scores(output)
    for folder in [output_of(output, repeat) for repeat in range(scores.repeats)]:
        if status_of(folder) != "complete":
            raise UsageError(
                f"too many rows of {folder} failed for a baseline: `pipeline eval --retry-failed` asks again"
            )
    if plan.limit is not None:
        raise UsageError(
            f"only the first {plan.limit} rows were asked, and a baseline needs all: run again without --limit"
        )
    if plan.simulated and not allow_emulated:
        raise UsageError(
            "the emulator's answers are not a baseline for real ones; --allow-emulated blesses them anyway"
        )
    if any(
        leaf.label == PENDING for row in read(output / EVALUATION) for leaves in row.fields.values() for leaf in leaves
    ):
        raise UsageError("questions to judges are open: `pipeline eval` asks them")
    path = to or load_evaluation(target_of(plan, output, None, name_it="name the baseline's file with --to")).baseline
    if path is None:
        raise UsageError("the evaluation names no `baseline`: name the file with --to")
    kept, file = from_text(to_text(scores)), local_path(path)
    FILES.make_folder(file.parent)
    FILES.write_atomic(file, to_text(kept).encode())
    if read_scores(file) != kept:
        raise Broken(f"{file} does not hold what was written to it")
    return file


def _without_unknown(gold: Gold, evaluation: Eval) -> Gold:
    """The gold row without fields that the evaluation's schema lacks."""
    if evaluation.graders.whole or not isinstance(gold.expected, Mapping):
        return gold
    known = {name: value for name, value in gold.expected.items() if name in evaluation.graders.fields}
    return replace(gold, expected=known)


def _answer_key(subject: EvalWorkspace) -> bytes:
    lines = []
    for ordinal, gold in enumerate(subject.gold):
        try:
            request = subject.evaluation.job.request(Row(ordinal, gold.columns))
        except InvalidRow:  # the run reports it
            continue
        said = [message for message in request.payload["messages"] if message.get("role") == "user"]
        if said:
            known = {"prompt": _text(said[-1].get("content")), "answer": gold.expected}
            lines.append(json.dumps(known, ensure_ascii=False, default=str) + "\n")
    return "".join(lines).encode("utf-8", "surrogatepass")


def _text(content: Any) -> str:
    if not isinstance(content, list):
        return str(content)
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")
