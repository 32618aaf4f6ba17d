"""The progress of a call from Python: a bar in notebooks, nothing elsewhere unless it is asked for."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import anyio

from pipeline.totals.counters import Counters

REFRESH_S = 0.5


class ProgressBar:
    """A bar of tqdm. `wanted` is None for a bar in notebooks only."""

    def __init__(self, wanted: bool | None) -> None:  # noqa: FBT001 - the option as it was given
        self._shown = in_notebook() if wanted is None else wanted

    def note(self, text: str) -> None:
        """Shows a message, if anything is shown."""
        if self._shown:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)

    async def show(self, counters: Counters) -> None:
        """Draws until it is cancelled; the bar then stays as it is."""
        if not self._shown:
            return
        bar = _bar_class()(total=counters.rows, initial=counters.done, unit="row")
        try:
            while True:
                self._draw(bar, counters)
                await anyio.sleep(REFRESH_S)
        finally:
            self._draw(bar, counters)
            bar.close()

    def _draw(self, bar: Any, counters: Counters) -> None:
        while counters.notices:
            self.note(f"note: {counters.notices.pop(0)}")
        failed = counters.failures_before.count + counters.failed
        bar.set_postfix_str(f"{failed} failed, ${counters.cost_before_usd + counters.cost_usd:.4f}", refresh=False)
        bar.total = counters.rows
        bar.n = counters.done
        bar.refresh()


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _bar_class() -> Any:
    """The bar with widgets in a notebook that has them, the one of text elsewhere."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar
    from tqdm import tqdm

    return tqdm
