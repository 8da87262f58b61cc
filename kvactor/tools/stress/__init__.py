"""Stress a server over HTTP with many clients at once, and prove from what they were told that it kept
its promises.

    client      one connection: requests as bytes, answers, and what it means to get none
    wire        how steps are asked for, and what their answers say
    clients     what they choose, and what they note
    programs    what they do: in a request or two, and in
    transactions
    history     what clients did and were told, as data that can be saved
    model       what a server is to do: a dict, and a stack of dicts
    checker     is a history strictly serializable? Judged by the revisions in its answers
    feed        followers of the changes
    servers     the server under stress, and what befalls it
    report      progress, and the table at the end
    run         all of it together
"""
