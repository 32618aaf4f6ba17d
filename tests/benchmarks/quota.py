"""The adaptive rate against quotas that nobody names, in virtual time: what it is granted, and what that costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.quotas import Bucket, Client, Latency, Server, Steps, Weather, Windows, lognormal, simulate
from tests.benchmarks.scale import Scale

SEEDS = (1, 2, 3)
DEPTHS_S = (0.25, 1.0)
GRANTED = FigureTarget(">=", 0.96)
WASTE = FigureTarget("<=", 0.05)

_HALF_A_SECOND = lognormal(0.5, 0.4)
_AT_ONCE = lognormal(0.02, 0.0)


@dataclass(frozen=True)
class Scenario:
    """A quota by the second: how it moves and for how long, and who shares it."""

    name: str
    steps: Steps
    seconds: float
    clients: int = 1
    jitter: float = 0.0
    tokens: float = 0.0
    loss: float = 0.0
    concurrency: int = 256
    latency: Latency = _HALF_A_SECOND
    refusals: Latency = _AT_ONCE

    def run(self, depth_s: float, seed: int) -> tuple[float, float]:
        """What was granted of the quota, and the refusals for each request that was."""
        dice = random.Random(seed)
        bucket = Bucket(self.steps, depth_s, dice, self.jitter, self.tokens, self.loss)
        server = Server(bucket, dice, self.latency, self.refusals)
        simulate([Client(server, self.concurrency) for _ in range(self.clients)], self.seconds)
        return server.granted / bucket.total(self.seconds), server.waste


_UP_DOWN = ((0.0, 40.0), (15.0, 80.0), (30.0, 20.0))

SCENARIOS: Sequence[Scenario] = (
    Scenario("40, 80, 20", _UP_DOWN, 45),
    Scenario("20, 60", ((0.0, 20.0), (15.0, 60.0)), 30),
    Scenario("10, 30, 10", ((0.0, 10.0), (15.0, 30.0), (30.0, 10.0)), 45),
    Scenario("100, 200, 50", ((0.0, 100.0), (60.0, 200.0), (120.0, 50.0)), 180),
    Scenario("100", ((0.0, 100.0),), 60),
    Scenario("100, three clients", ((0.0, 100.0),), 60, clients=3),
    Scenario("100, 200, 50, three clients", ((0.0, 100.0), (60.0, 200.0), (120.0, 50.0)), 180, clients=3),
    Scenario("40, 80, 20, three clients", _UP_DOWN, 45, clients=3),
    Scenario("40, 80, 20 in tokens", _UP_DOWN, 45, tokens=0.5),
    Scenario("50, another by 20 % each second", ((0.0, 50.0),), 60, jitter=0.2),
    Scenario("40, 80, 20, another by 20 % each second", _UP_DOWN, 45, jitter=0.2),
    Scenario("30, 90, 45, answers in 0.2 to 5 s", ((0.0, 30.0), (20.0, 90.0), (40.0, 45.0)), 60,
             concurrency=512, latency=lognormal(1.0, 0.7)),
)  # fmt: skip

RAINY = Scenario("50, and 2 % refused by chance", ((0.0, 50.0),), 60, loss=0.02)
SLOW = Scenario("100, refusals after 0.3 s", ((0.0, 100.0),), 60, refusals=lognormal(0.3, 0.3))

WEATHER = {0.01: 0.95, 0.05: 0.93, 0.1: 0.88, 0.3: 0.65}
"""Of the speed without adaptation that is to be kept, by the share that is refused at any rate."""


def weather(
    share: float, seed: int, *, rows: int = 3000, concurrency: int = 64, latency: Latency | None = None
) -> float:
    """How fast rows are done, next to the same run without adaptation and with the same refusals by chance."""

    def took(*, adaptive: bool) -> float:
        dice = random.Random(seed)
        server = Server(Weather(share, dice), dice, latency or lognormal(0.5, 0.4))
        simulate([Client(server, concurrency, adaptive, rows)])
        return server.ended

    return took(adaptive=False) / took(adaptive=True)


def windows(seed: int, *, rows: int = 300, offset: float = 0.0) -> tuple[int, float, float]:
    """Rows done of a quota of 60 a minute, refusals for each, and seconds."""
    server = Server(Windows(60, 60.0, offset), random.Random(seed))
    client = Client(server, 64, rows=rows)
    simulate([client])
    return client.done, server.waste, server.ended


def measure(scale: Scale) -> list[Line]:
    """The worst of three seeds, whatever is worst."""
    seeds = SEEDS[: 1 if scale.quick else None]
    lines = []
    for scenario in SCENARIOS[: 2 if scale.quick else None]:
        for depth_s in DEPTHS_S[: 1 if scale.quick else None]:
            lines += _lines(scenario, depth_s, seeds, GRANTED, WASTE)
    lines += _lines(RAINY, 0.25, seeds, FigureTarget(">=", 0.93), None)
    lines += _lines(SLOW, 0.25, seeds, None, None)
    for share, least in WEATHER.items():
        worst = min(weather(share, seed) for seed in seeds)
        lines.append(
            Line(
                f"no quota, {share:.0%} refused by chance: speed kept", "of 1", worst, target=FigureTarget(">=", least)
            )
        )
    for offset in (0.0, 35.0):
        waste = max(windows(seed, offset=offset)[1] for seed in seeds)
        name = f"60 a minute, {offset:.0f} s of it gone: 429s an accepted request"
        lines.append(Line(name, "of 1", waste, target=FigureTarget("<=", 0.15)))
    return lines


def _lines(
    scenario: Scenario, depth_s: float, seeds: Sequence[int], granted: FigureTarget | None, waste: FigureTarget | None
) -> list[Line]:
    found = [scenario.run(depth_s, seed) for seed in seeds]
    name = f"quota of {scenario.name}, bucket of {depth_s:g} s"
    return [
        Line(f"{name}: granted of what there was", "of 1", min(one for one, _ in found), target=granted),
        Line(f"{name}: 429s an accepted request", "of 1", max(one for _, one in found), target=waste),
    ]
