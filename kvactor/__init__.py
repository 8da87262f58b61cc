"""kvactor: a transactional key-value server over plain HTTP.

One coroutine owns the data. Handlers send it messages and await its answers, so there is not a lock
in the program. The map of the house, in reading order:

    messages        what the owner can be told, and what it answers
    records         how keys, values and revisions are laid out in bytes
    transactions    overlays, read sets, who has read what
    store           the stack of overlays on the tree, from a staged write down to disk
    replies         where answers go, and when
    owner           what each message does: the one place where the data changes
    actor           the mailbox and the loop around the owner; group commit; fail-stop
    storage/        what is durable: the journal, the tree, and the directory that holds both
    web/            everything that knows HTTP: the seed's six routes, and /v1
    settings, errors, cli

Imports run one way: web -> actor -> owner -> store, transactions -> storage -> records, messages,
errors.
"""

__version__ = "0.1.0"
