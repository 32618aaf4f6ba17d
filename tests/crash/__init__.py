"""Crashes on purpose: kills, power cuts, broken disks, broken networks; and the proof that they cost nothing."""

import os

SEED = int(os.environ.get("CRASH_SEED", "11"))
"""Of everything that is drawn: another one crashes at other moments."""
