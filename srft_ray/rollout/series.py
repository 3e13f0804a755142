"""The actor of the pool for a series: runs that are sampled by one engine, one after another."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srft_ray.data.reader import GroupReader
from srft_ray.rollout.base_evaluation import Origin, base_evaluations
from srft_ray.rollout.settings import RolloutSettings
from srft_ray.rollout.worker import RolloutWorker


@dataclass(frozen=True)
class RolloutRun:
    """One run of a series.

    Attributes:
        settings: those of the other runs but for seed and directory, and in an evaluation the model.
        generation: of the learners' start of the run.
    """

    settings: RolloutSettings
    reader: GroupReader
    generation: int


class SeriesWorker:
    """Gives each block to the worker of its run; all workers have the engine of the first.

    Blocks of a run wait here while the one before is trained: the coordinator does not admit them.
    """

    def __init__(self, runs: Sequence[RolloutRun], coordinator: Any) -> None:
        first, *later = runs
        origins = [Origin(run.settings.model.path, run.settings.seed) for run in runs]
        base, *later_bases = base_evaluations(origins)
        worker = RolloutWorker(first.settings, first.reader, coordinator, first.generation, base)
        self._workers = [
            worker,
            *(
                worker.for_run(run.settings, run.reader, run.generation, base)
                for run, base in zip(later, later_bases, strict=True)
            ),
        ]
        self._begun = False
        self._lock = threading.Lock()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        worker = self._workers[int(block["run"][0])]
        with self._lock:
            if not self._begun:  # a process that takes the place of a dead one begins with a later run
                worker.write_start()
            self._begun = True
        return worker(block)

    def close(self) -> None:
        """The engine's process ends in order."""
        self._workers[0].transport.close()
