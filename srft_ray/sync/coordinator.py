"""The coordinator: which policy version a rollout may start with. Staleness has this one owner."""

import asyncio
import math
import os
import time

import ray

from srft_ray.sync.health import HealthMonitor, Heartbeat


class Coordinator:
    """State of the published policy. Run as a Ray actor that outlives learners and engines: it also owns the weights.

    A group of step s may start when `version >= s - max_staleness`; version v is the policy after v optimizer steps. Version -1
    means that nobody is admitted: the learners have not published yet, or this actor died, was restarted by Ray, and has
    forgotten everything; then the learners publish again (`weights.ObjectStoreTransport`).

    It also passes on what must reach the learners between two steps: that they are to leave, and why.
    """

    def __init__(self, max_staleness: int, watch: HealthMonitor | None = None) -> None:
        self.max_staleness = max_staleness
        self.version = -1
        self.chunks: dict[int, ray.ObjectRef] = {}
        self._arriving: dict[int, ray.ObjectRef] = {}
        self._start: int | None = None
        self._leave_request, self._stop, self._abort = "", "", ""
        self._changed = asyncio.Condition()
        self._idle_since: float | None = time.monotonic()
        self._controller = 0
        self._watch = watch or HealthMonitor(math.inf, print)
        if ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed:
            self._watch.report(
                "coordinator",
                "the actor that holds the weights died and was started again; the learners publish to it anew",
            )

    async def restart(self, step: int) -> None:
        """The learners start (again) at the checkpoint of `step`; nobody is admitted until they have published its weights.

        Version 0 needs no publication: engines start from the model itself.
        """
        self._start, self._leave_request = step, self._stop
        self._watch.restart()
        await self._set(0 if step == 0 else -1, {})

    async def start(self) -> int:
        """The step that learners and stream begin at. RuntimeError: this actor was restarted after `restart`."""
        if self._start is None:
            raise RuntimeError("the coordinator was restarted while the learners started")
        return self._start

    async def put(self, number: int, chunk: object) -> None:
        """Takes one piece of the next version's weights; as its owner, this actor keeps it when a learner dies."""
        self._arriving[number] = ray.put(chunk)

    async def publish(self, version: int, count: int) -> None:
        """Makes the `count` pieces put so far the weights of `version`. RuntimeError: some were lost with a restart of this actor."""
        if set(self._arriving) != set(range(count)):
            raise RuntimeError(f"{len(self._arriving)} of {count} pieces of version {version} are here")
        await self._set(version, self._arriving)

    async def _set(self, version: int, chunks: dict[int, ray.ObjectRef]) -> None:
        async with self._changed:
            self.version, self.chunks, self._arriving = version, chunks, {}
            self._changed.notify_all()

    async def newest(self) -> int:
        return self.version

    async def admit(self, step: int, timeout_s: float, exact: bool = False) -> int:
        """Waits until a group of `step` may start; returns the newest version. `exact` asks for version `step` (evaluation).

        Raises:
            TimeoutError: naming what it waited for.
        """
        needed = max(0, step if exact else step - self.max_staleness)
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self.version >= needed), timeout_s)
            except TimeoutError:
                raise TimeoutError(
                    f"A rollout of step {step} waited {timeout_s:.0f} s for policy version {needed}; the newest is "
                    f"{self.version}. The learners are stuck or slower than rollout.timeout_s."
                ) from None
            return self.version

    async def weights(self) -> tuple[int, list[ray.ObjectRef]]:
        """(version, its pieces); no pieces for the model that the engines started from."""
        return self.version, [self.chunks[number] for number in sorted(self.chunks)]

    async def beat(self, heartbeat: Heartbeat) -> None:
        """An engine says that it lives, and what it does."""
        self._watch.beat(heartbeat, time.monotonic())

    async def figures(self, taken: int) -> dict[str, float]:
        """For the metrics of a step: engines, and groups that wait for the learners, who have `taken` so many since they started."""
        return self._watch.figures(taken)

    async def stop(self, why: str) -> None:
        """The learners are to finish or drop their step, write a checkpoint and leave; for good."""
        self._stop = self._leave_request = why

    async def leave(self, why: str, timeout_s: float) -> bool:
        """The same, to start again at once; waits until they have left. False: they did not within `timeout_s`."""
        self._leave_request = self._leave_request or why
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: not self._leave_request), timeout_s)
            except TimeoutError:
                return False
        return True

    async def leave_request(self) -> str:
        """Why the learners are to leave; empty if they are not."""
        return self._leave_request

    async def left(self) -> None:
        async with self._changed:
            self._leave_request = ""
            self._changed.notify_all()

    async def learners(self, placed: bool, controller: int) -> None:
        """Whether there are learners, which Ray Train may have to wait for, says the process of Ray Train that starts them."""
        self._idle_since = None if placed else self._idle_since or time.monotonic()
        self._controller = controller

    async def absence(self) -> tuple[float, int]:
        """Seconds without learners, and the process that is to start them; 0 if that is not known."""
        return 0.0 if self._idle_since is None else time.monotonic() - self._idle_since, self._controller

    async def abort(self, message: str) -> None:
        """The run ends for a reason that a restart would only repeat."""
        self._abort = message

    async def pid(self) -> int:
        return os.getpid()

    async def ended(self) -> tuple[str, str]:
        """(why it was stopped, why it was aborted); empty if it was not."""
        return self._stop, self._abort
