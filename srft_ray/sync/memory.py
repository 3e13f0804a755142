"""Memory of a process that runs for long."""

import ctypes
from contextlib import suppress

M_MMAP_THRESHOLD = -3  # of mallopt in glibc's malloc.h
LARGE_BYTES = 128 * 1024


def return_large_pieces() -> None:
    """From now on this process gives pieces of memory of 128 KiB and more back to the system when they are
    freed. Without glibc nothing happens.

    Ray has a stack of 256 KB for each waiting call of an asynchronous actor, of which a call touches a few
    pages. By itself glibc keeps freed stacks, and cuts new ones from them at other places, so that in time
    all their pages are in memory.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
