"""A program that is a crowd of slow clients: `python -m tests.process.slow HOST PORT OF_EACH_KIND`.

A line on its standard input has them `come`, `stay` or `go`; it answers each with a line of JSON that
counts what has happened to them since they came. They come in three kinds: heads and bodies that
arrive a byte at a time, and readers that do not read. Whoever is closed comes again.
"""

import asyncio
import json
import socket
import sys
from collections import Counter
from contextlib import suppress

#: Seconds between two bytes of one client.
PAUSE = 0.5

#: Seconds before one who was refused comes again.
RETRY_AFTER = 1

MiB = 1024 * 1024

#: What is asked for and not read, in turn: large answers, many of them on one connection; streams; and
#: seldom a page of all, which alone is as large.
SINGLY = b"".join(
    b"GET /v1/kv/page/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % (number % 32) for number in range(60)
)
STREAM = b"GET /v1/changes HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
PAGE = b"GET /v1/kv?prefix=page/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWERS = [SINGLY, STREAM] * 20 + [PAGE]
HEAD = b"GET /get/a HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 10_000
BODY = b"PUT /v1/kv/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % MiB
#: Of a body, how much comes at once before the single bytes.
BEGINNING = 128 * 1024


class Crowd:
    """Slow clients, while they are there."""

    def __init__(self, host: str, port: int, of_each: int) -> None:
        self._address = host, port
        self._of_each = of_each
        self._clients: list[asyncio.Task[None]] = []
        self._counts: Counter[str] = Counter()

    async def come(self) -> Counter[str]:
        """Return when all have connected, sent what they send first, and could begin to read."""
        self._counts.clear()
        for number in range(self._of_each):
            for kind, first, rest in (
                ("heads", HEAD[:40], HEAD[40:]),
                ("bodies", BODY + bytes(BEGINNING), bytes(MiB)),
                ("readers", ANSWERS[number % len(ANSWERS)], b""),
            ):
                there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._clients.append(asyncio.create_task(self._be_slow(kind, first, rest, there)))
                await there
        return self._counts

    async def stay(self) -> Counter[str]:
        """Only count."""
        return self._counts

    async def go(self) -> Counter[str]:
        """Close all."""
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._clients.clear()
        return self._counts

    async def _be_slow(
        self, kind: str, first: bytes, rest: bytes, there: "asyncio.Future[None]"
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with socket.socket() as client, suppress(ConnectionError):
                client.setblocking(False)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await loop.sock_connect(client, self._address)
                self._counts[f"{kind} come"] += 1
                await loop.sock_sendall(client, first)
                while kind == "readers" and _answer(client) is None:
                    await asyncio.sleep(0.01)
                if not there.done():
                    there.set_result(None)
                for place in range(len(rest) or MiB):
                    await asyncio.sleep(PAUSE)
                    answer = _answer(client)
                    if answer is not None and answer.startswith(b"HTTP/1.1 503"):
                        self._counts[f"{kind} refused"] += 1
                        await asyncio.sleep(RETRY_AFTER)
                        break
                    if kind != "readers":
                        await loop.sock_sendall(client, rest[place : place + 1])
                        if answer is not None:
                            break
                    elif client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        break
            if not there.done():
                there.set_result(None)
            self._counts[f"{kind} closed"] += 1


def _answer(client: socket.socket) -> bytes | None:
    """Return the beginning of what there is to read, which is left there; None: there is nothing."""
    try:
        return client.recv(12, socket.MSG_PEEK)
    except BlockingIOError:
        return None


async def main(host: str, port: str, of_each: str) -> None:
    """Obey the lines on standard input."""
    crowd = Crowd(host, int(port), int(of_each))
    loop = asyncio.get_running_loop()
    steps = {"come": crowd.come, "stay": crowd.stay, "go": crowd.go}
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        sys.stdout.write(json.dumps(await steps[line.strip()]()) + "\n")
        sys.stdout.flush()
    await crowd.go()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
