"""The whole server in one thread and no time at all: the real actor, the real web layer, aiohttp's own
protocol, and clients, on a clock, a network and a disk that a seed decides.

    loop        an event loop whose clock jumps to whatever comes next, and which counts its steps
    network     connections: bytes come late and in pieces, writers are held up, either end may vanish
    disk        a journal and a tree that take their time, may fail, and outlive a crash
    world       the server's life: started, stopped, killed and started again, while clients run
    faults      what goes wrong, and at which step
    schedules   what one seed does: clients of `stress`, faults, and the verdict of its checker

The rule: nothing but the seed decides. The same seed gives the same steps in the same order, in this
process or in another one. `python -m tests.simulation 42` runs seed 42, and prints every step of it;
`python -m tests.simulation 0 1000` runs a thousand, and prints those that fail.

A step is one callback of the loop. Whatever lies between two of them may be the moment of a crash, of
a cancellation or of a lost connection; so every `await` of the server is such a moment.
"""
