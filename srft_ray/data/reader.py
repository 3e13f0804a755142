"""Reads groups: positions of the stream become groups with their prompts and demonstrations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algorithms import Algorithm, Completion, Group, Stage
from srft_ray.config.evaluation import EvaluationSetSection
from srft_ray.data.history import Choice, Chooser, PromptHistory
from srft_ray.data.plan import Segment, StreamPlan
from srft_ray.data.replay import ReplayChooser
from srft_ray.data.store import PreparedData, shuffled


@dataclass(frozen=True)
class GroupSettings:
    """What of the config decides the content of a group.

    Attributes:
        seed: of the run; it decides the order of prompts.
        num_rollouts: rollouts of a training group, if its algorithm samples any.
        max_new_tokens: longest response, in tokens.
        max_demonstrations: most demonstrations of a training group.
        evaluation: how each evaluation set is sampled.
        history_lag: steps that a group's view of the history of prompts is behind its own step.
    """

    seed: int
    num_rollouts: int
    max_new_tokens: int
    max_demonstrations: int
    evaluation: Mapping[str, EvaluationSetSection]
    history_lag: int = 1


class GroupReader:
    """Every group is a pure function of seed and position, so that a repeated group is the same group.

    If its algorithm uses the history of prompts, it is one of seed, position and the history before a step
    that its own step states. `history` gives a history that reaches so far; it may wait for it.
    """

    def __init__(
        self,
        settings: GroupSettings,
        algorithm: Algorithm,
        plan: StreamPlan,
        start: int,
        train: PreparedData,
        evaluation: Mapping[str, PreparedData],
    ) -> None:
        """`start`: the step at which the stream begins."""
        self.settings = settings
        self.algorithm = algorithm
        self.plan = plan
        self.start = start
        self.train = train
        self.evaluation = evaluation
        self.history: Callable[[int], PromptHistory] | None = None
        self._replays = ReplayChooser(settings.seed)

    def read(self, block: Mapping[str, np.ndarray]) -> list[Group]:
        """The groups of a block of positions in the stream."""
        return [group for position in block["position"] for group in self._read_position(int(position))]

    def stage(self, step: int) -> Stage:
        return self.algorithm.stage(step, self.plan.steps)

    def training_group(self, step: int, group_id: int) -> Group:
        """The group of `step` at position `group_id` of the seeded order of prompts, without rollouts."""
        algorithm = self.stage(step).algorithm
        epoch, index = shuffled(group_id, self.train.counts.kept, self.settings.seed)
        choice = self._choose(step, group_id, algorithm) if algorithm.uses_history else Choice(index)
        row = self.train.row(choice.row)
        # A rollout that is replayed takes the place of a new one.
        num_rollouts = self.settings.num_rollouts - choice.replays if algorithm.uses_rollouts else 0
        group = Group(
            step,
            group_id,
            row["prompt"],
            row["prompt_ids"],
            row["reference"],
            row["metadata"],
            num_rollouts=num_rollouts,
            max_new_tokens=self.settings.max_new_tokens,
            row=choice.row,
            visits=choice.visits,
            passed_over=choice.passed_over,
            replays=choice.replays,
        )
        if algorithm.uses_demonstrations:
            group.completions = demonstrations(row, num_rollouts, epoch, self.settings.max_demonstrations)
        return group

    def _choose(self, step: int, place: int, algorithm: Algorithm) -> Choice:
        """The prompt of a place, by its history."""
        if self.history is None:
            raise RuntimeError(f"{algorithm.name} needs the history of prompts, and the stream has none")
        before = max(0, step + 1 - self.settings.history_lag)
        history = self.history(before)
        replayed = self._replays.choose(algorithm, step, place, history, before)
        if replayed:
            return replayed
        chooser = Chooser(self.train.counts.kept, self.settings.seed)
        return chooser.choose(algorithm, step, place, history, before)

    def _read_position(self, position: int) -> list[Group]:
        segment, offset = self.plan.locate(self.start, position)
        if segment.dataset == "train":
            return [self.training_group(segment.step, self.plan.position(segment.step) + offset)]
        places = range(offset, offset + self.plan.bundle(segment.dataset))
        return [self.evaluation_group(segment, place) for place in places]

    def evaluation_group(self, segment: Segment, offset: int) -> Group:
        """The group at a place of an evaluation set, without completions."""
        if offset >= segment.groups:  # fills the segment up to a multiple of what the learners take at a time
            return Group(segment.step, -1, "", [], "", dataset=segment.dataset)
        return self._group_of_row(segment, offset, self.evaluation[segment.dataset].row(offset))

    def held_out_group(self, segment: Segment, place: int) -> Group:
        """The same with its demonstrations. Learners read it, so that these need not travel."""
        settings = self.settings.evaluation[segment.dataset]
        row = self.evaluation[segment.dataset].row(place)
        group = self._group_of_row(segment, place, row)
        group.completions = demonstrations(row, settings.samples, 0, settings.max_demonstrations)
        return group

    def _group_of_row(self, segment: Segment, place: int, row: Mapping[str, Any]) -> Group:
        settings = self.settings.evaluation[segment.dataset]
        return Group(
            segment.step,
            place,
            row["prompt"],
            row["prompt_ids"],
            row["reference"],
            row["metadata"],
            dataset=segment.dataset,
            num_rollouts=settings.samples,
            max_new_tokens=settings.max_new_tokens,
        )


def demonstrations(row: Mapping[str, Any], first_sample: int, epoch: int, most: int) -> list[Completion]:
    """At most `most` of the row's demonstrations; of more, each epoch takes the next ones in turn."""
    given: Sequence[dict[str, Any]] = row["demonstrations"]
    chosen = given
    if len(given) > most:
        chosen = [given[(epoch * most + i) % len(given)] for i in range(most)]
    return [Completion(first_sample + i, "demo", d["text"], d["ids"]) for i, d in enumerate(chosen)]
