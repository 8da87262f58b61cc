"""What the benchmark found, as a table for people and as JSON for programs."""

import platform
from importlib.metadata import version
from statistics import median

import msgspec

from kvactor.tools.bench.rounds import Cell, Plan, Turn, Verdict
from kvactor.tools.bench.servers import Memory


class Machine(msgspec.Struct, frozen=True):
    """What a reader must know of the surroundings; figures compare within one run only."""

    cores: int
    pinned: bool
    fsync_us: float
    python: str = platform.python_version()
    aiohttp: str = version("aiohttp")
    uvloop: str = version("uvloop")


class Restart(msgspec.Struct, frozen=True):
    """kvactor's restart on its data, and its memory around the load."""

    keys: int
    ready_ms: float
    before: Memory
    after: Memory


class Report(msgspec.Struct, frozen=True):
    """All of a run."""

    machine: Machine
    plan: Plan
    restart: Restart
    cells: list[Cell]
    verdicts: list[Verdict]

    @property
    def errors(self) -> int:
        """How many requests of all cells went wrong."""
        return sum(cell.errors for cell in self.cells)


HEADINGS = (
    ("", "", "", "per second", "", "", "p50 ms", "", "p99 ms", "", "CPU us of each", "", "", ""),
    (
        "workload",
        "clients",
        "counted",
        "kvactor",
        "bare",
        "ratio (min-max)",
        *("kvactor", "bare") * 3,
        "ratio",
        "errors",
    ),
)

NONE = "-"
"""In the table: bare aiohttp has nothing to compare with."""


def as_json(report: Report) -> str:
    """Return the whole report, every round in it, as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def as_table(report: Report) -> str:
    """Return the table, and below it the restart, the memory and the verdicts."""
    rows = [*HEADINGS, *(_row(cell) for cell in report.cells)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_pad(row, widths)).rstrip() for row in rows]
    return "\n".join([*_head(report), "", *lines, "", *_tail(report)])


def _pad(row: tuple[str, ...], widths: list[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]


def _row(cell: Cell) -> tuple[str, ...]:
    rate, cpu = cell.ratio.get("rate"), cell.ratio.get("cpu_us")
    return (
        cell.workload,
        str(cell.clients),
        cell.counts,
        *_pair(cell, "rate", "{:,.0f}"),
        f"{rate.median:.2f} ({rate.min:.2f}-{rate.max:.2f})" if rate else NONE,
        *_pair(cell, "p50_us", "{:.2f}", 1000),
        *_pair(cell, "p99_us", "{:.2f}", 1000),
        *_pair(cell, "cpu_us", "{:.1f}"),
        f"{cpu.median:.2f}" if cpu else NONE,
        f"{cell.errors} (!)" if cell.errors else "0",
    )


def _pair(cell: Cell, metric: str, form: str, unit: int = 1) -> tuple[str, str]:
    bare = NONE if cell.bare is None else form.format(cell.bare[metric] / unit)
    return form.format(cell.kvactor[metric] / unit), bare


def _head(report: Report) -> list[str]:
    machine, plan = report.machine, report.plan
    loads: dict[str, dict[str, None]] = {}
    for cell in report.cells:
        loads.setdefault(cell.generator, {})[cell.workload] = None
    return [
        f"Python {machine.python}, aiohttp {machine.aiohttp}, uvloop {machine.uvloop}",
        f"{machine.cores} cores, "
        + ("server and generator pinned to one each" if machine.pinned else "not pinned"),
        f"an fsync where the data is: {machine.fsync_us:,.0f} us (next to nothing: no disk)",
        f"{plan.rounds} rounds, {plan.seconds} s for each server; medians; {plan.keys:,} keys",
        "load from " + "; ".join(f"{by}: {', '.join(names)}" for by, names in loads.items()),
    ]


def _tail(report: Report) -> list[str]:
    restart = report.restart
    alone = [cell.workload for cell in report.cells if cell.bare is None]
    wrong = f"{report.errors} requests went wrong: no valid run"
    return [
        *(f"{NONE}: no counterpart in bare aiohttp ({name})" for name in dict.fromkeys(alone)),
        f"restart with {restart.keys:,} keys: ready after {restart.ready_ms:,.0f} ms",
        _memory("before", restart.before),
        _memory("after", restart.after),
        _shares([turn for cell in report.cells for each in cell.rounds for turn in each.turns]),
        *(_verdict(verdict) for verdict in report.verdicts),
        *([wrong] if report.errors else []),
    ]


def _memory(when: str, memory: Memory) -> str:
    return (
        f"memory {when} the load: {memory.anonymous:,.1f} MiB own (anonymous), "
        f"{memory.resident:,.1f} MiB resident with mapped files"
    )


def _shares(turns: list[Turn]) -> str:
    generator = max(turn.generator_share for turn in turns)
    others = [turn.others_share for turn in turns]
    return (
        f"of a core, the generator used up to {generator:.0%}; "
        f"other processes {median(others):.0%} in the median turn and {max(others):.0%} in the worst"
    )


def _verdict(verdict: Verdict) -> str:
    target = verdict.target
    least, found = (
        f"{figure:,.0f}" if target.absolute else f"{figure:.2f}"
        for figure in (target.least, verdict.found)
    )
    of = f"{verdict.counts}/s (absolute: depends on the machine)" if target.absolute else "of bare"
    return (
        f"target: {target.workload}, {target.clients} or more clients, at least {least} {of}: "
        f"{'met' if verdict.met else 'missed'} ({found})"
    )
