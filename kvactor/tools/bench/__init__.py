"""The benchmark: kvactor beside a bare aiohttp handler that gives the same answers.

A figure from one machine says little on another, so what counts here is the ratio of the two, taken
in one run with one load generator. Only one of the two servers is under load at a time, and their
turns alternate.

Reading order: workloads (what is asked), bare (the yardstick), servers (processes, their CPU and
memory), sameness (are the answers comparable?), generators (wrk, or load.py with counts and feed),
rounds (turns, medians, ratios), report, and __main__, which puts them in a row.
"""
