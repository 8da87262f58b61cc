"""Rounds: the two servers take turns under the same load, and their ratio is taken round by round.

What disturbs a machine for a while (its clock rate, its neighbours) disturbs a round's two turns
alike, so a ratio within a round is steadier than one of totals. Of several rounds the median
counts, with the extremes.
"""

import time
from statistics import median
from typing import Final

import msgspec

from kvactor.tools.bench.generators import Generator
from kvactor.tools.bench.servers import BenchError, Server, machine_cpu_seconds
from kvactor.tools.bench.workloads import TARGETS, Load, Target, Workload

WARM_UP_SECONDS: Final = 1

#: What starting the generator and waiting for quiet take, about.
SETTLE_SECONDS: Final = 0.5


class Turn(msgspec.Struct, frozen=True):
    """One server's turn under load.

    `rate` is per second, and `cpu_us` of each, of what the workload counts; latency is of requests.
    CPU is the server process's, with the work that it put off. The shares are of one core: a busy
    generator limits what can be measured, other processes disturb it.
    """

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    requests: int
    errors: int
    generator_share: float
    others_share: float


METRICS: Final = ("rate", "p50_us", "p99_us", "cpu_us")


class Spread(msgspec.Struct, frozen=True):
    """The median of a ratio's rounds, and their extremes."""

    median: float
    min: float
    max: float


class Round(msgspec.Struct, frozen=True):
    """Both servers' turns; kvactor's alone where there is nothing to compare with."""

    kvactor: Turn
    bare: Turn | None

    @property
    def turns(self) -> list[Turn]:
        """All, whichever came first."""
        return [self.kvactor] if self.bare is None else [self.kvactor, self.bare]


class Cell(msgspec.Struct, frozen=True):
    """One workload, one number of clients: medians, ratios (kvactor to bare), every round."""

    workload: str
    counts: str
    clients: int
    generator: str
    errors: int
    kvactor: dict[str, float]
    bare: dict[str, float] | None
    ratio: dict[str, Spread]
    rounds: list[Round]


class Verdict(msgspec.Struct, frozen=True):
    """A target, and the worst median among the cells that it covers."""

    target: Target
    counts: str
    found: float
    met: bool


class Plan(msgspec.Struct, frozen=True):
    """How long and how often to measure, over how many keys."""

    rounds: int
    seconds: int
    keys: int

    def minutes(self, cells: list[tuple[Workload, int]]) -> float:
        """Return how long it takes to measure cells, about."""
        turns = sum(1 + workload.bare for workload, _ in cells)
        per_turn = WARM_UP_SECONDS + self.rounds * self.seconds + (1 + self.rounds) * SETTLE_SECONDS
        return turns * per_turn / 60


class Bench(msgspec.Struct, frozen=True):
    """The two servers, and what loads them."""

    kvactor: Server
    bare: Server
    generator: Generator

    def measure(self, workload: Workload, clients: int, plan: Plan) -> Cell:
        """Warm the servers up, then let them take turns."""
        servers = [self.kvactor, self.bare] if workload.bare else [self.kvactor]
        warm_up = Load(workload, clients, WARM_UP_SECONDS, plan.keys)
        load = Load(workload, clients, plan.seconds, plan.keys)
        for server in servers:
            self._turn(server, warm_up)
        rounds = []
        for number in range(plan.rounds):
            order = reversed(servers) if number % 2 else servers
            turns = {server.name: self._turn(server, load) for server in order}
            rounds.append(Round(turns[self.kvactor.name], turns.get(self.bare.name)))
        return summarise(workload, clients, self.generator.name_for(workload), rounds)

    def _turn(self, server: Server, load: Load) -> Turn:
        started, machine, cpu = time.perf_counter(), machine_cpu_seconds(), server.cpu_seconds()
        sample, generator_cpu = self.generator.run(server.address, load)
        server.check_alive()
        known = server.cpu_seconds() - cpu + generator_cpu
        others = machine_cpu_seconds() - machine - known
        seconds = time.perf_counter() - started
        server.settle()
        if not sample.requests:
            raise BenchError(f"{server.name}: no answer at all, {sample.errors} errors")
        counted = sample.requests * load.workload.each
        return Turn(
            rate=counted / sample.seconds,
            p50_us=sample.p50_us,
            p99_us=sample.p99_us,
            cpu_us=(server.cpu_seconds() - cpu) / counted * 1e6,
            requests=sample.requests,
            errors=sample.errors,
            generator_share=generator_cpu / seconds,
            others_share=max(0.0, others / seconds),
        )


def summarise(workload: Workload, clients: int, generator: str, rounds: list[Round]) -> Cell:
    """Take medians, ratios and errors from the rounds of a cell."""
    pairs = [(each.kvactor, each.bare) for each in rounds if each.bare is not None]

    def medians(turns: list[Turn]) -> dict[str, float]:
        return {metric: median(getattr(turn, metric) for turn in turns) for metric in METRICS}

    def spread(metric: str) -> Spread:
        ratios = [getattr(mine, metric) / getattr(theirs, metric) for mine, theirs in pairs]
        return Spread(median(ratios), min(ratios), max(ratios))

    return Cell(
        workload.name,
        workload.counts,
        clients,
        generator,
        sum(turn.errors for each in rounds for turn in each.turns),
        medians([each.kvactor for each in rounds]),
        medians([theirs for _, theirs in pairs]) if pairs else None,
        {metric: spread(metric) for metric in METRICS} if pairs else {},
        rounds,
    )


def check_targets(cells: list[Cell]) -> list[Verdict]:
    """Hold the cells against the targets; a target without a cell has no verdict."""
    verdicts = []
    for target in TARGETS:
        covered = [
            cell
            for cell in cells
            if cell.workload == target.workload and cell.clients >= target.clients
        ]
        if covered:
            found = min(
                cell.kvactor["rate"] if target.absolute else cell.ratio["rate"].median
                for cell in covered
            )
            verdicts.append(Verdict(target, covered[0].counts, found, found >= target.least))
    return verdicts
