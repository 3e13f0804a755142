"""The pipeline model: laws, overlap, left-out settings and splits by hand; the simulation against the laws and against the real coordinator."""

import asyncio
import json
import statistics
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from algorithms import SRFT
from srft_ray.commands.cli import main
from srft_ray.commands.pipeline_model import (
    Law,
    Machine,
    Measurement,
    PipelineModel,
    Setting,
    Stages,
    best_split,
    fit,
    fit_law,
    leave_one_out,
    median_error,
    simulate,
    splits,
)
from srft_ray.commands.plan import stated_model
from srft_ray.commands.scale import WARM_UP, analyse, markdown, measure, scale, write
from srft_ray.config.schema import make_config
from srft_ray.errors import UserError
from srft_ray.observe.journal import append_json
from srft_ray.sync.coordinator import Coordinator
from tests.conftest import base_config

GRID = [Setting(engines, learners) for learners in (1, 2) for engines in (1, 2, 4)]
MODEL = PipelineModel(Law(0.5, 8.0), Law(1.0, 4.0), Law(0.2, 0.0, 0.1), Law(0.3), Law(0.4))


def measured(setting: Setting, model: PipelineModel = MODEL, noise: float = 1.0) -> Measurement:
    stages = model.stages(setting)
    return Measurement(
        setting,
        stages.step_s * noise,
        stages.generation_s * noise,
        stages.learner_s * noise,
        stages.publish_s * noise,
    )


def test_a_step_is_a_sum_and_with_staleness_the_longer_side():
    """4 engines, 2 learners: 0.5 + 8/4 = 2.5, 1 + 4/2 = 3, 0.2 + 2 · 0.1 = 0.4."""
    together = MODEL.stages(Setting(4, 2, 0))
    assert (together.generation_s, together.learner_s, together.publish_s) == pytest.approx((2.5, 3.0, 0.4))
    assert together.step_s == pytest.approx(2.5 + 3.0 + 0.4 + 0.3) and together.bottleneck == "learner"
    apart = MODEL.stages(Setting(4, 2, 1))
    assert apart.step_s == pytest.approx(3.4 + 0.4) and apart.bottleneck == "learner"
    assert (
        MODEL.stages(Setting(1, 2, 1)).step_s == pytest.approx(8.5 + 0.4)
        and MODEL.stages(Setting(1, 2, 1)).bottleneck == "generation"
    )


def test_overlapping_sides_share_the_cores():
    """On 2 cores, 2 engines and 1 learner have 2 and 1 lanes: (4.5 · 2 + 5 · 1) / 2 = 7 s, more than either side."""
    model = PipelineModel(MODEL.generation, MODEL.learner, MODEL.publish, Law(), Law(0.4), Machine(cores=2))
    stages = model.stages(Setting(2, 1, 1))
    assert (
        stages.cores_s == pytest.approx(7.0)
        and stages.step_s == pytest.approx(7.4)
        and stages.bottleneck == "shared cores"
    )
    assert model.stages(Setting(4, 1, 0)).generation_s == model.stages(Setting(2, 1, 0)).generation_s, (
        "more engines than cores add nothing"
    )
    assert model.stages(Setting(4, 1, 0)).cores_s == 0.0


def test_learners_take_the_threads_that_a_run_gives_them():
    """16 cores: one learner beside one engine has 8 threads, two beside two have 4 each, and eight beside eight 1 each."""
    machine = Machine(cores=16, threads_per_engine=2)
    assert [machine.learner_lanes(Setting(n, n)) for n in (1, 2, 8)] == [8, 8, 8]
    assert [machine.engine_lanes(Setting(n, n)) for n in (1, 2, 16)] == [2, 4, 16]
    assert Machine().learner_lanes(Setting(2, 3)) == 3 and Machine().engine_lanes(Setting(2, 3)) == 2


def law(points: list[tuple[float, float, float]], *terms: str) -> tuple[float, float, float]:
    found = fit_law(points, terms or ("fixed", "shared", "each"))
    return found.fixed, found.shared, found.each


def test_laws_by_hand():
    assert law([(1, 1, 3.0), (2, 2, 2.0)]) == pytest.approx((1.0, 2.0, 0.0))
    assert law([(1, 1, 3.0), (2, 2, 1.5)]) == pytest.approx((0.0, 3.0, 0.0))
    assert law([(1, 1, 2.0), (2, 2, 2.5)]) == pytest.approx((1.5, 0.0, 0.5))
    assert law([(1, 1, 6.5), (2, 2, 5.0), (4, 4, 5.0)]) == pytest.approx((2.0, 4.0, 0.5)), "2 + 4/n + n/2"
    assert law([(2, 2, 3.0), (2, 2, 4.0)]) == pytest.approx((3.5, 0.0, 0.0)), (
        "one number of workers gives a constant"
    )
    assert law([(2, 2, 3.0), (4, 2, 3.0)]) == pytest.approx((3.0, 0.0, 0.0)), (
        "and so does one number of lanes"
    )
    assert law([(1, 1, 3.0), (2, 1, 2.0)], "fixed", "each") == pytest.approx((2.5, 0.0, 0.0)), (
        "no part is negative"
    )


def test_the_fit_finds_the_laws_again():
    found = fit([measured(setting) for setting in GRID] + [measured(Setting(2, 2, 1))])
    for name in ("generation", "learner", "publish", "overhead", "overlapped_overhead"):
        assert vars(getattr(found, name)) == pytest.approx(vars(getattr(MODEL, name)), abs=1e-9), name
    assert found.alone


def test_without_sequential_runs_the_laws_are_of_stages_measured_together():
    found = fit(
        [measured(Setting(engines, learners, 1)) for engines in (1, 2) for learners in (1, 2)],
        Machine(cores=2),
    )
    assert not found.alone and found.stages(Setting(2, 2, 1)).cores_s == 0.0
    assert found.stages(Setting(2, 2, 1)).step_s == pytest.approx(MODEL.stages(Setting(2, 2, 1)).step_s)
    assert found.overhead == found.overlapped_overhead


def test_leave_one_out_by_hand():
    """Two engines halve a generation of 4 s; the learner takes 2 s. A setting follows from the other three if they hold its stages."""
    model = PipelineModel(Law(0.0, 4.0), Law(2.0), Law(), Law(0.5), Law(0.5))
    runs = [measured(Setting(engines, 1, staleness), model) for engines in (1, 2) for staleness in (0, 1)]
    assert [m.step_s for m in runs] == pytest.approx([6.5, 4.5, 4.5, 2.5])
    left_out = leave_one_out(runs)
    assert left_out == pytest.approx([2.0 + 2.0 + 0.5, 4.5, 4.0 + 2.0 + 0.5, 2.5]), (
        "without e1-s0 or e2-s0 nothing says that engines help"
    )
    assert median_error(runs, left_out) == pytest.approx((0.0 + 2 / 6.5) / 2)


def test_left_out_settings_are_predicted_under_noise():
    """With 5 % noise on each of four settings, in 300 draws: the median error is ordinarily below 6 %, and rarely above 15 %."""

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
    """Of 6 devices and 8 groups: 2 learners and 4 engines take 2.5 + 3 + 0.4, 4 and 2 take 4.5 + 2 + 0.6, 1 and 5 take 2.1 + 5 + 0.3."""
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
    assert best_split(PipelineModel(Law(1.0), Law(1.0), Law(), Law(), Law()), found) in (
        Setting(5, 1),
        Setting(4, 2),
        Setting(2, 4),
    )


# The simulation.

DRAWN = [
    (2.0, 2.0, 0.0),
    (0.05, 10.0, 1.0),
    (10.0, 0.05, 0.0),  # seconds of generation and learner, and a fraction
    *np.random.default_rng(0).uniform((0.05, 0.05, 0.0), (10.0, 10.0, 1.0), (97, 3)).tolist(),
]


@pytest.mark.parametrize("staleness", range(4))
def test_the_simulation_settles_at_the_laws(staleness: int):
    """Once the overlapping stream is in its rhythm. Engines that may be a step ahead begin with a step that overlaps with nothing."""
    for generation, learner, publish in DRAWN:
        steps = simulate(generation, learner, publish, 60, staleness)
        expected = Stages(generation, learner, publish, overlaps=staleness > 0).step_s
        assert steps[0] == pytest.approx(generation + learner + publish)
        assert statistics.median(steps[30:]) == pytest.approx(expected, rel=1e-9)


def test_more_staleness_never_costs_time():
    for seed, (generation, learner, jitter) in enumerate(DRAWN):
        total = [
            sum(simulate(generation, learner, 0.1, 40, staleness, jitter / 2, seed)) for staleness in range(4)
        ]
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(total))


def test_jitter_keeps_the_mean():
    steps = simulate(1.0, 2.0, 0.5, 20_000, 0, jitter=0.3)
    assert statistics.fmean(steps) == pytest.approx(3.5, rel=0.01)
    one = np.sqrt(np.exp(0.3**2) - 1)  # standard deviation of a log-normal factor with mean 1
    assert np.std(steps) == pytest.approx(one * np.sqrt(1.0**2 + 2.0**2 + 0.5**2), rel=0.05)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing else is to be done."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("stages", [(1.0, 0.7, 0.1), (0.5, 1.5, 0.1)])
def test_the_simulation_is_what_the_gate_admits(staleness: int, stages: tuple[float, float, float]):
    """The coordinator of real runs paces an engine and a learner that only sleep."""
    generation, learner, publish = stages

    async def run() -> list[float]:
        coordinator, ready, published = Coordinator(staleness), asyncio.Queue(), [0.0]
        await coordinator.restart(0)

        async def engine() -> None:
            for step in range(8):
                await coordinator.admit(step, timeout_s=1e6)
                await asyncio.sleep(generation)
                ready.put_nowait(step)

        task = asyncio.ensure_future(engine())
        for step in range(8):
            assert await ready.get() == step
            await asyncio.sleep(learner + publish)
            await coordinator.publish(step + 1, 0)
            published.append(asyncio.get_running_loop().time())
        await task
        return published

    loop = VirtualTime()
    try:
        published = loop.run_until_complete(run())
    finally:
        loop.close()
    assert np.diff(published) == pytest.approx(simulate(generation, learner, publish, 8, staleness))


# The command, on runs that are there.


def config_of(tmp_path: Path, **sections: dict):
    return make_config(
        {
            "run": {"name": "r", "dir": str(tmp_path), "device": "cpu"},
            "model": {"path": "m"},
            "data": {"path": "d"},
            **sections,
        }
    )


def test_measurements_leave_out_warm_up_and_the_last_step(tmp_path: Path):
    for step in range(8):
        counted = WARM_UP <= step < 7
        append_json(
            tmp_path / "metrics.jsonl",
            {
                "step": step,
                "time/step": (2.0 + 0.1 * step) if counted else 99.0,
                "time/generation": 0.5,
                "time/learner": 1.0,
                "time/publish": 0.1,
                "staleness/mean": 0.0,
                "tokens": 100.0 * (2.0 + 0.1 * step),
                "tokens/generated": 50.0 * (2.0 + 0.1 * step),
            },
        )
    found = measure(Setting(1, 1), tmp_path)
    assert found.step_s == pytest.approx(2.45) and found.overhead_s == pytest.approx(0.85)
    assert (found.tokens_per_s, found.generated_per_s) == pytest.approx((100.0, 50.0))
    assert (found.rollout_utilization, found.learner_utilization) == pytest.approx((0.5 / 2.45, 1.0 / 2.45))


def test_findings_as_text_json_and_picture(tmp_path: Path):
    findings = analyse(
        config_of(tmp_path), [measured(Setting(e, n)) for n in (1, 2) for e in (1, 2)], Machine(), None
    )
    text = write(findings, tmp_path / "scale")
    assert text == markdown(findings) and (tmp_path / "scale/scale.md").read_text() == text + "\n"
    assert (
        "| 2 | 1 | 0 | 10.100 | 4.500 | 5.000 | 0.300 | 0.300 | 45% | 50% | 0.00 | 0 | learner | 10.100 | +0.0% |"
        in text
    )
    assert "| 4 | 4 | 0 | 5.400 | 2.500 | 2.000 | 0.600 | 0.300 | generation |" in text, (
        "a setting that was not run"
    )
    assert "Median error of the step time of a setting predicted from the others: 0.0% (4 settings)." in text
    assert (
        "Best split of 4 devices with staleness 0: 2 engines and 2 learners, 8.200 s per step, bound by generation."
        in text
    )
    kept = json.loads((tmp_path / "scale/scale.json").read_text())
    assert [row["step_s"] for row in kept["measured"]] == pytest.approx([14.1, 10.1, 12.2, 8.2]) and kept[
        "median_error"
    ] < 1e-9
    assert kept["best_split"][0]["engines"] == 2 and {"setting", "overhead_s", "bottleneck"} <= set(
        kept["measured"][0]
    )
    assert (tmp_path / "scale/scale.png").stat().st_size > 1000


def test_what_one_setting_or_one_side_cannot_tell(tmp_path: Path):
    alone = markdown(analyse(config_of(tmp_path), [measured(Setting(1, 1))], Machine(), None))
    assert (
        "One setting alone cannot check the model" in alone
        and "Best split: unknown" in alone
        and "Predicted, not run" not in alone
    )
    side = markdown(
        analyse(config_of(tmp_path), [measured(Setting(e, 1)) for e in (1, 2)], Machine(cores=2), None)
    )
    assert (
        "| 4 | 1 | 0 |" in side
        and "| 1 | 2 | 0 |" not in side
        and "Best split: unknown" in side
        and "share 2 CPU cores" in side
    )


@pytest.mark.parametrize(
    ("counts", "sections", "wanted"),
    [
        ({"learners": [3]}, {}, "trainer.groups_per_step=16 is not divisible by 3 learners"),
        (
            {"steps": 4},
            {},
            "--steps 4 leaves nothing to measure: the first 3 steps and the last do not count; pass at least 5.",
        ),
        ({"devices": 1}, {}, "--devices 1 cannot be split"),
        ({}, {"algorithm": {"name": "sft"}}, "sft does not sample rollouts in every step"),
    ],
)
def test_settings_that_cannot_be_run(tmp_path: Path, counts: dict, sections: dict, wanted: str):
    with pytest.raises(UserError) as caught:
        scale(
            config_of(tmp_path, **sections),
            **{"engines": [1], "learners": [1], "staleness": None, "steps": 12, "devices": None, **counts},
        )
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--engines", "1,x"], "--engines 1,x are not whole numbers separated by commas, such as 1,2."),
        (["--learners", "0,1"], "--learners 0,1 must be at least 1 each."),
        (["--staleness=-1"], "--staleness -1 must be at least 0 each."),
        (["model.path=./none"], "model.path"),
    ],
)
def test_options_that_are_no_numbers(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: str
):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(base_config(tmp_path, tiny_model)))
    assert main(["scale", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


# `plan`, from stated figures.

STATED = {
    "learner_tflops": 100.0,
    "utilization": 0.5,
    "engine_tokens_per_s": 1000.0,
    "engine_token_ms": 10.0,
    "network_gb_per_s": 10.0,
    "mean_prompt_tokens": 100.0,
    "mean_response_tokens": 200.0,
}


def stated(tmp_path: Path, **learner: object) -> PipelineModel:
    config = config_of(
        tmp_path, hardware=STATED, rollout={"num_rollouts": 8, "max_new_tokens": 500}, learner=learner
    )
    return stated_model(config, SRFT().stage(0, 1), "cuda", parameters=10**9)


def test_the_stated_model_by_hand(tmp_path: Path):
    """16 groups: 128 rollouts and 16 demonstrations of 300 tokens are 43,200: 6e9 · 43,200 / (100e12 · 0.5) = 5.184 s on one learner.
    25,600 tokens generated at 1,000 a second, and 500 · 10 ms for the longest response; 2e9 bytes at 10e9 a second."""
    model = stated(tmp_path)
    assert vars(model.learner) == pytest.approx({"fixed": 0.0, "shared": 5.184, "each": 0.0})
    assert vars(model.generation) == pytest.approx({"fixed": 5.0, "shared": 25.6, "each": 0.0})
    assert model.publish == model.overhead == model.overlapped_overhead == Law(0.2)
    assert stated(tmp_path, activation_checkpointing=True).learner.shared == pytest.approx(5.184 * 8 / 6)
    assert stated(tmp_path, activation_checkpointing=True, mini_batches=2).learner.shared == pytest.approx(
        5.184 * 10 / 6
    )
    stages = model.stages(Setting(8, 4))
    assert stages.step_s == pytest.approx(5.0 + 3.2 + 1.296 + 0.4) and stages.bottleneck == "generation"


def test_plan_says_seconds_or_what_to_state(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    values = base_config(
        tmp_path, tiny_model, rollout={"num_rollouts": 2, "max_new_tokens": 32, "num_engines": 2}
    )
    path.write_text(json.dumps(values))
    assert main(["plan", str(path), "hardware.learner_tflops=1"]) == 0
    said = capsys.readouterr().out
    assert (
        "time          unknown: for seconds per step and the best split state hardware.utilization, hardware.engine_tokens_per_s"
        in said
    )
    path.write_text(json.dumps(values | {"hardware": STATED | {"engine_tokens_per_s": 10.0}}))
    assert main(["plan", str(path)]) == 0
    said = capsys.readouterr().out
    assert (
        "time          80.3 s per step with staleness 0, bound by generation (generation 80.3, learner 0.0, publish 0.0, overhead 0.0)"
        in said
    )
    assert "best split of 3 devices: 2 engines and 1 learners, 80.3 s per step with staleness 1" in said
    assert main(["plan", str(path), "hardware.utilization=1.5"]) == 2
    assert "hardware.utilization must be at most 1, not 1.5." in capsys.readouterr().err
