"""All mutants, as data: a file for each promise (P3 and P8 have more), in the order of the promises."""

from typing import Final

from tests.mutants.catalogue import (
    p1,
    p2,
    p3,
    p3_storage,
    p4,
    p5,
    p6,
    p7,
    p8,
    p8_accounts,
    p8_connections,
    p8_feed,
    p8_space,
    p8_steps,
    p8_turns,
    p9,
    p10,
)

MUTANTS: Final = (
    *p1.MUTANTS,
    *p2.MUTANTS,
    *p3.MUTANTS,
    *p3_storage.MUTANTS,
    *p4.MUTANTS,
    *p5.MUTANTS,
    *p6.MUTANTS,
    *p7.MUTANTS,
    *p8.MUTANTS,
    *p8_connections.MUTANTS,
    *p8_accounts.MUTANTS,
    *p8_space.MUTANTS,
    *p8_turns.MUTANTS,
    *p8_steps.MUTANTS,
    *p8_feed.MUTANTS,
    *p9.MUTANTS,
    *p10.MUTANTS,
)
