"""Run seeds: `python -m tests.simulation 42`, or `python -m tests.simulation 0 1000` for many.

The exit status is 1 if anything was wrong.
"""

import sys

from kvactor.tools.stress.history import lines
from tests.simulation.schedules import simulate


def main(arguments: list[str]) -> int:
    """Run one seed, and print all of it; or those from one up to another, and print what was wrong."""
    one = len(arguments) == 1
    seeds = range(int(arguments[0]), int(arguments[-1]) + one)
    failed = False
    for seed in seeds:
        report = simulate(seed)
        failed |= bool(report.violation)
        if one:
            operations = lines(report.history.operations)
            sys.stdout.write("\n".join([*report.trace.lines(), *operations, ""]))
        if one or report.violation:
            sys.stdout.write(f"{report}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
