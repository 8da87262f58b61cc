"""kvactor: a transactional key-value server over plain HTTP.

One coroutine owns the data. Handlers send it messages and await its answers, so no lock guards the
data. The map of the house, in reading order:

    core/           pure and synchronous: no event loop, no socket, no disk, no clock
      messages        what the owner takes, and what it answers
      records         how keys, values and revisions are laid out in bytes
      overlay         changes laid over something that they do not touch
      transaction     a stack of overlays, a state, and the table of its transitions
      conflicts       read sets, and their index by key (intervals: the interval tree below it)
      work, memory    the accounts: what a message may walk, what requests may hold
      store           the stack of overlays on the tree, from a staged write down to the disk
      keyspace        the keys as one request sees them; what its answer depends on
      operations      get, set, delete, increment, range, delete range: types and what they do
      idempotency     the results of writes under an idempotency key
      executor        one operation, or a batch on a savepoint
      transaction_manager   opens, finds and ends transactions
      priority        of transactions that conflict again and again
      turns           whose message is next, while more wait than one drain takes
      feed            the durable revisions, in order, for followers
      replies         where answers go, and when
      owner           takes messages in order, and moves writes down to the disk
      protocols       journal and tree: what the core needs of a storage
    storage/        journal and tree on LMDB and in memory; the data directory
    actor           the mailbox and the loop around the owner; group commit; fail-stop
    api/            the JSON types of the HTTP API
    web/            everything that knows HTTP: simple (six routes), v1/, one dispatcher
    server          the one life cycle: storage, actor, listener: start, wait, stop
    cli/            the command: serve, bench, stress
    tools/          bench and stress: they try a server from outside
    settings, errors, metrics, failpoints

Imports run one way: cli -> server -> web -> api, actor -> storage, metrics -> core -> errors, settings.
Within core: owner -> executor, feed -> transaction_manager -> messages -> operations -> keyspace ->
store, transaction -> overlay, conflicts -> records. A test holds this.
"""

__version__ = "0.1.0"
