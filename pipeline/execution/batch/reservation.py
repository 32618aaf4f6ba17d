"""What a budget must hold before rows are submitted: a job cannot be stopped half way because money runs out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from pipeline.endpoint.batch.backend import BatchBackend
from pipeline.execution.estimate import guessed, measured, most_used
from pipeline.execution.run import Run
from pipeline.faults import BudgetExhausted
from pipeline.policy import LocalBudget
from pipeline.policy.compose import prices_for
from pipeline.storage.submissions import Submission
from pipeline.totals.ledger import Charges

_SAMPLE_ROWS = 100


class Reservation:
    """The upper end of the estimate that `pipeline plan` shows, at the price of a batch."""

    def __init__(self, run: Run, backend: BatchBackend) -> None:
        context = run.context
        self._job = context.job
        self._factor = backend.price_factor
        self._prices = prices_for(context.job, context.settings.bounds)
        first = next(context.chunks.source.chunk(0), None)
        sample = [] if first is None else list(islice(first.rows, _SAMPLE_ROWS))
        self._means = measured(context.folder.output, context.folder.name) or guessed(context.job, sample)

    def of(self, rows: int) -> tuple[float | None, float]:
        """US dollars, None if the price is unknown, and tokens."""
        usd, tokens = most_used(self._job, self._means, self._prices, rows)
        return None if usd is None else usd * self._factor, tokens

    def require(self, rows: int, waiting: Sequence[Submission], budgets: Sequence[LocalBudget]) -> None:
        """Raises `BudgetExhausted` if a budget does not hold these rows beside the jobs that have not ended."""
        usd, tokens = self.of(rows)
        for budget in budgets:
            in_dollars = budget.unit == "USD"
            needed = (usd or 0.0) if in_dollars else tokens
            reserved = sum((one.usd if in_dollars else one.tokens) or 0.0 for one in waiting)
            left = budget.cap - budget.spent - reserved
            if budget.failure is not None:
                raise budget.failure
            if needed > left:
                beside = f" beside {reserved:.6g} for jobs that have not ended" if reserved else ""
                raise BudgetExhausted(
                    f"{rows} rows by batch may take {needed:.6g} {budget.unit}, and the budget has "
                    f"{max(0.0, left):.6g} left{beside}; nothing was submitted: run again with a larger one, or "
                    f"with --limit"
                )


def settle(budgets: Sequence[LocalBudget], charged: Charges) -> None:
    """Charges the budgets for the answers of a job. Answers of unknown price or usage end a budget."""
    for budget in budgets:
        in_dollars = budget.unit == "USD"
        unknown = charged.unpriced_calls if in_dollars else charged.unmetered_calls
        budget.charge(charged.cost_usd if in_dollars else charged.tokens, None)
        if unknown:
            what = "price" if in_dollars else "usage"
            budget.fail(BudgetExhausted(f"the budget cannot be kept: {unknown} answers came without a known {what}"))
