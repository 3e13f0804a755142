"""How calls of the coordinator wait for each other."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Changes:
    """What calls wait for; whoever changes something of it says so by `notify`."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()

    async def notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came true within so many seconds."""
        if timeout_s <= 0:
            return condition()
        # Not `wait_for` of asyncio, which makes a task of each wait.
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        return condition()
