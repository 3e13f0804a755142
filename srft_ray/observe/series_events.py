"""Events of a series: runs that are trained one after another. Light to import, for the coordinator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srft_ray.observe.journal import CHECKPOINTS, last_record, record_event


@dataclass(frozen=True)
class SeriesEvents:
    """Records what happens, called with (kind, message), in the directory of the run that is trained.

    Attributes:
        runs: directory and last step of each run, in the order of training.
    """

    runs: Sequence[tuple[Path, int]]

    @property
    def present(self) -> int:
        """The number of the run that is trained: the first one without a checkpoint of its last step."""
        for number, (run_dir, steps) in enumerate(self.runs):
            saved = last_record(run_dir / CHECKPOINTS)
            if saved is None or saved["step"] < steps:
                return number
        return len(self.runs) - 1

    def __call__(self, kind: str, message: str) -> None:
        run_dir, _ = self.runs[self.present]
        record_event(run_dir, kind, message)
