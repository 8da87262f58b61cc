"""Load from another process: wrk where it is installed and able, else bench.load."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from kvactor.tools.bench.counts import Sample
from kvactor.tools.bench.load import GRACE_SECONDS
from kvactor.tools.bench.servers import BenchError, pinned
from kvactor.tools.bench.workloads import Load, Workload

OWN: Final = "kvactor.tools.bench.load"
WRK_SCRIPT: Final = Path(__file__).with_name("wrk.lua")


class Generator:
    """Runs one load at a time, on `core` if that is given."""

    def __init__(self, wrk: str | None, core: int | None) -> None:
        self._wrk = wrk
        self._core = core

    def name_for(self, workload: Workload) -> str:
        """Say which program generates `workload`."""
        return "wrk" if self._wrk and workload.requests else OWN

    def run(self, host: str, load: Load) -> tuple[Sample, float]:
        """Load `host`; return what was seen, and the generator's CPU seconds."""
        command = self._command(host, load)
        cpu = _children_seconds()
        try:
            with pinned(self._core):
                output = subprocess.run(
                    command,
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=load.seconds + 2 * GRACE_SECONDS,
                ).stdout
        except subprocess.CalledProcessError as error:
            raise BenchError(
                f"the load generator failed: {error.stdout}{error.stderr[-2000:]}"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BenchError("the load generator did not end") from error
        return msgspec.json.decode(output.splitlines()[-1], type=Sample), _children_seconds() - cpu

    def _command(self, host: str, load: Load) -> list[str]:
        workload = load.workload
        clients, seconds, keys = (str(number) for number in (load.clients, load.seconds, load.keys))
        if not (self._wrk and workload.requests):
            return [sys.executable, "-m", OWN, host, workload.name, clients, seconds, keys]
        options = ["-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(WRK_SCRIPT)]
        kinds = [text for share, kind in workload.requests for text in (str(share), kind.text(host))]
        return [self._wrk, *options, f"http://{host}", "--", keys, *kinds]


def find_wrk() -> str | None:
    """Return the path of wrk, if it is installed."""
    return shutil.which("wrk")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
