"""Durable storage: the journal, the tree, and their directory, on LMDB and in memory.

The rule: this package implements the protocols of `core.protocols`; the core never imports it.
"""
