"""`kvactor stress --hostile`: attack a server of its own, and report what others notice.

`contention` is the last: no attack, but long transactions beside single writes of the same keys.
The exit status is 0 if all goals are met, 1 if one is missed, and 2 if the victims miss them without
any attack: the machine is too busy to tell.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Final

from kvactor.tools.hostile.attacks import ATTACKS, HONEST
from kvactor.tools.hostile.contention import contend, lines
from kvactor.tools.hostile.report import HEAD, missed, row
from kvactor.tools.hostile.run import attack

CONTENTION: Final = "contention"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        "stress --hostile",
        description=str(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = [*ATTACKS, *HONEST, CONTENTION]
    parser.add_argument(
        "attacks", nargs="*", help=f"default: all, one after the other: {', '.join(known)}"
    )
    parser.add_argument(
        "--seconds", type=float, help="of each attack (default 5), and of contention (default 10)"
    )
    parser.add_argument("--random", type=int, default=0, help="so many random combinations instead")
    parser.add_argument("--seed", type=int, default=0, help="of the combinations (default 0)")
    options = parser.parse_args(arguments)
    if unknown := set(options.attacks) - set(known):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    names = options.attacks or known
    plans = [[name] for name in names if name != CONTENTION]
    if options.random:
        plans = combinations(options.random, options.seed)
    met = not plans or attacks(plans, options.seconds or 5.0)
    if met is None:
        print("inconclusive: the victims miss the goals without any attack")
        return 2
    if CONTENTION in names and not options.random:
        found = contend(options.seconds or 10.0)
        print("\n".join(lines(found)))
        met = met and not found.missed
    return int(not met)


def attacks(plans: Sequence[Sequence[str]], seconds: float) -> bool | None:
    """Attack, and print the table; return whether all goals are met, None if they are missed without
    any attack.
    """
    print(HEAD)
    floor = attack([], seconds)
    print(row(floor), flush=True)
    if missed(floor):
        return None
    met = True
    for plan in plans:
        measured = attack(plan, seconds)
        judged = not set(plan) & set(HONEST)
        print(row(measured, judged=judged), flush=True)
        met = met and not (judged and missed(measured))
    return met


def combinations(number: int, seed: int) -> list[list[str]]:
    """Return so many combinations of two to four attacks."""
    chooser = random.Random(seed)
    return [chooser.sample(sorted(ATTACKS), chooser.randint(2, 4)) for _ in range(number)]


if __name__ == "__main__":
    sys.exit(main())
