"""What the stream holds, as arithmetic.

Which groups each step trains on and evaluates, and how they are cut into blocks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from algorithms import Algorithm
from srft_ray.config.schedule import stage_size
from srft_ray.config.settings import Bounds
from srft_ray.config.training import TrainerSection
from srft_ray.errors import UserError, require


@dataclass(frozen=True)
class Segment:
    """Consecutive groups of the stream that belong together.

    A segment is one training step, or one evaluation set before a step.

    Attributes:
        dataset: `train`, or the name of an evaluation set.
        step: the step that they are trained in, or before which they are evaluated.
        groups: how many carry something.
        padded: how many there are with empty ones at the end: a multiple of what all learners take at a time.
    """

    dataset: str
    step: int
    groups: int
    padded: int


@dataclass(frozen=True)
class StreamPlan:
    """The order of the stream. Learners and stream derive it alike, so that nothing needs to be sent."""

    steps: int
    sizes: tuple[int, ...]  # groups of each step
    block: int
    evaluate_every: int
    evaluation_sizes: dict[str, int]
    learner_multiple: int
    first_group: int = 0  # position in the seeded order where step 0 begins

    def positions(self) -> list[int]:
        """Where the groups of each step begin in the seeded order."""
        return list(accumulate(self.sizes[:-1], initial=self.first_group))

    def position(self, step: int) -> int:
        """Where the groups of `step` begin, also of the one after the last."""
        return self.first_group + sum(self.sizes[:step])

    def segments(self, start: int) -> Iterator[Segment]:
        for step in range(start, self.steps):
            yield from self._evaluations(step)
            yield Segment("train", step, self.sizes[step], self.sizes[step])
        yield from self._evaluations(self.steps)

    def evaluates(self, step: int) -> bool:
        return self.evaluate_every > 0 and (step % self.evaluate_every == 0 or step == self.steps)

    def _evaluations(self, step: int) -> Iterator[Segment]:
        if self.evaluates(step):
            unit = self.block * self.learner_multiple
            for name, size in self.evaluation_sizes.items():
                yield Segment(name, step, size, math.ceil(size / unit) * unit)


def make_plan(
    trainer: TrainerSection,
    algorithm: Algorithm,
    learners: Bounds,
    engines: Bounds,
    groups_per_block: int | None,
    evaluation_sizes: dict[str, int],
) -> StreamPlan:
    """The plan of a run.

    Args:
        groups_per_block: as the user sets it; None for as few that every engine has a block in each step.
        evaluation_sizes: prompts of each evaluation set.

    Raises:
        UserError: the groups of a step cannot be shared by the learners, or not in such blocks.
    """
    steps = trainer.steps
    sizes = tuple(stage_size(trainer, algorithm.stage(step, steps)) for step in range(steps))
    for size in sorted(set(sizes)):
        for workers in learners:
            require(
                size % workers == 0,
                f"A stage with {size} groups per step cannot be shared by {workers} learners "
                f"(learner.num_workers): choose a multiple.",
            )
    per_learner = math.gcd(*(size // workers for workers in learners for size in set(sizes)))
    block = _block_size(groups_per_block, per_learner, min(sizes), engines.high)
    return StreamPlan(
        steps,
        sizes,
        block,
        trainer.evaluate_every,
        evaluation_sizes,
        math.lcm(*learners),
        trainer.first_group,
    )


def _block_size(given: int | None, per_learner: int, groups: int, engines: int) -> int:
    """Groups of a block.

    They are few enough that every engine has a block in each step, and divide each learner's share, so that
    no block spans two steps or two learners.
    """
    if given is not None and per_learner % given:
        raise UserError(
            f"rollout.groups_per_task={given} must divide the {per_learner} groups that each learner takes "
            "in a step."
        )
    if given is not None:
        return given
    most = max(1, groups // engines)
    return max(d for d in range(1, per_learner + 1) if per_learner % d == 0 and d <= most)
