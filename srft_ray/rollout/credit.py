"""What follows generation: verdicts, refills of groups without signal, and credit."""

from collections.abc import Sequence
from typing import Any

from algorithms import Completion, Group
from srft_ray.data.blocks import as_block
from srft_ray.data.reader import GroupReader
from srft_ray.verify import Verdict

LARGEST_FLOAT32 = 3.4028234663852886e38
REFILL_DISTANCE = 720720 * 2**20  # positions; a multiple of every number of mini-batches up to 16


class RefillPolicy:
    """Which training groups are discarded for lack of signal, and which groups take their places."""

    def __init__(self, reader: GroupReader) -> None:
        self.reader = reader

    def lacks_signal(self, group: Group) -> bool:
        """Whether the group is discarded: its algorithm learns nothing from it and may ask for another."""
        if group.dataset != "train":
            return False
        algorithm = self.reader.stage(group.step).algorithm
        return group.attempt < algorithm.max_refills and not algorithm.has_signal(group)

    def refill(self, group: Group) -> Group:
        """The group that takes the place of `group`, from far behind in the seeded order.

        It depends on place and attempt alone, so that a repeated step refills with the same groups.
        """
        found = self.reader.training_group(group.step, group.group_id + REFILL_DISTANCE)
        found.attempt = group.attempt + 1
        sampled = sum(rollout.written - rollout.prefix for rollout in group.rollouts)
        found.discarded_tokens = group.discarded_tokens + sampled
        return found

    def refill_without_rollouts(self, groups: Sequence[Group]) -> list[Group]:
        """Replaces groups that have neither rollouts nor signal, such as prompts without demonstration.

        Raises:
            RuntimeError: none of the prompts tried has what the algorithm learns from.
        """
        return [self._with_signal(group) if self._is_supervised(group) else group for group in groups]

    def _is_supervised(self, group: Group) -> bool:
        return group.dataset == "train" and not group.num_rollouts

    def _with_signal(self, group: Group) -> Group:
        while self.lacks_signal(group):
            group = self.refill(group)
        algorithm = self.reader.stage(group.step).algorithm
        if not algorithm.has_signal(group):
            raise RuntimeError(
                f"Step {group.step}: none of {group.attempt} prompts of the data has what "
                f"{algorithm.name} learns from."
            )
        return group


class SupervisedReader:
    """Turns blocks of positions into blocks of groups where nothing is sampled: demonstrations, credit."""

    def __init__(self, reader: GroupReader) -> None:
        self.reader = reader
        self.refills = RefillPolicy(reader)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        groups = self.refills.refill_without_rollouts(self.reader.read(block))
        assign_credit(groups, self.reader)
        return as_block(groups)


def set_verdict(rollout: Completion, verdict: Verdict) -> None:
    """Sets verdict, reward and answer of a rollout; a reward that is not finite is an `error`."""
    rollout.verdict = verdict.verdict
    rollout.reward = verdict.reward
    rollout.answer = verdict.answer
    rollout.reason = verdict.reason
    # Learners compute in float32: a reward that is not finite there would make every update of its group so.
    if not abs(rollout.reward) <= LARGEST_FLOAT32:
        rollout.verdict = "error"
        rollout.reason = "the reward is not finite in float32"
        rollout.reward = 0.0


def assign_credit(groups: Sequence[Group], reader: GroupReader) -> None:
    """Gives the completions of training groups their advantages, and says which are trained on."""
    for group in groups:
        if group.dataset == "train":
            reader.stage(group.step).algorithm.assign_credit(group)
