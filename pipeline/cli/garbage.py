"""Makes the cyclic garbage collector run rarely: nearly all objects of a run are freed by reference count, or stay."""

from __future__ import annotations

import gc

YOUNG = 50_000
"""Objects allocated and not yet freed before a collection; Python's default of 700 suits smaller programs."""

LOADING = 150_000
"""The same while a program loads: modules are a hundred thousand objects, all of which stay."""

OF_A_ROW = 200
"""Objects of a row in flight, all of which are freed when it is answered. With thousands in flight, scanning them
repeatedly would take a fifth of the processor time."""


def raise_gc_threshold() -> None:
    """For the start of a program, while it loads many modules."""
    gc.set_threshold(LOADING)


def tune_gc(in_flight: int) -> None:
    """Exempts what is loaded by now from collection, and allows for the objects of `in_flight` rows."""
    gc.freeze()
    gc.set_threshold(max(YOUNG, OF_A_ROW * in_flight))
