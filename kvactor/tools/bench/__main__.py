"""Run the benchmark: see the package's docstring."""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kvactor.tools import bench
from kvactor.tools.bench.generators import Generator, find_wrk
from kvactor.tools.bench.report import Machine, Report, Restart, as_json, as_table
from kvactor.tools.bench.rounds import Bench, Plan, check_targets
from kvactor.tools.bench.sameness import check_same
from kvactor.tools.bench.servers import BenchError, serving
from kvactor.tools.bench.workloads import FILL, SCAN, WORKLOADS, Load
from kvactor.tools.processes import ServerFailed

DEFAULT_KEYS = 10_000
FILL_CLIENTS = 64
FILL_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 0, 1 after errors, 2 if there is no result.

    `arguments` are those of the command line if there are none.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args = parse(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="kvactor-bench-", dir=args.dir) as directory:
            report = run(args, Path(directory))
    except (BenchError, ServerFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if args.json == "-":
        print(as_json(report))
    else:
        print(as_table(report))
        if args.json:
            Path(args.json).write_text(as_json(report) + "\n")
    return 1 if report.errors else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    kinds = "; ".join(f"{workload.name}: {workload.about}" for workload in WORKLOADS.values())
    purpose, _, _ = str(bench.__doc__).partition("\n")
    parser = argparse.ArgumentParser("bench", description=purpose, epilog=f"Workloads: {kinds}.")
    add = parser.add_argument
    add("--rounds", type=_positive, default=3, help="rounds per cell (default 3)")
    add("--seconds", type=_positive, default=3, help="seconds per server and round (default 3)")
    add("--clients", type=_clients, help="default: each workload's own")
    add("--only", type=_workloads, default=list(WORKLOADS), help="workloads, with commas")
    add("--keys", type=_positive, help=f"preload so many keys (default: set {DEFAULT_KEYS:,})")
    add("--generator", choices=["wrk", "own"], help="default: wrk if it is installed")
    add("--no-pin", action="store_true", help="let server and generator run on any core")
    add("--dir", type=Path, help="where to make the temporary directory: the disk to measure")
    add("--json", metavar="FILE", help="write everything as JSON ('-': instead of the table)")
    args = parser.parse_args(arguments)
    if (args.keys or DEFAULT_KEYS) < max(SCAN + 1, *args.clients or [0]):
        parser.error(f"every client needs a key of its own, and a scan needs more than {SCAN:,}")
    return args


def run(args: argparse.Namespace, directory: Path) -> Report:
    """Prepare the data, restart, and measure every cell."""
    allowed = sorted(os.sched_getaffinity(0))
    pin = len(allowed) > 1 and not args.no_pin
    server_core, generator_core = allowed[:2] if pin else (None, None)
    generator = Generator(_wrk(args.generator), generator_core)
    plan = Plan(args.rounds, args.seconds, args.keys or DEFAULT_KEYS)
    workloads = [WORKLOADS[name] for name in args.only]
    wanted = [(each, clients) for each in workloads for clients in args.clients or each.clients]
    _progress(f"{len(wanted)} cells, about {plan.minutes(wanted):.0f} minutes")
    data = directory / "data"
    kvactor_command = ["kvactor", "serve", "--port", "0", "--data-dir", str(data)]
    if args.keys:
        preload(data, plan.keys)
    with serving("kvactor", kvactor_command, server_core) as kvactor:
        if not args.keys:
            fill(kvactor.address, generator, plan.keys)
    with (
        serving("kvactor", kvactor_command, server_core) as kvactor,
        serving("bare", ["kvactor.tools.bench.bare"], server_core) as bare,
    ):
        before = kvactor.memory()
        check_same(kvactor.address, bare.address)
        both = Bench(kvactor, bare, generator)
        cells = []
        for workload, clients in wanted:
            _progress(f"{workload.name}, {clients} clients")
            cells.append(both.measure(workload, clients, plan))
        restart = Restart(plan.keys, kvactor.ready_after * 1e3, before, kvactor.memory())
    machine = Machine(len(allowed), pin, fsync_us(directory))
    return Report(machine, plan, restart, cells, check_targets(cells))


def preload(data: Path, keys: int) -> None:
    """Put `keys` keys into a new data directory, without a server."""
    from kvactor.tools.bench.preload import preload as offline  # noqa: PLC0415 (needs the server's inside)

    _progress(f"preloading {keys:,} keys")
    offline(data, keys)


def fill(host: str, generator: Generator, keys: int) -> None:
    """Set `keys` keys through the server."""
    sample, _ = generator.run(host, Load(FILL, FILL_CLIENTS, FILL_SECONDS, keys))
    if sample.errors or sample.requests != keys:
        raise BenchError(f"could not set the {keys:,} keys: {sample}")


def fsync_us(directory: Path, times: int = 50) -> float:
    """Return the median time, in microseconds, to write and fsync one page in `directory`."""
    taken = []
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(times):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - started) * 1e6)
    return statistics.median(taken)


def _wrk(wanted: str | None) -> str | None:
    found = None if wanted == "own" else find_wrk()
    if wanted == "wrk" and not found:
        raise BenchError("wrk is not installed")
    return found


def _progress(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _clients(text: str) -> list[int]:
    return [_positive(each) for each in text.split(",")]


def _workloads(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(WORKLOADS):
        raise argparse.ArgumentTypeError(f"no such workload: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
