"""The output of a run: a line of progress, and a table at its end."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from kvactor.tools.quantiles import quantile, shown
from kvactor.tools.stress.history import Operation, Outcome


class Totals(msgspec.Struct):
    """Of operations of one kind. Latencies are milliseconds, of those that were done."""

    kind: str
    outcomes: dict[Outcome, int]
    p50: float
    p99: float
    p999: float


def totals(operations: Sequence[Operation]) -> list[Totals]:
    """Add up, by kind."""
    kinds: dict[str, list[Operation]] = defaultdict(list)
    for one in operations:
        kinds[one.kind].append(one)
    return [
        Totals(
            kind,
            dict(Counter(one.outcome for one in ones)),
            *(
                quantile((one.took * 1e3 for one in ones if one.outcome == "ok"), share)
                for share in (0.5, 0.99, 0.999)
            ),
        )
        for kind, ones in sorted(kinds.items())
    ]


def table(operations: Sequence[Operation], seconds: float) -> Iterator[str]:
    """Show what was done, line by line."""
    outcomes: tuple[Outcome, ...] = ("ok", "observed", "info", "fail")
    yield f"{'':15}{''.join(f'{name:>9}' for name in outcomes)}{'p50 ms':>9}{'p99':>9}{'p99.9':>9}"
    for one in totals(operations):
        counts = "".join(f"{one.outcomes.get(name, 0):9}" for name in outcomes)
        latencies = "".join(f"{shown(took, '.2f'):>9}" for took in (one.p50, one.p99, one.p999))
        yield f"{one.kind:15}{counts}{latencies}"
    yield f"{len(operations)} operations in {seconds:.1f} s: {len(operations) / seconds:.0f} a second"
    errors = Counter(one.error for one in operations if one.error)
    if errors:
        yield "not done: " + ", ".join(f"{code} {count}" for code, count in errors.most_common())


def progress(text: str) -> None:
    """Say how far it is, in the place of what was said before if somebody looks on."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
    elif text:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
