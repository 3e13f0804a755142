"""What is sampled and judged: Completion, and Group (a prompt with all its completions)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CORRECT_ABOVE = 0.5  # a rollout with a reward above it counts as correct


@dataclass
class Completion:
    """One sequence that answers a prompt: a rollout of the policy, a demonstration, or a replay.

    Attributes:
        sample: its number within the group.
        origin: rollout, demo, or replay: a rollout of an earlier step, which is trained on again.
        ids: response token ids, the end-of-sequence token included unless the response was truncated.
        logprobs: the engine's log-probability of each id at the sampling temperature, in nats; None for
            demonstrations.
        policy_version: optimizer steps behind the weights that generated it, the oldest if there are several;
            -1 for demonstrations.
        spans: (policy version, first of the tokens that it sampled), in order and from token 0 on; empty if
            one version sampled all.
        verdict: match, mismatch, no_answer, timeout or error; `given` for demonstrations.
        answer: what the verifier extracted from the text.
        reason: how the verifier came to its verdict, in a few words; may be empty.
        prefix: how many of the first ids come from the group's demonstration. The engine has no log-probs of
            them, and `logprobs` is 0 there.
        observed: half-open spans of `ids`, in order, that an environment wrote. They are context: nothing is
            computed of them, and `logprobs` is 0 there.
        trained: whether it enters the update (`Algorithm.trains_on`).
        measured: what the update used of each token, for the ledger; empty unless it is recorded.
    """

    sample: int
    origin: str
    text: str
    ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    policy_version: int = -1
    seed: int = -1
    finish_reason: str = "given"
    reward: float = 1.0
    verdict: str = "given"
    answer: str | None = None
    reason: str = ""
    advantage: float = 0.0
    prefix: int = 0
    observed: Sequence[tuple[int, int]] = ()
    trained: bool = True
    measured: dict[str, Any] = field(default_factory=dict)
    spans: Sequence[tuple[int, int]] = ()

    @property
    def parts(self) -> list[tuple[int, int, int]]:
        """(policy version, first token, end) of each span; one span if one version sampled all."""
        spans = self.spans or [(self.policy_version, 0)]
        ends = [first for _, first in spans[1:]] + [len(self.ids)]
        return [(version, first, end) for (version, first), end in zip(spans, ends, strict=True)]

    @property
    def written(self) -> int:
        """How many of its tokens no environment wrote."""
        return len(self.ids) - sum(end - first for first, end in self.observed)


@dataclass(frozen=True)
class SequenceRecord:
    """What `Algorithm.sequence_values` sees of a completion of the step, of this or of another rank.

    Attributes:
        update: the number of the update that its group belongs to, from 0.
        length: response tokens, those of a prefix included, those that an environment wrote left out.
        trained: whether it enters the update.
        seed: what it was sampled with, which follows from run.seed, the group and the sample; -1 for a
            demonstration.
        logprob, reference_logprob: log π(y|x) in nats, the sum over its tokens, by the policy before the
            update and by the reference; 0 where a term does not need them, and in other updates.
    """

    group_id: int
    sample: int
    origin: str
    update: int
    length: int
    prefix: int
    reward: float
    advantage: float
    trained: bool
    logprob: float = 0.0
    reference_logprob: float = 0.0
    seed: int = -1


@dataclass(frozen=True)
class Visit:
    """What happened to a prompt in an earlier step, in which rollouts of it entered the update.

    Attributes:
        rollouts: how many of them did; those that continue a demonstration are left out.
        correct: how many of these had a reward above `CORRECT_ABOVE`.
        prefixed: how many rollouts that continue a demonstration entered the update.
        prefixed_correct: how many of these were correct.
        prefix: the longest prefix of these, in tokens.
    """

    step: int
    rollouts: int
    correct: int
    prefixed: int = 0
    prefixed_correct: int = 0
    prefix: int = 0

    @property
    def pass_rate(self) -> float:
        """Of the rollouts that continue no demonstration, 0 to 1; 0 without any."""
        return self.correct / max(1, self.rollouts)


@dataclass
class Group:
    """A prompt with all its completions, which optimizer step `step` trains on.

    Attributes:
        group_id: the prompt's position in the seeded order; -1: an empty group that only fills a batch.
        num_rollouts: how many rollouts to sample; they join the demonstrations in `completions`.
        max_new_tokens: the most tokens that a response may have.
        dataset: `train`, or the name of the evaluation set.
        asked_at, started_at, finished_at, judged_at: when it asked to start, when generation of its rollouts
            began and ended, and when it had all verdicts, in seconds since the epoch.
        attempt: how many groups without signal were discarded for this place in the step before this group.
        discarded_tokens: tokens that were sampled for the discarded groups.
        engine: the engine that sampled its rollouts; empty if nothing was sampled.
        fingerprints: of the weights that the engine held while it sampled them, by policy version.
        probes: log-probs of a fixed sequence, as the engine computed them with these weights, in nats, by
            policy version; empty with rollout.max_staleness=0.
        row: number of the prompt among the prepared rows; -1 if it is not known.
        visits: the newest visits of the prompt, oldest first, if its algorithm uses the history.
        passed_over: how many prompts the algorithm did not keep for this place before it kept this one.
        replays: whether a correct rollout of an earlier visit joins its completions before it is trained on.
    """

    step: int
    group_id: int
    prompt: str
    prompt_ids: Sequence[int]
    reference: str
    metadata: dict[str, Any] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)
    dataset: str = "train"
    num_rollouts: int = 0
    max_new_tokens: int = 0
    asked_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    judged_at: float = 0.0
    attempt: int = 0
    discarded_tokens: int = 0
    engine: str = ""
    fingerprints: dict[int, str] = field(default_factory=dict)
    probes: dict[int, tuple[float, ...]] = field(default_factory=dict)
    row: int = -1
    visits: tuple[Visit, ...] = ()
    passed_over: int = 0
    replays: bool = False

    @property
    def rewards(self) -> list[float]:
        """One per completion, in their order."""
        return [c.reward for c in self.completions]

    @property
    def rollouts(self) -> list[Completion]:
        return [c for c in self.completions if c.origin == "rollout"]

    @property
    def demonstrations(self) -> list[Completion]:
        return [c for c in self.completions if c.origin == "demo"]

    @property
    def trained(self) -> list[Completion]:
        """The completions that enter the update."""
        return [c for c in self.completions if c.trained]

    def pass_rate(self, correct_above: float = CORRECT_ABOVE) -> float:
        """Share of the rollouts whose reward is above the threshold, 0 to 1; 0 without rollouts."""
        correct = sum(completion.reward > correct_above for completion in self.rollouts)
        return correct / max(1, len(self.rollouts))
