"""One learner under Ray Train: takes groups from the stream, updates and publishes the policy, records."""

import time

import ray
import torch
import torch.distributed as dist

from algorithms import Group, Stage
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import set_threads
from srft_ray.observe import journal, metrics
from srft_ray.observe.cost import step_cost
from srft_ray.observe.rewind import rewind
from srft_ray.observe.timeline import Timeline
from srft_ray.sync.versions import LearnerStart
from srft_ray.train import parity
from srft_ray.train.checkpoints import Checkpoints
from srft_ray.train.deepspeed_engine import DeepSpeedEngine
from srft_ray.train.deepspeed_loading import load_for_learner
from srft_ray.train.evaluations import Evaluations
from srft_ray.train.history import HistoryKeeper
from srft_ray.train.intake import Intake, any_rank
from srft_ray.train.job import Batches, Job
from srft_ray.train.learner_models import make_learner
from srft_ray.train.lora import Adapter
from srft_ray.train.model_checks import check_model
from srft_ray.train.nonfinite import NonFiniteError, dump
from srft_ray.train.publisher import Publisher
from srft_ray.train.recorder import Recorder
from srft_ray.train.replay import ReplayPool
from srft_ray.train.retention import BestStep
from srft_ray.train.saving import Saver


class LearnerWorker:
    """One rank: it takes the segments of the plan in order, and unblocks the engines by publishing."""

    def __init__(self, job: Job, start: LearnerStart, batches: Batches) -> None:
        set_threads(job.threads)
        self.job = job
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        dtype = getattr(torch, job.dtype)
        tokenizer = load_tokenizer(job.model)
        model = load_for_learner(job.model, job.learner, dtype)
        lora = job.learner.lora
        adapter = Adapter(model, lora, job.seed, job.model.path) if lora.rank else None
        self.engine = DeepSpeedEngine(model, job.learner, dtype, adapter)
        check_model(self.engine, "model.path", parity.THRESHOLDS[job.dtype], job.learner.packing)
        threshold = parity.threshold(job.learner.parity_threshold, job.dtype)
        self.learner = make_learner(job, self.engine, threshold)
        self.publisher = Publisher(job, start, self.engine, threshold)
        self.intake = Intake(job, batches, self.publisher, self.engine.device)
        self.recorder = Recorder(job.run_dir, job.loggers, self.engine.device, job.ledger_tokens)
        self.history = HistoryKeeper(job.history_rows, job.rollout, job.coordinator, start.generation)
        self.replays = ReplayPool(job.algorithm.replay_age)
        files = (self.history, self.learner.buffer, self.replays)
        more = (*(each.content for each in files), self.engine.tensors.adapter_files)
        self.saver = Saver(job.store, job.trainer, self.engine, model, tokenizer, more)
        self.timeline = Timeline(job.run_dir, self.rank)
        self.evaluations = Evaluations(job.reader, self.intake, self.learner, self.recorder, self.timeline)
        self.skipped_in_a_row = 0  # steps whose update was not finite
        self.best = BestStep(job.run_dir, job.trainer)
        self.step = start.step
        self._resume()
        self.checkpoints = Checkpoints(job, self.saver, self.recorder, self.timeline, self.step)

    def _resume(self) -> None:
        """Takes up the newest whole checkpoint, that of the step where the run begins."""
        step = self.step
        # What was recorded after the checkpoint is about to be recorded again. It is removed before any rank
        # goes on, so that nothing new is removed with it.
        if self.rank == 0:
            rewind(self.job.run_dir, step)
            self.job.store.discard_after(step)
        dist.barrier()
        if step > 0:
            self.saver.load(step)
            self.learner.buffer.load(self.job.store, step)
            self.replays.load(self.job.store, step)
            # The process may have died between the checkpoint and its record.
            self.recorder.checkpoint(step, self.job.store.address(step))
        self.history.begin(self.job.store, step)
        self._publish(step)

    def _publish(self, version: int) -> None:
        """Gives the engines the weights of a version that an evaluation or a training rollout may need."""
        trainer, plan = self.job.trainer, self.job.plan
        last = min(version + self.job.rollout.max_staleness, trainer.steps - 1)
        stages = [self.job.algorithm.stage(step, trainer.steps) for step in range(version, last + 1)]
        if plan.evaluates(version) or any(stage.algorithm.uses_rollouts for stage in stages):
            self.publisher.publish(version)

    def run(self) -> bool:
        """Trains until the last step, or until the learners are to leave; then they leave a checkpoint.

        Returns:
            Whether they have taken everything of the run from the stream.
        """
        plan = self.job.plan
        stop = plan.stream_stop(self.step)
        for step in range(self.step, stop):
            if not plan.evaluates_beside and not self.evaluations.evaluate(step):
                return self.save(final=False)
            if self._is_patience_over(step):
                self.save(final=True)
                self.saver.finish(self.step, self.job.trainer.stopping_rule)
                return False
            if not self._train(step):
                return self.save(final=False)
        # The stream of a very long run ends before the last step; the next start goes on from a checkpoint.
        if stop < plan.steps or not self.evaluations.evaluate(stop):
            return self.save(final=False)
        if self.step > self.checkpoints.saved:
            return self.save(final=True, finished=True)
        self.saver.finish(self.step)
        return True

    def _is_patience_over(self, step: int) -> bool:
        """Whether the evaluations after `step` steps end the training; a collective where there are any."""
        if self.job.trainer.patience is None or not self.job.plan.evaluates(step):
            return False
        over = self.rank == 0 and self.best.is_patience_over()
        if over:
            trainer = self.job.trainer
            why = f"{trainer.patience} evaluations were not better by {trainer.keep_best}"
            journal.record_event(self.job.run_dir, "trainer", f"training ends after step {step}: {why}")
        return any_rank(over, self.engine.device)

    def _train(self, step: int) -> bool:
        """One step: its groups, update, publication, records, and a checkpoint if one is due.

        Returns:
            False if the learners are to leave instead.
        """
        mark = time.perf_counter()
        groups = self.intake.take(self.job.plan.training(step))
        if groups is None:
            return False
        probe_difference = self.intake.probe_difference
        self.checkpoints.settle(wait=False)
        waited = time.perf_counter()
        self.evaluations.score_beside(step)
        started = time.perf_counter()
        torch.manual_seed(self.job.seed * 2**20 + step)  # so that no random state needs to be saved
        stage = self.job.algorithm.stage(step, self.job.trainer.steps)
        self.replays.attach(stage.algorithm, groups)
        learned_metrics = self._learn(step, groups, stage)
        self.replays.add(step, groups)
        self.step = step + 1
        learned = time.perf_counter()
        if not self.evaluations.take_beside(step, self.checkpoints.saved):
            return False
        evaluated = time.perf_counter()
        # Weights that admit a group come after the history that chooses its prompt.
        self.history.add(step, groups)
        # Engines wait for the weights: they are published before anything is written.
        self._publish(self.step)
        phases = {
            "rollout wait": (mark, waited),
            "update": (started, learned),
            "publish": (evaluated, time.perf_counter()),
        }
        record = {"step": step, "policy_version": step, **learned_metrics}
        record |= {"parity/probe_abs_logprob_diff": probe_difference} if self.publisher.probes else {}
        self._record(step, groups, record, phases)
        self.checkpoints.save_if_due(self.step)
        return True

    def _record(
        self, step: int, groups: list[Group], record: dict[str, float], phases: dict[str, tuple[float, float]]
    ) -> None:
        """Writes what is known of a step.

        Args:
            record: metrics of the update.
            phases: spans of the step so far.
        """
        self.evaluations.record(step)  # where it came before the update, it is recorded already
        started = time.perf_counter()
        self.recorder.ledger(step, [*groups, *self.learner.buffer.used])
        record |= metrics.group_metrics(groups, step, self.engine.device)
        record |= self.replays.metrics(groups, self.engine.device)
        names = {"time/rollout_wait": "rollout wait", "time/learner": "update", "time/publish": "publish"}
        record |= {name: phases[phase][1] - phases[phase][0] for name, phase in names.items()}
        record["time/evaluation"] = self.evaluations.seconds
        if self.rank == 0:
            asked = self.job.coordinator.engine_metrics.remote(self.intake.batches.groups, self.step)
            record |= {"learners": self.world_size, **ray.get(asked)}
        phases = phases | {"record": (started, time.perf_counter())}
        record["time/step"] = sum(end - start for start, end in phases.values())
        record["time/recorded"] = time.time()
        self.recorder.step(record | metrics.utilization(record) | step_cost(record, self.job.parameters))
        self.timeline.step(step, phases, groups)

    def _learn(self, step: int, groups: list[Group], stage: Stage) -> dict[str, float]:
        """Updates the policy, or skips a step that is not finite; returns its metrics, equal on all ranks.

        Raises:
            NonFiniteError: trainer.on_nonfinite or trainer.max_nonfinite ends the run here.
        """
        try:
            learned = self.learner.step(groups, step, stage, self._temperature(stage))
        except NonFiniteError as error:
            dump(self.job.run_dir, step, self.rank, error.found)
            self.skipped_in_a_row += 1
            limit = self.job.trainer.max_nonfinite
            if self.job.trainer.on_nonfinite == "stop" or self.skipped_in_a_row > limit:
                ending = "The run ends here, and writes no checkpoint: the newest one is as it was."
                raise NonFiniteError(f"{error} {ending}", error.found) from None
            if self.rank == 0:
                message = f"{error} The step is skipped: {self.skipped_in_a_row} of {limit} in a row."
                journal.record_event(self.job.run_dir, "nonfinite", message)
            return {"tokens": 0.0, "steps/skipped_nonfinite": 1.0}
        self.skipped_in_a_row = 0
        return {**learned, "steps/skipped_nonfinite": 0.0}

    def _temperature(self, stage: Stage) -> float:
        """Of the policy that is trained: that of sampling, or 1 where nothing is sampled."""
        return self.job.rollout.temperature if stage.algorithm.uses_rollouts else 1.0

    def save(self, final: bool, finished: bool = False) -> bool:
        """Writes a checkpoint of the steps done so far unless there is one (`Checkpoints.save`); gives
        `finished`."""
        if not self.evaluations.missing:
            self.checkpoints.save(self.step, final, finished)
        return finished

    def close(self) -> None:
        self.publisher.close()
        self.checkpoints.close()
        self.recorder.close()
