"""The base class of algorithms: a tuple of named terms and a credit rule.

The loss is the sum of the terms. A term's loss is a sum over tokens, divided by a count over the whole
update. The count never depends on the model, so that the denominators are known on every rank before its
first forward pass, and the update does not depend on how its sequences are split into micro-batches and
ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from algorithms import selections
from algorithms.batch import Batch, PolicyOutput
from algorithms.hooks import Hooks
from algorithms.settings import AS_THE_RUN, Schedule, check_settings
from algorithms.term import Term
from algorithms.types import Completion, Group, SequenceRecord


@dataclass(frozen=True)
class Stage:
    """What is trained at a step: an algorithm, the stage's first step, its number of steps, its own settings.

    A stage is like a run of its own that starts from the current weights, with fresh optimizer state and its
    own learning-rate schedule. It continues in the seeded order of prompts where the stage before it ended.
    """

    algorithm: "Algorithm"
    start: int
    steps: int
    schedule: Schedule = AS_THE_RUN


class Algorithm(Hooks):
    """Base class of all algorithms.

    A subclass is a dataclass whose fields are its settings, in YAML the keys beside `algorithm.name`.

    Attributes:
        uses_rollouts: False: no rollout engine is started.
        min_rollouts: rollouts per prompt that the credit rule needs at least.
        uses_history: prompts are chosen by what happened to them in earlier steps (`keeps`, `Group.visits`).
        buffer_size: how many groups that `buffers` chose make an update of their own; 0: there is none.
        buffer_lr: learning rate of these updates; None: that of the step.
        max_refills: how many groups without signal may be discarded for one place in a step.
        shares_prefix: all rollouts of a group draw the same numbers for their `prefix`.
        uses_critic: a second model gives tokens their advantages (`token_advantages`) and learns (`critic`).
        replay_age: how many steps a correct rollout may be replayed after its own; 0: none is.
        old: whose log-probs π_old has: of the `learner` before the update, or of the policy that sampled
            (`behavior`).
        correction: a weight for the difference between these two (`weights.correction`).
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    uses_rollouts: ClassVar[bool] = True
    uses_demonstrations: ClassVar[bool] = True
    min_rollouts: ClassVar[int] = 1
    uses_history: ClassVar[bool] = False
    shares_prefix: ClassVar[bool] = False
    uses_critic: ClassVar[bool] = False
    max_refills: int = 0
    buffer_size: int = 0
    buffer_lr: float | None = None
    replay_age: int = 0
    old: str = "learner"
    correction: str = "none"

    def __post_init__(self) -> None:
        check_settings(self)

    def terms(self) -> tuple[Term, ...]:
        """The terms whose sum is the loss. Their names are unique.

        It must be pure: every call returns the same terms, without randomness and without state that changes.
        It is called several times in an update and on every rank. One call gives the counts, which are summed
        over all ranks, and later calls give the losses that these counts divide. Terms that differ between
        two calls would be divided by the count of something else: a wrong update that no error reports. What
        changes from step to step is a function of `batch.step` inside a weight (`weights.scheduled`).
        """
        raise NotImplementedError(f"{type(self).__name__} does not define terms()")

    def named_terms(self) -> dict[str, Term]:
        """The terms by name, in their order.

        Raises:
            ValueError: two terms have the same name; they would share one count.
        """
        named: dict[str, Term] = {}
        for term in self.terms():
            if term.name in named:
                raise ValueError(f"two terms are named '{term.name}': give each term a name of its own")
            named[term.name] = term
        return named

    def advantages(self, group: Group) -> list[float]:
        """One advantage per completion of the group, in its order."""
        return [0.0] * len(group.completions)

    def trains_on(self, group: Group, completion: Completion) -> bool:
        """Whether the completion enters the update; called after `advantages`."""
        return True

    def assign_credit(self, group: Group) -> None:
        """Gives the completions of the group their advantages, and says which are trained on."""
        for completion, advantage in zip(group.completions, self.advantages(group), strict=True):
            completion.advantage = advantage
        # What is trained on may depend on the advantages of the whole group, so these come first.
        for completion in group.completions:
            completion.trained = self.trains_on(group, completion)

    def sequence_values(self, records: Sequence[SequenceRecord]) -> Mapping[str, Sequence[float]]:
        """Figures of each sequence that depend on other sequences, such as the mean reward of the step.

        Called if a term needs "values". `records` are all completions of the step on all ranks, ordered by
        group and sample. Each name has one figure per record, in their order; terms find them in
        `Batch.values`, and the name `advantages` replaces the advantages. If a term needs "sequence_logprobs"
        it is called again before each update, with the log-probs of that update. It must be pure: every rank
        calls it with the same records.
        """
        return {}

    def buffers(self, group: Group) -> bool:
        """Whether the demonstrations of the group wait for an update of their own."""
        return False

    def buffered(self) -> "Algorithm":
        """What is minimised in an update on buffered demonstrations, which has Adam's moments of its own.

        Its terms may need nothing but the gradient of entropies.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define buffered")

    def critic(self) -> "Algorithm":
        """What is minimised for the critic, after each update of the policy and on its sequences.

        Its terms see `PolicyOutput.values_BT`, and log-probs and entropies of 0.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define critic")

    def reference_rate(self, step: int) -> float:
        """How far the reference model moves towards the policy before a step: 0 it stays, 1 it becomes it.

        `step` counts from the first step of the stage.
        """
        return 0.0

    def stage(self, step: int, total_steps: int) -> Stage:
        """The stage that optimizer step `step` belongs to, in a run of `total_steps`."""
        return Stage(self, 0, total_steps)

    @property
    def needs(self) -> frozenset[str]:
        """What the terms need, see `Term.needs`. Raises ValueError as `named_terms` does."""
        return frozenset(need for term in self.named_terms().values() for need in term.needs)

    @property
    def corrects_rollouts(self) -> bool:
        """Whether the loss of rollouts has the log-probs of the policy that sampled them in it, and so takes
        the difference to the one that is trained into account. rollout.in_flight needs that."""
        return self.old == "behavior" or self.correction != "none"

    @property
    def uses_reference(self) -> bool:
        """Whether a term needs the frozen reference model."""
        return bool(self.needs & {"reference", "reference_kl"})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The count of each term in one batch; sum them over all micro-batches and ranks of the update."""
        return {name: term.count(batch) for name, term in self.named_terms().items()}

    def losses(
        self, batch: Batch, policy: PolicyOutput, counts: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The loss of each term, scalars; their sum is what is minimised.

        `counts` are those of the whole update; None: this batch is the whole update.
        """
        if counts is None and policy.mean_entropy is None:
            policy = replace(policy, mean_entropy=_mean_entropy(batch, policy))
        counts = counts or self.counts(batch)
        losses = {}
        for name, term in self.named_terms().items():
            total, _ = term.total(batch, policy)
            losses[name] = total / term.denominator(counts[name])
        return losses


def _mean_entropy(batch: Batch, policy: PolicyOutput) -> Tensor:
    """Over all rollout tokens of the batch, without gradient."""
    rollouts_BT = selections.rollouts(batch)
    entropies_BT = policy.where(rollouts_BT).entropies_BT.detach()
    return entropies_BT.sum() / rollouts_BT.sum().clamp(min=1)
