"""The text of a run's progress: two lines fitted to a terminal, or one for a log. Pure: nothing is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.pace import RecentRate
from pipeline.text import one_line, printable
from pipeline.text.figures import clock, dollars, size
from pipeline.totals.counters import Counters

if TYPE_CHECKING:
    from pipeline.source.progress import SurveyProgress

NARROW = 60
"""The width in columns below which there is one short line without a bar."""

SHORTEST_BAR = 10
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_SHORTEST_REASON, _LONG_REASON = 16, 64
_MONEY_RANK = 3


@dataclass(frozen=True, slots=True)
class _LinePiece:
    """A few words of a line. Pieces with the highest `rank` are dropped first; rank 0 is kept."""

    text: str
    rank: int
    colour: str = ""


def top_line(counters: Counters, elapsed_s: float, rate: RecentRate, width: int) -> str:
    """Percentage, bar, count, time and rate, as a tqdm format, in which `{bar}` fills the remaining width."""
    left = rate.seconds_left(counters.rows - counters.done)
    times = f"{clock(elapsed_s)}<{clock(left)}"
    speed = f"{rate.per_second:.3g} rows/s" if rate.per_second < 100 else f"{rate.per_second:.0f} rows/s"
    rests = (
        f"{_count(counters)} [{times}, {speed}]",
        f"{_count(counters)} [{times}]",
        f"{_count(counters)} [{clock(left)} left]",
        _count(counters),
        "",
    )
    head = f"{_percent(counters):>4}|"
    for rest in rests:
        if len(head) + SHORTEST_BAR + len(f"| {rest}") <= width:
            break
    return _escaped(head) + "{bar}" + _escaped(f"| {rest}".rstrip())


def second_line(counters: Counters, width: int, *, coloured: bool = False) -> str:
    """Rows by outcome, what they wait for and why, and the cost; the least important pieces are dropped first."""
    reason = _reason(counters, brief=True)
    pieces = [*_outcomes(counters), *_doing(counters), *([_LinePiece(reason, 2)] if reason else []), *_money(counters)]
    return _joined(_fitted(pieces, width, reason), coloured=coloured)


def narrow_line(counters: Counters, rate: RecentRate, width: int, *, coloured: bool = False) -> str:
    """One line, for terminals of fewer than `NARROW` columns."""
    left = rate.seconds_left(counters.rows - counters.done)
    failed = [piece for piece in _outcomes(counters) if piece.text.startswith("failed")]
    pieces = [
        _LinePiece(_percent(counters), 0),
        _LinePiece(_count(counters), 2),
        *(_LinePiece(one.text, 1, one.colour) for one in failed),
    ]
    pieces += [_LinePiece(f"{clock(left)} left", 3)] if left is not None else []
    pieces += [_LinePiece(f"waiting for {counters.waits_for}", 4)] if counters.waits_for else []
    pieces += [_LinePiece(piece.text, 5) for piece in _money(counters)]
    return _joined(_fitted(pieces, width), coloured=coloured)


def log_line(counters: Counters, rate: RecentRate) -> str:
    """Everything in one line, for logs."""
    left = rate.seconds_left(counters.rows - counters.done)
    remaining = f", {clock(left)} left" if left is not None and counters.done < counters.rows else ""
    reason = _reason(counters)
    pieces = [*_outcomes(counters), *_doing(counters), *([_LinePiece(reason, 0)] if reason else []), *_money(counters)]
    head = f"{_count(counters)} rows ({_percent(counters)}), {rate.per_second:.1f} rows/s{remaining}"
    return ", ".join([head, *(piece.text for piece in pieces)])


def survey_bar(text: str, progress: SurveyProgress, elapsed_s: float, rate: RecentRate, width: int) -> str:
    """A survey in one line, as a tqdm format, in which `{bar}` fills the remaining width."""
    times = f"{clock(elapsed_s)}<{clock(rate.seconds_left(progress.total - progress.done))}"
    counts = ", ".join(_surveyed(progress))
    speed = _survey_speed(progress, rate)
    rests = (f"{counts} [{times}, {speed}]", f"{counts} [{times}]", f"{_surveyed(progress)[0]} [{times}]", times)
    head = f"{text} {100 * progress.done // progress.total:>3}%|"
    fitting = [rest for rest in rests if len(head) + SHORTEST_BAR + len(f"| {rest}") <= width]
    return _escaped(head) + "{bar}" + _escaped(f"| {fitting[0] if fitting else ''}".rstrip())


def survey_line(text: str, progress: SurveyProgress, rate: RecentRate) -> str:
    """A survey in one line, for logs."""
    left = rate.seconds_left(progress.total - progress.done)
    remaining = [] if left is None else [f"{clock(left)} left"]
    percent = f"{100 * progress.done // progress.total} %"
    return f"{text}: {', '.join([percent, *_surveyed(progress), _survey_speed(progress, rate), *remaining])}"


def _surveyed(progress: SurveyProgress) -> list[str]:
    """What was read: bytes if they are counted, files, rows."""
    read = [f"{size(progress.bytes)} of {size(progress.all_bytes)}"] if progress.all_bytes else []
    several = [f"{progress.files:,} of {progress.all_files:,} files"] if progress.all_files > 1 or not read else []
    return [*read, *several, *([f"{progress.rows:,} rows"] if progress.rows else [])]


def _survey_speed(progress: SurveyProgress, rate: RecentRate) -> str:
    return f"{size(round(rate.per_second))}/s" if progress.all_bytes else f"{rate.per_second:.3g} files/s"


def _outcomes(counters: Counters) -> list[_LinePiece]:
    ok, failed = counters.ok_before + counters.ok, counters.failures_before.count + counters.failed
    return [_LinePiece(f"ok {ok}", 1), _LinePiece(f"failed {failed}", 0, _RED if failed else "")]


def _doing(counters: Counters) -> list[_LinePiece]:
    pieces = [_LinePiece(f"in flight {counters.in_flight}", 4)]
    pieces += [_LinePiece(f"{counters.retrying} retrying", 5)] if counters.retrying else []
    pieces += [_LinePiece(f"{counters.cache_hits} from the cache", 6)] if counters.cache_hits else []
    return pieces


def _reason(counters: Counters, *, brief: bool = False) -> str:
    """What rows are waiting for, for how long and why, in the words of the last fault; empty when all is well.

    A brief reason has the error without what rows are waiting for, while the endpoint answers nothing.
    """
    waits = ""
    if counters.waits_for:
        found = f" ({counters.limit:.3g}/s)" if counters.waits_for == "quota" and counters.limit else ""
        waits = f"{counters.waiting} waiting for {counters.waits_for}{found}"
        waits += f", {counters.wait_s:.0f} s" if counters.wait_s else ""
    elif counters.retrying and counters.last_failure and not counters.trouble:
        waits = "the last one failed"
    trouble = one_line(printable(counters.why_it_waits or ""))
    if not trouble:
        return waits
    if brief and waits and counters.trouble:
        return f"{counters.waiting} waiting: {trouble}"
    return f"{waits}: {trouble}" if waits else f"nothing is answered: {trouble}"


def _money(counters: Counters) -> list[_LinePiece]:
    spent = counters.cost_before_usd + counters.cost_usd
    if not spent:
        return [_LinePiece("cost unknown", _MONEY_RANK)] if counters.unpriced else []
    more = f" and {counters.unpriced} calls of unknown price" if counters.unpriced else ""
    return [_LinePiece(dollars(spent) + more, _MONEY_RANK)]


def _fitted(pieces: Sequence[_LinePiece], width: int, reason: str = "") -> list[_LinePiece]:
    """The pieces that fit. A long `reason` is shortened before other pieces are dropped, a short one after that."""
    kept = list(pieces)
    while (over := _length(kept) - width) > 0 and (last := max(kept, key=lambda one: one.rank)).rank > 0:
        place = next((number for number, one in enumerate(kept) if reason and one.text == reason), None)
        if place is not None and (last.rank <= _MONEY_RANK or len(reason) - over >= _LONG_REASON):
            words = _words_within(reason, len(reason) - over)
            kept[place : place + 1] = [_LinePiece(words, 2)] if len(words) >= _SHORTEST_REASON else []
        else:
            kept.remove(last)
    return kept if _length(kept) <= width else []


def _words_within(text: str, width: int) -> str:
    """As many leading words of a text as fit, with three dots for the rest."""
    if len(text) <= width:
        return text
    words = text[: max(0, width - len(" ..."))]
    if text[len(words) : len(words) + 1] not in ("", " "):
        words = words.rpartition(" ")[0]
    words = words.rstrip(" ,;:(")
    return f"{words} ..." if words else ""


def _length(pieces: Sequence[_LinePiece]) -> int:
    return len(", ".join(piece.text for piece in pieces))


def _joined(pieces: Sequence[_LinePiece], *, coloured: bool) -> str:
    return ", ".join(f"{one.colour}{one.text}{_PLAIN}" if coloured and one.colour else one.text for one in pieces)


def _percent(counters: Counters) -> str:
    """Rounded down, so that 100 % is shown only when all rows are done."""
    return f"{100 * counters.done // counters.rows if counters.rows else 100}%"


def _count(counters: Counters) -> str:
    return f"{counters.done}/{counters.rows}"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
