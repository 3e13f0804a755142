"""DPO: the loss of pairs of completions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections
from algorithms.base import Algorithm
from algorithms.losses import logistic
from algorithms.settings import limited
from algorithms.term import Term
from algorithms.types import Completion, Group, SequenceRecord


@dataclass(frozen=True)
class DPO(Algorithm):
    """Direct preference optimization: L = E_pairs[-log σ(β (Δ(y+) - Δ(y-)))], Δ = log π(y|x)/π_ref(y|x)

    A prompt gives one pair: of its demonstrations and rollouts the one with the highest and the one with the
    lowest reward; demonstrations come before rollouts of the same reward. Prompts whose rewards are all equal
    give none. `with_demonstrations: false` leaves the choice to the rollouts. With `reference_at_start` π_ref
    is the policy at the first step of the stage, else the model that the run starts from or
    learner.reference. Deviation: the pairs are of the current policy, not of a data set of preferences.
    """

    name: ClassVar[str] = "dpo"
    paper: ClassVar[str] = "arXiv 2305.18290"
    capabilities: ClassVar[tuple[str, ...]] = ("values", "sequence_logprobs", "reference")
    with_demonstrations: bool = True
    reference_at_start: bool = False
    beta: float = limited(0.1, least=1e-6)

    @property
    def uses_demonstrations(self) -> bool:  # type: ignore[override]
        return self.with_demonstrations

    def reference_rate(self, step: int) -> float:
        return float(self.reference_at_start and step == 0)

    def terms(self) -> tuple[Term, ...]:
        return (
            Term(
                name="pairs",
                select=selections.everything,
                loss=losses.linearized,
                population=selections.valued("chosen"),
                norm="sequence_mean_token_sum",
                needs=self.capabilities,
            ),
        )

    def trains_on(self, group: Group, completion: Completion) -> bool:
        ranked = sorted(group.completions, key=lambda c: (c.reward, c.origin == "demo"))
        worst, best = ranked[0], ranked[-1]
        return best.reward > worst.reward and (completion is best or completion is worst)

    def sequence_values(self, records: Sequence[SequenceRecord]) -> Mapping[str, Sequence[float]]:
        values = {name: [0.0] * len(records) for name in ("slope", "loss", "chosen")}
        pairs = defaultdict(list)
        for number, record in enumerate(records):
            if record.trained:
                pairs[record.group_id].append(number)
        for pair in pairs.values():
            worse, better = sorted(pair, key=lambda number: records[number].reward)
            value, slopes = self.pair_loss(records[better], records[worse])
            values["chosen"][better] = 1.0
            values["loss"][better] = value
            values["slope"][better], values["slope"][worse] = slopes
        return values

    def pair_loss(self, better: SequenceRecord, worse: SequenceRecord) -> tuple[float, tuple[float, float]]:
        """The loss of a pair, and its derivatives by log π(y+|x) and log π(y-|x)."""
        margin = (better.logprob - better.reference_logprob) - (worse.logprob - worse.reference_logprob)
        value, slope = logistic(self.beta * margin)
        return value, (self.beta * slope, -self.beta * slope)
