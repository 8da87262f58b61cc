"""Stress a server over HTTP with many clients at once, and check from the responses that it kept its
promises. The words are Jepsen's where it has one.

    encoding      steps as requests, and responses as results
    clients       the workload, and one client of it
    programs      the programs of clients: a request or two
    transactions  programs with transactions
    history       what clients did, and which responses they got, as data that can be saved
    model         the naive model of a server: a dict, and a stack of dicts
    checker       whether a history is strictly serializable, by the revisions in its responses
    feed          followers of the changes
    servers       the server under stress
    nemesis       the faults that it suffers
    report        progress, and the table at the end
    run           all of it together
"""
