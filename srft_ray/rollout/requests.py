"""What is asked of an engine: one request for each sequence to sample, with a seed of its own."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from algorithms import Completion, Group, Stage
from srft_ray.rollout.generation import Generation


@dataclass(frozen=True)
class Request:
    """One sequence to sample. It continues `prefix`: token ids, taken from a demonstration."""

    group: Group
    sample: int
    seed: int
    prefix: Sequence[int] = ()

    @property
    def prompt_ids(self) -> list[int]:
        """All tokens that the engine continues."""
        return [*self.group.prompt_ids, *self.prefix]

    def completion(self, generation: Generation, text: str) -> Completion:
        """The rollout that the engine generated, without its policy version and not judged yet."""
        prefix = list(self.prefix)
        return Completion(
            self.sample,
            "rollout",
            text,
            prefix + generation.ids,
            [0.0] * len(prefix) + generation.logprobs,
            seed=self.seed,
            finish_reason=generation.finish_reason,
            reward=0.0,
            verdict="unjudged",
            prefix=len(prefix),
            observed=[(first + len(prefix), end + len(prefix)) for first, end in generation.observed],
        )


def sequence_seed(run_seed: int, group: Group, sample: int) -> int:
    """The seed of one sequence: a pure function of what it is for, so that a repeated rollout repeats.

    A training group is named by its position in the seeded order, so that a run that begins where another
    ended goes on as one run would have.
    """
    step = 0 if group.dataset == "train" else group.step
    return seed_of(f"{run_seed}/{group.dataset}/{step}/{group.group_id}/{sample}")


def seed_of(text: str) -> int:
    """A seed that belongs to the text, 0 to 2^31 - 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def requests_of(group: Group, run_seed: int, stage: Stage | None) -> list[Request]:
    """The requests for all rollouts of a group; `stage` is None for an evaluation group."""
    return [_request(group, sample, run_seed, stage) for sample in range(group.num_rollouts)]


def _request(group: Group, sample: int, run_seed: int, stage: Stage | None) -> Request:
    seed = sequence_seed(run_seed, group, sample)
    if stage is None:
        return Request(group, sample, seed)
    drawn_by = sequence_seed(run_seed, group, 0) if stage.algorithm.shares_prefix else seed
    wanted = stage.algorithm.prefix(group, sample, group.step - stage.start, random.Random(drawn_by))
    length = min(wanted, group.max_new_tokens - 1)  # at least one token is sampled
    return Request(group, sample, seed, group.demonstrations[0].ids[:length] if length else ())
