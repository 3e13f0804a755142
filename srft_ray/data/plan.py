"""What the stream holds, as arithmetic.

Which groups each step trains on and evaluates, and how they are cut into blocks. Nothing here is a list of
steps, so that a plan of a million steps costs what one of ten costs.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from algorithms import Algorithm
from srft_ray.config.schedule import stage_size
from srft_ray.config.settings import Bounds
from srft_ray.config.training import TrainerSection
from srft_ray.data.block_size import STREAM_BLOCKS, block_size, blocks_of_stream, bundle_size
from srft_ray.errors import require

# A block refills groups without signal when its last sequence has ended. With several blocks an engine
# samples others meanwhile.
REFILLED_BLOCKS = 4  # of an engine in a step


@dataclass(frozen=True)
class Segment:
    """Consecutive groups of the stream that belong together.

    A segment is one training step, or one evaluation set.

    Attributes:
        dataset: `train`, or the name of an evaluation set.
        step: the step that they are trained in, or the number of steps after which they are evaluated.
        groups: how many carry something.
        padded: how many there are with empty ones at the end: a multiple of what all learners take at a time.
    """

    dataset: str
    step: int
    groups: int
    padded: int


@dataclass(frozen=True)
class StepSize:
    """Steps from `first_step` on, up to the next of these, hold so many groups each."""

    first_step: int
    groups: int


@dataclass(frozen=True)
class StreamPlan:
    """The order of the stream. Learners and stream derive it alike, so that nothing needs to be sent.

    Attributes:
        steps: training steps of the run.
        sizes: groups of the steps of each stage, in the order of the stages.
        block: groups of a block.
        evaluate_every: steps between evaluations; 0 never evaluates.
        evaluation_sizes: prompts of each evaluation set.
        learner_multiple: evaluation sets are padded to a multiple of so many blocks.
        bundles: prompts of each evaluation set that one position of the stream stands for, so that its blocks
            are larger than those of training; 1 where a set is not named.
        first_group: position in the seeded order of prompts where step 0 begins.
        stream_blocks: most blocks of one stream, unless a single step has more.
        evaluates_beside: whether the evaluation after s steps stands behind the groups that step s trains on,
            so that engines sample it while learners update. It still needs version s: learners publish the
            next one when they have taken it.
    """

    steps: int
    sizes: tuple[StepSize, ...]
    block: int
    evaluate_every: int
    evaluation_sizes: dict[str, int]
    learner_multiple: int
    first_group: int = 0
    stream_blocks: int = STREAM_BLOCKS[0]
    evaluates_beside: bool = False
    bundles: Mapping[str, int] = field(default_factory=dict)

    @property
    def blocks_per_step(self) -> int:
        """Blocks of the largest step."""
        return max(size.groups for size in self.sizes) // self.block

    def size(self, step: int) -> int:
        """Groups that `step` trains on."""
        index = bisect_right(self.sizes, step, key=lambda size: size.first_step) - 1
        return self.sizes[index].groups

    def position(self, step: int) -> int:
        """Where the groups of `step`, or of the one after the last, begin in the seeded order."""
        ends = [size.first_step for size in self.sizes[1:]] + [self.steps]
        done = 0
        for size, end in zip(self.sizes, ends, strict=True):
            done += size.groups * max(0, min(step, end) - size.first_step)
        return self.first_group + done

    def evaluates(self, step: int) -> bool:
        return self.evaluate_every > 0 and (step % self.evaluate_every == 0 or step == self.steps)

    def segments(self, start: int, stop: int | None = None) -> Iterator[Segment]:
        """The segments of the steps from `start` to before `stop`; by default to the end of the run."""
        stop = self.steps if stop is None else stop
        for step in range(start, stop):
            yield from self._segments_of(step)
        if stop == self.steps:
            yield from self.evaluations(stop)

    def training(self, step: int) -> Segment:
        """The groups that `step` trains on."""
        return Segment("train", step, self.size(step), self.size(step))

    def evaluations(self, step: int) -> list[Segment]:
        """The sets that are evaluated after `step` steps; empty if there is no evaluation then."""
        sizes = self.evaluation_sizes if self.evaluates(step) else {}
        return [Segment(name, step, size, self._padded(name)) for name, size in sizes.items()]

    def stream_stop(self, start: int) -> int:
        """The step before which a stream that begins at step `start` ends."""
        longest = self.stream_blocks * self.block
        if self.length(start, self.steps) <= longest:
            return self.steps
        stop = max(start + 1, self._step_at(self._stream_position(start) + longest))
        return min(stop, self.steps)

    def length(self, start: int, stop: int) -> int:
        """Positions of a stream of the steps from `start` to before `stop`, with evaluation and padding."""
        end = self._stream_position(stop)
        if stop == self.steps and self.evaluates(stop):
            end += self._evaluation_length()
        return end - self._stream_position(start)

    def locate(self, start: int, position: int) -> tuple[Segment, int]:
        """The segment at a position of the stream that begins at step `start`, and the place in it.

        A position of an evaluation set stands for the groups of as many places as the set's bundle holds.
        """
        target = self._stream_position(start) + position
        step = self._step_at(target)
        offset = target - self._stream_position(step)
        for segment in self._segments_of(step):
            bundle = self.bundle(segment.dataset)
            if offset * bundle < segment.padded:
                return segment, offset * bundle
            offset -= segment.padded // bundle
        raise IndexError(f"The stream from step {start} on has no position {position}.")

    def bundle(self, dataset: str) -> int:
        """Groups that one position of the stream stands for."""
        return self.bundles.get(dataset, 1)

    def _stream_position(self, step: int) -> int:
        """Positions of the whole stream before the first segment of `step`."""
        evaluations = math.ceil(step / self.evaluate_every) if self.evaluate_every else 0
        return self.position(step) - self.first_group + evaluations * self._evaluation_length()

    def _step_at(self, target: int) -> int:
        """The last step whose segments begin at or before a position of the whole stream."""
        return bisect_right(range(self.steps + 1), target, key=self._stream_position) - 1

    def _segments_of(self, step: int) -> list[Segment]:
        training = [self.training(step)] if step < self.steps else []
        evaluations = self.evaluations(step)
        return training + evaluations if self.evaluates_beside else evaluations + training

    def _evaluation_length(self) -> int:
        return sum(self._padded(name) // self.bundle(name) for name in self.evaluation_sizes)

    def _padded(self, dataset: str) -> int:
        unit = self.block * self.bundle(dataset) * self.learner_multiple
        return math.ceil(self.evaluation_sizes[dataset] / unit) * unit


def make_plan(
    trainer: TrainerSection,
    algorithm: Algorithm,
    learners: Bounds,
    engines: Bounds,
    groups_per_block: int | None,
    evaluation_sizes: dict[str, int],
    evaluates_beside: bool = False,
    samples: Mapping[str, int] | None = None,
) -> StreamPlan:
    """The plan of a run.

    Args:
        groups_per_block: as the user sets it; None for as few that engines share each step evenly.
        evaluation_sizes: prompts of each evaluation set.
        samples: responses to a prompt of each evaluation set; None if they are in blocks like those of
            training.
        evaluates_beside: as of `StreamPlan`.

    Raises:
        UserError: the groups of a step cannot be shared by the learners, or not in such blocks.
    """
    sizes = _step_sizes(trainer, algorithm)
    counts = sorted({size.groups for size in sizes})
    for groups in counts:
        for workers in learners:
            require(
                groups % workers == 0,
                f"A stage with {groups} groups per step cannot be shared by {workers} learners "
                f"(learner.num_workers): choose a multiple.",
            )
    per_learner = math.gcd(*(groups // workers for workers in learners for groups in counts))
    stages = [algorithm.stage(size.first_step, trainer.steps).algorithm for size in sizes]
    refills = any(stage.uses_rollouts and stage.max_refills for stage in stages)
    wanted = engines.high * (REFILLED_BLOCKS if refills else 1)
    block = block_size(groups_per_block, per_learner, counts, engines.high, wanted)
    return StreamPlan(
        trainer.steps,
        sizes,
        block,
        trainer.evaluate_every,
        evaluation_sizes,
        math.lcm(*learners),
        trainer.first_group,
        blocks_of_stream(max(counts), block),
        evaluates_beside,
        {
            name: bundle_size(block, evaluation_sizes[name], responses, engines.high)
            for name, responses in (samples or {}).items()
        },
    )


def _step_sizes(trainer: TrainerSection, algorithm: Algorithm) -> tuple[StepSize, ...]:
    """Groups of the steps of each stage; only the first step of each stage is asked for."""
    sizes = []
    step = 0
    while step < trainer.steps:
        stage = algorithm.stage(step, trainer.steps)
        sizes.append(StepSize(step, stage_size(trainer, stage)))
        end = stage.start + stage.steps
        require(
            end > step,
            f"{algorithm.name} gives step {step} a stage that ends at step {end}, before it: correct "
            "its `stage`.",
        )
        step = end
    return tuple(sizes)
