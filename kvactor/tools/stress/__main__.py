"""`scripts/stress [URL]`: stress a server with many clients, and check every response.

The exit status is 0 without a violation, 1 after one, and 2 if the run is inconclusive.
"""

import argparse
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from kvactor.tools.hostile import __main__ as hostile
from kvactor.tools.processes import ServerFailed
from kvactor.tools.stress.checker import Verdict, check
from kvactor.tools.stress.clients import Hangs
from kvactor.tools.stress.feed import Behind
from kvactor.tools.stress.history import History, lines, load
from kvactor.tools.stress.nemesis import FAULTS
from kvactor.tools.stress.programs import MIX, PROGRAMS
from kvactor.tools.stress.report import progress, table
from kvactor.tools.stress.run import Outcome, Plan, run

#: Operations a second below which a run has shown nothing.
FLOOR = 20

#: Operations of the stretch that shows a violation that are printed at most; all are saved.
SHOWN = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status. Without `arguments` the command line's are used."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    words = sys.argv[1:] if arguments is None else arguments
    if "--hostile" in words:
        return hostile.main([word for word in words if word != "--hostile"])
    return stress(words)


def stress(arguments: Sequence[str]) -> int:
    """Stress a server, judge its answers, print, and return the exit status."""
    options = parse(arguments)
    if options.check:
        return check_and_print(load(options.check), options.check)
    history = History(f"stress/{secrets.token_hex(4)}/")
    path = options.save or Path(f"{history.prefix.strip('/').replace('/', '-')}.json")
    try:
        with tempfile.TemporaryDirectory(prefix="kvactor-stress-", dir=options.dir) as directory:
            outcome = uvloop.run(run(plan(options, Path(directory)), history))
    except (Hangs, ServerFailed, ValueError) as error:
        return fail(error, history, path)
    except (Behind, OSError) as error:
        if options.url is None and isinstance(error, Behind):
            # Its own server keeps a history that is long enough.
            return fail(error, history, path)
        print(f"stress: nothing can be said: {error}", file=sys.stderr)
        return 2
    show(history, outcome)
    if options.save:
        history.save(path)
    if len(history.operations) < FLOOR * outcome.seconds:
        print(f"inconclusive: fewer than {FLOOR} operations a second show nothing")
        return 2
    return check_and_print(history, path)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "stress", description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("url", nargs="?", type=_address, help="of a running server (default: one of its own)")
    add("--clients", type=_positive, default=50, help="default 50")
    add("--operations", type=_positive, help="how many, all together")
    add("--seconds", type=float, help="for how long (default 10, if there are no --operations)")
    add("--followers", type=int, default=2, help="of the changes, beside the one that records (2)")
    mix = ",".join(f"{name}={weight}" for name, weight in MIX.items())
    add("--mix", type=_mix, default=dict(MIX), help=f"how often what is done; default {mix}")
    add("--keys", type=_positive, default=200, help="default 200")
    add("--hot", action="store_true", help="a few keys most of the time (default: all alike)")
    add("--ttl", type=int, default=20, help="percentage of puts that expire soon (default 20)")
    add("--seed", type=int, default=0, help="of what clients choose (default 0)")
    add("--faults", type=_faults, default=(), help=f"of its own server: {','.join(FAULTS)}")
    add("--dir", type=Path, help="where its own server has its data: the disk to stress")
    add(
        "--save",
        type=Path,
        metavar="FILE",
        help="keep the history (after a violation it is kept anyway)",
    )
    parser.epilog = "--hostile attacks a server of its own instead: --hostile --help has its options."
    add("--check", type=Path, metavar="FILE", help="check a history that was kept, and do nothing else")
    options = parser.parse_args(arguments)
    if options.url and options.faults:
        parser.error("--faults are for a server of its own only")
    return options


def plan(options: argparse.Namespace, directory: Path) -> Plan:
    """Return what the command line asks for."""
    seconds = options.seconds
    if seconds is None and options.operations is None:
        seconds = 10.0
    return Plan(
        directory,
        options.url,
        options.clients,
        options.followers,
        options.operations,
        seconds,
        options.mix,
        options.seed,
        options.keys,
        options.hot,
        options.ttl,
        options.faults,
    )


def show(history: History, outcome: Outcome) -> None:
    """Print the table."""
    progress("")
    for line in table(history.operations, outcome.seconds):
        print(line)
    conflicts = sum(one.error == "transaction_conflict" for one in history.operations)
    print(f"conflicts {conflicts}, retries {outcome.retries}")
    if outcome.kills or outcome.pauses:
        print(
            f"the server was killed {outcome.kills} times, {outcome.mid_write} of them between two "
            f"steps of a write, and stopped for a while {outcome.pauses} times"
        )


def check_and_print(history: History, path: Path) -> int:
    """Print the verdict, and return the exit status."""
    progress("checking ...")
    verdict = check(history)
    progress("")
    if verdict.violation:
        if not path.exists():
            history.save(path)
        print(f"VIOLATION: {verdict.violation}")
        for line in list(lines(verdict.stretch))[:SHOWN]:
            print(f"  {line}")
        print(f"The whole history is in {path}; --check {path} checks it again.")
        return 1
    print(summary(history, verdict))
    return 0


def summary(history: History, verdict: Verdict) -> str:
    """Return the sentence that says what a run without a violation has shown."""
    known = sum(one.outcome in {"ok", "observed"} for one in history.operations)
    unknown = sum(one.outcome == "info" for one in history.operations)
    return (
        f"strictly serializable: {known} operations with an answer fit {verdict.revisions} revisions; "
        f"{verdict.matched} of {unknown} without one have happened; no acknowledged write is lost, and "
        "nothing else is there"
    )


def fail(error: Exception, history: History, path: Path) -> int:
    """Print the error that ended the run, with the last operations, and return the exit status."""
    progress("")
    history.save(path)
    print(f"VIOLATION: {error}")
    for line in lines(history.operations[-SHOWN:]):
        print(f"  {line}")
    print(f"The history until then is in {path}.")
    return 1


def _address(text: str) -> tuple[str, int]:
    url = urlsplit(text if "//" in text else f"//{text}")
    if url.scheme not in {"", "http"} or not url.hostname or not url.port:
        raise argparse.ArgumentTypeError("a server's URL is like http://127.0.0.1:5000")
    return url.hostname, url.port


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _mix(text: str) -> dict[str, int]:
    mix = {}
    for one in text.split(","):
        name, _, weight = one.partition("=")
        if name not in PROGRAMS:
            raise argparse.ArgumentTypeError(f"no such program: {name}")
        if not weight.isdecimal():
            raise argparse.ArgumentTypeError("a mix is like put=3,get=1")
        mix[name] = int(weight)
    return mix


def _faults(text: str) -> tuple[str, ...]:
    if unknown := set(text.split(",")) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(sorted(unknown))}")
    return tuple(text.split(","))


if __name__ == "__main__":
    sys.exit(main())
