"""Killers that many mutants name."""

from typing import Final

#: The simulation of the whole server, from many seeds.
SIMULATION: Final = (
    "tests/simulation/test_simulation.py::"
    "test_a_simulated_schedule_loses_no_acknowledged_write_and_is_strictly_serializable"
)

#: Many clients at once on few keys, judged by what they are told.
HOT_STRESS: Final = "python -m kvactor.tools.stress --operations 5000 --hot --keys 30"

#: The same on many keys, with longer histories.
STRESS: Final = (
    "tests/process/test_stress.py::"
    "test_a_server_under_stress_is_strictly_serializable_and_loses_nothing"
)

#: `kill -9` at each failpoint of a write.
KILLS: Final = (
    "tests/process/test_kill.py::"
    "test_a_kill_before_within_or_after_a_step_of_a_write_loses_nothing_acknowledged"
)

#: An error at each failpoint of a write.
ERRORS: Final = (
    "tests/process/test_failpoints.py::"
    "test_an_error_before_within_or_after_a_step_is_no_false_acknowledgement_and_ends_the_process"
)

#: A power cut. It needs a loop device, so that another killer exists behind it.
POWER_CUTS: Final = (
    "tests/process/test_power_cut.py::"
    "test_a_power_cut_loses_nothing_acknowledged_and_keeps_nothing_uncommitted"
)
