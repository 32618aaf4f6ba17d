from pipeline.evaluation.definition import Eval as Eval
from pipeline.evaluation.gates import AtLeast as AtLeast
from pipeline.evaluation.gates import AtMost as AtMost
from pipeline.evaluation.gates import NeverBreak as NeverBreak
from pipeline.evaluation.gates import NoWorse as NoWorse
from pipeline.execution.api import run as run
from pipeline.execution.api import run_sync as run_sync
from pipeline.execution.api import stream as stream
from pipeline.execution.outcome_channel import RowOutcome as RowOutcome
from pipeline.execution.result import RunResult as RunResult
from pipeline.faults import BudgetExhausted as BudgetExhausted
from pipeline.faults import Halt as Halt
from pipeline.faults import InvalidRow as InvalidRow
from pipeline.faults import NothingToDo as NothingToDo
from pipeline.faults import OutputInUse as OutputInUse
from pipeline.faults import ProviderUnusable as ProviderUnusable
from pipeline.faults import TooManyFailures as TooManyFailures
from pipeline.faults import UsageError as UsageError
from pipeline.job.attachments import audio as audio
from pipeline.job.attachments import image as image
from pipeline.job.attachments import media as media
from pipeline.job.job import Job as Job
from pipeline.report.eval_run import EvalResult as EvalResult
from pipeline.report.eval_run import evaluate as evaluate

__version__: str
__all__ = [
    "AtLeast",
    "AtMost",
    "BudgetExhausted",
    "Eval",
    "EvalResult",
    "Halt",
    "InvalidRow",
    "Job",
    "NeverBreak",
    "NoWorse",
    "NothingToDo",
    "OutputInUse",
    "ProviderUnusable",
    "RowOutcome",
    "RunResult",
    "TooManyFailures",
    "UsageError",
    "audio",
    "evaluate",
    "image",
    "media",
    "run",
    "run_sync",
    "stream",
]
