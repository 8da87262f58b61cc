"""`kvactor stress --hostile`: attack a server of its own, and report what others notice.

`contention` is the last: no attack, but long transactions beside single writes of the same keys.
The exit status is 0 if all goals are met, 1 if one is missed, and 2 if the victims miss them without
an attack, too: the machine is too busy to tell.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Final

from kvactor.tools.hostile.attacks import ATTACKS, HONEST
from kvactor.tools.hostile.contention import GOALS, contend, lines
from kvactor.tools.hostile.report import COLUMNS, HEAD, broken, missed, row
from kvactor.tools.hostile.run import Measured, VictimsFailed, attack

CONTENTION: Final = "contention"

#: Seconds that an attack takes beside its own, about.
AROUND: Final = 10.0

#: Seconds for which "nothing" is measured, at most.
FLOOR: Final = 5.0

#: Attacks after which "nothing" is measured again, if one of them has missed a goal.
GROUP: Final = 10

#: The exit statuses.
OK, MISSED, INCONCLUSIVE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        "stress --hostile",
        description=str(__doc__),
        epilog=f"{COLUMNS}\n{fill(f'contention: {GOALS}.', 100)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = [*ATTACKS, *HONEST, CONTENTION]
    parser.add_argument(
        "attacks", nargs="*", help=f"default: all, one after the other: {', '.join(known)}"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="for which each attack goes on (default 5), and contention (default 10); starting the "
        f"server and looking at its memory afterwards takes about {AROUND:g} s more for each attack",
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
    status = attacks(plans, options.seconds or 5.0) if plans else OK
    if status != INCONCLUSIVE and CONTENTION in names and not options.random:
        found = contend(options.seconds or 10.0)
        print("\n".join(lines(found)))
        status = MISSED if found.missed else status
    return status


def attacks(
    plans: Sequence[Sequence[str]],
    seconds: float,
    attack: Callable[[Sequence[str], float], Measured] = attack,
) -> int:
    """Attack, print the table, and return the exit status."""
    duration = (len(plans) + 1) * (seconds + AROUND)
    print(f"{len(plans)} attacks, about {duration:.0f} s; --help explains the columns and the goals")
    print(HEAD)
    floor = attack([], min(seconds, FLOOR))
    print(row(floor), flush=True)
    if missed(floor):
        print("inconclusive: the victims miss the goals without any attack")
        return INCONCLUSIVE
    found = {OK}
    for first in range(0, len(plans), GROUP):
        doubtful = []
        for plan in plans[first : first + GROUP]:
            try:
                measured = attack(plan, seconds)
            except VictimsFailed as error:
                print(f"inconclusive: {'+'.join(plan)}: {error}", flush=True)
                found.add(INCONCLUSIVE)
                continue
            judged = not set(plan) & set(HONEST)
            print(row(measured, judged=judged), flush=True)
            if judged and broken(measured):
                found.add(MISSED)
            elif judged and missed(measured):
                doubtful.append(measured.name)
        if doubtful:
            floor = attack([], min(seconds, FLOOR))
            print(row(floor), flush=True)
            if missed(floor):
                print(f"inconclusive: the machine, not {', '.join(doubtful)}, may be to blame")
            found.add(INCONCLUSIVE if missed(floor) else MISSED)
    return MISSED if MISSED in found else max(found)


def combinations(number: int, seed: int) -> list[list[str]]:
    """Return so many combinations of two to four attacks."""
    chooser = random.Random(seed)
    return [chooser.sample(sorted(ATTACKS), chooser.randint(2, 4)) for _ in range(number)]


if __name__ == "__main__":
    sys.exit(main())
