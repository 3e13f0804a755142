"""Which tokens a term speaks of: functions Batch -> bool (B, T)."""
from torch import Tensor

from algorithms.base import Selection
from algorithms.types import Batch


def demonstrations(batch: Batch) -> Tensor:
    return batch.mask_BT & batch.is_demo_B[:, None]


def rollouts(batch: Batch) -> Tensor:
    return batch.mask_BT & ~batch.is_demo_B[:, None]


def correct_rollouts(above: float) -> Selection:
    """Rollouts whose reward is above the threshold."""
    return lambda batch: rollouts(batch) & (batch.rewards_B > above)[:, None]


def wrong_rollouts(above: float) -> Selection:
    return lambda batch: rollouts(batch) & ~(batch.rewards_B > above)[:, None]
