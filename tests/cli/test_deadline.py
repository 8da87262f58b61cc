"""The deadline of a stop ends the process, whatever the log does."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import kvactor

#: Seconds after which a process that should have ended hangs.
PATIENCE: Final = 30.0

#: A process that waits for ever, with a log whose lines do so, too.
STUCK: Final = """
import logging, threading
from kvactor.cli.deadline import ExitDeadline

class Stuck(logging.Handler):
    def emit(self, record):
        threading.Event().wait()

logging.getLogger().addHandler(Stuck())
with ExitDeadline() as deadline:
    deadline.start(0.01, lambda: "nothing")
    threading.Event().wait()
"""


def test_a_log_that_hangs_does_not_keep_the_process_from_ending_at_the_deadline() -> None:
    root = Path(kvactor.__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", STUCK], cwd=root, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
