"""Fits the pipeline model to measured runs, and checks it by predicting each setting from the others."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, combinations

import numpy as np

from srft_ray.commands.pipeline_model import Machine, Measurement, PhaseTimeModel, PipelineModel

COEFFICIENTS = ("fixed_s", "parallel_s", "per_worker_s")
OWN_DEVICES = Machine()  # every worker has a device of its own
Point = tuple[float, float, float]  # workers, parallelism, seconds


def fit_phase_time(points: Sequence[Point], coefficients: Sequence[str] = COEFFICIENTS) -> PhaseTimeModel:
    """Fits the named coefficients to measured points by non-negative least squares; the others are 0.

    Every subset of the coefficients that the points can distinguish is tried, small subsets first. Of equally
    good subsets the first is taken, so that points with only one number of workers give a constant.
    """
    columns = {
        "fixed_s": np.ones(len(points)),
        "parallel_s": np.array([1.0 / parallelism for _, parallelism, _ in points]),
        "per_worker_s": np.array([float(workers) for workers, _, _ in points]),
    }
    seconds = np.array([point[2] for point in points])
    # A larger subset must be better by more than rounding errors can explain.
    tolerance = 1e-12 * float(seconds @ seconds)
    best = PhaseTimeModel()
    least_error = float("inf")
    sizes = range(1, len(coefficients) + 1)
    for subset in chain.from_iterable(combinations(coefficients, size) for size in sizes):
        matrix = np.stack([columns[name] for name in subset], axis=1)
        found, _, rank, _ = np.linalg.lstsq(matrix, seconds)
        error = float(((matrix @ found - seconds) ** 2).sum())
        valid = rank == len(subset) and found.min() >= 0
        if valid and error < least_error - tolerance:
            best = PhaseTimeModel(**dict(zip(subset, map(float, found), strict=True)))
            least_error = error
    return best


def fit_pipeline(measurements: Sequence[Measurement], machine: Machine = OWN_DEVICES) -> PipelineModel:
    """Fits the phases to the runs with staleness 0, or to all runs if there are none, and each kind of
    overhead to the runs of its own kind."""
    sequential = [m for m in measurements if m.setting.staleness == 0]
    overlapped = [m for m in measurements if m.setting.staleness > 0]
    phases = _fit_phases(sequential or measurements, machine, contention=bool(sequential))
    return replace(
        phases,
        overhead=_fit_overhead(phases, sequential or overlapped),
        overlapped_overhead=_fit_overhead(phases, overlapped or sequential),
    )


def _fit_phases(runs: Sequence[Measurement], machine: Machine, contention: bool) -> PipelineModel:
    """A model whose overhead is 0."""
    generation: list[Point] = []
    learner: list[Point] = []
    publish: list[Point] = []
    for run in runs:
        setting = run.setting
        generation.append((setting.engines, machine.engine_parallelism(setting), run.generation_s))
        learner.append((setting.learners, machine.learner_parallelism(setting), run.learner_s))
        publish.append((setting.learners, 1, run.publish_s))
    return PipelineModel(
        generation=fit_phase_time(generation),
        learner=fit_phase_time(learner),
        publish=fit_phase_time(publish, ("fixed_s", "per_worker_s")),
        overhead=PhaseTimeModel(),
        overlapped_overhead=PhaseTimeModel(),
        machine=machine,
        contention=contention,
    )


def _fit_overhead(phases: PipelineModel, runs: Sequence[Measurement]) -> PhaseTimeModel:
    """A constant; with more than two runs it may also grow with the number of workers."""
    points = [(m.setting.workers, 1, m.step_s - phases.step_times(m.setting).step_s) for m in runs]
    return fit_phase_time(points, ("fixed_s", "per_worker_s") if len(runs) > 2 else ("fixed_s",))


def leave_one_out(measurements: Sequence[Measurement], machine: Machine = OWN_DEVICES) -> list[float]:
    """The step time in seconds of each setting, predicted by a model that is fitted to all other settings.

    At least two measurements are needed.
    """
    predicted = []
    for index, left_out in enumerate(measurements):
        others = [*measurements[:index], *measurements[index + 1 :]]
        model = fit_pipeline(others, machine)
        predicted.append(model.step_times(left_out.setting).step_s)
    return predicted


def median_error(measurements: Sequence[Measurement], predicted: Sequence[float]) -> float:
    """The median of |predicted - measured| / measured over the step times."""
    pairs = zip(measurements, predicted, strict=True)
    return statistics.median(abs(seconds - m.step_s) / m.step_s for m, seconds in pairs)
