"""`pipeline.evaluate`: an evaluation run from Python, with the files that `pipeline eval` writes."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Unpack

from pipeline.evaluation import workspace
from pipeline.evaluation.assessment import Assessment
from pipeline.evaluation.decisions import Decision
from pipeline.evaluation.definition import Eval, load_evaluation
from pipeline.evaluation.judges import ask_all, judged, require_prices
from pipeline.evaluation.preparation import changed_by, runs_of, target_of, workspace_of
from pipeline.evaluation.workspace import EvalWorkspace, name_of
from pipeline.execution.call import Call, CallSupervisor, StopSwitch
from pipeline.execution.group import RunGroup, execute_group
from pipeline.execution.keywords import RunKeywords, in_python, options_of
from pipeline.execution.options import CallOptions
from pipeline.execution.progress_bar import ProgressBar
from pipeline.faults import Halt, Interrupted
from pipeline.report.markdown import markdown_summary
from pipeline.report.summary import add_to_history, facts_of, write_results
from pipeline.store.address import local_path


class EvalResult:
    """An evaluation that has ended: `passed` if no gate failed, its figures, and the decision of each gate.

    `path` is its output folder. Without an `output`, that is a temporary one, which is removed with this object.
    """

    def __init__(self, assessment: Assessment, facts: Mapping[str, Any], path: Path, *, temporary: Path | None) -> None:
        self.assessment = assessment
        """All rows as graded, all tables, and the comparison with the baseline."""
        self.facts = facts
        """What `pipeline eval --json` prints, and more."""
        self.path = path
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return not self.assessment.failed

    @property
    def gates(self) -> tuple[Decision, ...]:
        """The decision of each gate; its `message` is one sentence."""
        return self.assessment.decisions

    @property
    def measures(self) -> Mapping[str, float | None]:
        """The measures over all rows, by name, as in `row_correct`."""
        found: Mapping[str, float | None] = self.facts["measures"]
        return found

    def __repr__(self) -> str:
        state, simulated = "passed" if self.passed else "FAILED", ", SIMULATED" if self.facts["simulated"] else ""
        return f"<EvalResult {self.facts['evaluation']}: {state}, {self.facts['rows']} rows{simulated}, in {self.path}>"

    def _repr_html_(self) -> str:
        gates = "".join(f"<tr><td>{one.outcome}</td><td>{escape(one.message)}</td></tr>" for one in self.gates)
        return f"<p>{escape(repr(self))}</p><table>{gates}</table>"


def evaluate(
    evaluation: Eval | str | Path,
    output: str | Path | None = None,
    *,
    repeats: int | None = None,
    **options: Unpack[RunKeywords],
) -> EvalResult:
    """Runs an evaluation, grades its answers and applies the gates; returns when it has ended.

    Where an event loop runs it is blocked meanwhile: `await asyncio.to_thread(pipeline.evaluate, ...)`. The files of
    `pipeline eval` are written to the output or, without one, to a temporary folder. Replies are reused unless
    `cache=False`. A failed gate is no error: see `EvalResult.passed`. Ctrl-C and errors are as of `pipeline.run_sync`.
    """
    switch = StopSwitch()
    supervisor = CallSupervisor(switch, ProgressBar(options.get("progress")))

    def work() -> EvalResult:
        with in_python():
            return _evaluated(_Request(evaluation, output, repeats, options), supervisor)

    call = Call(work, switch)
    call.start()
    return call.join()


@dataclass(frozen=True, slots=True)
class _Request:
    evaluation: Eval | str | Path
    output: str | Path | None
    repeats: int | None
    keywords: RunKeywords


def _evaluated(request: _Request, supervisor: CallSupervisor) -> EvalResult:
    options, _ = options_of(request.keywords)
    options = replace(options, cache=options.cache is not False)
    temporary = Path(tempfile.mkdtemp(prefix="pipeline-")) if request.output is None else None
    with ExitStack() as unless_asked:
        if temporary is not None:
            unless_asked.callback(shutil.rmtree, temporary, ignore_errors=True)
        result = _asked(_subject_of(request, options, temporary), options, supervisor, temporary)
        unless_asked.pop_all()  # from now on the result keeps it
    return result


def _subject_of(request: _Request, options: CallOptions, temporary: Path | None) -> EvalWorkspace:
    evaluation, target = request.evaluation, ""
    if not isinstance(evaluation, Eval):
        target = str(evaluation)
        evaluation = load_evaluation(target)
    evaluation = changed_by(evaluation, options, repeats=request.repeats)
    target = target or evaluation.job.name
    output = temporary / name_of(target) if temporary is not None else local_path(str(request.output))
    return workspace_of(evaluation, target, output, options)


def _asked(
    subject: EvalWorkspace, options: CallOptions, supervisor: CallSupervisor, temporary: Path | None
) -> EvalResult:
    """The evaluation asked, graded and reported to files, in the order of `pipeline eval`."""
    from pipeline.endpoint.store_access import store_access
    from pipeline.store.stores import opened_stores

    reference = workspace.baseline_of(subject, common=False)
    subject.check(reference)
    jobs = runs_of(subject, options, in_host=True)
    require_prices(subject, jobs[0][1])
    place = target_of(subject, options, supervisor)
    with ExitStack() as stack:
        access = stack.enter_context(store_access(options.credentials))
        stack.enter_context(opened_stores(access))
        together = stack.enter_context(execute_group(jobs, place, begin=lambda: workspace.begin([subject])))
        rounds = [] if together.stopped else ask_all([subject], jobs[0][1], place, together.paid)
        if (last := [together, *rounds][-1]).stopped:
            raise _halt_of(last)
        graded, notes = judged(subject, subject.graded())
        assessment = subject.assessed(graded, reference, notes)
        facts = facts_of(assessment, subject, [together, *rounds])
        write_results(assessment, subject.folder, facts, markdown_summary(assessment))
        add_to_history(subject.folder, facts)
        return EvalResult(assessment, facts, subject.output, temporary=temporary)


def _halt_of(stopped: RunGroup) -> Halt:
    """Why an evaluation was stopped, with the summary of the first run that was."""
    summary = next(one for one in stopped.summaries if one.status == "stopped")
    reason = stopped.stop.reason
    halt: Halt = reason if isinstance(reason, Halt) else Interrupted(str(summary.reason or "nothing was sealed"))
    halt.summary = summary
    return halt
