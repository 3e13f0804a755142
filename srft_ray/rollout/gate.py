"""The gate: which policy version a rollout may start with. Staleness has this one owner."""
import asyncio

import ray


class Gate:
    """State of the published policy. Run as a Ray actor that outlives learners and engines: it also owns the weights.

    A group of step s may start when `version >= s - max_staleness`; version v is the policy after v optimizer steps.
    """

    def __init__(self, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self.version = 0
        self.chunks: list[ray.ObjectRef] = []
        self._arriving: list[ray.ObjectRef] = []
        self._published = asyncio.Condition()

    async def restart(self, version: int) -> None:
        """The learners start (again) at a checkpoint; nobody is admitted until they have published its weights.

        Version 0 needs no publication: engines start from the model itself.
        """
        self.version, self.chunks, self._arriving = 0 if version == 0 else -1, [], []

    async def put(self, chunk: object) -> None:
        """Takes one piece of the next version's weights; as its owner, this actor keeps it when a learner dies."""
        self._arriving.append(ray.put(chunk))

    async def publish(self, version: int) -> None:
        """Makes the pieces put so far the weights of `version`."""
        async with self._published:
            self.version, self.chunks, self._arriving = version, self._arriving, []
            self._published.notify_all()

    async def admit(self, step: int, timeout_s: float, exact: bool = False) -> int:
        """Waits until a group of `step` may start; returns the newest version. `exact` asks for version `step` (evaluation).

        Raises:
            TimeoutError: naming what it waited for.
        """
        needed = max(0, step if exact else step - self.max_staleness)
        async with self._published:
            try:
                await asyncio.wait_for(self._published.wait_for(lambda: self.version >= needed), timeout_s)
            except TimeoutError:
                raise TimeoutError(f"A rollout of step {step} waited {timeout_s:.0f} s for policy version {needed}; the newest is "
                                   f"{self.version}. The learners are stuck or slower than rollout.timeout_s.") from None
            return self.version

    async def weights(self) -> tuple[int, list[ray.ObjectRef]]:
        """(version, its pieces); no pieces for the model that the engines started from."""
        return self.version, list(self.chunks)
