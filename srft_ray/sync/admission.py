"""How a rollout waits for its turn: many short questions to the coordinator instead of one long one."""

import time
from dataclasses import dataclass
from typing import Any

import ray

from srft_ray.sync.versions import PolicyWeights

FIRST_PAUSE_S = 0.05  # before the coordinator is asked again after it was busy
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Admission:
    """The coordinator's answer to a group that wants to start.

    Attributes:
        admitted: whether the group may start.
        offered: the newest published weights.
        generation: of the learners' start that published them.
        needed: the oldest version that the group may be sampled by.
        busy: the coordinator did not wait, because too many groups were waiting already.
    """

    admitted: bool
    offered: PolicyWeights
    generation: int
    needed: int
    busy: bool = False


def wait_for_admission(coordinator: Any, step: int, exact: bool, timeout_s: float) -> Admission:
    """Waits until a group of `step` may start.

    Args:
        coordinator: handle of the coordinator's actor.
        exact: the group needs version `step` itself (evaluation).

    Raises:
        TimeoutError: naming what it waited for.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    while True:
        remaining_s = deadline - time.monotonic()
        answer: Admission = ray.get(coordinator.admit.remote(step, exact, remaining_s))
        if answer.admitted:
            return answer
        if remaining_s <= 0:
            raise TimeoutError(
                f"A rollout of step {step} waited {timeout_s:.0f} s for policy version {answer.needed}; the "
                f"newest is {answer.offered.version}. The learners are stuck or slower than "
                "rollout.timeout_s."
            )
        if answer.busy:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
