"""`kvactor stress --hostile`: attack a server of its own, and report what others notice.

The exit status is 0 if all goals are met, 1 if one is missed, and 2 if the victims miss them without
any attack: the machine is too busy to tell.
"""

import argparse
import random
import sys
from collections.abc import Sequence

from kvactor.tools.hostile.attacks import ATTACKS, HONEST
from kvactor.tools.hostile.report import HEAD, missed, row
from kvactor.tools.hostile.run import attack


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        "stress --hostile",
        description=str(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join([*ATTACKS, *HONEST])
    parser.add_argument("attacks", nargs="*", help=f"default: all, one after the other: {known}")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack (default 5)")
    parser.add_argument("--random", type=int, default=0, help="so many random combinations instead")
    parser.add_argument("--seed", type=int, default=0, help="of the combinations (default 0)")
    options = parser.parse_args(arguments)
    if unknown := set(options.attacks) - {*ATTACKS, *HONEST}:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    print(HEAD)
    floor = attack([], options.seconds)
    print(row(floor), flush=True)
    if missed(floor):
        print("inconclusive: the victims miss the goals without any attack")
        return 2
    plans = [[name] for name in options.attacks or (*ATTACKS, *HONEST)]
    if options.random:
        plans = combinations(options.random, options.seed)
    failed = False
    for plan in plans:
        measured = attack(plan, options.seconds)
        judged = not set(plan) & set(HONEST)
        print(row(measured, judged=judged), flush=True)
        failed = failed or (judged and bool(missed(measured)))
    return int(failed)


def combinations(number: int, seed: int) -> list[list[str]]:
    """Return so many combinations of two to four attacks."""
    chooser = random.Random(seed)
    return [chooser.sample(sorted(ATTACKS), chooser.randint(2, 4)) for _ in range(number)]


if __name__ == "__main__":
    sys.exit(main())
