"""The parts of the simulation: they do what asyncio, a network and a disk promise, and no better."""

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from kvactor.core.records import Revision
from tests.simulation.disk import Disk, DiskProfile
from tests.simulation.loop import Process, SimulatedLoop, Stuck, run
from tests.simulation.network import Conditions, End, Network


class Heard(asyncio.Protocol):
    """Remembers what a transport has told it."""

    transport: End

    def __init__(self) -> None:
        self.received = b""
        self.pieces = 0
        self.told: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert "lost" not in self.told
        self.received += data
        self.pieces += 1

    def eof_received(self) -> None:
        self.told.append("eof")

    def pause_writing(self) -> None:
        self.told.append("paused")

    def resume_writing(self) -> None:
        self.told.append("resumed")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost" if exc is None else "reset")


Loops = Callable[[], SimulatedLoop]


@pytest.fixture
def loops() -> Iterator[Loops]:
    """Makes loops, and disposes of them in the end."""
    made: list[SimulatedLoop] = []

    def make() -> SimulatedLoop:
        made.append(SimulatedLoop(max_steps=1000))
        return made[-1]

    yield make
    for one in made:
        if not one.is_closed():
            one.dispose([])


@pytest.fixture
def loop(loops: Loops) -> SimulatedLoop:
    return loops()


@pytest.fixture
def process() -> Process:
    return Process("server")


def pair(
    loop: SimulatedLoop, process: Process, conditions: Conditions, seed: int = 1
) -> tuple[Heard, Heard]:
    """Return the client's and the server's end of a connection that is open."""
    network, server = Network(loop, Random(seed), conditions), Heard()
    network.listen(lambda: server, process)
    _, client = run(loop, loop.create_connection(Heard, "127.0.0.1", 1))
    settle(loop)
    return client, server


def settle(loop: SimulatedLoop, seconds: float = 60) -> None:
    run(loop, asyncio.sleep(seconds))


@pytest.mark.parametrize("seed", range(20))
def test_bytes_arrive_in_order_and_once_whatever_the_pieces(
    loop: SimulatedLoop, process: Process, seed: int
) -> None:
    client, server = pair(loop, process, Conditions(split=1.0, wire=50, high=100), seed)
    sent = Random(seed).randbytes(2000)
    for at in range(0, len(sent), 100):
        client.transport.write(sent[at : at + 100])
    client.transport.close()
    settle(loop)
    assert server.received == sent
    assert server.pieces > 2
    assert client.told == ["paused", "resumed", "lost"]
    assert server.told == ["eof", "lost"]


def test_a_reader_that_pauses_holds_its_writer_up_until_it_resumes(
    loop: SimulatedLoop, process: Process
) -> None:
    client, server = pair(loop, process, Conditions(wire=50, high=100))
    server.transport.pause_reading()
    client.transport.write(bytes(1000))
    settle(loop)
    assert (server.received, client.told) == (b"", ["paused"])
    server.transport.resume_reading()
    settle(loop)
    assert (len(server.received), client.told) == (1000, ["paused", "resumed"])


def test_an_aborted_end_sends_nothing_more_and_its_peer_is_reset(
    loop: SimulatedLoop, process: Process
) -> None:
    client, server = pair(loop, process, Conditions())
    server.transport.write(b"never")
    server.transport.abort()
    settle(loop)
    assert (client.received, client.told, server.told) == (b"", ["reset"], ["lost"])


def test_bytes_sent_to_a_closed_end_come_back_as_a_reset(loop: SimulatedLoop, process: Process) -> None:
    client, server = pair(loop, process, Conditions())
    server.transport.close()
    client.transport.write(b"too late")
    settle(loop)
    assert client.told in (["reset"], ["eof", "lost"])
    assert server.received == b""


def test_a_dead_process_does_nothing_more_and_its_clients_are_told(
    loop: SimulatedLoop, process: Process
) -> None:
    client, server = pair(loop, process, Conditions())
    done = []

    async def work() -> None:
        try:
            await asyncio.sleep(1)
            done.append("slept")
        finally:
            done.append("buried")

    loop.create_task(work(), context=process.context.copy())
    settle(loop, 0.5)
    process.alive = False
    server.transport.vanish()
    settle(loop)
    assert (client.told, server.told, done) == (["reset"], [], [])
    loop.dispose([process])
    assert done == ["buried"]


def test_a_stuck_loop_names_the_tasks_that_wait_and_where(loop: SimulatedLoop) -> None:
    async def wait_for_ever() -> None:
        await loop.create_future()

    with pytest.raises(Stuck, match=r"nothing is left to happen(.|\n)*wait_for_ever, line \d+"):
        run(loop, wait_for_ever())


def test_a_loop_that_goes_on_for_ever_is_stopped(loop: SimulatedLoop) -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match=r"not done after 1001 steps(.|\n)*spin"):
        run(loop, spin())


def test_a_long_sleep_takes_few_steps_of_the_loop(loop: SimulatedLoop) -> None:
    run(loop, asyncio.sleep(3000))
    assert 3000 <= loop.time() < 3000.1
    assert loop.steps < 10


def test_a_crash_keeps_acknowledged_writes_and_all_or_nothing_of_a_write_under_way(
    loops: Loops,
) -> None:
    kept = []
    for seed in range(20):
        loop = loops()
        disk = Disk(loop, Random(seed), DiskProfile())
        told: list[BaseException | None] = []
        disk.journal.append([Revision(1, 0, ())], told.append)
        settle(loop)
        assert told == [None]
        disk.journal.append([Revision(2, 0, ()), Revision(3, 0, ())], told.append)
        disk.crash()
        assert told == [None]
        kept.append(disk.journal.head())
        assert [one.number for one in disk.journal.replay(0)] == list(range(1, kept[-1] + 1))
    assert set(kept) == {1, 3}


def test_a_disk_that_fails_says_so_whether_it_has_written_or_not(loops: Loops) -> None:
    kept = set()
    for seed in range(20):
        loop = loops()
        disk = Disk(loop, Random(seed), DiskProfile(failing_after=0))
        told: list[BaseException | None] = []
        disk.journal.append([Revision(1, 0, ())], told.append)
        settle(loop)
        assert isinstance(told[0], OSError)
        kept.add(disk.journal.head())
    assert kept == {0, 1}
