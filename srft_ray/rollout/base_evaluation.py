"""The evaluation of the model that runs of a series begin with: sampled once for all runs of one seed."""

from collections.abc import MutableMapping, Sequence
from typing import Any

from algorithms import Group
from srft_ray.data.blocks import as_block, groups_of

UNJUDGED = ("timeout", "error")
Blocks = MutableMapping[tuple[Any, ...], dict[str, Any]]


class BaseEvaluation:
    """One run's view of the blocks that an engine has sampled of it.

    Responses follow from model, seed and prompt, and runs of a series have one model. The engine may know its
    weights by another name in the next run: the files of a model, and what learners publish of it, have
    fingerprints of their own where weights are tied. With several engines a block may come to one that has
    not sampled it; it is sampled again then.
    """

    def __init__(self, seed: int, is_last: bool, blocks: Blocks) -> None:
        """
        Args:
            seed: of the run.
            is_last: whether no later run has this seed, so that nothing is kept for one.
            blocks: what was kept, shared by the runs of the series.
        """
        self._seed = seed
        self._is_last = is_last
        self._blocks = blocks

    def keep(self, groups: list[Group]) -> None:
        """Keeps a block that was sampled and judged, if a later run can have it.

        One with a verdict that is not about the response, such as that of a verifier which ran out of time,
        is not kept: the next run asks again.
        """
        if self._is_last or not _is_of_base(groups):
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
        return self._seed, groups[0].dataset, *(group.group_id for group in groups)


def base_evaluations(seeds: Sequence[int]) -> list[BaseEvaluation]:
    """Those of runs with these seeds, in the order of training."""
    blocks: Blocks = {}
    return [
        BaseEvaluation(seed, seed not in seeds[number:], blocks) for number, seed in enumerate(seeds, start=1)
    ]


def _is_of_base(groups: list[Group]) -> bool:
    return groups[0].dataset != "train" and groups[0].step == 0
