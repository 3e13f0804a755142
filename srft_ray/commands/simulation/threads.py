"""Thousands of threads in a process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL_S = 0.02


@contextmanager
def rare_switches() -> Iterator[None]:
    """Each thread that waits for the interpreter's lock wakes after every switch interval to ask for it: a
    thousand of them with Python's own 5 ms take whole cores.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
