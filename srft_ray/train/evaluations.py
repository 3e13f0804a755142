"""The evaluations of a run, as far as learners have a part in them."""

import time

from algorithms import Group
from srft_ray.data.plan import Segment, StreamPlan
from srft_ray.observe.timeline import Timeline
from srft_ray.train.held_out import held_out_figures
from srft_ray.train.intake import Intake
from srft_ray.train.learner import Learner
from srft_ray.train.recorder import Recorder


class Evaluations:
    """One rank's part. All methods are collectives.

    Attributes:
        missing: whether the weights were updated, and the evaluation of those before is not taken yet. There
            is no checkpoint then: from it that evaluation could not be made up for.
    """

    def __init__(
        self, plan: StreamPlan, intake: Intake, learner: Learner, recorder: Recorder, timeline: Timeline
    ) -> None:
        self.plan = plan
        self.intake = intake
        self.learner = learner
        self.recorder = recorder
        self.timeline = timeline
        self.missing = False
        self._taken: list[tuple[Segment, list[Group]]] = []
        self._phases: dict[str, tuple[float, float]] = {}

    def evaluate(self, step: int) -> bool:
        """Takes and records the evaluation of the present weights, after `step` steps, if there is one; False
        if the learners are to leave instead."""
        if not self._take(step, may_leave=True):
            return False
        self.record(step)
        return True

    def take_beside(self, step: int, saved: int) -> bool:
        """Takes the evaluation that engines sample during update `step`, if there is one.

        The weights that they sample it by are no longer here; those after the update are not published before
        it is taken, so that no engine can have loaded them.

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

    def _take(self, step: int, may_leave: bool) -> bool:
        """Takes all sets of an evaluation; False if the learners are to leave."""
        started = time.perf_counter()
        self._taken, self._phases = [], {}
        for segment in self.plan.evaluations(step):
            groups = self.intake.take(segment, may_leave)
            if groups is None:
                return False
            self._taken.append((segment, groups))
            self._phases["evaluation"] = (started, time.perf_counter())
        return True

    def record(self, step: int) -> None:
        """Records what was taken; of demonstrations, the loss with the learners' present weights."""
        if not self._taken:
            return
        started = time.perf_counter()
        for segment, groups in self._taken:
            figures = held_out_figures(self.learner, groups, step)
            self.recorder.evaluation(segment, groups, figures)
        self._phases["evaluation record"] = (started, time.perf_counter())
        self.timeline.step(step, self._phases, [group for _, groups in self._taken for group in groups])
        self._taken = []

    @property
    def seconds(self) -> float:
        """That the learners spent on the evaluation of this step; 0 if there was none."""
        return sum(end - start for start, end in self._phases.values())
