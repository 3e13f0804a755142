"""What learners write of a step to the run directory: metrics, evaluations, checkpoints, and the ledger."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray.data.plan import Segment
from srft_ray.observe import journal, ledger, ledger_windows
from srft_ray.observe.evaluation import Scored, evaluation_figures, evaluation_record
from srft_ray.observe.loggers import LoggerSettings, make_loggers


class Recorder:
    """One rank's part in the records of a run. Every method is a collective."""

    def __init__(self, run_dir: Path, loggers: LoggerSettings, device: torch.device) -> None:
        self.run_dir = run_dir
        self.device = device
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.loggers = make_loggers(loggers) if self.rank == 0 else []

    def ledger(self, step: int, groups: Sequence[Group]) -> None:
        """Writes this rank's rows of the ledger."""
        self._write(step, lambda: ledger.write(self.run_dir, step, self.rank, groups))

    def step(self, record: dict[str, float]) -> None:
        """Writes the metrics of a step, which rank 0 holds, and tells them to the loggers."""
        step = int(record["step"])
        path = self.run_dir / journal.METRICS
        self._write(step, lambda: self.rank == 0 and journal.append_json(path, record))
        for logger in self.loggers:
            logger(step, record)

    def evaluation(self, segment: Segment, groups: Sequence[Group]) -> None:
        """Gathers the evaluation groups of all ranks and writes the figures of the set."""
        mine = [Scored.of(group) for group in groups if group.group_id >= 0]
        shares: list[list[Scored]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(shares, mine)
        every = [scored for share in shares for scored in share]
        record = evaluation_record(segment.dataset, segment.step, every)
        path = self.run_dir / journal.EVALUATIONS
        self._write(segment.step, lambda: self.rank == 0 and journal.append_json(path, record))
        figures = evaluation_figures(record)
        for logger in self.loggers:
            logger(segment.step, figures)

    def checkpoint(self, step: int, path: str) -> None:
        """Records that the checkpoint of `step` is complete, unless it is recorded already, and merges what
        it has made final of the ledger."""

        def record() -> None:
            journal.record_checkpoint(self.run_dir, step, path)
            ledger_windows.merge(self.run_dir, step)

        self._write(step, lambda: self.rank == 0 and record())

    def close(self) -> None:
        """Tells the loggers that there is no more; not a collective."""
        for logger in self.loggers:
            logger(-1, {})

    def _write(self, step: int, action: Callable[[], object]) -> None:
        """Acts on the run directory; no rank goes on without what another rank could not write.

        Raises:
            RuntimeError: on all ranks, if the storage refused one of them.
        """
        error = None
        try:
            action()
        except OSError as refused:
            error = str(refused)
        failed = torch.tensor(float(error is not None), device=self.device)
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        if failed:
            errors: list[str | None] = [None] * self.world_size
            dist.all_gather_object(errors, error)
            raise RuntimeError(
                f"Step {step} cannot be recorded in {self.run_dir} ({next(filter(None, errors))}): make "
                "room, and run the same command again."
            )
