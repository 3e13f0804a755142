"""A model of the time of one training step, given the numbers of engines and learners.

A step has three phases: generation, learner update and publication of the weights. Each phase takes

    fixed_s + parallel_s / parallelism + per_worker_s * workers

seconds, with no negative coefficient. With `max_staleness` 0 the phases of a step follow each other. With a
larger value generation overlaps with the learner update and the publication. The model is fitted to measured
runs (`pipeline_fit`) or made from stated hardware figures (`plan`). It says which phase bounds a step, and
which split of n devices gives the shortest step.

Assumptions: every step has the same work; all engines are alike, and so are all learners; the time that
engines need to load published weights is part of the overhead.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Numbers of engines and learners, and by how many versions a rollout may be stale when it starts."""

    engines: int
    learners: int
    staleness: int = 0

    def __str__(self) -> str:
        return f"e{self.engines}-l{self.learners}-s{self.staleness}"

    @property
    def workers(self) -> int:
        return self.engines + self.learners


@dataclass(frozen=True)
class Machine:
    """What the workers run on.

    The parallelism of a phase is the number of devices or CPU cores that it uses at the same time. Without
    `cores` every worker has a device of its own. With `cores` all workers are processes that share so many
    CPU cores: the parallelism cannot exceed the cores, and learners have the number of threads that
    `cluster.placed` gives them.
    """

    cores: int | None = None
    threads_per_engine: float = 1.0

    def engine_parallelism(self, setting: Setting) -> float:
        if self.cores is None:
            return setting.engines
        return min(setting.engines * self.threads_per_engine, self.cores)

    def learner_parallelism(self, setting: Setting) -> float:
        if self.cores is None:
            return setting.learners
        threads = max(1, self.cores // setting.workers)
        return min(setting.learners * threads, self.cores)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the phases of one step.

    `cores_s` is the work of both overlapping sides divided by the cores that they share, or 0 without any.
    """

    generation_s: float
    learner_s: float
    publish_s: float
    overhead_s: float = 0.0
    cores_s: float = 0.0
    overlaps: bool = False

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the step time in seconds.

        Without overlap the step time is their sum. With overlap it is the overhead plus the largest other.
        """
        overhead = {"overhead": self.overhead_s}
        if not self.overlaps:
            phases = {"generation": self.generation_s, "learner": self.learner_s, "publish": self.publish_s}
            return phases | overhead
        learner_side = self.learner_s + self.publish_s
        sides = {"generation": self.generation_s, "learner": learner_side, "shared cores": self.cores_s}
        return sides | overhead

    @property
    def step_s(self) -> float:
        *sides, overhead = self.parts.values()
        return (max(sides) if self.overlaps else sum(sides)) + overhead

    @property
    def bottleneck(self) -> str:
        """The name of the part that takes longest, one of the keys of `parts`."""
        return max(self.parts, key=self.parts.__getitem__)


@dataclass(frozen=True)
class Measurement:
    """Medians over the steps of one run: times in seconds per step, mean staleness in versions, and tokens
    per second that were trained on and that were generated."""

    setting: Setting
    step_s: float
    generation_s: float
    learner_s: float
    publish_s: float
    mean_staleness: float = 0.0
    tokens_per_s: float = 0.0
    generated_per_s: float = 0.0

    @property
    def overhead_s(self) -> float:
        """The part of the step time that is spent in none of the phases."""
        overlaps = self.setting.staleness > 0
        phases = StepTimes(self.generation_s, self.learner_s, self.publish_s, overlaps=overlaps)
        return self.step_s - phases.step_s

    @property
    def rollout_utilization(self) -> float:
        """The fraction of a step in which engines generate. It is limited to 1, because groups of two steps
        may be in flight at the same time."""
        return min(1.0, self.generation_s / self.step_s)

    @property
    def learner_utilization(self) -> float:
        """The fraction of a step in which learners compute the update."""
        return self.learner_s / self.step_s


@dataclass(frozen=True)
class PhaseTimeModel:
    """The seconds that a phase takes, as a function of its number of workers and its parallelism.

    Attributes:
        fixed_s: does not depend on the workers.
        parallel_s: work that is divided by the parallelism (seconds at parallelism 1).
        per_worker_s: added by every worker, for coordination or because workers compete for cores.
    """

    fixed_s: float = 0.0
    parallel_s: float = 0.0
    per_worker_s: float = 0.0

    def seconds(self, workers: float, parallelism: float) -> float:
        return self.fixed_s + self.parallel_s / parallelism + self.per_worker_s * workers


@dataclass(frozen=True)
class PipelineModel:
    """The time models of all phases; `overlapped_overhead` replaces `overhead` if the staleness is above 0.

    `contention` tells whether overlapping sides must be assumed to slow each other on shared cores, so that a
    step takes at least the work of both divided by the cores. It is true if the phases were measured one
    after the other. Phases that were measured while they overlapped already include this effect.
    """

    generation: PhaseTimeModel
    learner: PhaseTimeModel
    publish: PhaseTimeModel
    overhead: PhaseTimeModel
    overlapped_overhead: PhaseTimeModel
    machine: Machine = Machine()
    contention: bool = True

    def step_times(self, setting: Setting) -> StepTimes:
        overlaps = setting.staleness > 0
        engine_parallelism = self.machine.engine_parallelism(setting)
        learner_parallelism = self.machine.learner_parallelism(setting)
        generation_s = self.generation.seconds(setting.engines, engine_parallelism)
        learner_s = self.learner.seconds(setting.learners, learner_parallelism)
        overhead = self.overlapped_overhead if overlaps else self.overhead
        cores_s = 0.0
        if overlaps and self.contention and self.machine.cores:
            work_s = generation_s * engine_parallelism + learner_s * learner_parallelism
            cores_s = work_s / self.machine.cores
        return StepTimes(
            generation_s=generation_s,
            learner_s=learner_s,
            publish_s=self.publish.seconds(setting.learners, 1),
            overhead_s=overhead.seconds(setting.workers, 1),
            cores_s=cores_s,
            overlaps=overlaps,
        )


def splits(
    devices: float, staleness: int, groups_per_step: int, devices_per_engine: float = 1.0
) -> list[Setting]:
    """Every way to divide the devices between learners and engines.

    A learner takes one device, and the number of learners divides the groups of a step. Engines take the
    remaining devices; there are never more engines than groups in a step.
    """
    found = []
    for learners in range(1, int(devices) + 1):
        remaining = (devices - learners) / devices_per_engine
        engines = min(int(remaining + 1e-9), groups_per_step)  # 1e-9: rounding of fractions of a device
        if groups_per_step % learners == 0 and engines > 0:
            found.append(Setting(engines, learners, staleness))
    return found


def best_split(model: PipelineModel, candidates: Sequence[Setting]) -> Setting:
    """The setting with the shortest step; of settings with equal steps the one with the fewest workers."""
    return min(candidates, key=lambda s: (round(model.step_times(s).step_s, 9), s.workers))
