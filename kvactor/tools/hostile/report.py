"""The goals of an attack, and the table."""

from typing import Final

from kvactor.settings import Settings
from kvactor.tools.hostile.run import AFTERWARDS, Measured
from kvactor.tools.hostile.victims import CLIENTS, RATE
from kvactor.tools.quantiles import quantile, shown

_MB: Final = 1_000_000

#: Of the victims' requests, in milliseconds: of each method.
WORST: Final = 100.0
P99: Final = 25.0

#: The share of the victims' planned requests that succeed.
SERVED: Final = 0.9

#: Bytes of anonymous memory: at most, and above idle some seconds after the attack.
MEMORY: Final = Settings().max_in_flight_size + 200 * _MB
REMAINS: Final = 100 * _MB

#: Bytes of the log for each second of an attack.
LOG: Final = 20_000

#: What --help says of the table.
COLUMNS: Final = f"""\
Each attack has a server of its own. The victims, {CLIENTS} clients at another address, send
it {RATE} requests a second each meanwhile: GET and PUT in turns. The columns, and the
goals by their names under "missed":

  GET p99, PUT p99   ms in which 99% of the victims' requests were answered: below {P99:g} (p99)
  worst              ms of the slowest: below {WORST:g} (worst)
  served             % of the victims' planned requests: at least {SERVED:.0%} (served)
  MB idle            the server's anonymous memory before the attack
  peak               the most of it: below {MEMORY / _MB:.0f}, max_in_flight_size and 200 MB (memory)
  after              {AFTERWARDS:g} s after the attack: below idle + {REMAINS / _MB:.0f} MB (remains)
  missed             the goals that were missed; ok: none; -: honest clients, who have no goals
  answers            what the attack got; then what the victims got that was no success

More goals: no request of the victims' fails (victims); each attack reaches the server in the second
half of its time (attacked); less than {LOG / 1000:g} kB of log for each second (log); and the server
answers afterwards (alive). Latencies and "served" depend on the machine: so "nothing" is measured
first, and again after every ten attacks of which one misses only those.
"""


def missed(measured: Measured) -> list[str]:
    """Return the goals that an attack has missed."""
    victims = measured.latencies
    methods = [one for one in (victims.get, victims.put) if one]
    goals = {
        "p99": all(quantile(one, 0.99) < P99 for one in methods),
        "worst": all(max(one) < WORST for one in methods),
        "served": victims.served >= SERVED * victims.planned,
    }
    return [name for name, met in goals.items() if not met] + broken(measured)


def broken(measured: Measured) -> list[str]:
    """Return the missed goals that no busy machine excuses."""
    victims = measured.latencies
    goals = {
        "victims": bool(victims.get and victims.put) and not victims.failures,
        "attacked": not measured.unreached,
        "memory": measured.peak < MEMORY,
        "remains": measured.afterwards < measured.idle + REMAINS,
        "log": len(measured.log) < LOG * measured.seconds,
        "alive": measured.alive,
    }
    return [name for name, met in goals.items() if not met]


_FORM: Final = "{:24} {:>8} {:>7} {:>8} {:>7} {:>6} {:>8} {:>6} {:>6} {:14} {}"

HEAD: Final = "\n".join(
    (
        _FORM.format(
            *("attack", "GET p99", "worst", "PUT p99", "worst", "served", "MB idle", "peak", "after"),
            *("missed", "answers"),
        ),
        _FORM.format(
            *("goal", f"<{P99:g}", f"<{WORST:g}", f"<{P99:g}", f"<{WORST:g}", f">={SERVED:.0%}", ""),
            *(f"<{MEMORY / _MB:.0f}", f"<+{REMAINS / _MB:.0f}", "", ""),
        ).rstrip(),
    )
)


def row(measured: Measured, *, judged: bool = True) -> str:
    """Return an attack's row: latencies in milliseconds, memory in MB."""
    victims = measured.latencies
    answers = ", ".join(f"{count} x {what}" for what, count in measured.answers.most_common(4))
    failures = ", ".join(f"{count} x {what}" for what, count in victims.failures.items())
    return _FORM.format(
        measured.name,
        *(
            shown(quantile(one, share), ".1f")
            for one in (victims.get, victims.put)
            for share in (0.99, 1)
        ),
        f"{victims.served / victims.planned:.0%}" if victims.planned else "-",
        *(f"{size / _MB:.0f}" for size in (measured.idle, measured.peak, measured.afterwards)),
        (" ".join(missed(measured)) or "ok") if judged else "-",
        answers + (f"; victims: {failures}" if failures else ""),
    ).rstrip()
