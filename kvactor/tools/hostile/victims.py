"""The victims: a process of its own with a few clients, each with light, steady traffic.

`python -m kvactor.tools.hostile.victims HOST PORT SECONDS` prints one line of JSON: `Latencies`.
"""

import asyncio
import sys
import time
from typing import Final

import msgspec
import uvloop

from kvactor.tools.http import ClientProtocol

CLIENTS: Final = 4

#: Requests a second of each client.
RATE: Final = 50

#: Seconds after which a request has failed.
TIMEOUT: Final = 30.0


class Latencies(msgspec.Struct):
    """The latencies of each method, in milliseconds, how many responses were no success, and how many
    requests were planned: who waits for a response sends fewer.
    """

    get: list[float] = []
    put: list[float] = []
    failures: dict[str, int] = {}
    planned: int = 0

    @property
    def served(self) -> int:
        """How many requests have succeeded."""
        return len(self.get) + len(self.put) - sum(self.failures.values())

    def failed(self, why: str) -> None:
        """Count a failure."""
        self.failures[why] = self.failures.get(why, 0) + 1


async def client(host: str, port: int, number: int, end: float, latencies: Latencies) -> None:
    """Alternate GET and PUT of a key of its own until `end`, at a steady rate."""
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    protocol = ClientProtocol()
    turn = 0
    while time.monotonic() < end:
        began = time.perf_counter()
        turn += 1
        method, kept = ("PUT", latencies.put) if turn % 2 else ("GET", latencies.get)
        try:
            async with asyncio.timeout(TIMEOUT):
                if connection is None:
                    connection, protocol = await asyncio.open_connection(host, port), ClientProtocol()
                reader, writer = connection
                body = b"%d" % turn if method == "PUT" else b""
                writer.write(protocol.request(method, f"/v1/kv/victim-{number}", body))
                while (response := protocol.response()) is None:
                    data = await reader.read(1 << 16)
                    if data:
                        protocol.receive(data)
                    else:
                        protocol.receive_end()
        except (OSError, TimeoutError, ValueError) as error:
            latencies.failed(type(error).__name__)
            connection = None
        else:
            if not response.ok:
                latencies.failed(response.code)
        kept.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(max(0.0, began + 1 / RATE - time.perf_counter()))
    if connection is not None:
        connection[1].close()


async def run(host: str, port: int, seconds: float) -> Latencies:
    """Let all clients run, each beginning at another time."""
    latencies, end = Latencies(planned=int(CLIENTS * RATE * seconds)), time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(host, port, number, end, latencies))
            await asyncio.sleep(1 / RATE / CLIENTS)
    return latencies


if __name__ == "__main__":
    found = uvloop.run(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
