"""What the collective transport of weights sends with."""

from dataclasses import replace

from srft_ray.config.rollout import RolloutSection
from srft_ray.errors import require
from srft_ray.run.placement import Placement


def with_backend(rollout: RolloutSection, placement: Placement) -> RolloutSection:
    """The section with gloo or nccl in the place of `auto`, the same for learners and engines.

    Raises:
        UserError: NCCL is asked for where it cannot be used.
    """
    # NCCL refuses a group in which two processes have the same GPU.
    can_use_nccl = placement.device == "cuda" and not placement.colocated
    chosen = rollout.transport_backend
    require(
        chosen != "nccl" or can_use_nccl,
        f"rollout.transport_backend=nccl needs GPUs of their own for learners and engines, but {placement}: "
        "set it to gloo or auto.",
    )
    if chosen == "auto":
        chosen = "nccl" if can_use_nccl else "gloo"
    return replace(rollout, transport_backend=chosen)
