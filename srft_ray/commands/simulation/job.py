"""What is simulated, as arithmetic."""

from dataclasses import dataclass
from itertools import pairwise

from srft_ray.commands.pipeline_model import Setting, StepTimes
from srft_ray.config.rollout import RolloutSection
from srft_ray.data.plan import Segment, StreamPlan
from srft_ray.data.stream import blocks_in_flight

WEIGHT_BYTES = 2**20  # of a simulated version; Ray moves larger ones without a copy through the coordinator
ENGINES_PER_PROCESS = 500
ENGINES_PER_NODE = 8  # that share a copy of the weights
SPREAD = 0.1  # of the stated time of a block: the fastest takes so much less than the slowest
GOLDEN = 0.6180339887  # its multiples are spread evenly between 0 and 1, without their whole part


@dataclass(frozen=True)
class SimulatedJob:
    """A run of so many engines and learners, which only wait.

    Attributes:
        plan: of the run's stream, without evaluations.
        rollout: the config's section, whose deadlines and transport are used.
        generation_s: seconds in which an engine samples the slowest block, whatever else it samples.
        learner_s: seconds of an update.
    """

    setting: Setting
    plan: StreamPlan
    rollout: RolloutSection
    generation_s: float
    learner_s: float

    @property
    def stated_s(self) -> float:
        """Seconds of a step if nothing but generation and updates took time."""
        overlaps = self.setting.staleness > 0
        return StepTimes(self.generation_s, self.learner_s, 0.0, overlaps=overlaps).step_s

    @property
    def blocks(self) -> int:
        """Blocks of the whole run."""
        return self.plan.length(0, self.plan.steps) // self.plan.block

    @property
    def in_flight(self) -> int:
        return blocks_in_flight(self.plan, self.setting.engines, self.setting.staleness)

    def of_engine(self, engine: int) -> range:
        """The blocks of an engine: they go to the engines in turn.

        Ray Data gives a block to the actor that has the fewest, which is the same while all take equally
        long.
        """
        return range(engine, self.blocks, self.setting.engines)

    def of_learner(self, rank: int) -> range:
        """The blocks of a learner: the stream is split equally, and no block spans two learners."""
        return range(rank, self.blocks, self.setting.learners)

    def learner_of(self, block: int) -> int:
        """The rank that `of_learner` gives a block."""
        return block % self.setting.learners

    def sampling_s(self, block: int) -> float:
        """Seconds in which a block is sampled: engines do not end all at the same moment."""
        number = block % self.plan.blocks_per_step
        return self.generation_s * (1 - SPREAD * (GOLDEN * number % 1))

    def place(self, block: int) -> tuple[Segment, int]:
        """The segment of a block, and the position in the seeded order of its first group."""
        segment, offset = self.plan.locate(0, block * self.plan.block)
        return segment, self.plan.position(segment.step) + offset


def hosts(engines: int) -> list[range]:
    """The engines of each process, in nearly equal parts."""
    count = -(-engines // ENGINES_PER_PROCESS)
    ends = [engines * number // count for number in range(count + 1)]
    return [range(first, end) for first, end in pairwise(ends)]
