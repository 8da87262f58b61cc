"""A power cut: what was acknowledged is there after the restart (P3), and not only in a cache that
outlives the process, which is all that kill -9 can show.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.disks import Disk, ext4
from tests.process.servers import Server
from tests.process.test_kill import FOLDING, leave_transactions_open
from tests.process.writers import Load, check
from tests.sizes import size

ON_A_SMALL_DISK = (*FOLDING, "--min-free-space", "0")

#: A server that leaves it to the kernel when what it has written goes to the disk.
WITHOUT_SYNC = """
import functools, sys
import lmdb
lmdb.open = functools.partial(lmdb.open, sync=False, metasync=False)
from kvactor.cli import main
sys.exit(main())
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ext4(tmp_path, 64 << 20) as disk:
        yield disk


@pytest.fixture
def data_dir(disk: Disk) -> Path:
    return disk.path / "data"


def cut_power(server: Server, disk: Disk, load: Load) -> None:
    """Cut the power under load, and mount what is left."""
    load.freeze()
    disk.cut_power()
    server.kill()
    load.wait_for_close()
    disk.unmount()
    disk.mount()


def test_a_power_cut_loses_nothing_acknowledged_and_keeps_nothing_uncommitted(
    start: Start, disk: Disk, data_dir: Path, figure: Callable[[str], None]
) -> None:
    random = Random("power cut")
    loads: list[Load] = []
    revision = folded = 0
    for number in range(size("power_cuts")):
        server = start(*ON_A_SMALL_DISK)
        assert server.revision == revision
        transactional = number % 2 == 1
        if transactional:
            leave_transactions_open(server)
        with Load(server, f"cut{number}", transactional=transactional) as load:
            load.wait_for(random.randrange(100, 400))
            cut_power(server, disk, load)
        loads.append(load)
        after = contents(data_dir)
        check(loads, after)
        assert after.folded > folded, "no fold happened, so none could be cut off"
        revision, folded = after.revision, after.folded
    acknowledged = sum(load.acknowledged for load in loads)
    figure(f"power cut: {len(loads)} times, {acknowledged} acknowledged writes, 0 lost")


def test_a_power_cut_right_after_the_first_write_leaves_it_and_its_directory(
    start: Start, disk: Disk, data_dir: Path
) -> None:
    server = start(*ON_A_SMALL_DISK)
    with Load(server, writers=1) as load:
        load.wait_for(1)
        cut_power(server, disk, load)
    check([load], contents(data_dir))


def test_a_server_that_does_not_sync_is_found_to_lose_what_it_has_acknowledged(
    start: Start, disk: Disk, data_dir: Path, figure: Callable[[str], None]
) -> None:
    """Otherwise the tests above would show nothing."""
    server = start(*ON_A_SMALL_DISK, program=("-c", WITHOUT_SYNC))
    with Load(server) as load:
        load.wait_for(200)
        cut_power(server, disk, load)
    after = contents(data_dir)
    with pytest.raises(AssertionError):
        check([load], after)
    lost = load.acknowledged - after.revision
    assert lost > 0
    figure(f"power cut without sync: {lost} of {load.acknowledged} acknowledged writes are found lost")
