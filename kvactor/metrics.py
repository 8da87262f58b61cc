"""Metrics, and their text for Prometheus.

The rule: measuring costs a few counters in memory; names, help and text are made for a request of
`/metrics`. All durations are seconds, by a monotonic clock.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from kvactor.core.messages import StatusReport
from kvactor.core.protocols import Done, Journal, Tree
from kvactor.core.records import Entry, Revision

CONTENT_TYPE = CONTENT_TYPE_LATEST

Clock = Callable[[], float]

#: Upper bounds, seconds.
DURATIONS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)
#: Upper bounds, revisions.
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Histogram:
    """Counts values by size. One thread at a time may observe."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = DURATIONS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """For each upper bound, how many values were not above it."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, inf), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == inf else str(bound), float(total)))
        return buckets

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum


class Metrics:
    """The counters of a server."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        #: by method, route and status
        self.requests: dict[tuple[str, str, int], Histogram] = {}
        #: by code
        self.errors: Counter[str] = Counter()
        self.mailbox_wait = Histogram()
        self.flush = Histogram()
        self.flush_size = Histogram(SIZES)
        self.fold = Histogram()
        #: counts the requests that follow the changes
        self.subscribers: Callable[[], int] = lambda: 0
        self.connections = 0
        self.slow_clients_disconnected = 0

    def counter(self, method: str, route: str) -> Callable[[int, float], None]:
        """Return a function that counts a request: its status, and the seconds that it took."""
        by_status: dict[int, Histogram] = {}

        def count(status: int, seconds: float) -> None:
            if status not in by_status:
                by_status[status] = self.requests[method, route, status] = Histogram()
            by_status[status].observe(seconds)

        return count

    def text(self, report: StatusReport, revision: int, waiting: int) -> bytes:
        """Return all metrics, those of the owner's report too, in Prometheus' text format."""
        gauges = {
            "revision": ("Newest durable revision.", revision),
            "keys": ("Keys stored.", report.keys),
            "mailbox_waiting": ("Requests that wait: in the mailbox, or for a flush.", waiting),
            "staged_revisions": ("Revisions not durable yet.", report.staged),
            "memtable_keys": ("Keys in the memtable.", report.memtable_keys),
            "memtable_bytes": ("Bytes in the memtable, with overhead.", report.memtable_bytes),
            "folded_revision": ("Newest revision in the tree.", report.folded),
            "writes_stalled": (
                "1 while writes are refused because folds or flushes fall behind.",
                int(report.stalled),
            ),
            "transactions_open": ("Isolated transactions open.", report.transactions),
            "shared_transaction_depth": ("Depth of the shared transaction.", report.shared_depth),
            "free_bytes": (
                "Bytes free for writes; below min_free_space they are refused.",
                report.free_space,
            ),
            "connections": ("Connections that are open.", self.connections),
            "subscribers": ("Requests that follow the changes.", self.subscribers()),
        }
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Snapshot([*self._counted(), *_gauges(gauges)]))
        return generate_latest(registry)

    def _counted(self) -> Iterator[Metric]:
        requests = HistogramMetricFamily(
            "kvactor_request_seconds",
            "Requests, from the end of the head until the response is made.",
            labels=("method", "route", "status"),
        )
        for (method, route, status), one in list(self.requests.items()):
            requests.add_metric((method, route, str(status)), one.buckets, one.sum)
        yield requests
        for name, text, one in (
            (
                "mailbox_wait_seconds",
                "Wait of the first message of a drain.",
                self.mailbox_wait,
            ),
            ("flush_seconds", "Flushes of the journal.", self.flush),
            ("flush_revisions", "Revisions in a flush.", self.flush_size),
            ("fold_seconds", "Folds of the memtable into the tree.", self.fold),
        ):
            yield HistogramMetricFamily(f"kvactor_{name}", text, buckets=one.buckets, sum_value=one.sum)
        errors = CounterMetricFamily(
            "kvactor_errors",
            "Errors sent to clients, by code; transaction_conflict counts the conflicts.",
            labels=("code",),
        )
        for code, count in list(self.errors.items()):
            errors.add_metric((code,), count)
        yield errors
        yield CounterMetricFamily(
            "kvactor_slow_clients_disconnected",
            "Clients disconnected because they did not read.",
            self.slow_clients_disconnected,
        )


class _Snapshot(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        """Return the metrics."""
        return self._metrics


def _gauges(gauges: Mapping[str, tuple[str, int]]) -> Iterator[Metric]:
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"kvactor_{name}", text, value)


class MeasuredJournal:
    """A journal whose flushes are measured."""

    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self._journal = journal
        self._metrics = metrics
        self.replay = journal.replay
        self.read = journal.read
        self.head = journal.head
        self.trim = journal.trim
        self.forget = journal.forget
        self.free_space = journal.free_space
        self.reusable = journal.reusable
        self.close = journal.close

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        """See `Journal`."""
        metrics = self._metrics
        metrics.flush_size.observe(len(revisions))
        self._journal.append(revisions, _timed(metrics.flush, metrics.clock, done))


class MeasuredTree:
    """A tree whose folds are measured."""

    def __init__(self, tree: Tree, metrics: Metrics) -> None:
        self._tree = tree
        self._metrics = metrics
        self.get = tree.get
        self.head = tree.head
        self.range = tree.range
        self.expired = tree.expired
        self.snapshot = tree.snapshot
        self.free_space = tree.free_space
        self.reusable = tree.reusable
        self.close = tree.close

    @property
    def applied(self) -> int:
        """See `Tree`."""
        return self._tree.applied

    @property
    def keys(self) -> int:
        """See `Tree`."""
        return self._tree.keys

    def fold(self, changes: Iterable[tuple[bytes, Entry]], applied: int, done: Done) -> None:
        """See `Tree`."""
        metrics = self._metrics
        self._tree.fold(changes, applied, _timed(metrics.fold, metrics.clock, done))


def _timed(distribution: Histogram, clock: Clock, done: Done) -> Done:
    began = clock()

    def report(error: BaseException | None) -> None:
        distribution.observe(clock() - began)
        done(error)

    return report
