"""The account of work: what one message makes the owner walk.

The rule: overlays, store and tree charge each step before they take it. So the owner's time for a
message is bounded by what it walks, not by what it finds: tombstones, expired keys and values that
nobody asks for count.

One unit is one to three microseconds of the owner's time. The table below has what costs how many.
"""

from collections.abc import Generator
from typing import Final, TypeVar

import msgspec

from kvactor.errors import RequestTooExpensive

R = TypeVar("R")

#: One key is looked up, through all overlays down to the tree.
LOOKUP: Final = 2
#: Keys of an overlay that are sorted for one unit.
SORT: Final = 4
#: A range is opened, in all overlays and in the tree.
RANGE: Final = 10
#: One entry is stepped over in a range, in one overlay or in the tree.
STEP: Final = 1
#: One entry is written into an overlay.
WRITE: Final = 2
#: One entry is staged, and later applied to the memtable.
STAGE: Final = 5
#: A range is noted in a read set and in the index of read sets.
READ_RANGE: Final = 20
#: A range of a read set becomes part of another one.
COALESCE: Final = 4
#: One transaction conflicts.
CONFLICT: Final = 5
#: A follower of the feed is given revisions: their text is cut and sent.
FOLLOW: Final = 50
#: Bytes of a value that are read and checksummed for one unit.
BYTES: Final = 1024

#: More than any message walks: of the owner's own messages.
UNLIMITED: Final = 1 << 62


#: A handler in steps. Between two steps the owner serves others.
Steps = Generator[None, None, R]

#: Units of work of one step, about.
STEP_SIZE: Final = 3000


class Work(msgspec.Struct, gc=False):
    """The units of work that a message has walked, and may walk. After `step_end` its step is over."""

    limit: int = UNLIMITED
    spent: int = 0
    step_end: int = UNLIMITED

    def require(self, units: int) -> None:
        """Raise `RequestTooExpensive` if so many more units are beyond the limit."""
        if self.spent + units > self.limit:
            raise self._too_expensive()

    def charge(self, units: int) -> None:
        """Count units that are about to be walked. Raises `RequestTooExpensive` beyond the limit."""
        self.spent += units
        if self.spent > self.limit:
            raise self._too_expensive()

    def _too_expensive(self) -> RequestTooExpensive:
        return RequestTooExpensive(
            f"The request walks more than {self.limit} units of work (max_request_work): keys that "
            "it looks up or steps over, deleted and expired ones too, bytes that it reads, entries "
            "that it writes. Nothing was done. Ask for less at once: fewer operations, or a "
            "smaller range.",
            details={"limit": self.limit},
        )


#: For work that is bounded otherwise.
UNCHARGED: Final = Work()
