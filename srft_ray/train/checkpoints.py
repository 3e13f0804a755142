"""The checkpoints of one start of the learners: which steps have one, and what is recorded of it."""

from srft_ray.observe.timeline import Timeline
from srft_ray.train.background_saving import BackgroundSaver
from srft_ray.train.job import Job
from srft_ray.train.recorder import Recorder
from srft_ray.train.saving import Saver


class Checkpoints:
    """One rank's part. All methods but `close` are collectives.

    Attributes:
        saved: the newest step that has a complete checkpoint.
    """

    def __init__(self, job: Job, saver: Saver, recorder: Recorder, timeline: Timeline, step: int) -> None:
        """`step`: that the learners start from, which has a checkpoint unless it is 0."""
        self.job = job
        self.saver = saver
        self.background = BackgroundSaver(saver, job.learner.timeout_s)
        self.recorder = recorder
        self.timeline = timeline
        self.saved = step

    def save_if_due(self, step: int) -> None:
        """Writes the checkpoint that follows a step, or begins it; not that of the last step."""
        trainer = self.job.trainer
        every = trainer.checkpoint_every
        if every > 0 and step % every == 0 and step < trainer.steps:
            self.save(step, final=False, background=trainer.async_checkpoints)

    def save(self, step: int, final: bool, finished: bool = False, background: bool = False) -> None:
        """Writes the checkpoint of `step` unless there is one.

        Args:
            final: there will be no other checkpoint, so that a failure ends the run.
            finished: the run is complete, its last evaluation included.
            background: whether training goes on while it is written.
        """
        # Checkpoints become complete one after another.
        self.settle(wait=True)
        if step <= self.saved:
            return
        about = {
            "run_id": self.job.run_id,
            "policy_version": step,
            "position": self.job.plan.position(step),
            "dtype": self.job.dtype,
            "finished": finished,
        }
        with self.timeline.phase("checkpoint", step - 1):
            if background:
                self.background.begin(step, about)
            elif self.saver.save(step, final, about):
                self._record(step)

    def settle(self, wait: bool) -> None:
        """Records a checkpoint that was begun if it is complete; `wait`: waits until it is."""
        step = self.background.settle(wait)
        if step is not None:
            self._record(step)

    def _record(self, step: int) -> None:
        self.saved = step
        self.recorder.checkpoint(step, self.job.store.address(step))

    def close(self) -> None:
        """Ends what is being written."""
        self.background.close()
