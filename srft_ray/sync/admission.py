"""How a rollout waits for its turn: many short questions to the coordinator instead of one long one."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import ray

from srft_ray.sync.shared_question import ask_together
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
        progress: what engines and learners have done so far; it changes with everything that they do.
    """

    admitted: bool
    offered: PolicyWeights
    generation: int
    needed: int
    busy: bool = False
    progress: tuple[int, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Admission":
        found = json.loads(text)
        offered, progress = PolicyWeights(**found.pop("offered")), tuple(found.pop("progress"))
        return cls(offered=offered, progress=progress, **found)


def wait_for_admission(
    coordinator: Any, generation: int, step: int, exact: bool, timeout_s: float, together: str = ""
) -> Admission:
    """Waits until a group of `step` may start, as long as learners or engines come forward.

    Args:
        coordinator: handle of the coordinator's actor.
        generation: of the learners' start that the group is for.
        exact: the group needs version `step` itself (evaluation).
        together: names the coordinator among those of this node. Whoever waits under the same name for the
            same step asks together. Empty: alone.

    Raises:
        TimeoutError: nothing came forward for `timeout_s`; it names what was waited for.
    """

    def ask() -> Admission:
        return ray.get(coordinator.admit.remote(generation, step, exact, remaining_s))

    def ask_with_others() -> Admission:
        name = f"{together}_{generation}_{step}_{exact:d}"
        return Admission.from_json(ask_together(name, lambda: ask().to_json()))

    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    progress: tuple[int, ...] = ()
    while True:
        remaining_s = deadline - time.monotonic()
        answer = ask_with_others() if together else ask()
        if answer.admitted:
            return answer
        if answer.progress != progress:
            # A stage without rollouts or an evaluation may last longer than any single wait.
            progress = answer.progress
            deadline = time.monotonic() + timeout_s
        elif remaining_s <= 0:
            raise TimeoutError(
                f"A rollout of step {step} waits for policy version {answer.needed}; the newest is "
                f"{answer.offered.version}, and neither learners nor engines have come forward for "
                f"rollout.timeout_s={timeout_s:.0f} s: the learners are stuck or need longer."
            )
        if answer.busy:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def question_name(coordinator: Any) -> str:
    """Names a coordinator's actor among all that processes of this node may ask."""
    return f"admission_{coordinator._actor_id.hex()}"
