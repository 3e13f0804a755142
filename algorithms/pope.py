"""POPE: a part of the demonstration is given for prompts that the policy does not solve by itself."""

import random
from dataclasses import dataclass
from typing import ClassVar

from algorithms.guided import GuidedGRPO
from algorithms.types import Group


@dataclass(frozen=True)
class POPE(GuidedGRPO):
    """POPE: `grpo_guided` for prompts that failed before, and GRPO for all others

    A share of the rollouts of a prompt continues a part of its demonstration if all rollouts without such a
    part were wrong at all of its newest visits; a prompt without a visit has plain rollouts. The credit is
    over both kinds together. Deviations: the paper finds hard prompts and the length of the part that helps
    before training; here both are found while training goes on, and the length is uniform. The demonstration
    is continued as if the policy had written it, without an instruction that says so.
    """

    name: ClassVar[str] = "pope"
    paper: ClassVar[str] = "after arXiv 2601.18779"
    uses_history: ClassVar[bool] = True

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        failed = bool(group.visits) and not any(visit.correct for visit in group.visits)
        return super().prefix(group, sample, step, rng) if failed else 0
