"""Attacks on a server, and what others notice of them: `kvactor stress --hostile`.

    victims     a process of its own: clients with light, steady traffic, and their latencies
    target      how attacks reach the server: from another address than the victims
    attacks     the attacks, one function each
    run         one attack or several at once: what the victims and the server's memory did meanwhile
    report      the goals, and the table
    contention  no attack: long transactions beside single writes of the same keys

The rule: an attack is bounded in time and count, and leaves nothing open.
"""
