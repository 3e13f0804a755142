"""Runs of a comparison that are trained at the same time."""

import signal

import pytest

from srft_ray.observe.journal import read_json_lines
from tests.ray.conftest import Run
from tests.ray.faults import ROOT, SMALL, Watched, check_same

NAMES = ("grpo-seed4", "srft-seed4")
STEPS = 8


class Comparison(Watched):
    command = "compare"

    def __init__(self, folder, parallel):
        super().__init__(
            folder,
            ROOT / "examples/quickstart.yaml",
            *("--algorithms", "grpo,srft", "--seeds", 4, "--parallel", parallel),
            f"run.dir={folder}",
            f"trainer.steps={STEPS}",
            "trainer.checkpoint_every=2",
            *SMALL,
        )

    def folder(self, name):
        return self.run_dir / "quickstart-compare" / name

    def are_training(self, steps):
        """Whether each of the runs has done so many steps."""
        return all(len(read_json_lines(self.folder(name) / "metrics.jsonl")) >= steps for name in NAMES)


@pytest.mark.full
def test_killed_and_stopped_comparisons_go_on_to_the_figures_of_single_runs(tmp_path):
    run = Comparison(tmp_path / "parallel", 2)
    run.wait_until(lambda: run.are_training(1))
    run.kill_and_start()
    run.wait_until(lambda: run.are_training(3))
    run.process.send_signal(signal.SIGTERM)
    code, out, error = run.finish()
    assert code == 1 and all(f"the run {name} failed: stopped by SIGTERM" in error for name in NAMES), error
    assert not run.left()
    run.start()
    code, out, error = run.finish()
    assert code == 0 and all(f"{name} | " in out for name in NAMES), error
    single = Comparison(tmp_path / "single", 1)
    code, expected, error = single.finish()
    assert code == 0, error
    assert out.splitlines()[-5:] == expected.splitlines()[-5:]
    for name in NAMES:
        check_same(Run(run.folder(name)), Run(single.folder(name)), STEPS)
