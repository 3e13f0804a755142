"""What all learners together take from the stream, or leave together."""

import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray.data.plan import Segment
from srft_ray.train.job import Batches, Job, LeaveQuestion
from srft_ray.train.publisher import Publisher


def any_rank(answer: bool, device: torch.device) -> bool:
    """Whether any rank says yes; a collective."""
    flag = torch.tensor(float(answer), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


class Intake:
    """One rank's part. All methods are collectives.

    Attributes:
        probe_difference: of the engines that sampled the groups taken last.
    """

    def __init__(self, job: Job, batches: Batches, publisher: Publisher, device: torch.device) -> None:
        self.job = job
        self.batches = batches
        self.publisher = publisher
        self.device = device
        self.leave = LeaveQuestion(job.coordinator, job.is_preempted)
        self.probe_difference: float | None = None

    def take(self, segment: Segment, may_leave: bool = True) -> list[Group] | None:
        """This rank's groups of the next segment of the stream; None if the learners are to leave.

        `may_leave`: whether they may do so here.

        Raises:
            TimeoutError: they do not come.
            ProvenanceError: their rollouts are of other weights. It comes before they are trained on or
                counted.
        """
        share = segment.padded // dist.get_world_size()
        asked = self.leave.look if may_leave else _stay
        groups = self.batches.take(segment, share, self.job.rollout.timeout_s, asked)
        # One vote of all ranks: who leaves, leaves together, and no rank waits in a collective for one that
        # has left.
        if may_leave and any_rank(groups is None or self._asked_to_leave(), self.device):
            return None
        self.probe_difference = self.publisher.check(segment.step, groups)
        self.batches.groups += segment.padded
        return groups

    def _asked_to_leave(self) -> bool:
        return self.job.is_preempted() or (dist.get_rank() == 0 and self.leave.ask())


def _stay() -> bool:
    return False
