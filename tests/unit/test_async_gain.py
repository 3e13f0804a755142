"""The simulation in benchmarks/async_gain.py agrees with the pipeline model and with the real coordinator."""

import asyncio
import statistics
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.async_gain import simulate
from srft_ray.commands.pipeline_model import StepTimes
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.versions import WeightShare

DRAWN = [
    (2.0, 2.0, 0.0),
    (0.05, 10.0, 1.0),
    (10.0, 0.05, 0.0),  # seconds of generation and learner, and a fraction
    *np.random.default_rng(0).uniform((0.05, 0.05, 0.0), (10.0, 10.0, 1.0), (97, 3)).tolist(),
]


@pytest.mark.parametrize("staleness", range(4))
def test_the_simulation_settles_at_the_step_times_of_the_model(staleness: int):
    """The first steps differ: engines that may be a step ahead begin with a step that overlaps with
    nothing."""
    for generation, learner, publish in DRAWN:
        steps = simulate(generation, learner, publish, 60, staleness)
        expected = StepTimes(generation, learner, publish, overlaps=staleness > 0).step_s
        assert steps[0] == pytest.approx(generation + learner + publish)
        assert statistics.median(steps[30:]) == pytest.approx(expected, rel=1e-9)


def test_more_staleness_never_costs_time():
    for seed, (generation, learner, jitter) in enumerate(DRAWN):
        total = [
            sum(simulate(generation, learner, 0.1, 40, staleness, jitter / 2, seed)) for staleness in range(4)
        ]
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(total))


def test_jitter_keeps_the_mean():
    steps = simulate(1.0, 2.0, 0.5, 20_000, 0, jitter=0.3)
    assert statistics.fmean(steps) == pytest.approx(3.5, rel=0.01)
    one = np.sqrt(np.exp(0.3**2) - 1)  # standard deviation of a log-normal factor with mean 1
    assert np.std(steps) == pytest.approx(one * np.sqrt(1.0**2 + 2.0**2 + 0.5**2), rel=0.05)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing else is to be done."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("phases", [(1.0, 0.7, 0.1), (0.5, 1.5, 0.1)])
def test_the_simulation_is_what_the_coordinator_admits(staleness: int, phases: tuple[float, float, float]):
    """The coordinator of real runs paces an engine and a learner that only sleep."""
    generation, learner, publish = phases

    async def run() -> list[float]:
        coordinator, ready, published = Coordinator(staleness), asyncio.Queue(), [0.0]
        start = await coordinator.restart(0)

        async def engine() -> None:
            for step in range(8):
                while not (await coordinator.admit(start.generation, step)).admitted:
                    pass
                await asyncio.sleep(generation)
                ready.put_nowait(step)

        task = asyncio.ensure_future(engine())
        for step in range(8):
            assert await ready.get() == step
            await asyncio.sleep(learner + publish)
            await coordinator.publish(start.generation, WeightShare(step + 1, ranks=1))
            published.append(asyncio.get_running_loop().time())
        await task
        return published

    loop = VirtualTime()
    try:
        published = loop.run_until_complete(run())
    finally:
        loop.close()
    assert np.diff(published) == pytest.approx(simulate(generation, learner, publish, 8, staleness))
