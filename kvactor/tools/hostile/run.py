"""One attack, or several at once: what the victims and the server's memory did meanwhile."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from kvactor.tools.hostile.attacks import ATTACKS, HONEST, Attack
from kvactor.tools.hostile.target import Target
from kvactor.tools.hostile.victims import Latencies
from kvactor.tools.processes import ServerProcess, environment

#: Seconds after the end of an attack at which memory is read again.
AFTERWARDS: Final = 5.0

#: Seconds between two readings of the server's memory.
SAMPLE: Final = 0.02

#: Seconds for which the victims run before an attack begins.
BEFORE: Final = 1.0


class Measured(msgspec.Struct):
    """What an attack of `seconds` has done. Latencies are milliseconds; `idle`, `peak` and `afterwards`
    are bytes of anonymous memory, and `log` is what the server has logged. `unreached` are the attacks
    that have not reached the server in the second half of their time.
    """

    name: str
    seconds: float
    latencies: Latencies
    idle: int
    peak: int
    afterwards: int
    answers: Counter[str]
    log: str
    #: whether the server has answered a request of the attacker's afterwards
    alive: bool
    unreached: list[str] = []


class VictimsFailed(Exception):
    """The victims' process has ended without its report."""


def attack(names: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> Measured:
    """Start a server, attack it for so many seconds with all attacks at once, and measure.

    Raises `ServerFailed` and `VictimsFailed`.
    """
    with serving(environ) as server:
        return _measure(server, names, seconds)


@contextmanager
def serving(environ: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server that is ready. It has the first processor, all others have the rest.

    Raises `ServerFailed`.
    """
    processors = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="kvactor-hostile-") as directory:
        command = [
            *(sys.executable, "-m", "kvactor", "serve", "--port", "0"),
            *("--data-dir", str(Path(directory) / "data")),
        ]
        with ServerProcess(command, environ=environ or environment()) as server:
            server.wait_until_ready()
            if len(processors) > 1:
                for thread in os.listdir(f"/proc/{server.pid}/task"):
                    os.sched_setaffinity(int(thread), {processors[0]})
                os.sched_setaffinity(0, set(processors[1:]))
            try:
                yield server
            finally:
                os.sched_setaffinity(0, set(processors))


def _measure(server: ServerProcess, names: Sequence[str], seconds: float) -> Measured:
    idle = anonymous(server.pid)
    sampler = _Sampler(server.pid)
    known = {**ATTACKS, **HONEST}
    try:
        with ThreadPoolExecutor(1 + len(names)) as pool:
            victims = pool.submit(_victims, server, seconds + 2 * BEFORE)
            time.sleep(BEFORE)
            targets = [Target(server.host, server.port, seconds) for _ in names]
            attacks = [
                pool.submit(_attack, known[name], target)
                for name, target in zip(names, targets, strict=True)
            ]
        latencies = victims.result()
        for one in attacks:
            one.result()
    finally:
        peak = sampler.stop()
    time.sleep(AFTERWARDS)
    return Measured(
        "+".join(names) or "nothing",
        seconds,
        latencies,
        idle,
        peak,
        anonymous(server.pid),
        sum((target.answers for target in targets), Counter()),
        server.log,
        _answers(Target(server.host, server.port, 0)),
        [name for name, target in zip(names, targets, strict=True) if not target.reached],
    )


def _victims(server: ServerProcess, seconds: float) -> Latencies:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "kvactor.tools.hostile.victims"),
            *(server.host, str(server.port), str(seconds)),
        ],
        stdout=subprocess.PIPE,
        timeout=seconds + 120,
        check=False,
    )
    try:
        return msgspec.json.decode(ended.stdout, type=Latencies)
    except msgspec.DecodeError as error:
        raise VictimsFailed(
            f"the victims have ended with status {ended.returncode}: {error}"
        ) from error


def _attack(one: Attack, target: Target) -> None:
    try:
        one(target)
    except (OSError, ValueError) as error:
        target.answers[type(error).__name__] += 1


def _answers(target: Target) -> bool:
    try:
        return target.ask("GET", "/v1/kv?limit=1").ok
    except (OSError, ValueError):
        return False


def anonymous(pid: int) -> int:
    """Return how many bytes of anonymous memory a process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class _Sampler:
    """Reads a process's memory again and again, in a thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE):
            try:
                self._peak = max(self._peak, anonymous(self._pid))
            except OSError:
                return

    def stop(self) -> int:
        """Return the highest reading."""
        self._ended.set()
        self._thread.join()
        return self._peak
