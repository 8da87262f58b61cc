"""What each attack has to leave as it was: the victims' requests succeed, memory stays within its
goals, the log is bounded, and the server answers afterwards.
"""

from collections.abc import Sequence
from typing import Final

from kvactor.tools.hostile.report import HEAD, missed, row
from kvactor.tools.hostile.run import attack
from tests.process.servers import environment
from tests.sizes import size

#: Latencies, and times without a commit, may be so many times their goals. The tests share two
#: processors with each other, so they look for what makes others wait for many seconds, not for
#: milliseconds. `kvactor stress --hostile` on a quiet machine has the goals themselves.
BUSY: Final = 10.0


def withstand(names: Sequence[str], again: str = "") -> None:
    """Attack a server, and assert that it meets the goals. `again` is how to do so again by hand."""
    seconds = size("attack_seconds")
    measured = attack(names, seconds, environment())
    again = again or " ".join(names)
    assert missed(measured, BUSY) == [], (
        f"\n{HEAD}\n{row(measured)}\nkvactor stress --hostile {again} --seconds {seconds}\n"
        f"{measured.log[-2000:]}"
    )
