"""The heap of the C library: large pieces go back to the system as soon as they are free.

glibc raises by itself the size from which it does so, up to 32 MiB, with each larger piece that is
freed (mallopt(3)). A server that has once answered with some MiB then keeps hundreds of them in holes
of its heap. Fixed sizes keep it from that. Other C libraries are left alone.
"""

import ctypes
from typing import Final

#: From mallopt(3): their numbers in malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

#: Bytes from which a piece has pages of its own, and that stay free at the end of the heap: the sizes
#: with which glibc begins.
LARGE: Final = 128 * 1024


def return_large_pieces() -> bool:
    """Fix both sizes for this process; return whether the C library knows them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, LARGE) == 1 for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))
