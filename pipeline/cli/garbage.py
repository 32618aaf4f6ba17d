"""How seldom the collector of cycles looks at what a run makes: nearly all of it goes by itself, or stays."""

from __future__ import annotations

import gc

YOUNG = 50_000
"""Objects made and not yet freed before the collector looks at them; Python's own 700 suit smaller programs."""

LOADING = 150_000
"""The same while a program loads: modules are a hundred thousand objects, and all of them stay."""

OF_A_ROW = 200
"""Objects of a row in flight, all of which go when it is answered: were they looked at again and again meanwhile,
thousands in flight would spend a fifth of the processor's time on it."""


def raise_gc_threshold() -> None:
    """For the start of a program, that loads much."""
    gc.set_threshold(LOADING)


def tune_gc(in_flight: int) -> None:
    """Leaves alone what is loaded by now, and as many objects as so many rows in flight have."""
    gc.freeze()
    gc.set_threshold(max(YOUNG, OF_A_ROW * in_flight))
