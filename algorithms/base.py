"""An algorithm is a tuple of named terms and a credit rule.

Losses sum: a term's loss is a sum over tokens divided by a count over the whole update. The count never looks at the
model, so that every micro-batch on every rank knows the denominators before its forward pass.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, get_args, get_origin

from torch import Tensor

from algorithms.term import Term
from algorithms.types import Batch, Completion, Group, PolicyOutput


def limited(default: Any, least: float | None = None, most: float | None = None) -> Any:
    """A setting whose value, unless None, is within limits."""
    return field(default=default, metadata={"least": least, "most": most})


def check_settings(made: Any) -> None:
    """Raises ValueError for a field of a dataclass that is none of its choices (Literal) or outside its limits (`limited`)."""
    for item in fields(made):
        value, choices = getattr(made, item.name), get_args(item.type)
        if get_origin(item.type) is Literal and value not in choices:
            raise ValueError(f"{item.name} is {value!r}: choose one of {', '.join(map(str, choices))}")
        least, most = item.metadata.get("least"), item.metadata.get("most")
        within = value is None or ((least is None or value >= least) and (most is None or value <= most))
        if not within:
            raise ValueError(
                f"{item.name} is {value}: it must be {f'at least {least}' if most is None else f'within {least} and {most}'}"
            )


@dataclass(frozen=True)
class Schedule:
    """What a stage changes of the run's settings; None keeps `learner.*` and `trainer.groups_per_step`.

    Attributes:
        warmup: share of the stage's steps in which the learning rate rises linearly.
    """

    lr: float | None = limited(None, least=0)
    lr_schedule: Literal["constant", "linear", "cosine", None] = None
    warmup: float | None = limited(None, least=0, most=1)
    min_lr_ratio: float | None = limited(None, least=0, most=1)
    groups_per_step: int | None = limited(None, least=1)
    mini_batches: int | None = limited(None, least=1)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Stage:
    """What is trained at a step: an algorithm, where the stage began, how long it is, and its own settings.

    A stage is like a run of its own that starts from the weights at hand, with fresh optimizer state and its own
    learning-rate schedule, where the stage before it ended in the seeded order of prompts.
    """

    algorithm: "Algorithm"
    start: int
    steps: int
    schedule: Schedule = Schedule()


class Algorithm:
    """Base class. A subclass is a dataclass whose fields are its settings (in YAML: the keys beside `algorithm.name`)."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    uses_rollouts: ClassVar[bool] = True  # False: it starts no engine
    uses_demonstrations: ClassVar[bool] = True
    min_rollouts: ClassVar[int] = 1  # per prompt, for the credit rule to say anything
    max_refills: int = 0  # groups without signal that may be discarded for one place in a step

    def __post_init__(self) -> None:
        check_settings(self)

    def terms(self) -> tuple[Term, ...]:
        raise NotImplementedError

    def advantages(self, group: Group) -> list[float]:
        """One advantage per completion of the group, in its order."""
        return [0.0] * len(group.completions)

    def trains_on(self, group: Group, completion: Completion) -> bool:
        """Whether the completion enters the update; called after `advantages`."""
        return True

    def has_signal(self, group: Group) -> bool:
        """False: the group is discarded for another, `max_refills` times at most."""
        return True

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        """How many tokens of the group's first demonstration rollout `sample` starts with; `step` counts from the stage's start.
        One token at least is always sampled: more than max_new_tokens - 1 are not used."""
        return 0

    def stage(self, step: int, total_steps: int) -> Stage:
        return Stage(self, 0, total_steps)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(need for term in self.terms() for need in term.needs)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Counts of one batch; sum them over all micro-batches and ranks of the update."""
        return {term.name: term.count(batch) for term in self.terms()}

    def losses(
        self, batch: Batch, policy: PolicyOutput, counts: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Loss per term; their sum is what is minimised. `counts`: those of the whole update (None: this batch is all of it)."""
        if counts is None and policy.mean_entropy is None:
            rollouts_BT = batch.mask_BT & ~batch.is_demo_B[:, None]
            mean = policy.where(rollouts_BT).entropies_BT.detach().sum() / rollouts_BT.sum().clamp(min=1)
            policy = replace(policy, mean_entropy=mean)
        counts = counts or self.counts(batch)
        return {t.name: t.total(batch, policy)[0] / t.denominator(counts[t.name]) for t in self.terms()}
