"""Mutants: small edits of `kvactor/`, each of which breaks one promise of the README. `python -m
tests.mutants` makes each in a copy of the tree and reports which test kills it. A mutant that
survives is a hole in the tests.

The rule: a mutant is an error that a tired programmer, or one in want of speed, makes; it is no crash
that every test finds. It says what is wrong and why somebody writes it, and names its killers: the
tests that have to fail. `edits` locates an edit, `mutant` says what a mutant is, `catalogue` has all
mutants, and `run` runs their killers in `copies`.
"""
