"""Weights by the collective transport, with the real vLLM and DeepSpeed."""

import time

import pytest

from srft_ray import fit, make_config
from tests.conftest import base_config
from tests.ray.conftest import Run
from tests.ray.faults import GROUPS, STEPS, Watched, check_same, words

NODES = '''
import tempfile
from pathlib import Path

from srft_ray.sync import node_copy
from srft_ray.sync.collective import CollectiveTransport


MEMORY = Path(__file__).with_name("memory")
MEMORY.mkdir(exist_ok=True)


class Apart(CollectiveTransport):
    """Each engine has shared memory of its own, as on a node of its own, and the learners have theirs."""

    def __init__(self, coordinator, config, generation=0):
        node_copy.SHARED_MEMORY = Path(tempfile.mkdtemp(dir=MEMORY))
        if generation:
            node_copy.SHARED_MEMORY = MEMORY / "learners"
            node_copy.SHARED_MEMORY.mkdir(exist_ok=True)
        super().__init__(coordinator, config, generation)


class Together(CollectiveTransport):
    """All are on one node."""

    def __init__(self, coordinator, config, generation=0):
        node_copy.SHARED_MEMORY = MEMORY / "all"
        node_copy.SHARED_MEMORY.mkdir(exist_ok=True)
        super().__init__(coordinator, config, generation)
'''


@pytest.fixture
def apart(tmp_path):
    """The name of a transport for which each engine is on a node of its own."""
    file = tmp_path / "apart.py"
    file.write_text(NODES)
    return f"{file}:Apart"


def check_nothing_held(folder):
    """No copy is left in the shared memory of engines and learners."""
    assert list((folder / "memory").iterdir())
    deadline = time.monotonic() + 60  # engines may still be ending: the Ray goes on
    while held := list((folder / "memory").glob("*/srft_ray_weights_*")):
        assert time.monotonic() < deadline, held
        time.sleep(0.1)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("nodes", "number"), [("Apart", 2), ("Together", 1)])
def test_two_learners_send_to_the_nodes_of_two_engines(tmp_path, tiny_model, apart, nodes, number):
    config = make_config(
        base_config(
            tmp_path,
            tiny_model,
            rollout={"transport": apart.replace("Apart", nodes), "num_engines": 2},
            learner={"num_workers": 2, "lr": 1e-3},
            trainer={"steps": 6},
        )
    )
    run = Run(fit(config).run_dir)
    run.check_exactly_once(steps=6, groups_per_step=4)
    assert all(row["policy_version"] == row["step"] for row in run.rollouts)
    assert all(record["parity/abs_logprob_diff_max"] <= 1e-4 for record in run.metrics)
    # An engine may start later than the other.
    reached = [record["publications/nodes_reached"] for record in run.metrics]
    print("nodes reached:", reached)
    assert number in reached
    check_nothing_held(tmp_path)


@pytest.mark.full
def test_the_figures_are_those_of_the_object_store_whoever_is_killed(tmp_path, undisturbed, apart):
    """An engine, the coordinator and the learner."""
    more = ("rollout.num_engines=2", f"rollout.transport={apart}", "rollout.transport_deadline_s=10")
    run = Watched(tmp_path / "run", *words(tmp_path, "run", *more))
    try:
        for step, kind in ((3, "engine"), (7, "coordinator"), (11, "learner")):
            run.wait_for_step(step)
            run.kill(kind)
        code, _, error = run.finish()
        assert code == 0 and not run.left(), (error, run.events())
    finally:
        run.process.kill()
        print("\n".join(run.events()))
    done = Run(run.run_dir)
    done.check_exactly_once(STEPS, GROUPS)
    check_same(done, undisturbed, STEPS)
    print("nodes reached:", [record["publications/nodes_reached"] for record in done.metrics])
