"""A series: runs that one command trains one after another, with the same engines and learners' processes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft_ray.config.resolve import Resolved
from srft_ray.observe.series_events import SeriesEvents
from srft_ray.run.directory import is_done
from srft_ray.run.preflight import Prepared, plan_stream

# Keys by section that the process of an engine, those of the learners and their placement do not depend on.
# Where others differ, processes are started anew.
OF_A_RUN = {
    "run": {"name", "dir", "seed", "resume", "loggers"},
    "algorithm": None,
    "ledger": None,
    "learner": {
        "lr",
        "lr_schedule",
        "warmup_steps",
        "min_lr_ratio",
        "betas",
        "eps",
        "weight_decay",
        "max_grad_norm",
        "mini_batches",
        "reference",
        "critic",
        "critic_lr",
    },
    "trainer": {
        "steps",
        "groups_per_step",
        "first_group",
        "checkpoint_every",
        "checkpoint_path",
        "keep_checkpoints",
        "keep_every",
        "evaluate_every",
    },
}


@dataclass(frozen=True)
class Run:
    """A run of a series, with its id."""

    prepared: Prepared
    id: str

    @property
    def run_dir(self) -> Path:
        return self.prepared.resolved.run_dir

    @property
    def saved(self) -> int:
        """Steps that it has saved."""
        return self.prepared.store.latest()

    @property
    def is_done(self) -> bool:
        """As `directory.is_done`."""
        prepared = self.prepared
        trainer = prepared.resolved.config.trainer
        return is_done(prepared.store, trainer, prepared.plan, prepared.evaluation.keys())


def events_of(runs: Sequence[Run]) -> SeriesEvents:
    return SeriesEvents([(run.run_dir, run.prepared.resolved.config.trainer.steps) for run in runs])


def present(runs: Sequence[Run]) -> Run:
    """The run that is trained."""
    return runs[events_of(runs).present]


def where(runs: Sequence[Run]) -> str:
    """How far the series has come, for a message."""
    run = present(runs)
    of_run = f" of the run {run.run_dir.name}" if len(runs) > 1 else ""
    return f"after {run.saved} saved steps{of_run}"


def series_of(runs: Sequence[Resolved]) -> list[list[int]]:
    """The numbers of the runs of each series, in the order of the first run of each."""
    found: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        found.setdefault(shared_settings(run) or f"alone {number}", []).append(number)
    return list(found.values())


def shared_settings(run: Resolved) -> str:
    """What runs of one series have in common, as text; empty for a run that cannot be in a series."""
    config = run.config
    # Without engines a run starts fast. One that ends before its last step leaves groups in the stream.
    if not run.needs_engines or config.trainer.patience is not None:
        return ""
    sections: dict[str, Any] = {}
    for name, values in dataclasses.asdict(config).items():
        own = OF_A_RUN.get(name, set())
        if own is not None:
            sections[name] = {key: value for key, value in values.items() if key not in own}
    block = plan_stream(run, {}).block
    return repr((sections, block, id(run.verifier) if run.verifier else 0))
