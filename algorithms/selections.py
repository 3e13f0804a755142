"""Which tokens a term uses: functions Batch -> bool (B, T)."""

from torch import Tensor

from algorithms.batch import Batch
from algorithms.term import Selection, labelled


def everything(batch: Batch) -> Tensor:
    """All response tokens."""
    return batch.mask_BT


def demonstrations(batch: Batch) -> Tensor:
    return batch.mask_BT & batch.is_demo_B[:, None]


def replays(batch: Batch) -> Tensor:
    """Rollouts of earlier steps."""
    if batch.is_replay_B is None:
        return batch.mask_BT & False
    return batch.mask_BT & batch.is_replay_B[:, None]


def rollouts(batch: Batch) -> Tensor:
    """Rollouts of the step."""
    return batch.mask_BT & ~batch.is_demo_B[:, None] & ~replays(batch)


@labelled
def correct_rollouts(above: float) -> Selection:
    """Rollouts whose reward is above the threshold."""
    return lambda batch: rollouts(batch) & (batch.rewards_B > above)[:, None]


@labelled
def wrong_rollouts(above: float) -> Selection:
    """Rollouts whose reward is not above the threshold."""
    return lambda batch: rollouts(batch) & ~(batch.rewards_B > above)[:, None]


@labelled
def leading(name: str) -> Selection:
    """The first tokens of each rollout, as many as its value of that name; those of an environment do not
    count."""
    return lambda batch: rollouts(batch) & (batch.mask_BT.cumsum(-1) <= batch.value_B1(name))


@labelled
def valued(name: str) -> Selection:
    """All tokens of the sequences whose value of that name is above 0."""
    return lambda batch: batch.mask_BT & (batch.value_B1(name) > 0)


def favoured_rollouts(batch: Batch) -> Tensor:
    """Rollouts with a positive advantage."""
    return rollouts(batch) & (batch.advantages_B > 0)[:, None]


def disfavoured_rollouts(batch: Batch) -> Tensor:
    """Rollouts with an advantage of 0 or below."""
    return rollouts(batch) & ~(batch.advantages_B > 0)[:, None]


def prefixes(batch: Batch) -> Tensor:
    """Tokens of rollouts that come from a demonstration."""
    if batch.is_prefix_BT is None:
        return batch.mask_BT & False
    return batch.mask_BT & batch.is_prefix_BT


def sampled(batch: Batch) -> Tensor:
    """Tokens that the policy sampled: rollouts without prefixes."""
    return rollouts(batch) & ~prefixes(batch)
