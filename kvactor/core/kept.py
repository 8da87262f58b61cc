"""The responses that all idempotency keys keep together: their sizes, the oldest first.

The rule: it follows the staged state. What a revision keeps counts from that revision on; beyond the
limit the oldest are forgotten, by the same revision. A restart finds the same order again.
"""

from collections import OrderedDict
from collections.abc import Iterable

from kvactor.core.records import HIDDEN

#: What a kept response counts beyond its key and record, in bytes: about what its place in the order
#: takes in memory.
KEPT_OVERHEAD = 256


class KeptResponses:
    """Hidden keys, the oldest first, and what they take together: `size` of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.size = 0
        self._sizes: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, key: bytes, size: int) -> None:
        """Count a response of `size` bytes as the newest; under a key that is there, in its place."""
        self.forget((key,))
        self._sizes[key] = size = size + len(key) + KEPT_OVERHEAD
        self.size += size

    def forget(self, keys: Iterable[bytes]) -> None:
        """Give back what these keys take. Others' keys are passed over."""
        for key in keys:
            if key >= HIDDEN:
                self.size -= self._sizes.pop(key, 0)

    def excess(self, limit: int) -> list[bytes]:
        """Return the oldest keys, at most `limit`, without which the rest is within its limit."""
        oldest: list[bytes] = []
        left = self.size
        for key, size in self._sizes.items():
            if left <= self._limit or len(oldest) == limit:
                break
            oldest.append(key)
            left -= size
        return oldest
