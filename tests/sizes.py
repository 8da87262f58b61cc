"""How much the tests do that could go on for ever: the one table.

`KVACTOR_TEST_SIZES=change` asks for what has to pass before a change lands, and a variable such as
`KVACTOR_TEST_KILLS=10000` for any other amount of one thing.
"""

import os
from typing import Final, Literal

Name = Literal[
    "examples",
    "seeds",
    "stride",
    "cases",
    "operations",
    "kills",
    "errors",
    "rounds",
    "power_cuts",
    "disk_faults",
    "damages",
    "stops",
    "slow_clients",
    "slow_seconds",
    "overload_seconds",
    "keys",
    "scanned_keys",
    "increments",
    "resumes",
    "unread_seconds",
    "attack_seconds",
    "combinations",
    "contention_seconds",
]

#: In the suite, and before a change lands.
SIZES: Final[dict[Name, tuple[int, int]]] = {
    "examples": (100, 2000),  # runs of the core against its model, of 50 steps each
    "seeds": (200, 10_000),  # simulated schedules
    "stride": (6, 1),  # from one step of a simulated program to the next that some faults disturb
    "cases": (5, 200),  # made up by schemathesis for each operation
    "operations": (3000, 100_000),  # of scripts/stress
    "kills": (1, 200),  # kill -9 at failpoints, all together; at least one at each
    "errors": (1, 40),  # the same for errors
    "rounds": (4, 10),  # kill -9 at random moments
    "power_cuts": (2, 20),
    "disk_faults": (1, 20),  # system calls that fail, one after the other, of each kind and file
    "damages": (160, 200),  # damaged files
    "stops": (2, 50),  # SIGTERM under load
    "slow_clients": (100, 200),  # of each kind
    "slow_seconds": (2, 10),
    "overload_seconds": (2, 30),
    "keys": (100_000, 100_000),  # preloaded
    "scanned_keys": (100_000, 100_000),
    "increments": (300, 300),
    "resumes": (20, 20),  # of followers of the changes
    "unread_seconds": (1, 1),  # for which a follower does not read
    "attack_seconds": (2, 5),  # of each attack
    "combinations": (1, 10),  # of attacks at once
    "contention_seconds": (5, 10),
}


def size(name: Name) -> int:
    """Return how much of something a test is to do."""
    one = os.environ.get(f"KVACTOR_TEST_{name.upper()}")
    if one is not None:
        return int(one)
    return SIZES[name][os.environ.get("KVACTOR_TEST_SIZES") == "change"]
