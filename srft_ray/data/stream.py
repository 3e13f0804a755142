"""The stream on Ray Data: blocks of positions become blocks of groups in one long execution."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray import cloudpickle
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, TaskPoolStrategy

from srft_ray.config.settings import Bounds
from srft_ray.data.late import LateProcess
from srft_ray.data.loop import look_at_once
from srft_ray.data.plan import StreamPlan

READERS = 2  # tasks at a time where blocks are only read


@dataclass(frozen=True)
class ActorPool:
    """Actors that turn positions into groups.

    Attributes:
        process: makes, in the actor, what is called with a block, from several threads at a time. If it has a
            method `close`, that is called when the actor ends in order.
        size: how many actors there may be.
        max_staleness: versions that rollouts may be behind; it decides how many blocks are in flight.
        cpus, gpus, resources: logical Ray resources of one actor.
        max_restarts: of one actor.
    """

    process: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]
    size: Bounds
    max_staleness: int
    cpus: float
    gpus: float
    max_restarts: int
    resources: dict[str, float] = field(default_factory=dict)


def execution_options() -> ExecutionOptions:
    """In order, because groups must reach the coordinator in the order in which learners take them."""
    return ExecutionOptions(preserve_order=True)


def make_stream(
    runs: Sequence[tuple[StreamPlan, int]],
    process: ActorPool | Callable[[dict[str, Any]], dict[str, Any]],
    firsts: Sequence[int] = (),
) -> Dataset:
    """The stream of runs one after another, as far as the `stream_stop` of each plan lets it go.

    Args:
        runs: plans with blocks of one size, each with the step that the run begins at.
        process: turns a block of positions of one run into a block of groups.
        firsts: position of the first group of each run, a multiple of the size of a block; what comes before
            it is left out. By default nothing is.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options = execution_options()
    blocks = []
    for run, (plan, start) in enumerate(runs):
        first = firsts[run] if firsts else 0
        for begin in range(first, plan.length(start, plan.stream_stop(start)), plan.block):
            positions = np.arange(begin, begin + plan.block)
            blocks.append(pa.table({"run": np.full(plan.block, run), "position": positions}))
    is_pool = isinstance(process, ActorPool)
    look_at_once(context, process.size.high if is_pool else READERS, is_pool and not process.max_staleness)
    dataset = ray.data.from_blocks(blocks)  # `from_arrow` starts a task for each to count its rows
    if is_pool:
        return _in_actors(dataset, [plan for plan, _ in runs], process)
    # Without a bound Ray Data starts a process for every tenth of a CPU.
    few = TaskPoolStrategy(READERS)
    return dataset.map_batches(process, batch_size=None, batch_format="numpy", num_cpus=0.1, compute=few)


def blocks_in_flight(plan: StreamPlan, engines: int, max_staleness: int) -> int:
    """Blocks that each of so many engines has at a time, at most."""
    # At staleness 0 no task waits for the coordinator while others run: Ray Data's loop would look for
    # results only at intervals (`data.loop`).
    return math.ceil(plan.blocks_per_step * (max_staleness + 1) / engines)


def _in_actors(positions: Dataset, plans: Sequence[StreamPlan], pool: ActorPool) -> Dataset:
    in_flight = max(blocks_in_flight(plan, pool.size.low, pool.max_staleness) for plan in plans)
    if pool.size.elastic:
        # All blocks of a step count as work for the present engines; none is given back while it has none.
        scaling = ray.data.DataContext.get_current().autoscaling_config
        scaling.actor_pool_util_upscaling_threshold = 0.9 * pool.size.low / pool.size.high
        scaling.actor_pool_util_downscaling_threshold = 0.0
    strategy = ActorPoolStrategy(
        min_size=pool.size.low,
        max_size=pool.size.high,
        initial_size=pool.size.low,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=in_flight,
        enable_true_multi_threading=True,
    )
    return positions.map_batches(
        LateProcess,
        fn_constructor_args=(cloudpickle.dumps(pool.process),),
        compute=strategy,
        batch_size=plans[0].block,  # Ray Data asks for it where actors have GPUs; it is one block
        batch_format="numpy",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        resources=pool.resources or None,
        max_restarts=pool.max_restarts,
    )
