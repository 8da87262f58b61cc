"""The responses that all idempotency keys keep together: their sizes, the oldest first.

The rule: it follows the staged state. What a revision keeps counts from that revision on; beyond the
limit the oldest are forgotten, by the same revision. A client, which is an address, has at most half of
the limit: then its own oldest are forgotten, and not those of others. A restart finds the same order
again, but not the clients.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

import msgspec

#: What a kept response counts beyond its key and record, in bytes: about what its place in the order
#: takes in memory.
KEPT_OVERHEAD = 384


class _Share(msgspec.Struct):
    """A client's hidden keys, the oldest first, and what they take together, in bytes."""

    sizes: OrderedDict[bytes, int] = msgspec.field(default_factory=OrderedDict)
    size: int = 0


class KeptResponses:
    """Hidden keys, the oldest first, and what they take together: `size` of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.size = 0
        #: the client of each key
        self._clients: OrderedDict[bytes, str] = OrderedDict()
        self._shares: dict[str, _Share] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, key: bytes, size: int, client: str = "") -> None:
        """Count a response of `size` bytes as the newest; under a key that is there, in its place.

        `client` is an address; empty: nobody knows whose it is.
        """
        self.forget((key,))
        size += len(key) + KEPT_OVERHEAD
        share = self._shares.setdefault(client, _Share())
        share.sizes[key] = size
        share.size += size
        self._clients[key] = client
        self.size += size

    def forget(self, keys: Iterable[bytes]) -> None:
        """Give back what these keys take. Others' keys are passed over."""
        for key in keys:
            client = self._clients.pop(key, None)
            if client is not None:
                share = self._shares[client]
                size = share.sizes.pop(key)
                share.size -= size
                self.size -= size
                if not share.sizes:
                    del self._shares[client]

    def take_excess(self, limit: int, client: str = "") -> list[bytes]:
        """Forget the oldest keys, at most `limit`, without which the rest is within its limit, and
        `client` within half of that; return them.
        """
        share = self._shares.get(client) if client else None
        own = [] if share is None else share.sizes.items()
        oldest = list(_first(own, 0 if share is None else share.size - self._limit // 2, limit))
        self.forget(oldest)
        # Whose they are does not matter any more.
        sizes = ((key, self._shares[one].sizes[key]) for key, one in self._clients.items())
        more = list(_first(sizes, self.size - self._limit, limit - len(oldest)))
        self.forget(more)
        return oldest + more


def _first(sizes: Iterable[tuple[bytes, int]], excess: int, limit: int) -> Iterator[bytes]:
    """Yield the first keys, at most `limit`, that take `excess` bytes or more together."""
    for key, size in sizes:
        if excess <= 0 or limit <= 0:
            break
        yield key
        excess -= size
        limit -= 1
