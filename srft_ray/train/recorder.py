"""What learners write of a step to the run directory: metrics, evaluations, checkpoints, and the ledger."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray.data.plan import Segment
from srft_ray.observe import evaluation_ledger, journal, ledger, ledger_windows
from srft_ray.observe.evaluation import evaluation_figures, evaluation_record
from srft_ray.observe.loggers import Logger, LoggerSettings, make_loggers


class Recorder:
    """One rank's part in the records of a run. Every method is a collective."""

    def __init__(
        self, run_dir: Path, loggers: LoggerSettings, device: torch.device, tokens: bool = False
    ) -> None:
        """`tokens`: whether the ledger has the columns of each token."""
        self.run_dir = run_dir
        self.tokens = tokens
        self.device = device
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.loggers: list[Logger] = []
        self._write("The start", lambda: self.rank == 0 and self.loggers.extend(make_loggers(loggers)))

    def ledger(self, step: int, groups: Sequence[Group]) -> None:
        """Writes this rank's rows of the ledger."""
        rows = (self.run_dir, step, self.rank, groups, self.tokens)
        self._write(f"Step {step}", lambda: ledger.write(*rows))

    def step(self, record: dict[str, float]) -> None:
        """Writes the metrics of a step, which rank 0 holds, and tells them to the loggers."""
        step = int(record["step"])

        def write() -> None:
            journal.append_json(self.run_dir / journal.METRICS, record)
            self._tell(step, record)

        self._write(f"Step {step}", lambda: self.rank == 0 and write())

    def evaluation(self, segment: Segment, groups: Sequence[Group], figures: Mapping[str, float]) -> None:
        """Writes the rows of an evaluation set to its ledger, and its figures, which are computed from it.

        Args:
            figures: of the set's demonstrations, from the learners.
        """
        name, step = segment.dataset, segment.step
        what = f"The evaluation after step {step}"
        self._write(what, lambda: evaluation_ledger.write_part(self.run_dir, name, step, self.rank, groups))
        # All parts are there: the write above returns only when no rank has failed.
        self._write(what, lambda: self.rank == 0 and self._join(name, step, figures))

    def _join(self, name: str, step: int, figures: Mapping[str, float]) -> None:
        """The table comes before its figures, so that every line of figures has its table."""
        table = evaluation_ledger.join(self.run_dir, name, step, range(self.world_size))
        record = {**evaluation_record(name, step, table), **figures}
        journal.append_json(self.run_dir / journal.EVALUATIONS, record)
        self._tell(step, evaluation_figures(record))

    def checkpoint(self, step: int, path: str) -> None:
        """Records that the checkpoint of `step` is complete, unless it is recorded already, and merges what
        it has made final of the ledger."""

        def record() -> None:
            journal.record_checkpoint(self.run_dir, step, path)
            ledger_windows.merge(self.run_dir, step)

        self._write(f"The checkpoint of step {step}", lambda: self.rank == 0 and record())

    def close(self) -> None:
        """Tells the loggers that there is no more; not a collective."""
        self._tell(-1, {})

    def _tell(self, step: int, figures: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger(step, figures)

    def _write(self, what: str, action: Callable[[], object]) -> None:
        """Acts on the run directory; no rank goes on without what another rank could not write.

        Args:
            what: is recorded, for a message.

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
                f"{what} cannot be recorded in {self.run_dir} ({next(filter(None, errors))}): make "
                "room, and run the same command again."
            )
