"""Break each promise on purpose, and see which test notices: `python -m tests.bugs [NAME ...]`.

The exit status is 0 if every bug is caught, 1 if one is not or its patch does not apply, and 2 if
nothing can be said, because what is to catch them fails without them, too.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final, NamedTuple

from tests.bugs import Bug, bugs, is_command
from tests.bugs.copies import HANGS, Broken, Copy, copied, copy_sources

ROOT: Final = Path(__file__).parents[2]

#: The whole suite, but for the test that patches fit an unpatched tree.
EVERYTHING: Final = ("--ignore=tests/test_bugs.py", "tests")


#: How much longer it may take than what is named.
SUITE: Final = 5


class Found(NamedTuple):
    """How it went with a bug."""

    bug: Bug
    caught: bool
    by: str
    seconds: float


def main() -> int:
    """Run, print, and return the exit status."""
    arguments = _parse()
    chosen = [one for one in bugs() if not arguments.names or one.name in arguments.names]
    if unknown := set(arguments.names) - {one.name for one in chosen}:
        return _say(f"no such bug: {', '.join(sorted(unknown))}", 2)
    if shutil.which("git") is None:
        return _say("git is needed, to apply the patches, and is not installed", 2)
    with tempfile.TemporaryDirectory(prefix="kvactor-bugs-") as directory:
        into = Path(directory)
        base = into / "base"
        copy_sources(ROOT, base)
        copy = Copy(base, into / "scratch")
        copy.check()
        if not arguments.unproven and (problem := _unpatched(copy, chosen, arguments)):
            return _say(f"without any bug this fails, so nothing can be said:\n{problem}", 2)
        return _show(_hunt(chosen, base, into, arguments), len(chosen))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "bugs", description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="of a bug: its patch without .patch (default: all)")
    add(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="bugs at once (default: one for each core)",
    )
    add("--limit", type=float, default=300.0, help="seconds beyond which a test hangs (300)")
    add("--named", action="store_true", help="run what is to catch a bug, and never the whole suite")
    add("--unproven", action="store_true", help="do not run the tests without a bug first")
    return parser.parse_args()


def _unpatched(copy: Copy, chosen: Sequence[Bug], arguments: argparse.Namespace) -> str:
    """Return what fails without a bug, of all that is to catch one."""
    catchers = dict.fromkeys(catcher for bug in chosen for catcher in bug.catchers)
    tests = dict.fromkeys(word for one in catchers if not is_command(one) for word in one)
    if tests and (said := copy.passes(list(tests), arguments.jobs, arguments.limit)):
        return said
    return "\n".join(
        filter(None, (copy.caught(one, arguments.limit) for one in catchers if is_command(one)))
    )


def _hunt(
    chosen: Sequence[Bug], base: Path, into: Path, arguments: argparse.Namespace
) -> Iterable[Found]:
    with ThreadPoolExecutor(arguments.jobs) as pool:
        hunts = [pool.submit(_try, bug, base, into, arguments) for bug in chosen]
        for hunt in as_completed(hunts):
            yield hunt.result()


def _try(bug: Bug, base: Path, into: Path, arguments: argparse.Namespace) -> Found:
    """Give a bug to those that are to catch it, and then to everybody."""
    catchers = bug.catchers if arguments.named else (*bug.catchers, EVERYTHING)
    with copied(base, into) as copy:
        started = time.monotonic()
        try:
            copy.patch(bug.path)
            for catcher in catchers:
                whole = catcher is EVERYTHING
                by = copy.caught(catcher, arguments.limit * (SUITE if whole else 1))
                if by:
                    # The whole suite takes long by itself, and has shown nothing until it fails.
                    caught = not (whole and by.startswith(HANGS))
                    return Found(bug, caught, by, time.monotonic() - started)
        except Broken as error:
            return Found(bug, False, str(error), time.monotonic() - started)
        return Found(bug, False, "NOTHING: a hole in the tests", time.monotonic() - started)


def _show(hunted: Iterable[Found], number: int) -> int:
    caught = 0
    for found in hunted:
        caught += found.caught
        mark = "" if found.caught else "NOT CAUGHT: "
        _say(f"{found.bug.name:44} {found.bug.promise:4} {found.seconds:6.1f} s  {mark}{found.by}")
    return _say(f"{caught} of {number} bugs are caught", int(caught < number))


def _say(text: str, status: int = 0) -> int:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(main())
