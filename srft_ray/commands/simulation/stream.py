"""What Ray Data takes for each block of the real stream, through a pool of actors that do nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srft_ray.config.settings import Bounds
from srft_ray.data.plan import StepSize, StreamPlan
from srft_ray.data.stream import ActorPool, make_stream

STEPS = 40
WARM_UP_STEPS = 10  # in which actors start
CPUS_PER_ACTOR = 0.001


@dataclass(frozen=True)
class StreamCost:
    """Of one pool.

    Attributes:
        block_s: seconds between two blocks that the consumer gets.
        cpu_s: seconds of CPU for each of them in the process that schedules.
    """

    actors: int
    block_s: float
    cpu_s: float


def measure_stream(actors: int) -> StreamCost:
    """Passes blocks of one group through a pool, one block for each actor in a step, as fast as it goes."""
    plan = StreamPlan(STEPS, (StepSize(0, actors),), 1, 0, {}, 1)
    pool = ActorPool(make_echo, Bounds(actors, actors), 1, CPUS_PER_ACTOR, 0, 0)
    stream = make_stream([(plan, 0)], pool)
    blocks = stream.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy")
    first = WARM_UP_STEPS * actors
    for number, _ in enumerate(blocks):
        if number == first:
            started, used = time.perf_counter(), time.process_time()
    counted = STEPS * actors - 1 - first
    elapsed_s = time.perf_counter() - started
    return StreamCost(actors, elapsed_s / counted, (time.process_time() - used) / counted)


def make_echo() -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda block: {"group": np.array([bytes(1)] * len(block["position"]), dtype=object)}


def stream_lines(costs: Sequence[StreamCost], blocks_per_step: Sequence[int]) -> list[str]:
    """The costs in words, and what they are for the largest step if that of a block stays the same."""
    lines = [
        f"Ray Data with {cost.actors} actors that do nothing: {1e3 * cost.block_s:.2f} ms and "
        f"{1e3 * cost.cpu_s:.2f} ms of CPU for each block."
        for cost in costs
    ]
    if costs:
        largest, most = costs[-1], max(blocks_per_step)
        lines.append(
            f"A step of {most:,} blocks would take Ray Data {most * largest.block_s:.1f} s if a block took "
            f"as long as with {largest.actors} actors; more actors were not measured."
        )
    return lines
