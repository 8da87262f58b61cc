"""The goals of an attack, and the table."""

from collections.abc import Sequence
from typing import Final

from kvactor.settings import Settings
from kvactor.tools.hostile.run import Measured

_MB: Final = 1_000_000

#: Of the victims, in milliseconds.
WORST: Final = 100.0
P99: Final = 25.0

#: Bytes of anonymous memory: at most, and above idle some seconds after the attack.
MEMORY: Final = Settings().max_in_flight_size + 200 * _MB
REMAINS: Final = 100 * _MB

#: Bytes of the log for each second of an attack.
LOG: Final = 20_000


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which such a share of the values is; 0.0 without values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def missed(measured: Measured) -> list[str]:
    """Return the goals that an attack has missed."""
    latencies = [*measured.latencies.get, *measured.latencies.put]
    goals = {"worst": max(latencies, default=0.0) < WORST, "p99": quantile(latencies, 0.99) < P99}
    return [name for name, met in goals.items() if not met] + broken(measured)


def broken(measured: Measured) -> list[str]:
    """Return the missed goals that no busy machine excuses: all but the latencies."""
    goals = {
        "victims": not measured.latencies.failures,
        "memory": measured.peak < MEMORY,
        "remains": measured.afterwards < measured.idle + REMAINS,
        "log": len(measured.log) < LOG * measured.seconds,
        "alive": measured.alive,
    }
    return [name for name, met in goals.items() if not met]


HEAD: Final = (
    f"{'attack':24} {'GET p99':>8} {'worst':>7} {'PUT p99':>8} {'worst':>7} {'MB idle':>8} {'peak':>6} "
    f"{'after':>6} {'missed':14} answers"
)


def row(measured: Measured, *, judged: bool = True) -> str:
    """Return an attack's row: latencies in milliseconds, memory in MB."""
    got, put = measured.latencies.get, measured.latencies.put
    answers = ", ".join(f"{count} x {what}" for what, count in measured.answers.most_common(4))
    failures = ", ".join(f"{count} x {what}" for what, count in measured.latencies.failures.items())
    return (
        f"{measured.name:24} {quantile(got, 0.99):8.1f} {max(got, default=0):7.1f} "
        f"{quantile(put, 0.99):8.1f} {max(put, default=0):7.1f} {measured.idle / _MB:8.0f} "
        f"{measured.peak / _MB:6.0f} {measured.afterwards / _MB:6.0f} "
        f"{' '.join(missed(measured)) or 'ok' if judged else '-':14} {answers}"
        + (f"; victims: {failures}" if failures else "")
    )
