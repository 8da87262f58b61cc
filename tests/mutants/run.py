"""The run of some mutants: each is made in a copy of the tree and given to its killers, and then to the
whole suite.

The rule: a mutant is killed only if a test fails or a named killer hangs. If it cannot be made, or the
whole suite merely takes long, it survives.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final, NamedTuple

from tests.mutants.copies import HANGS, Broken, Copy, copied, copy_sources
from tests.mutants.mutant import Mutant, is_command

ROOT: Final = Path(__file__).parents[2]

#: The whole suite, but for the test that the mutants fit an unchanged tree.
EVERYTHING: Final = "--ignore=tests/test_mutants.py tests"

#: How many times as long as a named killer it may take.
SUITE: Final = 5


class Options(NamedTuple):
    """How to run mutants: `jobs` at once, with `limit` seconds for a killer.

    `named`: run the named killers only, and never the whole suite. `unproven`: do not run the killers
    on the unchanged tree first.
    """

    jobs: int
    limit: float
    named: bool = False
    unproven: bool = False


class Outcome(NamedTuple):
    """What became of a mutant: `by` is what killed it, or why it survives."""

    mutant: Mutant
    killed: bool
    by: str
    seconds: float


def run(mutants: Sequence[Mutant], options: Options) -> int:
    """Run the killers of some mutants, print what became of each, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="kvactor-mutants-") as directory:
        into = Path(directory)
        base = into / "base"
        copy_sources(ROOT, base)
        copy = Copy(base, into / "scratch")
        copy.check()
        if not options.unproven and (problem := _unchanged(copy, mutants, options)):
            return say(f"killers fail without a mutant, so they show nothing:\n{problem}", 2)
        killed = 0
        for outcome in _outcomes(mutants, base, into, options):
            killed += outcome.killed
            _show(outcome)
        return say(f"{killed} of {len(mutants)} mutants are killed", int(killed < len(mutants)))


def say(text: str, status: int = 0) -> int:
    """Print a line at once, and return an exit status."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return status


def _unchanged(copy: Copy, mutants: Sequence[Mutant], options: Options) -> str:
    """Return what fails without a mutant, of all killers."""
    killers = list(dict.fromkeys(killer for mutant in mutants for killer in mutant.killed_by))
    tests = [killer for killer in killers if not is_command(killer)]
    if tests and (failed := copy.passes(tests, options.jobs, options.limit)):
        return failed
    commands = [copy.fails(killer, options.limit) for killer in killers if is_command(killer)]
    return "\n".join(filter(None, commands))


def _outcomes(mutants: Sequence[Mutant], base: Path, into: Path, options: Options) -> Iterator[Outcome]:
    """Try all mutants, and yield what becomes of each as soon as it is known."""
    with ThreadPoolExecutor(options.jobs) as pool:
        tries = [pool.submit(_try, mutant, base, into, options) for mutant in mutants]
        for one in as_completed(tries):
            yield one.result()


def _try(mutant: Mutant, base: Path, into: Path, options: Options) -> Outcome:
    """Make a mutant in a copy, and run its killers until one kills it."""
    started = time.monotonic()
    with copied(base, into) as copy:
        try:
            copy.mutate(mutant)
            by = _killer(mutant, copy, options)
        except Broken as error:
            return Outcome(mutant, False, str(error), time.monotonic() - started)
    return Outcome(mutant, bool(by), by or "a hole in the tests", time.monotonic() - started)


def _killer(mutant: Mutant, copy: Copy, options: Options) -> str:
    """Return what kills a mutant; empty if nothing does."""
    for killer in mutant.killed_by:
        if by := copy.fails(killer, options.limit):
            return by
    if options.named:
        return ""
    by = copy.fails(EVERYTHING, options.limit * SUITE)
    # The whole suite takes long by itself, and has shown nothing until a test fails.
    return "" if by.startswith(HANGS) else by


def _show(outcome: Outcome) -> None:
    mark = "" if outcome.killed else "SURVIVED: "
    mutant = outcome.mutant
    say(f"{mutant.name:51} {mutant.promise:4} {outcome.seconds:6.1f} s  {mark}{outcome.by}")
