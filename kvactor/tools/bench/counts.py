"""What a generator counts: answers, or events."""

import time

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """What a generator saw: answers (or events), errors among them or instead of them, and latency
    in microseconds.
    """

    requests: int
    errors: int
    seconds: float
    p50_us: float
    p99_us: float


class Run:
    """What the clients share: the clock and the counts."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.latencies: list[float] = []
        self.errors = 0

    def going(self) -> bool:
        """Tell whether there is time left for another round of a script."""
        return time.perf_counter() < self.deadline

    def count(self, began: float, now: float) -> None:
        """Count what has arrived `now`, unless that is too late."""
        if now < self.deadline:
            self.latencies.append(now - began)

    def sample(self, started: float, errors: int) -> Sample:
        """Sum up what was counted between `started` and now or the deadline."""
        seconds = min(time.perf_counter(), self.deadline) - started
        ordered = sorted(self.latencies) or [0.0]
        p50, p99 = (ordered[int(len(ordered) * share)] * 1e6 for share in (0.50, 0.99))
        return Sample(len(self.latencies), errors, seconds, p50, p99)
