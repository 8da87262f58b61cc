"""Rounds: the two servers take turns under the same load, and their ratio is taken round by round.

What disturbs a machine for a while (its clock rate, its neighbours) disturbs a round's two turns
alike, so a ratio within a round is steadier than one of totals. Of several rounds the median
counts, with the extremes.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Final

import msgspec

from bench.generators import Generator
from bench.servers import BenchError, Server, machine_cpu_seconds
from bench.workloads import TARGETS, Load, Target, Workload

WARM_UP_SECONDS: Final = 1


class Turn(msgspec.Struct, frozen=True):
    """One server's turn under load.

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
    """Both servers' turns."""

    kvactor: Turn
    bare: Turn

    @property
    def turns(self) -> tuple[Turn, Turn]:
        """Both, whichever came first."""
        return self.kvactor, self.bare


class Cell(msgspec.Struct, frozen=True):
    """One workload, one number of clients: medians, ratios (kvactor to bare), every round."""

    workload: str
    clients: int
    generator: str
    errors: int
    kvactor: dict[str, float]
    bare: dict[str, float]
    ratio: dict[str, Spread]
    rounds: list[Round]


class Verdict(msgspec.Struct, frozen=True):
    """A target, and the worst median ratio among the cells that it covers."""

    target: Target
    ratio: float
    met: bool


class Plan(msgspec.Struct, frozen=True):
    """How long and how often to measure, over how many keys."""

    rounds: int
    seconds: int
    keys: int


class Bench(msgspec.Struct, frozen=True):
    """The two servers, and what loads them."""

    kvactor: Server
    bare: Server
    generator: Generator

    def measure(self, workload: Workload, clients: int, plan: Plan) -> Cell:
        """Warm both servers up, then let them take turns."""
        warm_up = Load(workload, clients, WARM_UP_SECONDS, plan.keys)
        load = Load(workload, clients, plan.seconds, plan.keys)
        for server in (self.kvactor, self.bare):
            self._turn(server, warm_up)
        rounds = []
        for number in range(plan.rounds):
            order = (self.bare, self.kvactor) if number % 2 else (self.kvactor, self.bare)
            turns = {server.name: self._turn(server, load) for server in order}
            rounds.append(Round(turns[self.kvactor.name], turns[self.bare.name]))
        return summarise(workload.name, clients, self.generator.name_for(workload), rounds)

    def _turn(self, server: Server, load: Load) -> Turn:
        started, machine, cpu = time.perf_counter(), machine_cpu_seconds(), server.cpu_seconds()
        sample, generator_cpu = self.generator.run(server.host, load)
        server.check_alive()
        known = server.cpu_seconds() - cpu + generator_cpu
        others = machine_cpu_seconds() - machine - known
        seconds = time.perf_counter() - started
        server.settle()
        if not sample.requests:
            raise BenchError(f"{server.name}: no answer at all, {sample.errors} errors")
        return Turn(
            rate=sample.requests / sample.seconds,
            p50_us=sample.p50_us,
            p99_us=sample.p99_us,
            cpu_us=(server.cpu_seconds() - cpu) / sample.requests * 1e6,
            requests=sample.requests,
            errors=sample.errors,
            generator_share=generator_cpu / seconds,
            others_share=max(0.0, others / seconds),
        )


def summarise(workload: str, clients: int, generator: str, rounds: list[Round]) -> Cell:
    """Take medians, ratios and errors from the rounds of a cell."""

    def medians(pick: Callable[[Round], Turn]) -> dict[str, float]:
        turns = [pick(each) for each in rounds]
        return {metric: median(getattr(turn, metric) for turn in turns) for metric in METRICS}

    def spread(metric: str) -> Spread:
        ratios = [getattr(each.kvactor, metric) / getattr(each.bare, metric) for each in rounds]
        return Spread(median(ratios), min(ratios), max(ratios))

    return Cell(
        workload,
        clients,
        generator,
        sum(each.kvactor.errors + each.bare.errors for each in rounds),
        medians(lambda each: each.kvactor),
        medians(lambda each: each.bare),
        {metric: spread(metric) for metric in METRICS},
        rounds,
    )


def judge(cells: list[Cell]) -> list[Verdict]:
    """Hold the cells against the targets; a target without a cell has no verdict."""
    verdicts = []
    for target in TARGETS:
        ratios = [
            cell.ratio["rate"].median
            for cell in cells
            if cell.workload == target.workload and cell.clients >= target.clients
        ]
        if ratios:
            verdicts.append(Verdict(target, min(ratios), min(ratios) >= target.ratio))
    return verdicts
