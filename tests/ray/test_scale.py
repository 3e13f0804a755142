"""`srft-ray scale` as a user types it."""

import json
from pathlib import Path

import pytest

from srft_ray.commands.scale import WARM_UP
from tests.ray.conftest import Run
from tests.ray.faults import ROOT
from tests.ray.test_cli import finish, start

SMALL = ("trainer.groups_per_step=4", "rollout.num_rollouts=2", "data.size=64")


@pytest.mark.full
def test_scale_measures_predicts_and_repeats_nothing(tmp_path: Path):
    steps = WARM_UP + 3
    words = (
        "scale",
        ROOT / "examples/quickstart.yaml",
        "--engines",
        "1,2",
        "--learners",
        "1",
        "--steps",
        steps,
        f"run.dir={tmp_path}",
        *SMALL,
    )
    code, out, error = finish(start(*words), timeout=400)
    assert code == 0, error
    folder = tmp_path / "quickstart-scale"
    found = json.loads((folder / "scale.json").read_text())
    assert [(row["setting"]["engines"], row["setting"]["learners"]) for row in found["measured"]] == [
        (1, 1),
        (2, 1),
    ]
    assert [row["engines"] for row in found["predicted"]] == [4] and len(found["leave_one_out_s"]) == 2
    for row in found["measured"]:
        assert (
            0 < row["generation_s"] < row["step_s"]
            and 0 < row["learner_s"] < row["step_s"]
            and row["overhead_s"] > 0
        )
    for engines in (1, 2):
        run = Run(folder / f"e{engines}-l1-s0")
        run.check_exactly_once(steps, groups_per_step=4)
        assert not run.evaluations
    assert (
        out.rstrip().endswith((folder / "scale.md").read_text().rstrip())
        and (folder / "scale.png").stat().st_size > 1000
    )
    code, again, error = finish(start(*words), timeout=60)
    assert code == 0 and again.strip() == (folder / "scale.md").read_text().strip(), error


def test_scale_refuses_what_it_cannot_run(tmp_path: Path):
    words = (
        "scale",
        ROOT / "examples/quickstart.yaml",
        f"run.dir={tmp_path}",
        *SMALL,
        "--engines",
        "1,9",
        "cluster.num_cpus=4",
    )
    code, _, error = finish(start(*words))
    assert code == 2 and "9 engines" in error and len(error.splitlines()) == 1, error
    assert not list(tmp_path.glob("quickstart-scale/e*"))


def test_simulated_engines_ask_the_real_coordinator(tmp_path: Path):
    steps = 5
    words = (
        "scale",
        ROOT / "examples/quickstart.yaml",
        "--simulate",
        *("--engines", 8, "--learners", 2, "--steps", steps, "--compress", 2, "--stream", 2),
        *("--generation-seconds", 1, "--learner-seconds", 0.5),
        f"run.dir={tmp_path}",
    )
    code, out, error = finish(start(*words))
    assert code == 0, error
    folder = tmp_path / "quickstart-scale"
    assert out.strip() == (folder / "simulated.md").read_text().strip()
    content = json.loads((folder / "simulated.json").read_text())
    [found], [pool] = content["simulated"], content["stream"]
    assert pool["actors"] == 2 and pool["cpu_s"] > 0 and 0 < pool["block_s"] < 1
    assert found["engines"] == 8 and found["learners"] == 2 and found["stated_s"] == 0.75
    assert found["step_s"] > 0.75 and found["overhead_s"] == pytest.approx(found["step_s"] - 0.75)
    # In each step one question for all blocks of the node, and a share of the weights from each learner.
    calls, steps_per_s = found["calls_per_s"], found["calls_per_s"]["engine_metrics"]
    assert calls["publish"] == pytest.approx(2 * steps_per_s, rel=0.4)
    assert calls["admit"] == pytest.approx(steps_per_s, rel=0.6) and found["blocks_per_step"] == 8
    assert 4 < calls["heartbeat"] < 16  # 8 engines, each once a second, in few seconds
    assert 0 < found["core_share"] < 1 and len(found["memory_mb"]) == steps
    assert {"admit", "heartbeat", "publish"} <= set(found["latencies_ms"])
    assert not (folder / "e8-l2-s0" / "events.jsonl").exists()
