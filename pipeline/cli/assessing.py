"""What the evaluation verbs work on: an evaluation, its gold data, and the folder of its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.running import connection_of, settings_of, simulation_of
from pipeline.cli.together import Place
from pipeline.data import Row
from pipeline.dataset import MANIFEST
from pipeline.disk import FILES, PRIVATE_FILE
from pipeline.evaluate import (
    FOLDER,
    Assessment,
    Reference,
    assess,
    comparable_rows,
    graded_rows,
    output_of,
    read_scores,
    scores_of,
    with_noise,
)
from pipeline.execute import Settings, inputs_of
from pipeline.faults import Broken, Misuse, Unusable
from pipeline.gold import read_gold
from pipeline.grade.baseline import from_text, to_text
from pipeline.grade.evaluation import Eval
from pipeline.grade.grading import Gold
from pipeline.grade.verdicts import Graded
from pipeline.jobfile import load_evaluation, overridden
from pipeline.plan import Plan, RunFolder
from pipeline.references import loaded_at
from pipeline.source import Survey, changed, survey

if TYPE_CHECKING:
    from pipeline.cli.options import Asking
    from pipeline.grade.baseline import Baseline
    from pipeline.job import Job

REFERENCE = "_ref"
"""Where the answers of the job at another commit are, inside of the output."""

ANSWER_KEY = "answer_key.jsonl"


@dataclass(frozen=True, slots=True)
class Subject:
    """An evaluation that is being looked into. `simulated` says whether the emulator answers."""

    evaluation: Eval
    target: str
    output: Path
    gold: tuple[Gold, ...]
    simulated: bool

    @property
    def name(self) -> str:
        """What it goes by: the name of its file."""
        return name_of(self.target)

    @property
    def folder(self) -> Path:
        """Where what was found out about it is kept."""
        return self.output / FOLDER

    def scores(self, graded: Sequence[Graded], job: Mapping[str, str]) -> Baseline:
        """The scores of graded rows; `job` is the fingerprint of the job that was asked."""
        scores = scores_of(self.evaluation, self.gold, graded, name=self.name, job=job, simulated=self.simulated)
        return with_noise(scores, self.folder)

    def check(self, reference: Reference | None) -> None:
        """Raises `Misuse`, before any call, when what comes out could not be compared."""
        if reference is not None:
            comparable_rows(reference, self.scores((), self.evaluation.job.fingerprint()))

    def graded(self) -> tuple[Graded, ...]:
        """The answers in the folder, graded; those of judges are open still."""
        return graded_rows(self.evaluation, self.gold, self.output)

    def assessed(self, graded: Sequence[Graded], reference: Reference | None, notes: Sequence[str] = ()) -> Assessment:
        """The run in the folder, judged."""
        plan = plan_in(self.output)
        told = [f"only the first {len(self.gold)} rows were asked (--limit): nothing final"] if plan.limit else []
        return assess(self.evaluation, self.scores(graded, plan.job), graded, reference, [*notes, *told])


def name_of(target: str) -> str:
    """The name of the file that a target is in."""
    return Path(target.partition(":")[0]).stem


def plan_in(output: Path) -> Plan:
    """The plan of the run in a folder. Raises `Misuse` when there is none."""
    plan = RunFolder(output).load()
    if plan is None:
        raise Misuse(f"{output} holds no run: `pipeline eval FILE.py` makes one")
    return plan


def subject_of(target: str, options: Asking, repeats: int | None) -> Subject:
    """The evaluation that the command line describes, with its gold data read."""
    evaluation = _changed(load_evaluation(target), options, repeats)
    gold = read_gold(evaluation, survey(inputs_of(evaluation.job), limit=options.limit))
    output = options.output or Path("out") / name_of(target)
    return Subject(evaluation, target, output, gold, options.emulate)


def subject_at(reference: str, subject: Subject, options: Asking) -> Subject:
    """The same rows and graders for the job as it stood at a commit."""
    inputs = [str(Path(path).absolute()) for path in inputs_of(subject.evaluation.job)]

    def load() -> Job:
        there = _changed(load_evaluation(subject.target), options, None)
        return there.job.replace(input=inputs)

    try:
        job = loaded_at(reference, load)
    except Misuse as error:
        raise Misuse(f"at {reference}: {error}") from error
    known = set((job.shape.json_schema.get("properties") or {}) if job.shape else subject.evaluation.fields)
    fields = {name: grader for name, grader in subject.evaluation.fields.items() if name in known}
    evaluation = subject.evaluation.replace(job=job, fields=fields, gates=())
    gold = tuple(_without_unknown(one, evaluation) for one in subject.gold)
    return replace(subject, evaluation=evaluation, gold=gold, output=subject.output / REFERENCE)


def subject_in(output: Path, target: str | None) -> Subject:
    """The evaluation whose finished run is in a folder. Raises `Misuse` when its gold data has changed since."""
    plan = plan_in(output)
    target = target or plan.target
    found = Survey.from_json(plan.survey)
    if differences := changed(found):
        raise Misuse(f"the gold data has changed since the run: {differences[0]}; run `pipeline eval` again")
    evaluation = load_evaluation(target)
    if (output / FOLDER).is_dir():
        evaluation = evaluation.replace(repeats=read_scores(output).repeats)
    return Subject(evaluation, target, output, read_gold(evaluation, found), plan.simulated)


def baseline_of(evaluation: Eval, *, common: bool) -> Reference | None:
    """The evaluation's baseline; None when it names none, or none has been blessed yet."""
    if evaluation.baseline is None or not Path(evaluation.baseline).exists():
        return None
    path = Path(evaluation.baseline)
    return Reference(of=str(path), scores=read_scores(path), common_only=common)


def runs_of(subject: Subject, options: Asking) -> list[tuple[Job, Settings]]:
    """What is to be run: the job, once for each repeat."""
    evaluation = subject.evaluation
    connection = connection_of(options, evaluation.job)
    runs = []
    for repeat in range(evaluation.repeats):
        settings = settings_of(options, subject.target, output_of(subject.output, repeat), connection, repeat=repeat)
        reuse = settings.bounds.reuse
        if reuse is not None and options.emulate:
            # What the emulator knows shapes its answers; the run's plan does not know that, the cache does.
            known = hashlib.sha256(_answer_key(subject)).hexdigest()[:16]
            bounds = replace(settings.bounds, reuse=replace(reuse, endpoint=f"{reuse.endpoint} knowing {known}"))
            settings = replace(settings, bounds=bounds, fresh=True)
        runs.append((evaluation.job, replace(settings, supersede=reuse is not None)))
    return runs


def place_of(subjects: Sequence[Subject], options: Asking) -> Place:
    """Where to ask. An emulator is given the gold data: it plays a model that errs as it is told, and no more."""
    simulation = simulation_of(options)
    if not options.emulate:
        return Place(connection_of(options, subjects[0].evaluation.job), None, quiet=options.quiet)
    path = subjects[0].folder / ANSWER_KEY
    FILES.make_folder(path.parent)
    FILES.put(path, b"".join(map(_answer_key, subjects)), mode=PRIVATE_FILE)
    connection = connection_of(options, subjects[0].evaluation.job)
    return Place(connection, [*simulation, f"--answer-key={path}"], quiet=options.quiet)


def reference_of(name: str, subject: Subject, rival: Subject, graded: Sequence[Graded], *, common: bool) -> Reference:
    """What a subject is compared with when it is compared with a rival: the same gold data, the same graders."""
    own, scores = subject.scores((), plan_in(subject.output).job), rival.scores(graded, plan_in(rival.output).job)
    return Reference(of=name, scores=replace(scores, data=own.data, graders=own.graders), common_only=common)


def blessed(output: Path, to: Path | None, *, allow_emulated: bool) -> Path:
    """Writes the baseline and reads it back; where it is.

    Raises `Misuse` for a run that is not whole, was sampled, has too many failed rows, or was emulated.
    """
    plan, scores = plan_in(output), read_scores(output)
    status = json.loads((output / MANIFEST).read_bytes())["status"]
    if status != "complete":
        raise Misuse(f"the run in {output} is {status}, and cannot be a baseline: finish it, or mend what failed")
    if plan.limit is not None:
        raise Misuse(f"only the first {plan.limit} rows were asked, and all make a baseline: run again without --limit")
    if plan.simulated and not allow_emulated:
        raise Misuse("the emulator's answers are no baseline for real ones; --allow-emulated blesses them all the same")
    path = to or load_evaluation(plan.target).baseline
    if path is None:
        raise Misuse("the evaluation names no `baseline`: name the file with --to")
    kept = from_text(to_text(scores))
    FILES.make_folder(Path(path).parent)
    FILES.put(Path(path), to_text(kept).encode())
    if read_scores(Path(path)) != kept:
        raise Broken(f"{path} does not hold what was written to it")
    return Path(path)


def _changed(evaluation: Eval, options: Asking, repeats: int | None) -> Eval:
    changes = {"model": options.model, "input": options.inputs}
    job = overridden(evaluation.job, changes, options.assignments or ())
    return evaluation.replace(job=job, repeats=repeats or evaluation.repeats)


def _without_unknown(gold: Gold, evaluation: Eval) -> Gold:
    """The gold data of a schema that lacks fields of today's."""
    if evaluation.graders.whole or not isinstance(gold.expected, Mapping):
        return gold
    known = {name: value for name, value in gold.expected.items() if name in evaluation.graders.fields}
    return replace(gold, expected=known)


def _answer_key(subject: Subject) -> bytes:
    lines = []
    for ordinal, gold in enumerate(subject.gold):
        try:
            request = subject.evaluation.job.request(Row(ordinal, gold.columns))
        except Unusable:  # it will fail by itself
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
