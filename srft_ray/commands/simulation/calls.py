"""Counts what is asked of the coordinator, and how long the answers take."""

import threading
from collections import Counter
from typing import Any


class CountedCoordinator:
    """A handle of the coordinator's actor that counts calls by the name of the method."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> "CountedMethod":
        return CountedMethod(self, name, getattr(self._handle, name))

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def counted(self) -> Counter[str]:
        """The calls so far."""
        with self._lock:
            return self._counts.copy()


class CountedMethod:
    def __init__(self, counter: CountedCoordinator, name: str, method: Any) -> None:
        self._counter = counter
        self._name = name
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        """Calls the method of the actor."""
        self._counter.count(self._name)
        return self._method.remote(*arguments)
