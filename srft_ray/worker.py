"""One learner under Ray Train: takes groups from the stream, updates, publishes, records."""
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray import checkpoint, metrics
from srft_ray.data.blocks import groups_of
from srft_ray.data.plan import Segment, needs_engines
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.engine_deepspeed import DeepSpeedEngine, ReferenceModel
from srft_ray.learner import Learner
from srft_ray.loggers import make_loggers
from srft_ray.models import load_model
from srft_ray.train_loop import Job
from srft_ray.weights import transport_class


class LearnerWorker:
    """One rank. It consumes the segments of the plan in order, waits for groups, and unblocks the engines by publishing."""

    def __init__(self, job: Job, batches: Iterator[dict[str, Any]]) -> None:
        if job.threads:
            torch.set_num_threads(job.threads)
        self.job, self.config, self.run_dir, self.batches = job, job.config, job.config.run_dir, batches
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        torch.manual_seed(self.config.run.seed)
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
        self.transport = transport_class(rollout.transport)(job.gate, rollout) if needs_engines(self.config, job.algorithm) else None
        self.loggers = make_loggers(self.config) if self.rank == 0 else []
        self.step = self._resume()

    def _reference(self, dtype: torch.dtype) -> ReferenceModel:
        path = self.config.learner.reference or self.config.model.path
        return ReferenceModel(load_model(self.config, dtype, path), self.config.learner, dtype, self.engine.device)

    def _resume(self) -> int:
        step = checkpoint.latest_step(self.run_dir)
        dist.barrier()
        if self.rank == 0:
            metrics.truncate(self.run_dir, step)
            checkpoint.discard_after(self.run_dir, step)
        dist.barrier()
        if step > 0:
            self.engine.load(checkpoint.checkpoint_folder(self.run_dir, step))
            self._publish(step)
        return step

    def run(self) -> None:
        mark = time.perf_counter()
        for segment, groups, waited in self._segments():
            if segment.dataset == "train":
                self._train(segment.step, groups, waited, mark)
            else:
                self._evaluate(segment, groups)
            mark = time.perf_counter()
        if checkpoint.latest_step(self.run_dir) < self.step:
            self.save(self.step)

    def _segments(self) -> Iterator[tuple[Segment, list[Group], float]]:
        """(segment, this rank's share of its groups, seconds waited for them)."""
        for segment in self.job.plan.segments(self.step):
            started, groups = time.perf_counter(), []
            while len(groups) < segment.padded // self.world_size:
                groups.extend(groups_of(next(self.batches)))
            strangers = {(g.dataset, g.step) for g in groups} - {(segment.dataset, segment.step)}
            if strangers:
                raise RuntimeError(f"The stream is out of order: {segment} received groups of {sorted(strangers)}.")
            yield segment, groups, time.perf_counter() - started

    def _train(self, step: int, groups: list[Group], waited: float, mark: float) -> None:
        started = time.perf_counter()
        stage = self.job.algorithm.stage(step, self.config.trainer.steps)
        temperature = self.config.rollout.temperature if stage.algorithm.uses_rollouts else 1.0
        record = {"step": step, "policy_version": step, **self.learner.step(groups, step, stage, temperature)}
        self.step, learned = step + 1, time.perf_counter()
        if self.step < self.config.trainer.steps or self.job.plan.evaluates(self.step):
            self._publish(self.step)
        published = time.perf_counter()
        metrics.write_ledger(self.run_dir, step, self.rank, groups)
        record |= metrics.group_metrics(groups, step, self.engine.device)
        record |= {"time/rollout_wait": waited, "time/learner": learned - started, "time/publish": published - learned}
        record |= {"time/step": time.perf_counter() - mark}
        self._record(record | metrics.utilization(record))
        if self.config.trainer.checkpoint_every and self.step % self.config.trainer.checkpoint_every == 0:
            self.save(self.step)

    def _publish(self, version: int) -> None:
        if self.transport:
            self.transport.publish(version, self.engine.weights(), sender=self.rank == 0)

    def _evaluate(self, segment: Segment, groups: list[Group]) -> None:
        mine = [metrics.Scored.of(group) for group in groups if group.group_id >= 0]
        shares: list[list[metrics.Scored]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(shares, mine)
        if self.rank == 0:
            record = metrics.evaluation_record(segment.dataset, segment.step, [scored for share in shares for scored in share])
            metrics.append_json(self.run_dir / "evaluations.jsonl", record)
            values = {f"eval/{segment.dataset}/avg@{record['samples']}": record["avg"], f"eval/{segment.dataset}/entropy": record["entropy"]}
            for logger in self.loggers:
                logger(segment.step, values)

    def _record(self, record: dict[str, float]) -> None:
        if self.rank == 0:
            metrics.append_json(self.run_dir / "metrics.jsonl", record)
            for logger in self.loggers:
                logger(int(record["step"]), record)

    def save(self, step: int) -> None:
        """Writes the checkpoint of `step` optimizer steps through Ray Train's storage; a collective."""
        with tempfile.TemporaryDirectory(dir=os.environ.get("RAY_TMPDIR")) as folder:
            self.engine.save(Path(folder))
            checkpoint.write_hf(self.model, self.tokenizer, self.engine.weights(), Path(folder) / "hf", sender=self.rank == 0)
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=f"step-{step}")
        dist.barrier()
        if self.rank == 0:
            checkpoint.mark_complete(self.run_dir, step)

    def close(self) -> None:
        for logger in self.loggers:
            logger(-1, {})
