"""The heap of the C library: what is free goes back to the system.

glibc keeps free pages in two ways. It raises by itself the size from which a piece has pages of its
own, up to 32 MiB, with each larger piece that is freed (mallopt(3)). And it returns only the end of
its heap, so that one small piece keeps all free pages below it. A server that has once held some
hundred MiB then keeps them for good. So the size is fixed, and the free pages are returned once a
second. Other C libraries are left alone.
"""

import asyncio
import ctypes
from typing import Final

#: From mallopt(3): their numbers in malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

#: Bytes from which a piece has pages of its own, and that stay free at the end of the heap: the sizes
#: with which glibc begins.
LARGE: Final = 128 * 1024

#: Seconds between two returns of free pages. One takes some 0.1 ms, and 2 ms after much was freed.
PAUSE: Final = 1.0


def return_large_pieces() -> bool:
    """Fix both sizes for this process; return whether the C library knows them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, LARGE) == 1 for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))


def return_free_pages() -> bool:
    """Give all free pages of the heap back (malloc_trim(3)); return whether the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


def keep_small() -> None:
    """Return free pages now, and from now on once a second while the loop runs."""
    if return_free_pages():
        asyncio.get_running_loop().call_later(PAUSE, keep_small)
