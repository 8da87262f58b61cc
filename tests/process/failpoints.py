"""Servers to which something happens at a step of a write: how a test asks for `kvactor.failpoints`."""

from typing import Final

from kvactor.settings import FAILPOINTS

#: Longer than any test waits: whoever comes there stays there.
HOLD: Final = "delay:600000"


def armed(*failpoints: str) -> dict[str, str]:
    """Return the environment of a server with failpoints, each as `flush.after=kill@5`."""
    return {FAILPOINTS: ",".join(failpoints)}
