"""Everything durable: the journal, the tree, and the directory that holds both, on LMDB and in memory.

The rule: this package implements the protocols of `core.protocols`; the core never imports it.
"""
