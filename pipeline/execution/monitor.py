"""Monitors a run: one event per second, its current state, and changes to its limits."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import orjson

from pipeline.endpoint.log_events import log
from pipeline.execution.rate_memory import GrantedRates
from pipeline.faults import Broken, UsageError
from pipeline.pace import Pacer, RecentRate
from pipeline.policy import WARNING_SHARE, Limits, LocalBudget, LocalUpstream, Shutdown
from pipeline.policy.compose import ComposedAsk
from pipeline.storage.durable import FILES, PRIVATE_FILE, FileSystem
from pipeline.storage.run_folder import EVENTS, STATE, TUNE
from pipeline.text import closest
from pipeline.totals.counters import Counters

_LOG = logging.getLogger(__name__)

EVERY_S = 1.0
_RATES_EVERY = 10
_SAID_AGAIN_S = 60.0
"""Changes of the rate are reported once a minute at most; `state.json` has the latest one."""

_LEAST_WAIT_S = 1.0
"""Shorter times for which nothing is sent are not shown."""

TUNABLE = ("concurrency", "rpm", "tpm")
_TUNE_REMEDY = (
    "what can be tuned: concurrency, rpm (requests per minute), tpm (tokens per minute); rpm=0 lifts the limit"
)


class RunMonitor:
    """Writes and reads the files in a run folder during the run: `events.jsonl`, `state.json`, `tune.json`.

    Requests the stop if the disk fails.
    """

    def __init__(
        self,
        folder: Path,
        composed: ComposedAsk[LocalUpstream],
        counters: Counters,
        stop: Shutdown,
        files: FileSystem = FILES,
        rates: GrantedRates | None = None,
        *,
        budgets: Sequence[LocalBudget] = (),
    ) -> None:
        self._folder = folder
        self._composed = composed
        self._counters = counters
        self._stop = stop
        self._files = files
        self._budgets = budgets
        self._before = self._counts()
        self._warned: set[str] = set()
        self._rates = rates or GrantedRates(folder, files=files)
        self._seconds = 0
        self._rate = RecentRate(anyio.current_time(), counters.done)
        self._reported: dict[str, float] = {}
        self._logged: dict[str, float] = {}

    async def keep(self) -> None:
        """Runs every second until it is cancelled or the disk fails."""
        try:
            # Changes requested of an earlier start ended with it.
            self._files.remove([self._folder / TUNE])
            self._begin()
            while True:
                await anyio.sleep(EVERY_S)
                self._tune()
                self._warn()
                self._look()
                event = self._event()
                await anyio.to_thread.run_sync(self._write, event)
                self._seconds += 1
                if self._seconds % _RATES_EVERY == 0:
                    await anyio.to_thread.run_sync(self._rates.save, self._composed.lanes)
        except OSError as error:
            self._stop.request(Broken(f"{self._folder} cannot be written: {error}; fix the disk, then run again"))
        finally:
            with suppress(OSError):  # the final rates, and the last fraction of a second, for later readers
                self._rates.save(self._composed.lanes)
                if self._counts() != self._before:
                    self._append(self._event())

    def _begin(self) -> None:
        """Records that a start begins: on its own line, even after a crash truncated the last one."""
        with suppress(FileNotFoundError), (self._folder / EVENTS).open("rb") as lines:
            lines.seek(max(0, lines.seek(0, os.SEEK_END) - 1))
            if lines.read() != b"\n":
                self._append()
        self._append({"at": round(time.time(), 3), "start": True})

    def _event(self) -> dict[str, Any]:
        dispatcher, counts = self._composed.dispatcher, self._counts()
        passed = {name: value - self._before[name] for name, value in counts.items()}
        self._before = counts
        rates = {lane.name: round(lane.rate.rate, 2) for lane in dispatcher.lanes if lane.rate}
        self._counters.limit = sum(rates.values()) if rates else None
        self._counters.concurrency = dispatcher.limits.concurrency
        self._log_rates()
        self._log_wait()
        at = time.time()
        self._rate.add(anyio.current_time(), self._counters.done)
        left_s = self._rate.seconds_left(max(0, self._counters.rows - self._counters.done))
        return {
            "at": round(at, 3),
            "rows_per_s": round(self._rate.per_second, 3) or None,
            "eta_s": None if left_s is None else round(left_s, 1),
            "limit": round(sum(rates.values()), 2) if rates else None,
            "rate_change": self._last_change(at),
            "lanes": rates,
            "open": [lane.name for lane in dispatcher.lanes if lane.opened_at is not None],
            "concurrency": dispatcher.limits.concurrency,
            "in_flight": self._counters.in_flight,
            "waiting": self._counters.waiting,
            "waits_for": self._counters.waits_for,
            "trouble": self._counters.trouble,
            "wait_s": self._counters.wait_s,
            "wait_reason": self._counters.why_it_waits,
            "retrying": self._counters.retrying,
            "latency_p50": dispatcher.latencies.quantile(0.5),
            "latency_p99": dispatcher.latencies.quantile(0.99),
            "rows": self._counters.rows,
            "done": self._counters.done,
            "run_ok": self._counters.ok_before + self._counters.ok,
            "run_failed": self._counters.failures_before.count + self._counters.failed,
            "cost_usd": round(self._counters.cost_usd, 6),
            "run_cost_usd": round(self._counters.cost_before_usd + self._counters.cost_usd, 6),
            **passed,
        }

    def _log_rates(self) -> None:
        """Logs each change of a rate once."""
        for lane in self._lanes_changed():
            change = lane.rate.change
            if change.at > self._logged.get(lane.name, -math.inf):
                self._logged[lane.name] = change.at
                log(_LOG, "rate.change", lane=lane.name, rate_per_s=lane.rate.rate, reason=change.text)

    def _log_wait(self) -> None:
        """Logs what rows wait for, and notes for how long; the same once a minute at most."""
        now, counters = anyio.current_time(), self._counters
        shut = min((lane.shut_for(now) for lane in self._composed.lanes), default=0.0)
        counters.wait_s = round(shut, 1) if shut >= _LEAST_WAIT_S else None
        waits_for = counters.waits_for or ("an answer" if counters.trouble else None)
        if waits_for is None:
            return
        kind = waits_for.partition(",")[0]  # what follows for a failed endpoint are seconds, which change all the time
        if now < self._logged.get(f"wait for {kind}", -math.inf) + _SAID_AGAIN_S:
            return
        self._logged[f"wait for {kind}"] = now
        log(
            _LOG,
            "run.waits",
            waiting=counters.waiting,
            waits_for=waits_for,
            wait_s=counters.wait_s,
            reason=counters.why_it_waits or "no call was refused for it",
            in_flight=counters.in_flight,
            retrying=counters.retrying,
        )

    def _last_change(self, now: float) -> str | None:
        """When and why the rate was last cut, or deliberately not cut."""
        changes = [(lane.rate.change.at, self._change_of(lane)) for lane in self._lanes_changed()]
        if not changes:
            return None
        at, text = max(changes)
        moment = datetime.fromtimestamp(now - (anyio.current_time() - at), UTC)
        return f"{moment:%H:%M:%S} UTC: {text}"

    def _lanes_changed(self) -> list[Any]:
        return [lane for lane in self._composed.lanes if lane.rate and lane.rate.change]

    def _change_of(self, lane: LocalUpstream) -> str:
        text = lane.rate.change.text if lane.rate and lane.rate.change else ""
        return text if len(self._composed.lanes) == 1 else f"{lane.name}: {text}"

    def _report_rates(self) -> None:
        for lane in self._lanes_changed():
            reported = self._reported.get(lane.name, -math.inf)
            if lane.rate.change.at >= reported + (_SAID_AGAIN_S if reported > -math.inf else 0.0):
                self._reported[lane.name] = lane.rate.change.at
                self._counters.notices.append(f"{self._change_of(lane)} (--no-adaptive leaves the rate alone)")

    def _counts(self) -> dict[str, int]:
        counters = self._counters
        return {
            "ok": counters.ok,
            "failed": counters.failed,
            "requests": counters.requests,
            "retries": counters.retries,
            "throttled": counters.throttled,
            "cache_hits": counters.cache_hits,
            "hedged": counters.hedged,
        }

    def _write(self, event: Mapping[str, Any]) -> None:
        self._append(event)
        failures = self._counters.failures_before + self._counters.failures
        state = {**event, "failures": failures.bare().to_json()}
        self._files.write_atomic(self._folder / STATE, orjson.dumps(state), mode=PRIVATE_FILE)

    def _append(self, event: Mapping[str, Any] | None = None) -> None:
        line = b"" if event is None else orjson.dumps(event)
        descriptor = self._files.open(self._folder / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
        try:
            self._files.write(descriptor, line + b"\n")
        finally:
            os.close(descriptor)

    def _tune(self) -> None:
        """Applies the changes requested by `pipeline tune`, once."""
        try:
            changes = orjson.loads((self._folder / TUNE).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return
        self._files.remove([self._folder / TUNE])
        apply(self._composed.dispatcher.limits, changes)
        limits = self._composed.dispatcher.limits
        now = {**changes, **({"concurrency": limits.concurrency} if "concurrency" in changes else {})}
        text = ", ".join(f"{name}={value:g}" for name, value in now.items())
        self._counters.notices.append(f"tuned: {text}")
        self._append({"at": round(time.time(), 3), "note": f"tuned: {text}"})

    def _look(self) -> None:
        """Stops the run if its endpoint is unusable, even while every call hangs and nothing waits in the queue."""
        if (denied := self._composed.dispatcher.failure_policy.look(anyio.current_time())) is not None:
            self._stop.request(denied)

    def _warn(self) -> None:
        self._report_rates()
        for budget in self._budgets:
            if budget.unit not in self._warned and budget.spent >= WARNING_SHARE * budget.cap:
                self._warned.add(budget.unit)
                share = budget.spent / budget.cap
                self._counters.notices.append(f"{share:.0%} of the budget of {budget.cap:g} {budget.unit} is spent")


def apply(limits: Limits, changes: Mapping[str, float]) -> None:
    """Changes the limits of a run; a rate of 0 lifts its limit, and the number of workers bounds the concurrency."""
    if "concurrency" in changes:
        limits.concurrency = max(1, min(int(changes["concurrency"]), limits.most or int(changes["concurrency"])))
    if "rpm" in changes:
        limits.requests = Pacer(changes["rpm"]) if changes["rpm"] else None
    if "tpm" in changes:
        limits.tokens = Pacer(changes["tpm"]) if changes["tpm"] else None


def tuning_of(assignments: Sequence[str]) -> dict[str, float]:
    """Parses the requested changes. Raises `UsageError` for anything but NAME=NUMBER with a tunable name."""
    changes = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in TUNABLE:
            meant = closest(name.lower(), TUNABLE, cutoff=0.4)
            remedy = f"did you mean {meant}={text or 300}?" if meant and text else _TUNE_REMEDY
            raise UsageError(f"{assignment!r}: there is no limit called {name!r}; {remedy}")
        try:
            changes[name] = float(text)
        except ValueError:
            raise UsageError(f"{assignment!r} is not {name}=NUMBER, as in {name}=300") from None
        if not (least := 1 if name == "concurrency" else 0) <= changes[name] < math.inf:
            raise UsageError(f"{assignment!r} cannot be set: {name} takes a number from {least} on; {_TUNE_REMEDY}")
    return changes


def ask_to_tune(folder: Path, assignments: Sequence[str]) -> dict[str, float]:
    """Writes changes for a running job to pick up. Raises `UsageError` like `tuning_of`."""
    changes = tuning_of(assignments)
    FILES.write_atomic(folder / TUNE, orjson.dumps(changes), mode=PRIVATE_FILE)
    return changes


def state_of(folder: Path) -> dict[str, Any]:
    """The state that a running job last reported; empty if there is none."""
    try:
        state = orjson.loads((folder / STATE).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}
