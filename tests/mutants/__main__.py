"""Make mutants, and report which test kills each: `python -m tests.mutants [NAME ...]`.

The exit status is 0 if every mutant is killed, 1 if one survives or cannot be made, and 2 if nothing
can be said, because a killer fails without a mutant, too.
"""

import argparse
import os
import sys

from tests.mutants.catalogue import MUTANTS
from tests.mutants.run import Options, run, say


def main() -> int:
    """Run the mutants that the command line names, and return the exit status."""
    arguments = _parse()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    if unknown := set(arguments.names) - {mutant.name for mutant in chosen}:
        return say(f"no such mutant: {', '.join(sorted(unknown))}", 2)
    return run(chosen, Options(arguments.jobs, arguments.limit, arguments.named, arguments.unproven))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "mutants", description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="of a mutant (default: all)")
    add(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="mutants at once (default: one for each core)",
    )
    add("--limit", type=float, default=300.0, help="seconds beyond which a killer hangs (300)")
    add("--named", action="store_true", help="run only the killers that a mutant names")
    add("--unproven", action="store_true", help="do not run the killers without a mutant first")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
