"""Runs of a comparison that share engines and learners' processes equal runs that were trained alone."""

import os
import signal
from pathlib import Path

import pytest

from srft_ray.observe import evaluation_ledger
from srft_ray.observe.journal import EVALUATIONS, read_json_lines
from tests.ray.conftest import Run
from tests.ray.faults import ROOT, SMALL, Watched, check_same

pytestmark = pytest.mark.full
STEPS = 6
TWO = ("grpo", "srft")
FOUR = ("grpo", "exgrpo", "ppo", "srft")  # with a history of prompts and replays, and with a critic


class Comparison(Watched):
    """Of algorithms; `run_dir` is that of the last run, which is looked at."""

    command = "compare"

    def __init__(
        self, folder: Path, algorithms: tuple[str, ...] = TWO, *more: str, seeds: tuple[int, ...] = (4,)
    ) -> None:
        runs = folder / "quickstart-compare"
        self.dirs = [runs / f"{algorithm}-seed{seed}" for seed in seeds for algorithm in algorithms]
        super().__init__(
            self.dirs[-1],
            ROOT / "examples/quickstart.yaml",
            *("--algorithms", ",".join(algorithms), "--seeds", ",".join(map(str, seeds))),
            f"run.dir={folder}",
            f"trainer.steps={STEPS}",
            "trainer.checkpoint_every=2",
            "trainer.evaluate_every=3",
            "trainer.max_failures=4",
            *SMALL,
            *more,
        )

    def runs(self) -> list[Run]:
        """What is left when the command has ended well."""
        code, _, error = self.finish()
        assert code == 0 and not self.left(), error
        return [Run(folder) for folder in self.dirs]


def check_equal(comparison: Comparison, alone: "Alone") -> None:
    """Metrics without times, ledgers, evaluations and weights, bit for bit."""
    for run in comparison.runs():
        other = alone[run.dir.name]
        check_same(run, other, STEPS)
        assert run.evaluations == other.evaluations and other.evaluations
        for found in other.evaluations:
            tables = [evaluation_ledger.read(each.dir, found["set"], found["step"]) for each in (run, other)]
            one, two = (table.drop_columns(["seconds"]).to_pylist() for table in tables)
            assert one == two


def seconds_of_base(folder: Path) -> float:
    """In which engines sampled the evaluation of the model that a run begins with."""
    names = {found["set"] for found in read_json_lines(folder / EVALUATIONS)}
    tables = [evaluation_ledger.read(folder, name, 0, ["seconds"]) for name in sorted(names)]
    return sum(max(table["seconds"].to_pylist()) for table in tables)


class Alone(dict[str, Run]):
    """Each run by a command of its own, when it is asked for."""

    def __init__(self, folder: Path, *more: str) -> None:
        super().__init__()
        self.folder = folder
        self.more = more

    def __missing__(self, name: str) -> Run:
        algorithm, _, seed = name.partition("-seed")
        [self[name]] = Comparison(self.folder / name, (algorithm,), *self.more, seeds=(int(seed),)).runs()
        return self[name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


def test_runs_of_a_series_are_those_that_were_trained_alone(tmp_path: Path, alone: Alone):
    series = Comparison(tmp_path, FOUR)
    processes = []
    for folder in series.dirs:
        series.run_dir = folder
        series.wait_for_step(2)
        processes.append([series.find(kind) for kind in ("engine", "learner", "coordinator")])
    assert all(found == processes[0] for found in processes) and all(processes[0])
    check_equal(series, alone)
    first, *later = (seconds_of_base(folder) for folder in series.dirs)
    assert all(seconds < first / 5 for seconds in later), "the same model, and the same seed: sampled once"


@pytest.mark.parametrize("kind", ["engine", "learner", "coordinator"])
def test_a_death_in_the_second_run(tmp_path: Path, alone: Alone, kind: str):
    series = Comparison(tmp_path)
    series.wait_for_step(3)
    first = (series.dirs[0] / "metrics.jsonl").stat()
    series.kill(kind)
    check_equal(series, alone)
    assert (series.dirs[0] / "metrics.jsonl").stat() == first, "the first run is not repeated"
    assert any("died" in event or "restarting" in event for event in series.events())


def test_sigterm_in_the_second_run(tmp_path: Path, alone: Alone):
    series = Comparison(tmp_path)
    series.wait_for_step(2)
    series.process.send_signal(signal.SIGTERM)
    code, out, error = series.finish()
    assert code == 1 and f"of {series.run_dir}; every finished step is kept" in error
    lines = [line.partition(";")[0] for line in out.splitlines() if "; run directory " in line]
    names = [folder.name for folder in series.dirs]
    assert lines == [f"{names[0]}: starting engines and learners", f"{names[1]}: beginning"]
    assert not series.left()
    series.start()
    check_equal(series, alone)


def test_another_seed(tmp_path: Path, alone: Alone):
    """It is another order of prompts, other requests, and here other data."""
    check_equal(Comparison(tmp_path, ("srft",), seeds=(4, 5)), alone)


SETTINGS = {
    # A run ends with evaluation sets whose blocks are larger, and the next one is shared evenly again.
    "two learners and engines": (
        "learner.num_workers=2",
        "learner.zero_stage=2",
        "rollout.num_engines=2",
        "rollout.transport=collective",
    ),
    "adapters": ("learner.lora.rank=8",),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings(tmp_path: Path, name: str):
    alone = Alone(tmp_path / "alone", *SETTINGS[name])
    check_equal(Comparison(tmp_path / "series", TWO, *SETTINGS[name]), alone)


def test_with_staleness_no_group_is_of_the_run_before(tmp_path: Path):
    """Blocks of the second run wait in the engine while the first is trained."""
    for run in Comparison(tmp_path, TWO, "rollout.max_staleness=1").runs():
        run.check_exactly_once(STEPS, 4)
        assert {0, 1} >= {row["step"] - row["policy_version"] for row in run.rollouts}
        assert all(record["parity/probe_abs_logprob_diff"] < 1e-3 for record in run.metrics)


def test_all_are_killed_between_the_runs(tmp_path: Path, alone: Alone):
    series = Comparison(tmp_path)
    series.wait_until(lambda: (series.dirs[0] / "summary.json").exists())
    for pid in (*series.find("learner"), *series.find("engine")):
        os.kill(pid, signal.SIGKILL)
    first = (series.dirs[0] / "metrics.jsonl").stat()
    series.kill_and_start()
    check_equal(series, alone)
    assert (series.dirs[0] / "metrics.jsonl").stat() == first, "the first run is not repeated"
