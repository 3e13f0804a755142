"""The evaluation of the model that runs of a series begin with: sampled once for all runs of one model and
seed."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorithms import Group
from srft_ray.data.blocks import as_block, groups_of
from srft_ray.observe.evaluation import UNJUDGED

Blocks = MutableMapping[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """What the first evaluation of a run follows from: the path of the model that it begins with, and its
    seed."""

    model: str
    seed: int


class BaseEvaluation:
    """One run's view of the blocks that an engine has sampled of it.

    Responses follow from model, seed and prompt. The engine may know the model's weights by another name in
    the next run: the files of a model, and what learners publish of it, have fingerprints of their own where
    weights are tied. With several engines a block may come to one that has not sampled it; it is sampled
    again then.
    """

    def __init__(self, origin: Origin, is_last: bool, blocks: Blocks) -> None:
        """
        Args:
            origin: of the run.
            is_last: whether no later run has this origin, so that nothing is kept for one.
            blocks: what was kept, shared by the runs of the series.
        """
        self._origin = origin
        self._is_last = is_last
        self._blocks = blocks

    def keep(self, groups: list[Group]) -> None:
        """Keeps a block that was sampled and judged, if a later run can have it.

        One with a verdict that is not about the response, such as that of a verifier which ran out of time,
        is not kept: the next run asks again.
        """
        if self._is_last or not _is_of_base(groups) or self._key(groups) in self._blocks:
            return
        verdicts = {rollout.verdict for group in groups for rollout in group.rollouts}
        if verdicts.isdisjoint(UNJUDGED):
            self._blocks[self._key(groups)] = as_block(groups)

    def recall(self, groups: list[Group]) -> bool:
        """Puts groups that an earlier run kept in the place of these, and says whether it had kept them. They
        do not say which weights the engine holds now."""
        if not _is_of_base(groups):
            return False
        key = self._key(groups)
        kept = self._blocks.pop(key, None) if self._is_last else self._blocks.get(key)
        if kept is None:
            return False
        groups[:] = groups_of(kept)
        for group in groups:
            group.fingerprints, group.probes = {}, {}
        return True

    def _key(self, groups: list[Group]) -> tuple[Any, ...]:
        return self._origin, groups[0].dataset, *(group.group_id for group in groups)


def base_evaluations(origins: Sequence[Origin]) -> list[BaseEvaluation]:
    """Those of runs with these origins, in the order of training."""
    blocks: Blocks = {}
    return [
        BaseEvaluation(origin, origin not in origins[number:], blocks)
        for number, origin in enumerate(origins, start=1)
    ]


def _is_of_base(groups: list[Group]) -> bool:
    return groups[0].dataset != "train" and groups[0].step == 0
