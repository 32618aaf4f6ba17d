"""`kill -9` at any moment of an append costs no row, old or new, and has none of the old ones asked again."""

from __future__ import annotations

import random
from pathlib import Path

from tests.crash import SEED
from tests.crash.appends import kills_of_an_append


def test_p16_kill_9_at_any_call_of_an_append_costs_nothing(scratch: Path) -> None:
    figures = kills_of_an_append(scratch, 24, random.Random(SEED))
    assert figures.trouble == []
    assert figures.kills >= 20
