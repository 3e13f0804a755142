"""The model of the pipeline: how long a step takes with so many engines and learners, what bounds it, and the best split of n devices.

A stage takes `fixed + shared / lanes + each · workers` seconds, with no negative part. With staleness 0 the stages of a step follow
each other; with more, generation overlaps with learner and publication. Assumed: every step has the same work; all engines are
alike, and so are all learners; what a publication costs the engines (loading weights) is part of the overhead.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain, combinations

import numpy as np


@dataclass(frozen=True)
class Setting:
    """So many engines and learners, and how many versions behind a rollout may start."""

    engines: int
    learners: int
    staleness: int = 0

    def __str__(self) -> str:
        return f"e{self.engines}-l{self.learners}-s{self.staleness}"


@dataclass(frozen=True)
class Machine:
    """Where the workers run. With `cores` they are processes that share so many CPU cores; without, each has devices of its own.

    Lanes are what a stage runs on side by side. On shared cores they end at the cores, and the learners' threads are those that a
    run on one machine gives them (`cluster.placed`).
    """

    cores: int | None = None
    threads_per_engine: float = 1.0

    def engine_lanes(self, setting: Setting) -> float:
        return (
            setting.engines
            if self.cores is None
            else min(setting.engines * self.threads_per_engine, self.cores)
        )

    def learner_lanes(self, setting: Setting) -> float:
        if self.cores is None:
            return setting.learners
        threads = max(1, self.cores // (setting.engines + setting.learners))
        return min(setting.learners * threads, self.cores)


@dataclass(frozen=True)
class Stages:
    """Seconds of one step. `cores_s`: the work of both overlapping sides over the cores that they share; 0 if they share none."""

    generation_s: float
    learner_s: float
    publish_s: float
    overhead_s: float = 0.0
    cores_s: float = 0.0
    overlaps: bool = False

    @property
    def parts(self) -> dict[str, float]:
        """What the step is the sum of, or, where the sides overlap, the largest of the first three plus the overhead."""
        if self.overlaps:
            return {
                "generation": self.generation_s,
                "learner": self.learner_s + self.publish_s,
                "shared cores": self.cores_s,
                "overhead": self.overhead_s,
            }
        return {
            "generation": self.generation_s,
            "learner": self.learner_s,
            "publish": self.publish_s,
            "overhead": self.overhead_s,
        }

    @property
    def step_s(self) -> float:
        *sides, overhead = self.parts.values()
        return (max(sides) if self.overlaps else sum(sides)) + overhead

    @property
    def bottleneck(self) -> str:
        """The part that takes longest: one of `parts`."""
        return max(self.parts, key=self.parts.__getitem__)


@dataclass(frozen=True)
class Measurement:
    """Medians over the steps of one run, in seconds a step; staleness in versions, and tokens/s trained on and generated."""

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
        """What the step took beyond its stages."""
        return (
            self.step_s
            - Stages(
                self.generation_s, self.learner_s, self.publish_s, overlaps=self.setting.staleness > 0
            ).step_s
        )

    @property
    def rollout_utilization(self) -> float:
        """Share of a step in which engines generate; at most 1, because groups of two steps may be in flight together."""
        return min(1.0, self.generation_s / self.step_s)

    @property
    def learner_utilization(self) -> float:
        return self.learner_s / self.step_s


@dataclass(frozen=True)
class Law:
    """Seconds of a stage: `fixed`, `shared` by its lanes, and `each` for every worker (coordination, or cores fought for)."""

    fixed: float = 0.0
    shared: float = 0.0
    each: float = 0.0

    def seconds(self, workers: float, lanes: float) -> float:
        return self.fixed + self.shared / lanes + self.each * workers


Point = tuple[float, float, float]  # workers, lanes, seconds


def fit_law(points: Sequence[Point], terms: Sequence[str] = ("fixed", "shared", "each")) -> Law:
    """Non-negative least squares, by trying every subset of the terms that the points tell apart; the first of equally good ones,
    so that a single measured number of workers gives a constant."""
    row = {
        "fixed": lambda workers, lanes: 1.0,
        "shared": lambda workers, lanes: 1.0 / lanes,
        "each": lambda workers, lanes: workers,
    }
    seconds = np.array([point[2] for point in points])
    best, least = Law(), float("inf")
    for form in chain.from_iterable(combinations(terms, size) for size in range(1, len(terms) + 1)):
        columns = np.array([[row[term](workers, lanes) for term in form] for workers, lanes, _ in points])
        found, _, rank, _ = np.linalg.lstsq(columns, seconds)
        error = float(((columns @ found - seconds) ** 2).sum())
        if rank == len(form) and found.min() >= 0 and error < least - 1e-12 * float(seconds @ seconds):
            best, least = Law(**dict(zip(form, map(float, found), strict=True))), error
    return best


@dataclass(frozen=True)
class PipelineModel:
    """A law for each stage. `overlapped_overhead` is that of staleness above 0.

    `alone` says that the laws are of stages that ran without the other side: then sides that overlap on shared cores slow each
    other, and a step takes at least the work of both over the cores. Laws of stages measured together hold it already.
    """

    generation: Law
    learner: Law
    publish: Law
    overhead: Law
    overlapped_overhead: Law
    machine: Machine = Machine()
    alone: bool = True

    def stages(self, setting: Setting) -> Stages:
        overlaps, workers = setting.staleness > 0, setting.engines + setting.learners
        engine_lanes, learner_lanes = self.machine.engine_lanes(setting), self.machine.learner_lanes(setting)
        generation = self.generation.seconds(setting.engines, engine_lanes)
        learner = self.learner.seconds(setting.learners, learner_lanes)
        compete = overlaps and self.alone and self.machine.cores
        return Stages(
            generation,
            learner,
            self.publish.seconds(setting.learners, 1),
            (self.overlapped_overhead if overlaps else self.overhead).seconds(workers, 1),
            (generation * engine_lanes + learner * learner_lanes) / self.machine.cores if compete else 0.0,
            overlaps,
        )


def fit(measurements: Sequence[Measurement], machine: Machine = Machine()) -> PipelineModel:
    """The stages' laws from the runs with staleness 0, or from all if there are none; each kind of overhead from its own runs."""
    sequential = [m for m in measurements if m.setting.staleness == 0]
    source, nothing = sequential or measurements, Law()
    bare = PipelineModel(
        fit_law([(m.setting.engines, machine.engine_lanes(m.setting), m.generation_s) for m in source]),
        fit_law([(m.setting.learners, machine.learner_lanes(m.setting), m.learner_s) for m in source]),
        fit_law([(m.setting.learners, 1, m.publish_s) for m in source], ("fixed", "each")),
        nothing,
        nothing,
        machine,
        bool(sequential),
    )

    def overhead(runs: Sequence[Measurement]) -> Law:
        """A constant, unless enough runs tell that it grows with the workers."""
        points = [
            (m.setting.engines + m.setting.learners, 1, m.step_s - bare.stages(m.setting).step_s)
            for m in runs
        ]
        return fit_law(points, ("fixed", "each") if len(runs) > 2 else ("fixed",))

    overlapped = [m for m in measurements if m.setting.staleness > 0]
    laws = {item.name: getattr(bare, item.name) for item in fields(bare)}
    return PipelineModel(
        **laws
        | {
            "overhead": overhead(sequential or overlapped),
            "overlapped_overhead": overhead(overlapped or sequential),
        }
    )


def leave_one_out(measurements: Sequence[Measurement], machine: Machine = Machine()) -> list[float]:
    """Seconds a step of each setting, as predicted by a model that is fitted to all others; it needs at least two."""
    return [
        fit([*measurements[:i], *measurements[i + 1 :]], machine).stages(left_out.setting).step_s
        for i, left_out in enumerate(measurements)
    ]


def median_error(measurements: Sequence[Measurement], predicted: Sequence[float]) -> float:
    """Of |predicted - measured| / measured step time."""
    return statistics.median(
        abs(seconds - m.step_s) / m.step_s for m, seconds in zip(measurements, predicted, strict=True)
    )


def splits(
    devices: float, staleness: int, groups_per_step: int, devices_per_engine: float = 1.0
) -> list[Setting]:
    """Every way to use the devices: learners that divide the groups of a step, one device each, and engines on the rest, at most
    one a group."""
    found = []
    for learners in range(1, int(devices) + 1):
        engines = min(int((devices - learners) / devices_per_engine + 1e-9), groups_per_step)
        if groups_per_step % learners == 0 and engines > 0:
            found.append(Setting(engines, learners, staleness))
    return found


def best_split(model: PipelineModel, candidates: Sequence[Setting]) -> Setting:
    """The one with the shortest step; of equal ones that with the fewest workers."""
    return min(candidates, key=lambda s: (round(model.stages(s).step_s, 9), s.engines + s.learners))


def simulate(
    generation_s: float,
    learner_s: float,
    publish_s: float,
    steps: int,
    max_staleness: int,
    jitter: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Seconds of each step by the coordinator's rule, event by event: the rollouts of step s start when the engines have finished those of
    step s - 1 and version s - max_staleness is published; its update starts when both they and version s are there.

    The times of all stages vary independently and log-normally about the means given, with standard deviation `jitter` of the log.
    """
    noise = np.random.default_rng(seed).standard_normal((steps, 3))
    durations = np.exp(jitter * noise - jitter**2 / 2) * (generation_s, learner_s, publish_s)
    generated, published = 0.0, [0.0]  # published[v]: when version v is there
    for step, (generation, learner, publish) in enumerate(durations):
        generated = max(generated, published[max(0, step - max_staleness)]) + generation
        published.append(max(generated, published[step]) + learner + publish)
    return np.diff(published).tolist()
