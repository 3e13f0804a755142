"""A coordinator in a process of its own, without Ray, and how learners and engines call it."""

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.managers import BaseManager
from types import SimpleNamespace
from typing import Any

from srft_ray.sync import rounds
from srft_ray.sync.coordinator import Coordinator

TIMEOUT_S = 120


class Served:
    """A coordinator with a thread for each call, as other processes see an actor."""

    def __init__(self) -> None:
        rounds.READY_S = 30.0  # on a machine that does other things
        self._hanging = ""
        self.reports: list[str] = []
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.forget()

    def forget(self) -> None:
        self._coordinator = Coordinator(0)
        self._coordinator.rounds._report = self.reports.append

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == self._hanging:
            time.sleep(2 * TIMEOUT_S)
        called = getattr(self._coordinator, name)(*arguments)
        return asyncio.run_coroutine_threadsafe(called, self._loop).result()

    def waiting(self) -> int:
        """Listeners that wait for a round."""
        return len(self._coordinator.rounds._waiting)

    def told(self) -> list[str]:
        return self.reports

    def hang(self, name: str) -> None:
        """From now on calls of that name are not answered."""
        self._hanging = name


class Manager(BaseManager):
    pass


Manager.register("Served", Served)


class Handle:
    """As that of an actor."""

    def __init__(self, served: Any) -> None:
        self._served = served
        self._pool = ThreadPoolExecutor()

    def __getattr__(self, name: str) -> Any:
        call = self._served.call
        return SimpleNamespace(remote=lambda *arguments: self._pool.submit(call, name, arguments))


class Forgetful(Handle):
    """It dies before it answers a learner that enters a round."""

    def __getattr__(self, name: str) -> Any:
        called = super().__getattr__(name)
        return SimpleNamespace(remote=partial(self._fail, called)) if name == "enter_round" else called

    def _fail(self, called: Any, *arguments: Any) -> None:
        called.remote(*arguments).result()
        raise ConnectionError("the coordinator died")


def get(value: Any, timeout: float | None = None) -> Any:
    """What an actor answers, or what was put into the store."""
    return value.result(timeout) if isinstance(value, Future) else value
