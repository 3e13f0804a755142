"""HPT with coefficients in place of the gate between RL and SFT."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms import weights
from algorithms.hpt import HPT
from algorithms.term import Term
from algorithms.types import Completion, Group, SequenceRecord

# By the number of solved rollouts of 8: the coefficients of RL on the rollouts, and of SFT.
SOFT = {0: (1.0, 1.0), 1: (0.0, 1.0), 2: (0.125, 0.5), 3: (0.25, 0.25), 4: (0.5, 0.125)}
SOLVED = (1.0, 0.0)


@dataclass(frozen=True)
class HPTSoft(HPT):
    """Hybrid post-training, soft: L = a · L_RL + b · L_SFT, (a, b) by the pass rate of the prompt

    Of 8 rollouts solved 0: (1, 1), 1: (0, 1), 2: (1/8, 1/2), 3: (1/4, 1/4), 4: (1/2, 1/8), 5 and more:
    (1, 0), which is the table of type 2 of the authors' code. With another number of rollouts the pass rate
    times 8 is rounded. What the code's third coefficient, RL on the demonstration, does for unsolved prompts
    was not clear: it is left out. `gamma` has no effect. Deviations otherwise as `hpt`.
    """

    name: ClassVar[str] = "hpt_soft"

    def terms(self) -> tuple[Term, ...]:
        names = {"policy": "rl_share", "sft_demo": "sft_share"}
        return tuple(self._shared(term, names.get(term.name)) for term in super().terms())

    def _shared(self, term: Term, name: str | None) -> Term:
        if name is None:
            return term
        weight = weights.combined(term.weight, weights.value(name))
        return dataclasses.replace(term, weight=weight, needs=(*term.needs, "values"))

    def sequence_values(self, records: Sequence[SequenceRecord]) -> Mapping[str, Sequence[float]]:
        solved = defaultdict(list)
        for record in records:
            if record.origin == "rollout":
                solved[record.group_id].append(record.reward > self.correct_above)
        shares = [self._coefficients(solved[record.group_id]) for record in records]
        return {"rl_share": [rl for rl, _ in shares], "sft_share": [sft for _, sft in shares]}

    def _coefficients(self, solved: Sequence[bool]) -> tuple[float, float]:
        of_eight = round(8 * sum(solved) / max(1, len(solved)))
        return SOFT.get(of_eight, SOLVED)

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return not (self.mask_truncated and completion.finish_reason == "length")
