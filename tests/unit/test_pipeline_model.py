"""The pipeline model against values worked out by hand: coefficients, overlap, left-out settings, splits."""

import numpy as np
import pytest

from srft_ray.commands.pipeline_fit import (
    COEFFICIENTS,
    fit_phase_time,
    fit_pipeline,
    leave_one_out,
    median_error,
)
from srft_ray.commands.pipeline_model import (
    Machine,
    Measurement,
    PhaseTimeModel,
    PipelineModel,
    Setting,
    best_split,
    splits,
)

GRID = [Setting(engines, learners) for learners in (1, 2) for engines in (1, 2, 4)]
MODEL = PipelineModel(
    PhaseTimeModel(0.5, 8.0),
    PhaseTimeModel(1.0, 4.0),
    PhaseTimeModel(0.2, 0.0, 0.1),
    PhaseTimeModel(0.3),
    PhaseTimeModel(0.4),
)


def measured(setting: Setting, model: PipelineModel = MODEL, noise: float = 1.0) -> Measurement:
    times = model.step_times(setting)
    return Measurement(
        setting,
        times.step_s * noise,
        times.generation_s * noise,
        times.learner_s * noise,
        times.publish_s * noise,
    )


def test_a_step_is_a_sum_and_with_staleness_the_longer_side():
    """4 engines, 2 learners: 0.5 + 8/4 = 2.5, 1 + 4/2 = 3, 0.2 + 2 · 0.1 = 0.4."""
    together = MODEL.step_times(Setting(4, 2, 0))
    assert (together.generation_s, together.learner_s, together.publish_s) == pytest.approx((2.5, 3.0, 0.4))
    assert together.step_s == pytest.approx(2.5 + 3.0 + 0.4 + 0.3) and together.bottleneck == "learner"
    apart = MODEL.step_times(Setting(4, 2, 1))
    assert apart.step_s == pytest.approx(3.4 + 0.4) and apart.bottleneck == "learner"
    assert (
        MODEL.step_times(Setting(1, 2, 1)).step_s == pytest.approx(8.5 + 0.4)
        and MODEL.step_times(Setting(1, 2, 1)).bottleneck == "generation"
    )


def test_overlapping_sides_share_the_cores():
    """On 2 cores, 2 engines and 1 learner have a parallelism of 2 and 1: (4.5 · 2 + 5 · 1) / 2 = 7 s, more
    than either side."""
    model = PipelineModel(
        MODEL.generation,
        MODEL.learner,
        MODEL.publish,
        PhaseTimeModel(),
        PhaseTimeModel(0.4),
        Machine(cores=2),
    )
    times = model.step_times(Setting(2, 1, 1))
    assert (
        times.cores_s == pytest.approx(7.0)
        and times.step_s == pytest.approx(7.4)
        and times.bottleneck == "shared cores"
    )
    assert (
        model.step_times(Setting(4, 1, 0)).generation_s == model.step_times(Setting(2, 1, 0)).generation_s
    ), "more engines than cores add nothing"
    assert model.step_times(Setting(4, 1, 0)).cores_s == 0.0


def test_learners_take_the_threads_that_a_run_gives_them():
    """16 cores: one learner beside one engine has 8 threads, two beside two have 4 each, and eight beside
    eight 1 each."""
    machine = Machine(cores=16, threads_per_engine=2)
    assert [machine.learner_parallelism(Setting(n, n)) for n in (1, 2, 8)] == [8, 8, 8]
    assert [machine.engine_parallelism(Setting(n, n)) for n in (1, 2, 16)] == [2, 4, 16]
    assert (
        Machine().learner_parallelism(Setting(2, 3)) == 3 and Machine().engine_parallelism(Setting(2, 3)) == 2
    )


def fitted(points: list[tuple[float, float, float]], *terms: str) -> tuple[float, float, float]:
    found = fit_phase_time(points, terms or COEFFICIENTS)
    return found.fixed_s, found.parallel_s, found.per_worker_s


def test_fitted_phase_times_by_hand():
    assert fitted([(1, 1, 3.0), (2, 2, 2.0)]) == pytest.approx((1.0, 2.0, 0.0))
    assert fitted([(1, 1, 3.0), (2, 2, 1.5)]) == pytest.approx((0.0, 3.0, 0.0))
    assert fitted([(1, 1, 2.0), (2, 2, 2.5)]) == pytest.approx((1.5, 0.0, 0.5))
    assert fitted([(1, 1, 6.5), (2, 2, 5.0), (4, 4, 5.0)]) == pytest.approx((2.0, 4.0, 0.5)), "2 + 4/n + n/2"
    assert fitted([(2, 2, 3.0), (2, 2, 4.0)]) == pytest.approx((3.5, 0.0, 0.0)), (
        "one number of workers gives a constant"
    )
    assert fitted([(2, 2, 3.0), (4, 2, 3.0)]) == pytest.approx((3.0, 0.0, 0.0)), "and so does one parallelism"
    assert fitted([(1, 1, 3.0), (2, 1, 2.0)], "fixed_s", "per_worker_s") == pytest.approx((2.5, 0.0, 0.0)), (
        "no part is negative"
    )


def test_the_fit_recovers_the_model_that_made_the_measurements():
    found = fit_pipeline([measured(setting) for setting in GRID] + [measured(Setting(2, 2, 1))])
    for name in ("generation", "learner", "publish", "overhead", "overlapped_overhead"):
        assert vars(getattr(found, name)) == pytest.approx(vars(getattr(MODEL, name)), abs=1e-9), name
    assert found.contention


def test_without_sequential_runs_the_phases_were_measured_while_they_overlapped():
    found = fit_pipeline(
        [measured(Setting(engines, learners, 1)) for engines in (1, 2) for learners in (1, 2)],
        Machine(cores=2),
    )
    assert not found.contention and found.step_times(Setting(2, 2, 1)).cores_s == 0.0
    assert found.step_times(Setting(2, 2, 1)).step_s == pytest.approx(
        MODEL.step_times(Setting(2, 2, 1)).step_s
    )
    assert found.overhead == found.overlapped_overhead


def test_leave_one_out_by_hand():
    """Two engines halve a generation of 4 s; the learner takes 2 s. A setting follows from the other three if
    they show its phases."""
    model = PipelineModel(
        PhaseTimeModel(0.0, 4.0),
        PhaseTimeModel(2.0),
        PhaseTimeModel(),
        PhaseTimeModel(0.5),
        PhaseTimeModel(0.5),
    )
    runs = [measured(Setting(engines, 1, staleness), model) for engines in (1, 2) for staleness in (0, 1)]
    assert [m.step_s for m in runs] == pytest.approx([6.5, 4.5, 4.5, 2.5])
    left_out = leave_one_out(runs)
    assert left_out == pytest.approx([2.0 + 2.0 + 0.5, 4.5, 4.0 + 2.0 + 0.5, 2.5]), (
        "without e1-s0 or e2-s0 nothing says that engines help"
    )
    assert median_error(runs, left_out) == pytest.approx((0.0 + 2 / 6.5) / 2)


def test_left_out_settings_are_predicted_under_noise():
    """With 5 % noise on each of four settings, over 300 draws, the typical median error is below 6 %, and it
    is rarely above 15 %."""

    def error(noise: np.ndarray) -> float:
        runs = [
            measured(Setting(e, n), noise=factor)
            for (e, n), factor in zip([(1, 1), (2, 1), (1, 2), (2, 2)], noise, strict=True)
        ]
        return median_error(runs, leave_one_out(runs))

    errors = [error(noise) for noise in np.exp(0.05 * np.random.default_rng(0).standard_normal((300, 4)))]
    assert np.median(errors) < 0.06 and np.mean(np.array(errors) > 0.15) < 0.03, np.percentile(
        errors, [50, 95, 100]
    )


def test_the_best_split_by_hand():
    """Of 6 devices and 8 groups: 2 learners and 4 engines take 2.5 + 3 + 0.4, 4 and 2 take 4.5 + 2 + 0.6, 1
    and 5 take 2.1 + 5 + 0.3."""
    found = splits(6, 0, groups_per_step=8)
    assert found == [Setting(5, 1), Setting(4, 2), Setting(2, 4)]
    assert best_split(MODEL, found) == Setting(4, 2)
    assert splits(6, 1, groups_per_step=2) == [Setting(2, 1, 1), Setting(2, 2, 1)], (
        "no engine without a group"
    )
    assert (
        splits(1.5, 0, groups_per_step=4, devices_per_engine=0.5) == [Setting(1, 1)] and splits(1, 0, 4) == []
    )
    assert splits(16, 0, groups_per_step=4, devices_per_engine=4) == [
        Setting(3, 1),
        Setting(3, 2),
        Setting(3, 4),
    ]
    assert best_split(
        PipelineModel(
            PhaseTimeModel(1.0), PhaseTimeModel(1.0), PhaseTimeModel(), PhaseTimeModel(), PhaseTimeModel()
        ),
        found,
    ) in (
        Setting(5, 1),
        Setting(4, 2),
        Setting(2, 4),
    )
