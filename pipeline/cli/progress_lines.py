"""What the progress of a run says, in two lines as wide as the terminal or in one for a log. Pure: nothing is drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cli.tables import plain
from pipeline.counters import Counters

WINDOW_S = 30.0
"""The rate is that of the last half minute: the mean since the start hides a quota that has just been cut."""

WINDOW_ROWS = 10
"""Fewer rows say little about the next one."""

NARROW = 60
"""Columns below which there is one short line without a bar."""

SHORTEST_BAR = 10
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_SHORTEST_REASON, _LONG_REASON = 16, 64
_MONEY_RANK = 3


class RecentRate:
    """Rows per second over the last `WINDOW_S`, or over the last `WINDOW_ROWS` rows where those took longer."""

    def __init__(self, now: float, done: int) -> None:
        self._samples = deque([(now, done)])
        self._now = now

    def add(self, now: float, done: int) -> None:
        """Takes a sample, and drops those that the window no longer needs."""
        self._now = now
        if done != self._samples[-1][1]:
            self._samples.append((now, done))
        while len(self._samples) > 1 and self._is_enough(*self._samples[1]):
            self._samples.popleft()

    def _is_enough(self, began: float, before: int) -> bool:
        return self._now - began >= WINDOW_S and self._samples[-1][1] - before >= WINDOW_ROWS

    @property
    def per_second(self) -> float:
        """0 before the first row."""
        began, before = self._samples[0]
        return (self._samples[-1][1] - before) / (self._now - began) if self._now > began else 0.0

    def seconds_left(self, rows: int) -> float | None:
        """How long so many rows take at this rate; None where no row was done yet."""
        return rows / self.per_second if self.per_second > 0 else None


@dataclass(frozen=True, slots=True)
class _Piece:
    """A few words of a line. Those with the highest `rank` are left out first; rank 0 stays."""

    text: str
    rank: int
    colour: str = ""


def top_line(tally: Counters, elapsed_s: float, rate: RecentRate, width: int) -> str:
    """Percentage, bar, count, time and rate, as a format of tqdm's: it fills `{bar}` up to the width."""
    left = rate.seconds_left(tally.rows - tally.done)
    times = f"{_clock(elapsed_s)}<{_clock(left)}"
    speed = f"{rate.per_second:.3g} rows/s" if rate.per_second < 100 else f"{rate.per_second:.0f} rows/s"
    rests = (
        f"{_count(tally)} [{times}, {speed}]",
        f"{_count(tally)} [{times}]",
        f"{_count(tally)} [{_clock(left)} left]",
        _count(tally),
        "",
    )
    head = f"{_percent(tally):>4}|"
    for rest in rests:
        if len(head) + SHORTEST_BAR + len(f"| {rest}") <= width:
            break
    return _escaped(head) + "{bar}" + _escaped(f"| {rest}".rstrip())


def second_line(tally: Counters, width: int, *, coloured: bool = False) -> str:
    """Rows by what became of them, what is waited for and why, and the dollars; what matters least goes first."""
    reason = _reason(tally, brief=True)
    pieces = [*_outcomes(tally), *_doing(tally), *([_Piece(reason, 2)] if reason else []), *_money(tally)]
    return _joined(_fitted(pieces, width, reason), coloured=coloured)


def narrow_line(tally: Counters, rate: RecentRate, width: int, *, coloured: bool = False) -> str:
    """One line, for terminals of fewer than `NARROW` columns."""
    left = rate.seconds_left(tally.rows - tally.done)
    failed = [piece for piece in _outcomes(tally) if piece.text.startswith("failed")]
    pieces = [
        _Piece(_percent(tally), 0),
        _Piece(_count(tally), 2),
        *(_Piece(one.text, 1, one.colour) for one in failed),
    ]
    pieces += [_Piece(f"{_clock(left)} left", 3)] if left is not None else []
    pieces += [_Piece(f"waiting for {tally.waits_for}", 4)] if tally.waits_for else []
    pieces += [_Piece(piece.text, 5) for piece in _money(tally)]
    return _joined(_fitted(pieces, width), coloured=coloured)


def log_line(tally: Counters, rate: RecentRate) -> str:
    """All of it in one line, for where nobody watches."""
    left = rate.seconds_left(tally.rows - tally.done)
    remaining = f", {_clock(left)} left" if left is not None and tally.done < tally.rows else ""
    reason = _reason(tally)
    pieces = [*_outcomes(tally), *_doing(tally), *([_Piece(reason, 0)] if reason else []), *_money(tally)]
    head = f"{_count(tally)} rows ({_percent(tally)}), {rate.per_second:.1f} rows/s{remaining}"
    return ", ".join([head, *(piece.text for piece in pieces)])


def _outcomes(tally: Counters) -> list[_Piece]:
    ok, failed = tally.ok_before + tally.ok, tally.failures_before.count + tally.failed
    return [_Piece(f"ok {ok}", 1), _Piece(f"failed {failed}", 0, _RED if failed else "")]


def _doing(tally: Counters) -> list[_Piece]:
    pieces = [_Piece(f"in flight {tally.in_flight}", 4)]
    pieces += [_Piece(f"{tally.retrying} retrying", 5)] if tally.retrying else []
    pieces += [_Piece(f"{tally.cache_hits} from the cache", 6)] if tally.cache_hits else []
    return pieces


def _reason(tally: Counters, *, brief: bool = False) -> str:
    """What rows wait for, and why nothing is answered where nothing is; empty when all goes well.

    A brief one leaves out since when the endpoint fails, for what it says.
    """
    waits = ""
    if tally.waits_for:
        found = f" ({tally.limit:.3g}/s)" if tally.waits_for == "quota" and tally.limit else ""
        waits = f"{tally.waiting} waiting for {tally.waits_for}{found}"
    trouble = " ".join(plain(tally.trouble or "").split())
    if not trouble:
        return waits
    if brief and waits:
        return f"{tally.waiting} waiting: {trouble}"
    return f"{waits}: {trouble}" if waits else f"nothing is answered: {trouble}"


def _money(tally: Counters) -> list[_Piece]:
    spent = tally.cost_before_usd + tally.cost_usd
    if not spent:
        return [_Piece("cost unknown", _MONEY_RANK)] if tally.unpriced else []
    more = f" and {tally.unpriced} calls of unknown price" if tally.unpriced else ""
    return [_Piece((f"${spent:.2f}" if spent >= 1 else f"${spent:.4f}") + more, _MONEY_RANK)]


def _fitted(pieces: Sequence[_Piece], width: int, reason: str = "") -> list[_Piece]:
    """The pieces that fit. A long `reason` among them is cut before others are left out, a short one after that."""
    kept = list(pieces)
    while (over := _length(kept) - width) > 0 and (last := max(kept, key=lambda one: one.rank)).rank > 0:
        place = next((number for number, one in enumerate(kept) if reason and one.text == reason), None)
        if place is not None and (last.rank <= _MONEY_RANK or len(reason) - over >= _LONG_REASON):
            words = _words_within(reason, len(reason) - over)
            kept[place : place + 1] = [_Piece(words, 2)] if len(words) >= _SHORTEST_REASON else []
        else:
            kept.remove(last)
    return kept if _length(kept) <= width else []


def _words_within(text: str, width: int) -> str:
    """The words at the beginning of a text that fit, with three dots for the others."""
    if len(text) <= width:
        return text
    words = text[: max(0, width - len(" ..."))]
    if text[len(words) : len(words) + 1] not in ("", " "):
        words = words.rpartition(" ")[0]
    words = words.rstrip(" ,;:(")
    return f"{words} ..." if words else ""


def _length(pieces: Sequence[_Piece]) -> int:
    return len(", ".join(piece.text for piece in pieces))


def _joined(pieces: Sequence[_Piece], *, coloured: bool) -> str:
    return ", ".join(f"{one.colour}{one.text}{_PLAIN}" if coloured and one.colour else one.text for one in pieces)


def _percent(tally: Counters) -> str:
    """Rounded down: 100 % is said when all rows are done, and not before."""
    return f"{100 * tally.done // tally.rows if tally.rows else 100}%"


def _count(tally: Counters) -> str:
    return f"{tally.done}/{tally.rows}"


def _clock(seconds: float | None) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 0:07."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
