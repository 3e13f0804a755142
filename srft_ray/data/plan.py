"""What the stream holds, as arithmetic: which groups each step trains on and evaluates, and how they are cut into blocks."""
import math
from collections.abc import Iterator
from dataclasses import dataclass

from srft_ray.config import Config, bounds
from srft_ray.errors import UserError


@dataclass(frozen=True)
class Segment:
    """Consecutive groups of the stream that belong together: one training step, or one evaluation set before a step."""
    dataset: str  # train, or the name of an evaluation set
    step: int
    groups: int  # that carry something
    padded: int  # a multiple of what all learners take at once


@dataclass(frozen=True)
class StreamPlan:
    """The order of the stream from a step on. Learners and stream derive it alike, so that nothing needs to be sent."""
    steps: int
    groups_per_step: int
    block: int
    evaluate_every: int
    evaluation_sizes: dict[str, int]
    learner_multiple: int

    def segments(self, start: int) -> Iterator[Segment]:
        for step in range(start, self.steps):
            yield from self._evaluations(step)
            yield Segment("train", step, self.groups_per_step, self.groups_per_step)
        yield from self._evaluations(self.steps)

    def evaluates(self, step: int) -> bool:
        return self.evaluate_every > 0 and (step % self.evaluate_every == 0 or step == self.steps)

    def _evaluations(self, step: int) -> Iterator[Segment]:
        if self.evaluates(step):
            unit = self.block * self.learner_multiple
            for name, size in self.evaluation_sizes.items():
                yield Segment(name, step, size, math.ceil(size / unit) * unit)


def make_plan(config: Config, evaluation_sizes: dict[str, int]) -> StreamPlan:
    low, high = bounds(config.learner.num_workers, "learner.num_workers")
    _, engines = bounds(config.rollout.num_engines, "rollout.num_engines")
    per_learner = math.gcd(*(config.trainer.groups_per_step // workers for workers in range(low, high + 1)))
    block = _block(config, per_learner, engines)
    return StreamPlan(config.trainer.steps, config.trainer.groups_per_step, block, config.trainer.evaluate_every,
                      evaluation_sizes, math.lcm(*range(low, high + 1)))


def _block(config: Config, per_learner: int, engines: int) -> int:
    """Groups per task of the rollout stage: few enough that every engine has one each step, and a divisor of each
    learner's share, so that no block spans two steps or two learners."""
    given = config.rollout.groups_per_task
    if given is not None and per_learner % given:
        raise UserError(f"rollout.groups_per_task={given} must divide the {per_learner} groups that each learner takes in a step.")
    if given is not None:
        return given
    most = max(1, config.trainer.groups_per_step // engines)
    return max(d for d in range(1, per_learner + 1) if per_learner % d == 0 and d <= most)
