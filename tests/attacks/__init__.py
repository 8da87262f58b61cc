"""Attacks on a server, by family: what `kvactor stress --hostile` measures, as tests.

    judge       what each attack has to leave as it was

Each test starts a server of its own. `test_combinations` sees that each attack belongs to a family.
"""
