"""`python -m tests.web.corpus`: compare the server with the corpus; with `--record`, record it anew."""

import argparse
import sys
from pathlib import Path

from tests.web.corpus import ROOT, SCRIPTS, difference, replay


def main() -> int:
    """Return 1 if there is a difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.web.corpus", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write down what the server says now")
    parser.add_argument("--tree", type=Path, default=ROOT, help="where its code is (default: here)")
    parser.add_argument("names", nargs="*", help="of files, without .txt (default: all)")
    given = parser.parse_args()
    differs = False
    for path in SCRIPTS:
        if given.names and path.stem not in given.names:
            continue
        if given.record:
            path.write_text(replay(path.read_text("ascii"), given.tree), "ascii")
        elif text := difference(path, given.tree):
            differs = True
            sys.stdout.write(f"{path.name}\n{text}\n")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
