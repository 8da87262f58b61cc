"""What the server promises as a process: started, killed, told to stop, and refused, as a user or a
disk would do it.

    servers         server processes; always reaped
    clients         requests and streams
    writers         writers that remember what they were told, and what may be left of it
    contents        a stopped server's directory, read through the core and checked
    failpoints      a server that is killed, held up or fails at a step of a write
    disks           file systems of a test's own, and a power cut on one of them
    strace          the same between two of LMDB's, where strace may be used
"""
