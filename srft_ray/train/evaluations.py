"""The evaluations of a run, as far as learners have a part in them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from algorithms import Group
from srft_ray.data.plan import Segment
from srft_ray.data.reader import GroupReader
from srft_ray.observe.timeline import Span, Timeline
from srft_ray.train.held_out import held_out_figures
from srft_ray.train.intake import Intake
from srft_ray.train.learner import Learner
from srft_ray.train.recorder import Recorder


class Evaluations:
    """One rank's part. All methods are collectives.

    An evaluation of the weights after s steps is of these alone: engines sample responses by version s, and
    learners score demonstrations by it. Either all of it comes before update s (`evaluate`), or engines
    sample it beside the update: then demonstrations are scored before the update (`score_beside`), responses
    are taken after it (`take_beside`), and version s + 1 is published after that. `record` comes last.

    Attributes:
        missing: whether the weights were updated, and the evaluation of those before is not taken yet. There
            is no checkpoint then: from it that evaluation could not be made up for.
    """

    def __init__(
        self, reader: GroupReader, intake: Intake, learner: Learner, recorder: Recorder, timeline: Timeline
    ) -> None:
        self.reader = reader
        self.plan = reader.plan
        self.intake = intake
        self.learner = learner
        self.recorder = recorder
        self.timeline = timeline
        self.missing = False
        self._taken: list[tuple[Segment, list[Group]]] = []
        self._figures: dict[str, dict[str, float]] = {}  # of the demonstrations of each set
        self._phases: dict[str, Span] = {}

    def evaluate(self, step: int) -> bool:
        """Evaluates the present weights, after `step` steps, if it is time for it; False if the learners are
        to leave instead."""
        self._phases = {}
        if not self._take(step, may_leave=True):
            return False
        self._score(step)
        self.record(step)
        return True

    def score_beside(self, step: int) -> None:
        """Scores demonstrations before update `step`, if the evaluation is sampled beside it."""
        if self.plan.evaluates_beside:
            self._phases = {}
            self._score(step)

    def take_beside(self, step: int, saved: int) -> bool:
        """Takes the responses that engines sample during update `step`, if there are any.

        Args:
            saved: the newest step that has a checkpoint.

        Returns:
            False if the learners are to leave instead. Then the update counts as not done.
        """
        if not self.plan.evaluates_beside:
            return True
        self.missing = True
        # Those who leave here go back to the newest checkpoint. If it is older than the update, they stay.
        self.missing = not self._take(step, may_leave=saved == step)
        return not self.missing

    def record(self, step: int) -> None:
        """Records what was taken, if it is not recorded yet."""
        if not self._taken:
            return
        with self._phase("evaluation record"):
            for segment, groups in self._taken:
                self.recorder.evaluation(segment, groups, self._figures[segment.dataset])
        self.timeline.step(step, self._phases, [group for _, groups in self._taken for group in groups])
        self._taken = []

    @property
    def seconds(self) -> float:
        """That the learners spent on the evaluation of this step; 0 if there was none."""
        return sum(end - start for start, end in self._phases.values())

    def _take(self, step: int, may_leave: bool) -> bool:
        """Takes all sets of an evaluation; False if the learners are to leave."""
        self._taken = []
        segments = self.plan.evaluations(step)
        if not segments:
            return True
        with self._phase("evaluation"):
            for segment in segments:
                groups = self.intake.take(segment, may_leave)
                if groups is None:
                    return False
                self._taken.append((segment, groups))
        return True

    def _score(self, step: int) -> None:
        """The loss on the demonstrations of each set; each learner reads its share of them."""
        segments = self.plan.evaluations(step)
        if not segments:
            return
        with self._phase("held-out loss"):
            self._figures = {segment.dataset: self._held_out(segment) for segment in segments}

    def _held_out(self, segment: Segment) -> dict[str, float]:
        if not self.reader.evaluation[segment.dataset].counts.demonstrations:
            return {}
        share = range(dist.get_rank(), segment.groups, dist.get_world_size())
        groups = [self.reader.held_out_group(segment, place) for place in share]
        return held_out_figures(self.learner, groups, segment.step)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._phases[name] = (started, time.perf_counter())
