"""Processes die in runs with the collective transport, between rounds and inside one: nothing is lost or
repeated, and rounds go on."""

import os
import signal

import pytest

from tests.ray.faults import STEPS, check_same, run_with_three_deaths
from tests.ray.test_in_flight_runs import check_spans
from tests.ray.test_moments import Moment

pytestmark = pytest.mark.full
TRANSPORT = "rollout.transport=collective"
SETTINGS = {
    "on-policy": (),
    "staleness": ("rollout.max_staleness=1",),
    "in flight": ("rollout.max_staleness=1", "rollout.in_flight=true", "algorithm={name: grpo}"),
    "lora": ("learner.lora={rank: 4, alpha: 8.0}",),
}


def check_rounds(run, first, last):
    """Weights came by a round before the step `first` and after the step `last`."""
    reached = [record["publications/nodes_reached"] for record in run.metrics]
    print("nodes reached:", reached)
    assert any(reached[:first]) and any(reached[last:]), reached


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_engine_learner_and_coordinator_die(tmp_path, settings):
    done = run_with_three_deaths(tmp_path, TRANSPORT, *settings)
    bound = int("rollout.max_staleness=1" in settings)
    assert {row["step"] - row["policy_version"] for row in done.rollouts} <= set(range(bound + 1))
    if "rollout.in_flight=true" in settings:
        check_spans(done, bound)
    check_rounds(done, 3, 12)


@pytest.mark.parametrize(
    "function",
    ["collective:Root.send", "listener:Listener._receive_share", "rounds:Rounds._freeze"],
    ids=["learner", "engine", "coordinator"],
)
def test_a_process_dies_inside_a_round(tmp_path, undisturbed, function):
    """The learner before it sends, a listener before it receives, the coordinator before it tells the
    members."""
    moment = Moment(tmp_path, f"srft_ray.sync.{function}", 6, "wait", TRANSPORT)
    pid = moment.wait()
    steps = moment.run.done()
    os.kill(pid, signal.SIGKILL)
    done = moment.finish()
    check_same(done, undisturbed, STEPS)
    check_rounds(done, steps, steps + 1)
