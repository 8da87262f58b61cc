"""kvactor: a transactional key-value server over plain HTTP.

One coroutine owns the data. Handlers send it messages and await its answers, so no lock guards the
data. The map of the house, in reading order:

    messages        what the owner can be told, and what it answers
    records         how keys, values and revisions are laid out in bytes
    transactions    overlays, read sets, who has read what
    store           the stack of overlays on the tree, from a staged write down to disk
    sessions        which transactions are open, and how they end
    access          reading and writing keys: what an answer rests on, what a transaction depends on
    units           what is done whole or not at all, and once
    operations      what each operation on keys does, outside of transactions and within them
    changes         the feed: the durable revisions, in order, for whoever follows
    replies         where answers go, and when
    owner           what each message does: the one place where the data changes
    actor           the mailbox and the loop around the owner; group commit; fail-stop
    server          the one life cycle: what happens, in order, in a start and in a stop
    metrics         what is measured, and how Prometheus is told
    storage/        what is durable: the journal, the tree, and the directory that holds both
    web/            everything that knows HTTP: the seed's six routes, and /v1
      routes          what a route is: its handler, and all that is known of it
      openapi         the description of the API, made from the routes
      values          values as JSON shows them
    settings, errors
    cli/            the command: serving, the deadline of a stop, the tools
    failpoints      where tests have a write's way down to disk broken off; off unless asked for

Imports run one way: cli -> server -> web -> actor -> owner -> operations, changes -> units -> access ->
sessions, store, transactions, replies, metrics -> storage -> records, messages, errors, settings.
"""

__version__ = "0.1.0"
