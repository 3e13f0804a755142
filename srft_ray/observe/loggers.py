"""Where learners send metrics beside the run directory: TensorBoard and Ray; wandb and MLflow if asked for.

A logger is called with (step, values), and with (-1, {}) at the end.
"""

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from srft_ray.errors import nearest, require

Logger = Callable[[int, Mapping[str, float]], None]
RAY_GAUGES = {  # name after srft_ray_: key of a step's record, description
    "step": ("step", "optimizer step that the other figures are of, from 0"),
    "step_seconds": ("time/step", "duration of the step, seconds"),
    "tokens_per_second": ("tokens/per_second", "tokens that entered the update by the duration of the step"),
    "reward_mean": ("reward/mean", "mean reward of the step's rollouts"),
    "staleness_mean": ("staleness/mean", "mean age of the policy that sampled the rollouts, versions"),
    "queue_depth": ("queue/depth", "groups that are ready and not yet taken by a learner"),
    "engine_utilization": (
        "utilization/engine",
        "share of the step in which its groups were generated, 0 to 1",
    ),
    "learner_utilization": ("utilization/learner", "share of the step spent in the update, 0 to 1"),
    "entropy_rollout": ("entropy/rollout", "mean entropy of the policy on the rollouts, nats per token"),
}


def check_loggers(names: list[str]) -> None:
    """Raises UserError for an unknown logger or one that is not installed."""
    for name in names:
        require(name in OPTIONAL, f"run.loggers has {name!r}: {nearest(name, OPTIONAL)}")
        require(
            importlib.util.find_spec(name) is not None,
            f"run.loggers has {name!r}, which is not installed: pip install {name}.",
        )


@dataclass(frozen=True)
class LoggerSettings:
    """What loggers need of a run.

    Attributes:
        names: of the optional loggers.
        settings: the resolved config as nested dictionaries, for loggers that keep it.
    """

    run_name: str
    run_dir: Path
    names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def make_loggers(run: LoggerSettings) -> list[Logger]:
    """The loggers of a run, for the process that calls this."""
    always = [_tensorboard(run), ray_metrics(run)]
    return always + [OPTIONAL[name](run) for name in run.names]


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, Real) and key != "step"}


def _tensorboard(run: LoggerSettings) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.run_dir / "tensorboard"))

    def log(step: int, values: Mapping[str, float]) -> None:
        for key, value in _numbers(values).items():
            writer.add_scalar(key, value, step)
        if values:
            writer.flush()
        else:
            writer.close()  # with its thread

    return log


def ray_metrics(run: LoggerSettings) -> Logger:
    """Gauges of the Ray process it runs in, tagged with the run. A record sets those whose keys it has."""
    from ray.util.metrics import Gauge

    gauges = {
        key: Gauge(f"srft_ray_{name}", text, tag_keys=("run",)) for name, (key, text) in RAY_GAUGES.items()
    }

    def log(step: int, values: Mapping[str, float]) -> None:
        for key in gauges.keys() & values.keys():
            gauges[key].set(float(values[key]), tags={"run": run.run_name})

    return log


def _wandb(run: LoggerSettings) -> Logger:
    import wandb

    settings = dict(run.settings)
    started = wandb.init(project="srft-ray", name=run.run_name, dir=str(run.run_dir), config=settings)

    def log(step: int, values: Mapping[str, float]) -> None:
        if values:
            started.log(_numbers(values), step=step)
        else:
            started.finish()

    return log


def _mlflow(run: LoggerSettings) -> Logger:
    import mlflow

    mlflow.set_experiment("srft-ray")
    mlflow.start_run(run_name=run.run_name)

    def log(step: int, values: Mapping[str, float]) -> None:
        if values:
            # It takes no other character in a name, such as the one of avg@k.
            named = {re.sub(r"[^\w\-. :/]", "_", key): value for key, value in _numbers(values).items()}
            mlflow.log_metrics(named, step=step)
        else:
            mlflow.end_run()

    return log


OPTIONAL = {"wandb": _wandb, "mlflow": _mlflow}
