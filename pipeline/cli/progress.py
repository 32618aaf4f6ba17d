"""What a run shows while it goes: a bar on a terminal, a heartbeat line elsewhere."""

from __future__ import annotations

import os
import sys
import time

import anyio
from tqdm import tqdm

from pipeline.cli.sampling import for_the_eye
from pipeline.cli.tables import short
from pipeline.tally import Tally

REFRESH_S = 0.5
HEARTBEAT_S = 30.0
HEARTBEAT_SHARE = 0.05
MOST_WORDS = 160


def wants_bar() -> bool:
    """Whether someone watches: a terminal, and neither CI nor NO_COLOR."""
    return sys.stderr.isatty() and not os.environ.get("CI") and "NO_COLOR" not in os.environ


async def show_progress(tally: Tally, *, quiet: bool) -> None:
    """Draws until it is cancelled."""
    if quiet:
        return
    with for_the_eye("the progress"):
        if wants_bar():
            await _draw_bar(tally)
        else:
            await _beat(tally)


async def _draw_bar(tally: Tally) -> None:
    with tqdm(total=tally.rows, initial=tally.done, unit="row", file=sys.stderr, dynamic_ncols=True) as bar:
        try:
            while True:
                bar.update(tally.done - bar.n)
                bar.set_postfix_str(doing(tally))
                tell_notes(tally)
                await anyio.sleep(REFRESH_S)
        finally:
            bar.update(tally.done - bar.n)
            bar.set_postfix_str(doing(tally))


async def _beat(tally: Tally) -> None:
    started, told_at, told = time.monotonic(), time.monotonic(), tally.done
    done_at_start = tally.done
    while True:
        await anyio.sleep(REFRESH_S)
        tell_notes(tally)
        now = time.monotonic()
        if now - told_at < HEARTBEAT_S and tally.done - told < max(1.0, HEARTBEAT_SHARE * tally.rows):
            continue
        if tally.done == told and now - told_at < HEARTBEAT_S:
            continue
        told_at, told = now, tally.done
        rate = (tally.done - done_at_start) / (now - started)
        share = tally.done / tally.rows if tally.rows else 1.0
        print(f"{tally.done}/{tally.rows} rows ({share:.0%}), {rate:.1f} rows/s, {doing(tally)}", file=sys.stderr)


def doing(tally: Tally) -> str:
    """What the run is doing now, and what it waits for."""
    parts = [f"ok {tally.ok}", f"failed {tally.failed}", f"in flight {tally.in_flight}"]
    if tally.retrying:
        parts.append(f"{tally.retrying} retrying")
    if tally.waits_for:
        limit = f" ({tally.limit:.3g}/s)" if tally.waits_for == "quota" and tally.limit else ""
        parts.append(f"{tally.waiting} waiting for {tally.waits_for}{limit}")
    if tally.trouble:
        parts.append(f"nothing is answered: {short(tally.trouble, MOST_WORDS)}")
    if tally.cache_hits:
        parts.append(f"{tally.cache_hits} from the cache")
    if tally.cost_usd:
        parts.append(f"${tally.cost_usd:.4g}")
    return ", ".join(parts)


def tell_notes(tally: Tally) -> None:
    """Says once each what the user is to be told."""
    while tally.notes:
        tqdm.write(f"note: {tally.notes.pop(0)}", file=sys.stderr)
