"""One learner under Ray Train: takes groups from the stream, updates, publishes, records."""

import time
from collections.abc import Callable

import ray
import ray.train
import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray.data.blocks import groups_of
from srft_ray.data.plan import Segment, needs_engines
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import load_model
from srft_ray.observe import journal, metrics
from srft_ray.observe.loggers import make_loggers
from srft_ray.run.elasticity import preempted
from srft_ray.sync.transport import transport_class
from srft_ray.train.deepspeed_engine import DeepSpeedEngine, ReferenceModel
from srft_ray.train.entry import Batches, Job
from srft_ray.train.learner import Learner
from srft_ray.train.saving import Saver

POLL_INTERVAL_S = (
    0.5  # between looks, while there is nothing to train on, at whether the learners are to leave
)


class LearnerWorker:
    """One rank. It consumes the segments of the plan in order, waits for groups, and unblocks the engines by publishing."""

    def __init__(self, job: Job, batches: Batches) -> None:
        if job.threads:
            torch.set_num_threads(job.threads)
        self.job, self.config, self.run_dir, self.batches = job, job.config, job.config.run_dir, batches
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        dtype = getattr(torch, job.dtype)
        self.tokenizer = load_tokenizer(self.config.model)
        self.model = load_model(self.config, dtype)
        self.engine = DeepSpeedEngine(self.model, self.config.learner, dtype)
        threshold = self.config.learner.parity_threshold
        if threshold is None:
            threshold = 1e-3 if dtype == torch.float32 else 0.1
        reference = self._reference(dtype) if "reference" in job.algorithm.needs else None
        self.learner = Learner(self.engine, self.config.learner, threshold, reference)
        rollout = self.config.rollout
        self.transport = (
            transport_class(rollout.transport)(job.coordinator, rollout)
            if needs_engines(self.config, job.algorithm)
            else None
        )
        self.loggers = make_loggers(self.config) if self.rank == 0 else []
        self.saver = Saver(job.store, self.config, self.engine, self.model, self.tokenizer)
        self.taken = 0  # groups, by all learners
        self.step = self.saved = self._resume()

    def _reference(self, dtype: torch.dtype) -> ReferenceModel:
        path = self.config.learner.reference or self.config.model.path
        return ReferenceModel(
            load_model(self.config, dtype, path), self.config.learner, dtype, self.engine.device
        )

    def _resume(self) -> int:
        step = ray.get(self.job.coordinator.start.remote())
        if self.rank == 0:
            journal.truncate(self.run_dir, step)
            self.job.store.discard_after(step)
        dist.barrier()
        if step > 0:
            self.saver.load(step)
        self._publish(step)
        return step

    def run(self) -> None:
        """Until the last step, or until the learners are to leave; then they leave a checkpoint."""
        mark = time.perf_counter()
        for segment in self.job.plan.segments(self.step):
            groups = self._wait_for(segment)
            if self._leaving(groups is None):
                return self.save(final=False)
            self.taken += segment.padded
            if segment.dataset == "train":
                self._train(segment.step, groups, time.perf_counter() - mark, mark)
            else:
                self._evaluate(segment, groups)
            mark = time.perf_counter()
        if self.step > self.saved:
            return self.save(final=True, finished=True)
        return self.saver.finish(self.step)

    def _wait_for(self, segment: Segment) -> list[Group] | None:
        """This rank's share of a segment's groups; None if the learners are to leave before it is complete.

        Raises:
            TimeoutError: naming what did not come within rollout.timeout_s.
        """
        started, groups, share = time.monotonic(), list[Group](), segment.padded // self.world_size
        while len(groups) < share:
            block = self.batches.next(POLL_INTERVAL_S)
            if block is not None:
                groups.extend(groups_of(block))
            elif self._asked_to_leave():
                return None
            elif time.monotonic() - started > self.config.rollout.timeout_s:
                raise TimeoutError(
                    f"Step {segment.step}: after rollout.timeout_s={self.config.rollout.timeout_s:.0f} s a learner has {len(groups)} "
                    f"of {share} groups of {segment.dataset}. The engines are stuck, cannot be placed, or need longer."
                )
        strangers = {(g.dataset, g.step) for g in groups} - {(segment.dataset, segment.step)}
        if strangers:
            raise RuntimeError(
                f"The stream is out of order: {segment} received groups of {sorted(strangers)}."
            )
        return groups

    def _asked_to_leave(self) -> bool:
        """Whether the driver, the scaling of the learners, or a machine that is taken away asks this rank to leave."""
        return preempted() or bool(ray.get(self.job.coordinator.leave_request.remote()))

    def _leaving(self, without_groups: bool) -> bool:
        """Whether any rank is to leave; all find the same."""
        leave = without_groups or preempted() or (self.rank == 0 and self._asked_to_leave())
        flag = torch.tensor(float(leave), device=self.engine.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _train(self, step: int, groups: list[Group], waited: float, mark: float) -> None:
        started = time.perf_counter()
        torch.manual_seed(self.config.run.seed * 2**20 + step)  # so that no random state needs to be saved
        stage = self.job.algorithm.stage(step, self.config.trainer.steps)
        temperature = self.config.rollout.temperature if stage.algorithm.uses_rollouts else 1.0
        record = {"step": step, "policy_version": step, **self.learner.step(groups, step, stage, temperature)}
        self.step, learned = step + 1, time.perf_counter()
        if self.step < self.config.trainer.steps or self.job.plan.evaluates(self.step):
            self._publish(self.step)
        published = time.perf_counter()
        self._write(lambda: metrics.write_ledger(self.run_dir, step, self.rank, groups))
        record |= metrics.group_metrics(groups, step, self.engine.device)
        record |= {
            "time/rollout_wait": waited,
            "time/learner": learned - started,
            "time/publish": published - learned,
        }
        if self.rank == 0:
            record |= {
                "learners": self.world_size,
                **ray.get(self.job.coordinator.figures.remote(self.taken)),
            }
        record |= {"time/step": time.perf_counter() - mark}
        self._record(record | metrics.utilization(record))
        if (
            self.config.trainer.checkpoint_every
            and self.step % self.config.trainer.checkpoint_every == 0
            and self.step < self.config.trainer.steps
        ):
            self.save(final=False)

    def _publish(self, version: int) -> None:
        if self.transport:
            self.transport.publish(
                version, self.engine.weights() if version else iter(()), sender=self.rank == 0
            )

    def _evaluate(self, segment: Segment, groups: list[Group]) -> None:
        mine = [metrics.Scored.of(group) for group in groups if group.group_id >= 0]
        shares: list[list[metrics.Scored]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(shares, mine)
        record = metrics.evaluation_record(
            segment.dataset, segment.step, [scored for share in shares for scored in share]
        )
        self._write(
            lambda: self.rank == 0 and journal.append_json(self.run_dir / "evaluations.jsonl", record)
        )
        if self.rank == 0:
            values = {
                f"eval/{segment.dataset}/avg@{record['samples']}": record["avg"],
                f"eval/{segment.dataset}/entropy": record["entropy"],
            }
            for logger in self.loggers:
                logger(segment.step, values)

    def _record(self, record: dict[str, float]) -> None:
        self._write(lambda: self.rank == 0 and journal.append_json(self.run_dir / "metrics.jsonl", record))
        for logger in self.loggers:
            logger(int(record["step"]), record)

    def _write(self, action: Callable[[], object]) -> None:
        """Acts on the run directory; a collective, so that no rank goes on without what another could not write.

        Raises:
            RuntimeError: on all ranks, if the storage refused one of them.
        """
        error = None
        try:
            action()
        except OSError as refused:
            error = str(refused)
        failed = torch.tensor(float(error is not None), device=self.engine.device)
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        if failed:
            errors: list[str | None] = [None] * self.world_size
            dist.all_gather_object(errors, error)
            raise RuntimeError(
                f"Step {self.step} cannot be recorded in {self.run_dir} ({next(filter(None, errors))}): make room, and run the same "
                "command again."
            )

    def save(self, final: bool, finished: bool = False) -> None:
        """Writes a checkpoint of the steps done so far unless there is one; a collective. `final`: there will be no other;
        `finished`: and the run is complete."""
        if self.step > self.saved:
            about = {
                "policy_version": self.step,
                "position": self.job.plan.position(self.step),
                "dtype": self.job.dtype,
                "finished": finished,
            }
            if self.saver.save(self.step, final, about):
                self.saved = self.step

    def close(self) -> None:
        for logger in self.loggers:
            logger(-1, {})
