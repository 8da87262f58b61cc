"""The account of memory: bytes that requests hold, all together and per client.

The rule: bytes are counted before they are taken. A holder has a `Lease`, and gives them back with it.
A client is an address; one client cannot take the whole account while others are connected.
"""

from typing import Final

import msgspec

from kvactor.errors import Overloaded

#: Bytes of a request's body or result up to which it does not count: the number of connections bounds
#: those.
SMALL: Final = 16 * 1024


class Client:
    """A client of the server: its address, if that is known, its connections, and what its leases hold
    together, in bytes.
    """

    __slots__ = ("address", "connections", "used")

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.connections = 0
        self.used = 0


class MemoryAccount:
    """`size` bytes that leases may hold at a time; `used` are held."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        #: clients that have a connection
        self.present = 0
        #: stands for all clients whose connection is not known
        self.nobody = Client()
        #: by address; those that are not present may still hold bytes
        self._clients: dict[str, Client] = {}

    # -- clients --

    @property
    def known(self) -> int:
        """How many clients are not forgotten."""
        return len(self._clients)

    def connected(self, address: str) -> Client:
        """Count a connection of a client. Each call is followed by one of `disconnected`."""
        client = self._clients.get(address)
        if client is None:
            self._forget_absent()
            client = self._clients[address] = Client(address)
        self.present += not client.connections
        client.connections += 1
        return client

    def disconnected(self, address: str) -> None:
        """Count the end of a connection."""
        client = self._clients[address]
        client.connections -= 1
        self.present -= not client.connections
        if not (client.connections or client.used):
            del self._clients[address]

    def _forget_absent(self) -> None:
        # Those that held bytes when they left. Now and then: each costs a look at all.
        if len(self._clients) > 2 * self.present + 100:
            self._clients = {
                address: one for address, one in self._clients.items() if one.connections or one.used
            }

    def left(self, client: Client) -> int:
        """Return how many bytes a client may still take: what is left, but of the whole account no more
        than half while other clients have connections.
        """
        left = self.size - self.used
        return left if self.present <= 1 else min(left, self.size // 2 - client.used)

    # -- bytes --

    def check(self, client: Client, size: int, held: int) -> None:
        """Raise `Overloaded` if a client may not take `size` bytes, and others hold some: a request
        that is alone is never refused. `held` is what this request holds.
        """
        if size > self.left(client) and self.used > held:
            raise Overloaded(
                f"Requests, responses and transactions hold {self.used} bytes already, and those of "
                f"your address {client.used} of them (max_in_flight_size). Try again later."
            )


class Lease(msgspec.Struct, gc=False, eq=False):
    """Bytes of an account that one holder has: a request, a connection, or a transaction."""

    account: MemoryAccount
    client: Client
    size: int = 0
    closed: bool = False

    def another(self) -> "Lease":
        """Return an empty lease of the same client."""
        return Lease(self.account, self.client)

    def check(self, size: int) -> None:
        """Raise `Overloaded` if so many more bytes are not left."""
        self.account.check(self.client, size, self.size)

    def acquire(self, size: int, *, refuse: bool = True) -> None:
        """Hold so many more bytes. With `refuse`, raises `Overloaded` if they are not left.

        Once it is closed, nothing is counted: whoever asked has gone away.
        """
        if self.closed:
            return
        if refuse:
            self.account.check(self.client, size, self.size)
        self._move(size)

    def share(self, maximum: int, minimum: int) -> int:
        """Return how many bytes a page should have: `maximum`, or half of what is left. Never less than
        `minimum`, so that a client that pages through gets to the end.
        """
        if not self.account.used:
            return maximum
        return min(maximum, max(self.account.left(self.client) // 2, minimum))

    def resize(self, size: int) -> None:
        """Hold `size` bytes. Raises `Overloaded` if it is more than now, and that is not left."""
        if self.closed:
            return
        if size > self.size:
            self.account.check(self.client, size - self.size, self.size)
        self._move(size - self.size)

    def release(self) -> None:
        """Give back all that is held."""
        self._move(-self.size)

    def close(self) -> None:
        """Give back all that is held, for good."""
        self._move(-self.size)
        self.closed = True

    def _move(self, size: int) -> None:
        self.size += size
        self.account.used += size
        self.client.used += size


#: A lease that counts nothing: of the owner's own messages.
UNCOUNTED: Final = Lease(MemoryAccount(1 << 62), Client(), closed=True)
