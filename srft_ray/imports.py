"""Imports of large libraries, in the processes that the start of a run waits for."""

import atexit
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

# When the large imports of this process began and ended, in Unix seconds.
took: list[tuple[float, float]] = []


@contextmanager
def large_imports() -> Iterator[None]:
    """Python's garbage collector does not run in the context, and never looks at what exists at its end.

    Modules are objects that stay. Looking through them again and again is a third of the time that the import
    of vLLM takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    began = time.time()
    try:
        yield
    finally:
        took.append((began, time.time()))
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries look for what they have leaked when Python ends
        if enabled:
            gc.enable()
